# SPDX-License-Identifier: Apache-2.0
"""Namespaces: create, list, remove, label."""

from __future__ import annotations

from google.protobuf.field_mask_pb2 import FieldMask

from teu.ctr.client import namespace_pb2 as pb
from teu.ctr.commands import Command, Ctr, need
from teu.ctr.errors import CommandError, NotFound
from teu.ctr.flags import Options, labels
from teu.ctr.output import Failures, label_text, table


def create(ctr: Ctr, options: Options, operands: list[str]) -> None:
    name = need(operands, "please specify a namespace")[0]
    namespace = pb.Namespace(name=name, labels=labels(operands[1:]))
    ctr.client.namespaces.Create(pb.CreateNamespaceRequest(namespace=namespace))


def list_namespaces(ctr: Ctr, options: Options, operands: list[str]) -> None:
    found = ctr.client.namespaces.List(pb.ListNamespacesRequest()).namespaces
    found = sorted(found, key=lambda namespace: namespace.name)
    if options["quiet"]:
        for namespace in found:
            ctr.print(namespace.name)
        return
    table([("NAME", "LABELS"), *((namespace.name, label_text(namespace.labels)) for namespace in found)])


def remove(ctr: Ctr, options: Options, operands: list[str]) -> int:
    failures = Failures()
    for name in operands:
        try:
            ctr.client.namespaces.Delete(pb.DeleteNamespaceRequest(name=name))
        except NotFound:
            pass
        except CommandError as error:
            failures.add(error, f"unable to delete {name}", f"unable to delete {name}: {error.text}")
            continue
        ctr.print(name)
    failures.end()
    return 0


def label(ctr: Ctr, options: Options, operands: list[str]) -> None:
    name = need(operands, "please specify a namespace")[0]
    wanted = {key: "" if "=" not in word else value for word in operands[1:] for key, value in labels([word]).items()}
    namespace = pb.Namespace(name=name, labels=wanted)
    mask = FieldMask(paths=["labels." + key for key in wanted])
    ctr.client.namespaces.Update(pb.UpdateNamespaceRequest(namespace=namespace, update_mask=mask))


COMMANDS = {
    "namespaces create": Command(create, "<name> [<key>=<value>]"),
    "namespaces list": Command(list_namespaces, "[flags]", "quiet,q bool Print only the names"),
    "namespaces remove": Command(remove, "[flags] <name> [<name>, ...]", "cgroup,c bool Accepted for ctr's sake"),
    "namespaces label": Command(label, "<name> [<key>=<value>, ...]"),
}
