# SPDX-License-Identifier: Apache-2.0
"""What a runtime does with a network: attach a container (ADD), detach it (DEL), look after it (CHECK, STATUS, GC). CNI
section 3, and section 4 for the chain of plugins. All of it blocks, and holds no lock: each call works on a
configuration that does not change, and the two sides of a container are its owner's to keep in order.

What the plugins answered is kept in libcni's form, so that whoever takes a network away, ctr, nerdctl or Teu, gives the
same result to the plugins again:

    /var/lib/cni/results/NETWORK-CONTAINER-INTERFACE     one attachment, mode 0600
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import ipaddress
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from teu.cni import plugins
from teu.cni.configuration import Configuration, parse
from teu.cni.errors import CniError
from teu.oci import jsontext

Json = dict[str, Any]
RESULTS = "/var/lib/cni/results"
INTERFACE = "eth0"
_KIND = "cniCacheV1"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container's interface: `namespace` is the path of its network namespace, "" once that is gone."""

    container: str
    namespace: str
    interface: str = INTERFACE
    args: tuple[tuple[str, str], ...] = ()  # CNI_ARGS
    capabilities: Mapping[str, Any] = field(default_factory=dict)  # "portMappings": [...] and so on, by their names

    def variables(self) -> dict[str, str]:
        """For the environment of a plugin."""
        return {
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": self.namespace,
            "CNI_IFNAME": self.interface,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in self.args),
        }


@dataclass(frozen=True, slots=True)
class Kept:
    """An attachment that was made, as the cache has it."""

    path: Path
    attachment: Attachment
    network: str
    source: bytes
    result: Json | None


