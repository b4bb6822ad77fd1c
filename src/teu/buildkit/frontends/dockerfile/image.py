# SPDX-License-Identifier: Apache-2.0
"""The image configuration that a Dockerfile leads to, with its history.

Members are those of docker's image specification, in its order; others that a base image may carry are left behind.
"""

from __future__ import annotations

import copy
import datetime
from typing import Any

from teu.buildkit.frontends.dockerfile.errors import DockerfileError
from teu.buildkit.frontends.dockerfile.instructions import Health
from teu.buildkit.frontends.dockerfile.shell import quoted
from teu.buildkit.llb.platforms import Platform
from teu.oci import jsontext

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WINDOWS_PATH = "c:\\Windows\\System32;c:\\Windows;C:\\Windows\\System32\\WindowsPowerShell\\v1.0"
HISTORY_COMMENT = "buildkit.dockerfile.v0"

_HEAD = ("created", "author", "architecture", "os", "os.version", "os.features", "variant")
_CONFIG = (
    *("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal"),
    *("ArgsEscaped", "Healthcheck", "OnBuild", "Shell"),
)
_HISTORY = ("created", "created_by", "author", "comment", "empty_layer")


def default_path(system: str) -> str:
    return WINDOWS_PATH if system == "windows" else DEFAULT_PATH


