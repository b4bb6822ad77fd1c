# SPDX-License-Identifier: Apache-2.0
"""The host's own firewall, and how published ports and containers get on with it: `firewall` of teud.yaml. Called by
the driver bridge, and by what shows the engine.

    obey     what the host's firewall lets in reaches published ports, and nothing else does: the rules of ufw and
             firewalld are read (hostrules.py); a forward chain of somebody else's drops what it drops
    docker   published ports are open whatever the host's firewall says, as Docker has it
    none     teud makes no rule at all: there are no published ports and nothing is masqueraded

In the first two containers have their way out: by a zone and a policy of firewalld (systemd/firewalld.py), in the chain
for that of ufw (linux/forwarding.py).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable

from teu.engine.networks import hostrules
from teu.linux import ufw
from teu.systemd.firewalld import Firewalld, is_installed

log = logging.getLogger("teu.engine")

OBEY, DOCKER, NONE = MODES = ("obey", "docker", "none")
_OPENED_BY = {
    "ufw": "ufw allow {port}/{protocol}",
    "firewalld": "firewall-cmd --add-port={port}/{protocol}",
}


class HostFirewall:
    """`look` may be called by several threads; what it found last is in the attributes."""

    def __init__(self, mode: str = OBEY) -> None:
        self.mode = mode
        self.kind = ""
        """Whose rules published ports obey: ufw, firewalld, or nobody's that are known."""
        self.rules: list[str] = []
        """Of the chain `host`."""
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def look(self, interfaces: Iterable[str]) -> list[str]:
        """Read what applies now, and let these interfaces of ours out: the rules of the chain `host`. Where the host's
        firewall is there and cannot be read, what was known before goes on, or all is closed. Never fails."""
        with self._lock:
            if self.mode == NONE:
                return []
            kind, rules = "", hostrules.Rules()
            found = ufw.read()
            if found is not None:
                kind, rules = "ufw", hostrules.of_ufw(found)
            if is_installed():
                try:
                    with Firewalld() as firewalld:
                        done = firewalld.let_out(interfaces, self.mode == DOCKER)
                        if done:
                            log.info("firewalld: %s", ", ".join(done))
                        kind = "firewalld"
                        if self.mode == OBEY:
                            rules = hostrules.of_zones(firewalld.zones(), firewalld.service, firewalld.ipset)
                except FileNotFoundError:
                    pass  # it does not run
                except OSError as error:
                    self._tell(f"firewalld cannot be asked, published ports stay as they are: {error}")
                    return self.rules
            self._take(kind, rules if self.mode == OBEY else hostrules.Rules())
            return self.rules

    def _take(self, kind: str, rules: hostrules.Rules) -> None:
        if kind != self.kind:
            self.kind = kind
            if not kind:
                log.info("no firewall of the host's is known to govern published ports (teu-firewall(7))")
            elif self.mode == OBEY:
                log.info("published ports are open to whom %s lets in (teu-firewall(7))", kind)
            else:
                log.info("published ports are open whatever %s says: firewall is %s", kind, self.mode)
        for text in rules.left_out:
            self._tell(f"{kind}: a rule that is not obeyed for published ports: {text}")
        self.rules = list(rules)

    def _tell(self, text: str) -> None:
        """Once."""
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)

    def how_to_open(self, protocol: str, port: int) -> str:
        """The command by which the host's firewall lets others in to a published port; "" where nothing keeps them
        out that is known."""
        if self.mode != OBEY or not self.kind:
            return ""
        return _OPENED_BY[self.kind].format(port=port, protocol=protocol)

    def describe(self) -> list[list[str]]:
        """For `teu info`: names and values."""
        kind = "ufw" if ufw.read() is not None else ""
        if is_installed():
            with contextlib.suppress(OSError), Firewalld():
                kind = "firewalld"
        said = {
            OBEY: f"what {kind} lets in reaches published ports" if kind else "no ufw and no firewalld",
            DOCKER: f"published ports are open whatever {kind or 'it'} says",
            NONE: "teud makes no rules",
        }
        return [["Firewall", self.mode], ["Host", said[self.mode]]]