class Network:
    """One configuration at work. Each method raises CniError for the first plugin that fails."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        folders: Sequence[str] = plugins.PLUGINS,
        results: str = RESULTS,
        timeout: float | None = None,
    ) -> None:
        """`folders` have the plugins; each run of one may take `timeout` seconds."""
        self.configuration = configuration
        self._folders = folders
        self._results = results
        self._timeout = timeout
        self.warnings = b""  # what plugins that succeeded wrote to standard error

    def add(self, attachment: Attachment) -> Json:
        """Attach; the result of the last plugin, which is kept. What was made until a failure stays, for `remove`."""
        result: Json | None = None
        for plugin in self.configuration.plugins:
            result = self._answer(plugin, self._run("ADD", plugin, attachment, result))
        self._keep(attachment, result or {})
        return result or {}

    def remove(self, attachment: Attachment) -> None:
        """Detach, in the opposite order, with the result that is kept. The namespace may be gone, and so may the
        attachment: plugins have to take that."""
        kept = self._kept(attachment)
        result = kept.result if kept is not None and self.configuration.speaks(0, 4, 0) else None
        if kept is not None and not attachment.capabilities and not attachment.args:
            attachment = replace(kept.attachment, namespace=attachment.namespace)
        for plugin in reversed(self.configuration.plugins):
            self._run("DEL", plugin, attachment, result)
        self.forget(attachment)

    def check(self, attachment: Attachment) -> None:
        """Whether the attachment is as ADD has made it; nothing where the configuration is too old for that, or has
        disableCheck."""
        if not self.configuration.check or not self.configuration.speaks(0, 4, 0):
            return
        kept = self._kept(attachment)
        if kept is None or kept.result is None:
            raise CniError(
                f"nothing is known of {attachment.interface} of {attachment.container}: it was never attached"
            )
        for plugin in self.configuration.plugins:
            self._run("CHECK", plugin, attachment, kept.result)

    def status(self) -> None:
        """Whether containers can be attached now, by the plugins that are asked for it since CNI 1.1."""
        if not self.configuration.speaks(1, 1, 0):
            return
        for plugin in self.configuration.plugins:
            self._run("STATUS", plugin, None, None)

    def collect(self, valid: Iterable[Attachment]) -> None:
        """Have the plugins free what belongs to none of the `valid` attachments (GC, since CNI 1.1)."""
        if not self.configuration.collect or not self.configuration.speaks(1, 1, 0):
            return
        known = [{"containerID": one.container, "ifname": one.interface} for one in valid]
        for plugin in self.configuration.plugins:
            self._run("GC", plugin, None, None, {"cni.dev/valid-attachments": known})

    def forget(self, attachment: Attachment) -> None:
        """Remove what is kept of an attachment."""
        self._path(attachment).unlink(missing_ok=True)

    def _path(self, attachment: Attachment) -> Path:
        return Path(self._results, f"{self.configuration.name}-{attachment.container}-{attachment.interface}")

    def _kept(self, attachment: Attachment) -> Kept | None:
        return _read(self._path(attachment))

    def _keep(self, attachment: Attachment, result: Json) -> None:
        kept: Json = {
            "kind": _KIND,
            "containerId": attachment.container,
            "config": base64.b64encode(self.configuration.source).decode(),
            "ifName": attachment.interface,
            "networkName": self.configuration.name,
            "result": result,
        }
        if attachment.args:
            kept["cniArgs"] = [list(pair) for pair in attachment.args]
        if attachment.capabilities:
            kept["capabilityArgs"] = dict(attachment.capabilities)
        path = self._path(attachment)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(kept, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)

    def _run(
        self, verb: str, plugin: Json, attachment: Attachment | None, result: Json | None, more: Json | None = None
    ) -> bytes:
        config = {"name": self.configuration.name, "cniVersion": self.configuration.version, **(more or {})}
        if attachment is not None:
            able = plugin.get("capabilities") if isinstance(plugin.get("capabilities"), dict) else {}
            wanted = {key: value for key, value in attachment.capabilities.items() if able and able.get(key)}
            if wanted:
                config["runtimeConfig"] = wanted
        if result is not None:
            config["prevResult"] = result
        variables = attachment.variables() if attachment is not None else {}
        out, err = plugins.run(verb, plugin, config, variables, self._folders, self._timeout)
        self.warnings += err
        return out

    def _answer(self, plugin: Json, out: bytes) -> Json:
        try:
            answer: Json = jsontext.loads(out)
            if not isinstance(answer, dict):
                raise ValueError("the result is no object")
        except ValueError as error:
            raise CniError(f'plugin type="{plugin["type"]}" failed (add): {error}') from None
        return answer if answer.get("cniVersion") else {**answer, "cniVersion": self.configuration.version}


def _read(path: Path) -> Kept | None:
    """What a file of the cache has; None for one that is none of libcni's or is damaged."""
    try:
        found = jsontext.loads(path.read_bytes())
        if found["kind"] != _KIND:
            return None
        args = tuple((str(key), str(value)) for key, value in found.get("cniArgs") or ())
        attachment = Attachment(
            str(found["containerId"]), "", str(found["ifName"]), args, dict(found.get("capabilityArgs") or {})
        )
        result = found.get("result")
        return Kept(
            path,
            attachment,
            str(found["networkName"]),
            base64.b64decode(found["config"]),
            result if isinstance(result, dict) else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        return None


def attached(results: str = RESULTS) -> list[Kept]:
    """All attachments that are kept, whoever has made them: the cache is shared by all runtimes of the host."""
    with contextlib.suppress(OSError):
        return [kept for path in sorted(Path(results).iterdir()) if (kept := _read(path)) is not None]
    return []


def _of_kept(kept: Kept, folders: Sequence[str], timeout: float | None) -> Network:
    """The network as it was when the attachment was made, whatever is configured now."""
    configuration = parse(kept.source, whole=True)
    return Network(configuration, folders=folders, results=str(kept.path.parent), timeout=timeout)


def detach(
    kept: Kept, namespace: str = "", *, folders: Sequence[str] = plugins.PLUGINS, timeout: float | None = None
) -> None:
    """Take an attachment away with the configuration that had made it; `namespace` is "" where it is gone. Raises
    CniError."""
    _of_kept(kept, folders, timeout).remove(replace(kept.attachment, namespace=namespace))
    kept.path.unlink(missing_ok=True)


def check(
    kept: Kept, namespace: str, *, folders: Sequence[str] = plugins.PLUGINS, timeout: float | None = None
) -> None:
    """Whether an attachment is as it was made. Raises CniError."""
    _of_kept(kept, folders, timeout).check(replace(kept.attachment, namespace=namespace))


def _is_hosts_own(number: Any, interfaces: Any) -> bool:
    """Whether the interface of that number is outside of the container."""
    if not isinstance(number, int) or not isinstance(interfaces, list) or not 0 <= number < len(interfaces):
        return False
    return not interfaces[number].get("sandbox")


def addresses(result: Json) -> list[str]:
    """The IP addresses of a result, in its order, without their prefixes' lengths (CNI, "Result"); those of the
    container's interface, where the result says whose each is."""
    found = []
    for one in result.get("ips") or ():
        if not isinstance(one, dict):
            continue
        if _is_hosts_own(one.get("interface"), result.get("interfaces")):
            continue
        found.append(one.get("address"))
    for key in ("ip4", "ip6"):  # before CNI 0.3
        if isinstance(result.get(key), dict):
            found.append(result[key].get("ip"))
    told = []
    for text in found:
        try:
            told.append(str(ipaddress.ip_interface(str(text)).ip))
        except ValueError:
            raise CniError(f"a plugin told the address {text!r}, which is none") from None
    return told
