# SPDX-License-Identifier: Apache-2.0
"""Namespaces and their labels, which hold defaults such as containerd.io/defaults/runtime."""

from __future__ import annotations

from typing import Any

from teu.api.events import namespace_pb2 as namespace_events
from teu.containerd.core.database import Database, dump_labels, set_labels
from teu.containerd.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from teu.containerd.core.events import Exchange
from teu.containerd.core.identifiers import validate_identifier
from teu.containerd.core.rows import Row, must_be_whole


def _labels(name: str, text: Any) -> dict[str, str]:
    read = Row(f"namespace {name}")
    labels = read.labels(text)
    return read.told(labels)


class Namespaces:
    """containerd.services.namespaces.v1, without its wire."""

    def __init__(self, database: Database, events: Exchange) -> None:
        self._database = database
        self._events = events

    def labels(self, name: str) -> dict[str, str]:
        """The labels of a namespace; none where there is no such namespace, as with containerd."""
        row = self._database.one("SELECT labels FROM namespaces WHERE name = ?", (name,))
        return _labels(name, row[0]) if row else {}

    def all(self) -> dict[str, dict[str, str]]:
        """The labels of all namespaces, by name."""
        rows = self._database.all("SELECT name, labels FROM namespaces ORDER BY name")
        return {name: _labels(name, labels) for name, labels in rows}

    def create(self, name: str, labels: dict[str, str]) -> None:
        """Make a namespace. Raises AlreadyExists, and InvalidArgument for a bad name or bad labels."""
        validate_identifier(name)
        with self._database.transaction() as execute:
            if execute("SELECT 1 FROM namespaces WHERE name = ?", (name,)).fetchone():
                raise AlreadyExists(f'namespace "{name}"')
            execute("INSERT INTO namespaces VALUES (?, ?)", (name, dump_labels(labels)))
        self._events.publish(name, "/namespaces/create", namespace_events.NamespaceCreate(name=name, labels=labels))

    def update(self, name: str, labels: dict[str, str], paths: list[str]) -> None:
        """Change the labels that `paths` name (labels.KEY), all without any; a namespace that is not there is made.

        Raises InvalidArgument for another path, FailedPrecondition for a damaged record."""
        for path in paths:
            if not path.startswith("labels."):
                raise InvalidArgument(f'cannot update "{path}" field')
        validate_identifier(name)
        with self._database.transaction() as execute:
            self._database.ensure_namespace(name)
            row = execute("SELECT labels FROM namespaces WHERE name = ?", (name,)).fetchone()
            current = _labels(name, row[0])
            must_be_whole(current, f'namespace "{name}"')
            for path in paths or ("labels",):
                set_labels(current, labels, path.partition(".")[2])
            execute("UPDATE namespaces SET labels = ? WHERE name = ?", (dump_labels(current), name))
        self._events.publish(name, "/namespaces/update", namespace_events.NamespaceUpdate(name=name, labels=labels))

    def delete(self, name: str) -> None:
        """Remove an empty namespace. Raises NotFound, and FailedPrecondition while it has something, which is named."""
        with self._database.transaction() as execute:
            kinds = [
                label
                for table, label in (("images", "images"), ("blobs", "blobs"), ("containers", "containers"))
                if execute(f"SELECT 1 FROM {table} WHERE namespace = ? LIMIT 1", (name,)).fetchone()
            ]
            for (snapshotter,) in execute("SELECT DISTINCT snapshotter FROM snapshots WHERE namespace = ?", (name,)):
                kinds.append(f'snapshots on "{snapshotter}" snapshotter')
            if kinds:
                raise FailedPrecondition(f'namespace "{name}" must be empty, but it still has {", ".join(kinds)}')
            if not execute("DELETE FROM namespaces WHERE name = ?", (name,)).rowcount:
                raise NotFound(f'namespace "{name}"')
            for table in ("leases", "lease_resources", "ingests", "sandboxes"):
                execute(f"DELETE FROM {table} WHERE namespace = ?", (name,))
        self._database.mutated(files=True)
        self._events.publish(name, "/namespaces/delete", namespace_events.NamespaceDelete(name=name))
