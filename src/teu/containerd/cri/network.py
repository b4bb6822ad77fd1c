# SPDX-License-Identifier: Apache-2.0
"""Pods and the host's network by CNI: which configuration, what the plugins are told of a pod, and whether pods can be
attached at all. Called by `pods` and `service`; what blocks is called on threads, and nobody waits for anybody else's
plugins."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from teu.api.cri.v1 import cri_pb2 as cri
from teu.cni import network
from teu.cni.configuration import Configuration, Folder
from teu.cni.errors import CniError
from teu.cni.network import Attachment, Network
from teu.containerd.core.errors import InvalidArgument, Unknown
from teu.containerd.cri.records import Pod
from teu.oci.units import parse_bytes

log = logging.getLogger("teu.containerd.cri")

BANDWIDTHS = {"ingress": "kubernetes.io/ingress-bandwidth", "egress": "kubernetes.io/egress-bandwidth"}
_PROTOCOLS = {cri.TCP: "tcp", cri.UDP: "udp", cri.SCTP: "sctp"}
_STATUS_SECONDS = 10.0  # for so long an answer of the plugins' STATUS is good


def capabilities(config: Any) -> dict[str, Any]:
    """What of a PodSandboxConfig the plugins may be told, by the names of CNI's conventions. Raises InvalidArgument."""
    found: dict[str, Any] = {"io.kubernetes.cri.pod-annotations": dict(config.annotations)}
    mappings = []
    for one in config.port_mappings:
        if one.host_port <= 0:
            continue
        mapping = {
            "hostPort": one.host_port,
            "containerPort": one.container_port,
            "protocol": _PROTOCOLS[one.protocol],
            "hostIP": one.host_ip,
        }
        mappings.append(mapping)
    if mappings:
        found["portMappings"] = mappings
    limits: dict[str, int] = {}
    for way, name in BANDWIDTHS.items():
        if text := config.annotations.get(name):
            # bits in a second; a burst of the whole of a 32 bit number, as of containerd
            limits |= {f"{way}Rate": bits(name, text), f"{way}Burst": (1 << 31) - 1}
    if limits:
        found["bandwidth"] = limits
    if config.HasField("dns_config"):
        dns = config.dns_config
        found["dns"] = {"servers": list(dns.servers), "searches": list(dns.searches), "options": list(dns.options)}
    if config.linux.cgroup_parent:
        found["cgroupPath"] = config.linux.cgroup_parent
    return found


def bits(name: str, text: str) -> int:
    """A Kubernetes quantity, as 10M or 1Gi. Raises InvalidArgument."""
    try:
        if text.endswith("i"):
            return parse_bytes(f"{text}B")
        number, unit = (text[:-1], text[-1]) if text[-1:] in "kMGT" else (text, "")
        return int(float(number) * 1000 ** " kMGT".index(unit or " "))
    except ValueError:
        raise InvalidArgument(f"annotation {name}: {text!r} is no quantity, such as 10M") from None


def attachment(pod: Pod, namespace: str, interface: str = network.INTERFACE) -> Attachment:
    """A pod's, for the plugins."""
    of = pod.config.metadata
    args = (
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", of.namespace),
        ("K8S_POD_NAME", of.name),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.id),
        ("K8S_POD_UID", of.uid),
    )
    return Attachment(pod.id, namespace, interface, args, capabilities(pod.config))


class Networks:
    """The host's networks for pods."""

    def __init__(self, folder: str, plugins: Sequence[str], timeout: float, results: str = network.RESULTS) -> None:
        """`folder` has the configurations; a plugin may run for `timeout` seconds."""
        self._folder = Folder(folder)
        self._plugins = tuple(plugins)
        self._timeout = timeout
        self._results = results
        self._asked: Any = None  # the configuration whose plugins have told their status,
        self._told = ""  # what was in the way, and when they did
        self._told_at = 0.0
        self._asking = threading.Lock()
        # Set when what an earlier daemon has left is given back: a plugin may take what is being attached for garbage.
        self.collected = threading.Event()

    def _network(self, configuration: Any) -> Network:
        return Network(configuration, folders=self._plugins, results=self._results, timeout=self._timeout)

    def current(self) -> Configuration | None:
        """The configuration; None while there is none that can be read."""
        try:
            return self._folder.current()
        except CniError:
            return None

    def result(self, pod: Pod) -> dict[str, Any] | None:
        """What the plugins have answered for a pod, as long as it is attached. Blocks."""
        kept = (one.result for one in network.attached(self._results) if one.attachment.container == pod.id)
        return next(kept, None)

    def add(self, pod: Pod) -> list[str]:
        """Attach a pod, whose network namespace is there; its addresses. Raises Unknown, in containerd's words."""
        self.collected.wait()
        try:
            answer = self._network(self._folder.current()).add(attachment(pod, pod.network))
            addresses = network.addresses(answer)
        except CniError as error:
            raise Unknown(f'failed to setup network for sandbox "{pod.id}": {error.text}') from None
        if not addresses:
            raise Unknown(f'failed to setup network for sandbox "{pod.id}": the plugins gave no address')
        return addresses

    def remove(self, pod: Pod, namespace: str) -> None:
        """Detach a pod, with the configuration that had attached it, else with today's; `namespace` is "" where it is
        gone. Raises Unknown while the plugins refuse."""
        kept = [one for one in network.attached(self._results) if one.attachment.container == pod.id]
        try:
            for one in kept:
                network.detach(one, namespace, folders=self._plugins, timeout=self._timeout)
            if not kept:
                # ADD has come to no end: what it had made is undone by what is configured, if anything is.
                try:
                    current = self._folder.current()
                except CniError:
                    log.warning("pod %s: no network is configured by which its own could be taken away", pod.id)
                    return
                self._network(current).remove(attachment(pod, namespace))
        except CniError as error:
            if "no such file or directory" in error.text or "not found" in error.text:
                log.warning("pod %s: %s", pod.id, error.text)
                return
            raise Unknown(f'failed to destroy network for sandbox "{pod.id}": {error.text}') from None

    def check(self, pod: Pod) -> str:
        """What is not as the plugins have made it; "" if all is well."""
        try:
            for one in network.attached(self._results):
                if one.attachment.container == pod.id:
                    network.check(one, pod.network, folders=self._plugins, timeout=self._timeout)
        except CniError as error:
            return error.text
        return ""

    def collect(self) -> None:
        """Have the plugins free what no container of the host has any more: all that is kept counts, whoever made
        it."""
        try:
            current = self._folder.current()
        except CniError:
            return  # nothing is configured yet
        kept = network.attached(self._results)
        try:
            self._network(current).collect([one.attachment for one in kept if one.network == current.name])
        except CniError as error:
            log.warning("what belongs to no pod is not freed: %s", error.text)

    def obstacle(self) -> str:
        """Why no pod can be attached now; "" if they can. Never waits for a plugin: those that know STATUS are asked
        aside, and what they said last counts."""
        try:
            current = self._folder.current()
        except CniError as error:
            return error.text
        if not current.speaks(1, 1, 0):
            return ""
        if (current is not self._asked or time.monotonic() - self._told_at > _STATUS_SECONDS) and (
            self._asking.acquire(blocking=False)
        ):
            threading.Thread(target=self._ask, args=(current,), name="cni-status", daemon=True).start()
        return self._told if current is self._asked else "the plugins of the network have not told their status yet"

    def _ask(self, configuration: Any) -> None:
        try:
            told = ""
            try:
                self._network(configuration).status()
            except CniError as error:
                told = error.text
            self._told, self._told_at, self._asked = told, time.monotonic(), configuration
        finally:
            self._asking.release()
