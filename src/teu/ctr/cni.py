# SPDX-License-Identifier: Apache-2.0
"""`run --cni`: the host's network by CNI, as ctr has it: the first configuration in /etc/cni/net.d, made by the plugins
in /opt/cni/bin or /usr/lib/cni, for the interface eth0. `tasks kill` takes away what `run --detach` leaves."""

from __future__ import annotations

import os

from teu.cni import configuration
from teu.cni.configuration import CONFIGURATIONS
from teu.cni.errors import CniError
from teu.cni.network import RESULTS, Attachment
from teu.cni.network import Network as CniNetwork
from teu.cni.plugins import PLUGINS
from teu.ctr.errors import CommandError

EXTENSION = "ctr.cni-containerd.metadata"
EXTENSION_TYPE = "github.com/containerd/containerd/cmd/ctr/commands/NetworkMetaData"


class Network:
    """The network that the host's configuration names."""

    def __init__(self, found: configuration.Configuration) -> None:
        self.plugins = found.plugins
        self._network = CniNetwork(found, folders=PLUGINS, results=RESULTS)

    def add(self, container: str, namespace: str) -> None:
        """Raises CommandError; what was made until then stays, for `remove`."""
        try:
            self._network.add(Attachment(container, namespace))
        except CniError as error:
            raise CommandError(error.text) from None
        finally:
            self._tell()

    def remove(self, container: str) -> None:
        """Of a container whose network namespace may be gone. Raises CommandError."""
        try:
            self._network.remove(Attachment(container, ""))
        except CniError as error:
            if "no such file or directory" not in error.text and "not found" not in error.text:
                raise CommandError(error.text) from None
        finally:
            self._tell()

    def _tell(self) -> None:
        """What the plugins have written to standard error, though they succeeded."""
        os.write(2, self._network.warnings)
        self._network.warnings = b""


def network() -> Network:
    """Raises CommandError with ctr's words where none is configured."""
    try:
        return Network(configuration.first(CONFIGURATIONS))
    except CniError as error:
        raise CommandError(error.text) from None
