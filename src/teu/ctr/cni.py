# SPDX-License-Identifier: Apache-2.0
"""`run --cni`: the host's network by CNI, as ctr has it: the first configuration in /etc/cni/net.d, made by the plugins
in /opt/cni/bin or /usr/lib/cni, for the interface eth0. `tasks kill` takes away what `run --detach` leaves.

What the plugins answered is kept in /var/lib/cni/results/NETWORK-NAMESPACE-CONTAINER-eth0, in libcni's form: the
program that takes the network away, ctr or teu-ctr, gives it to the plugins again."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from teu.ctr.errors import CommandError
from teu.oci import jsontext

Json = dict[str, Any]
CONFIGURATIONS = "/etc/cni/net.d"
PLUGINS = ("/opt/cni/bin", "/usr/lib/cni")  # the second is Debian's
RESULTS = "/var/lib/cni/results"
INTERFACE = "eth0"
EXTENSION = "ctr.cni-containerd.metadata"
EXTENSION_TYPE = "github.com/containerd/containerd/cmd/ctr/commands/NetworkMetaData"


class Network:
    """The network that the host's configuration names."""

    def __init__(self, name: str, version: str, plugins: list[Json], source: bytes) -> None:
        self.name = name
        self.version = version
        self.plugins = plugins
        self.source = source

    def add(self, container: str, namespace: str) -> None:
        """Raises CommandError; what was made until then stays, for `remove`."""
        result: Json | None = None
        for plugin in self.plugins:
            result = self._run("ADD", plugin, container, namespace, result)
        kept = {
            "kind": "cniCacheV1",
            "containerId": container,
            "config": base64.b64encode(self.source).decode(),
            "ifName": INTERFACE,
            "networkName": self.name,
            "result": result,
        }
        path = self._result(container)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(kept, file, separators=(",", ":"))

    def remove(self, container: str) -> None:
        """Of a container whose network namespace may be gone. Raises CommandError."""
        try:
            result = jsontext.loads(self._result(container).read_text()).get("result")
        except (OSError, ValueError):
            result = None
        if version_of(self.version) < (0, 4, 0):
            result = None
        for plugin in reversed(self.plugins):
            try:
                self._run("DEL", plugin, container, "", result)
            except CommandError as error:
                if "no such file or directory" in error.text or "not found" in error.text:
                    return
                raise
        self._result(container).unlink(missing_ok=True)

    def _result(self, container: str) -> Path:
        return Path(RESULTS, f"{self.name}-{container}-{INTERFACE}")

    def _run(self, verb: str, plugin: Json, container: str, namespace: str, result: Json | None) -> Json | None:
        kind = plugin["type"]
        named = f' name="{plugin["name"]}"' if plugin.get("name") else ""
        begin = f'plugin type="{kind}"{named} failed ({"add" if verb == "ADD" else "delete"}): '
        programs = [path for path in (os.path.join(folder, kind) for folder in PLUGINS) if os.path.isfile(path)]
        if "/" in kind:
            raise CommandError(f"{begin}invalid plugin name: {kind}")
        if not programs:
            raise CommandError(f'{begin}failed to find plugin "{kind}" in path [{" ".join(PLUGINS)}]')
        program = programs[0]
        config = {**plugin, "name": self.name, "cniVersion": self.version}
        if result is not None:
            config["prevResult"] = result
        environment = {
            **os.environ,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": namespace,
            "CNI_ARGS": "",
            "CNI_IFNAME": INTERFACE,
            "CNI_PATH": ":".join(PLUGINS),
        }
        given = json.dumps(config, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
        try:
            done = subprocess.run([program], input=given, capture_output=True, env=environment, check=False)
        except OSError as error:
            raise CommandError(f"{begin}fork/exec {program}: {(error.strerror or '').lower()}") from None
        if done.returncode:
            raise CommandError(begin + complaint(done))
        if done.stderr:
            os.write(2, done.stderr)
        if verb == "DEL":
            return None
        try:
            answer: Json = jsontext.loads(done.stdout)
        except ValueError as error:
            raise CommandError(f"{begin}{error}") from None
        return answer if answer.get("cniVersion") else {**answer, "cniVersion": self.version}


def complaint(done: subprocess.CompletedProcess[bytes]) -> str:
    """What a plugin says of its failure."""
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if not out:
        if err:
            return f"netplugin failed: {json.dumps(err, ensure_ascii=False)}"
        return f"netplugin failed with no error message: exit status {done.returncode}"
    try:
        told = jsontext.loads(out)
        return str(told.get("msg", "")) + (f"; {told['details']}" if told.get("details") else "")
    except (ValueError, AttributeError) as error:
        return f"netplugin failed but error parsing its diagnostic message {json.dumps(out)}: {error}"


def version_of(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in (text or "0.1.0").split("."))
    except ValueError:
        return (0, 1, 0)


def network() -> Network:
    """Raises CommandError with ctr's words where none is configured."""
    try:
        names = sorted(os.listdir(CONFIGURATIONS))
    except OSError:
        names = []
    for name in names:
        path = os.path.join(CONFIGURATIONS, name)
        if name.endswith((".conf", ".conflist", ".json")) and os.path.isfile(path):
            return read(path)
    raise CommandError(f"no network config found in {CONFIGURATIONS}: cni plugin not initialized")


def read(path: str) -> Network:
    whole = path.endswith(".conflist")
    begin = f"failed to load CNI config {'list ' if whole else ''}file {path}: "
    kind = "configuration list" if whole else "configuration"

    def wrong(why: object) -> CommandError:
        return CommandError(f"{begin}error parsing {kind}: {why}: invalid cni config")

    source = Path(path).read_bytes()
    try:
        found = jsontext.loads(source)
        plugins = found.get("plugins") if whole else [found]
    except (ValueError, AttributeError) as error:
        raise wrong(error) from None
    if whole and "name" not in found:
        raise wrong("no name")
    if whole and "plugins" not in found:
        raise wrong("no 'plugins' key")
    if not isinstance(plugins, list) or not plugins:
        raise wrong("no plugins in list")
    for number, plugin in enumerate(plugins):
        if not isinstance(plugin, dict) or not plugin.get("type"):
            if not whole:
                raise wrong("missing 'type'")
            told = f"failed to parse plugin config {number}: error parsing configuration: missing 'type'"
            raise CommandError(f"{begin}{told}: invalid cni config")
    if not whole:
        # libcni makes a list of it, and keeps that
        parts = {"name": found.get("name", ""), "cniVersion": found.get("cniVersion", ""), "plugins": [found]}
        source = json.dumps(parts, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
    return Network(found.get("name") or "", found.get("cniVersion") or "", plugins, source)