class Image:
    """An image's configuration while it is made."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.head = {key: document[key] for key in _HEAD if document.get(key)}
        inner = document.get("config") or {}
        self.config: dict[str, Any] = {key: inner[key] for key in _CONFIG if inner.get(key)}
        rootfs = document.get("rootfs") or {}
        self.rootfs: dict[str, Any] = {"type": rootfs.get("type") or "", "diff_ids": rootfs.get("diff_ids")}
        self.history: list[dict[str, Any]] = [
            {key: entry[key] for key in _HISTORY if entry.get(key)} for entry in document.get("history") or []
        ]

    @classmethod
    def parse(cls, data: bytes) -> Image:
        """Raises DockerfileError for what is no configuration."""
        try:
            document = jsontext.loads(data)
        except (ValueError, RecursionError) as error:
            raise DockerfileError(f"failed to parse image config: {error}") from None
        if not isinstance(document, dict):
            raise DockerfileError("failed to parse image config: it is no JSON object")
        for key, kind in (("config", dict), ("rootfs", dict), ("history", list)):
            if document.get(key) is not None and not isinstance(document[key], kind):
                raise DockerfileError(f"failed to parse image config: {key} is no {kind.__name__}")
        inner = document.get("config") or {}
        for key in _CONFIG:
            value = inner.get(key)
            if value is None:
                continue
            if key in ("Env", "Entrypoint", "Cmd", "OnBuild", "Shell"):
                right = isinstance(value, list) and all(isinstance(item, str) for item in value)
            elif key in ("ExposedPorts", "Volumes", "Labels", "Healthcheck"):
                right = isinstance(value, dict)
            else:
                right = isinstance(value, bool if key == "ArgsEscaped" else str)
            if not right:
                raise DockerfileError(f"failed to parse image config: config.{key} has the wrong kind of value")
        if not all(isinstance(entry, dict) for entry in document.get("history") or []):
            raise DockerfileError("failed to parse image config: an entry of history is no object")
        return cls(document)

    @classmethod
    def empty(cls, platform: Platform) -> Image:
        """That of FROM scratch."""
        image = cls({"rootfs": {"type": "layers"}})
        image.platform = platform
        image.config["WorkingDir"] = "/"
        if platform.os != "windows":
            image.config["Env"] = ["PATH=" + default_path(platform.os)]
        return image

    def clone(self) -> Image:
        return copy.deepcopy(self)

    @property
    def platform(self) -> Platform:
        head = self.head
        return Platform(
            str(head.get("os", "")),
            str(head.get("architecture", "")),
            str(head.get("variant", "")),
            str(head.get("os.version", "")),
            tuple(head.get("os.features") or ()),
        )

    @platform.setter
    def platform(self, platform: Platform) -> None:
        for key, value in (
            ("architecture", platform.architecture),
            ("os", platform.os),
            ("os.version", platform.os_version),
            ("os.features", list(platform.os_features)),
            ("variant", platform.variant),
        ):
            self.head[key] = value

    @property
    def env(self) -> list[str]:
        value: list[str] = self.config.get("Env") or []
        return value

    def set_env(self, key: str, value: str) -> None:
        """In the place that the variable has, at the end if it is new."""
        environment = self.config.setdefault("Env", [])
        for at, old in enumerate(environment):
            if old.partition("=")[0] == key:
                environment[at] = f"{key}={value}"
                return
        environment.append(f"{key}={value}")

    def text(self, key: str) -> str:
        return str(self.config.get(key) or "")

    def commit(self, created_by: str, layer: bool, epoch: int | None) -> None:
        """One more line of history. `epoch` is SOURCE_DATE_EPOCH; without one the exporter says when."""
        entry: dict[str, Any] = {}
        if epoch is not None:
            entry["created"] = rfc3339(epoch)
        entry["created_by"] = created_by
        entry["comment"] = HISTORY_COMMENT
        if not layer:
            entry["empty_layer"] = True
        self.history.append(entry)

    def has_layers(self) -> bool:
        """An image of schema 1 tells its layers only by its history."""
        return bool(self.rootfs["diff_ids"]) or any(not entry.get("empty_layer") for entry in self.history)

    def document(self) -> dict[str, Any]:
        result: dict[str, Any] = {key: self.head[key] for key in _HEAD if self.head.get(key)}
        for key in ("architecture", "os"):
            result.setdefault(key, "")
        result = {key: result[key] for key in _HEAD if key in result}
        result["rootfs"] = self.rootfs
        if self.history:
            result["history"] = self.history
        config = {}
        for key in _CONFIG:
            value = self.config.get(key)
            if value:
                config[key] = dict(sorted(value.items())) if key in ("ExposedPorts", "Volumes", "Labels") else value
        result["config"] = config
        return result

    def encode(self) -> bytes:
        return jsontext.to_bytes(self.document())


def rfc3339(epoch: int) -> str:
    """Seconds of the epoch as a time of UTC; raises DockerfileError beyond the year 9999."""
    try:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=epoch)
    except OverflowError:
        raise DockerfileError(f"invalid SOURCE_DATE_EPOCH: {epoch}") from None
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def health_document(health: Health) -> dict[str, Any]:
    pairs = (
        ("Test", health.test),
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
        ("Retries", health.retries),
    )
    return {key: value for key, value in pairs if value}


def health_line(health: Health) -> str:
    """The health check in a line of history, as docker's releases print the structure."""
    times = (health.interval, health.timeout, health.start_period, health.start_interval)
    parts = ["[" + " ".join(map(quoted, health.test)) + "]"]
    parts += [f'"{go_duration(value)}"' for value in times]
    return "HEALTHCHECK &{" + " ".join(parts) + " " + _rune(health.retries) + "}"


def _rune(number: int) -> str:
    """A number as Go's %q prints it: as the character of that code."""
    if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:
        return "'\ufffd'"
    character = chr(number)
    if character == "'":
        return "'\\''"
    return "'" + ('"' if character == '"' else quoted(character)[1:-1]) + "'"


def go_duration(nanoseconds: int) -> str:
    """Nanoseconds as Go prints them: 1h0m0s, 1.5s, 30ms."""
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if nanoseconds < size * 1000:
            return _decimal(nanoseconds, size) + unit
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = _decimal(rest, 10**9) + "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _decimal(value: int, size: int) -> str:
    whole, part = divmod(value, size)
    digits = f"{part:0{len(str(size)) - 1}d}".rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)
