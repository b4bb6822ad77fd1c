# SPDX-License-Identifier: Apache-2.0
"""The network of steps: a bridge of their own with NAT, namespaces that are there before a step needs one.

kernel     teubuild0             the bridge, with an address of a private subnet
           teub-HEX              our end of a sandbox's veth pair; the ports are isolated from each other
           table inet teu-build  who is forwarded, and masqueraded
           table ip filter       teu.linux.forwarding

Where the host's servers are on its own loopback, steps have a resolver in their namespace that asks them.

A sandbox is a network namespace with an interface on the bridge, which only a descriptor of ours holds: whatever ends
us, the kernel takes it away with the last of its processes. One in which a step left nothing, no socket above all, is
given to the next step; a namespace that a step with more rights had is never given to another.

All of it is made at the first step that needs it, and goes with the builder. A ruleset that somebody else has emptied
is made anew before the next step, and so is a bridge that is not there any more, or is another one; what steps have is
on it again.

Several builders of one host share the bridge and the rules. Each has a socket whose name tells the others that it
lives, which the kernel takes away with it: only the last one removes anything but its own.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from teu.buildkit.core import errors
from teu.linux import dns, forwarding, netlink, netns, nftables, resolver, subnets
from teu.linux.netlink import Link, Socket
from teu.linux.nftables import Changes
from teu.systemd import firewalld

log = logging.getLogger("teu.buildkit")

BRIDGE = "teubuild0"
VETH = "teub-"
TABLE = "inet teu-build"
OWNER = "teu-build"  # who we are in the comments of rules in others' chains
INTERFACE = "eth0"
PRESENT = "teu-build/"  # how the names of living builders' sockets begin; they are of the network namespace
SPARE_MAX = 16
SETTLE_SECONDS = 0.1  # after which the sockets of the dead are gone
ADDRESSES_MAX = 4096  # of sandboxes at a time; a step waits for none
HOST_GATEWAY = "host-gateway"  # in place of an address in extra hosts: the host, as a step sees it
HOSTNAME = "buildkitsandbox"  # BuildKit's, which images may know

# Who has a network namespace to itself may use all ports and ping, as with the engine.
SYSCTLS = {"net/ipv4/ip_unprivileged_port_start": "0", "net/ipv4/ping_group_range": "0 2147483647"}

_RULES = """
table inet teu-build {{
    chain between {{
        type filter hook forward priority filter; policy accept;
        iifname "{bridge}" oifname "{bridge}" drop
        oifname "{bridge}" ct state established,related accept
        oifname "{bridge}" drop
    }}
    chain outgoing {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {subnet} oifname != "{bridge}" masquerade
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """`subnet`: of the bridge, "" for one that is free. `mtu`: 0 for the kernel's. `spare`: sandboxes that wait for
    steps. `servers`, `search`, `options`: of resolv.conf in place of the host's."""

    subnet: str = ""
    mtu: int = 0
    spare: int = 2
    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Sandbox:
    """A step's network namespace. `path`: for the runtime, good while the sandbox is taken."""

    namespace: int
    counts: int  # /proc/net/sockstat of the namespace
    sockets: int  # that are there when nobody uses it
    address: IPv4Address
    veth: str = ""  # our end of the pair
    number: int = 0  # of that
    named: bool = False  # it has a resolver of ours

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.namespace}"

    def is_unused(self) -> bool:
        """Whether no socket is left in it, none that only waits for its end either."""
        used, waiting = sockets_in(os.pread(self.counts, 4096, 0))
        return used <= self.sockets and not waiting

    def close(self) -> None:
        os.close(self.namespace)
        os.close(self.counts)


def sockets_in(text: bytes) -> tuple[int, int]:
    """(sockets, TCP connections in TIME_WAIT) by a namespace's /proc/net/sockstat."""
    used = waiting = 0
    for line in text.splitlines():
        words = line.split()
        if words[:2] == [b"sockets:", b"used"]:
            used = int(words[2])
        elif words[:1] == [b"TCP:"] and b"tw" in words:
            waiting = int(words[words.index(b"tw") + 1])
    return used, waiting


class Network:
    """The bridge and its sandboxes. `state`: the folder of all programs' state that a reboot ends. All methods may be
    called by any thread."""

    def __init__(self, settings: Settings, state: str = "/run/teu") -> None:
        nftables.reserve()
        self._settings = settings
        self._forwarding = forwarding.Marker(state)
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._kernel: Socket | None = None
        self._changes: Changes | None = None
        self._watcher: threading.Thread | None = None
        self._end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._subnet: IPv4Network | None = None
        self._bridge = 0
        self._presence: socket.socket | None = None
        self._first = 0  # of the addresses, where others take theirs from the beginning
        self._out: set[Sandbox] = set()  # that steps have
        self._names: dns.Resolver | None = None
        self._spare: list[Sandbox] = []
        self._taken: set[IPv4Address] = set()
        self._users = 0
        self._filling = False
        self._closed = False

    @property
    def gateway(self) -> str:
        """The host's address on the bridge; "" before the first step."""
        with self._lock:
            return str(next(self._subnet.hosts())) if self._subnet is not None else ""

    # Sandboxes

    def warm(self) -> None:
        """A step is about to need a sandbox: let one be made meanwhile."""
        with self._lock:
            if not self._spare:
                self._fill()

    def take(self) -> Sandbox:
        """A sandbox of the caller's own until it is given back. Raises errors.Error."""
        with self._lock:
            while self._filling and not self._spare:
                self._idle.wait()
            try:
                self._ready()
                found = self._spare.pop() if self._spare else self._make()
            except OSError as error:
                raise _refused(error) from error
            self._out.add(found)
            self._users += 1
            self._fill()
            return found

    def give_back(self, sandbox: Sandbox, *, dirty: bool = False) -> None:
        """The step has ended. `dirty`: it could change the namespace. Never fails."""
        with self._lock:
            self._users -= 1
            self._out.discard(sandbox)
        if dirty or not self._keep(sandbox):
            self._drop(sandbox, again=not dirty)

    def _keep(self, sandbox: Sandbox) -> bool:
        """Have it serve the next step, if nothing is left in it."""
        with self._lock:
            try:
                keep = not self._closed and len(self._spare) < self._limit and sandbox.is_unused()
            except (OSError, ValueError):
                keep = False
            if keep:
                self._spare.append(sandbox)
            return keep

    @property
    def _limit(self) -> int:
        """How many are kept for the next steps: what several at once have given back, too."""
        return min(2 * self._settings.spare, SPARE_MAX)

    @property
    def _enough(self) -> bool:
        """Whether none is to be made ahead: those that steps have will mostly come back."""
        return self._closed or len(self._spare) >= min(self._settings.spare, max(self._settings.spare - self._users, 1))

    def _fill(self) -> None:
        """The lock is held: have spare sandboxes made by a thread that ends with that."""
        if self._filling or self._enough:
            return
        self._filling = True
        try:
            threading.Thread(target=self._make_spare, name="sandboxes", daemon=True).start()
        except RuntimeError:  # no thread can be had now: who takes makes one
            self._filling = False

    def _make_spare(self) -> None:
        try:
            while True:
                with self._lock:
                    if self._enough:
                        return
                    self._ready()
                    self._spare.insert(0, self._make())  # those that were used before are taken first
                    self._idle.notify_all()
        except Exception as error:  # who takes one is told
            log.debug("no sandbox can be made ahead: %s", error)
        finally:
            with self._lock:
                self._filling = False
                self._idle.notify_all()

    def _make(self) -> Sandbox:
        """The lock is held, the bridge is there, or went a moment ago. Raises OSError."""
        try:
            return self._made()
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENODEV):
                raise
            self._ready()
            return self._made()

    def _made(self) -> Sandbox:
        assert self._subnet is not None
        address = self._address(self._subnet)
        namespace, (inner, counts, sockets) = netns.create(_furnish)
        sandbox = Sandbox(namespace, counts, sockets, address)
        try:
            with inner:
                self._connect(sandbox)
                link = inner.link(INTERFACE)
                inside = netlink.link_index(link)
                assert link is not None
                sandbox.number = link.peer
                if needs_resolver(self._settings):
                    self._serve_names(sandbox)
                inner.send(
                    [
                        netlink.add_address(inside, sandbox.address, self._subnet.prefixlen),
                        netlink.set_up(inside),
                        netlink.default_route(next(self._subnet.hosts())),
                    ]
                )
        except BaseException:
            self._drop(sandbox)
            raise
        return sandbox

    def _connect(self, sandbox: Sandbox) -> None:
        """Its pair of interfaces. Its name is that of the address: what another builder has is passed over, and the
        sandbox has another address then. Raises OSError."""
        assert self._subnet is not None
        assert self._kernel is not None
        others: list[IPv4Address] = []
        try:
            while True:
                veth = f"{VETH}{int(sandbox.address) - int(self._subnet.network_address):x}"
                mac = "02:42:" + sandbox.address.packed.hex(":")
                pair = [
                    netlink.new_veth(veth, self._bridge, INTERFACE, sandbox.namespace, mac, self._settings.mtu),
                    netlink.isolated(veth),
                ]
                try:
                    self._kernel.send(pair)
                    break
                except FileExistsError:
                    if not _others(self._presence):  # of one that is on its way out
                        found = self._kernel.link(veth)
                        if found is not None:
                            self._kernel.send([netlink.delete_index(found.number)])
                        self._kernel.send(pair)
                        break
                others.append(sandbox.address)
                sandbox.address = self._address(self._subnet)
        finally:
            self._taken.difference_update(others)
        sandbox.veth = veth

    def _serve_names(self, sandbox: Sandbox) -> None:
        """The host's servers are on its loopback: they are asked from the host."""
        self._names = self._names or dns.Resolver()
        nobody: Callable[..., None] = lambda *_: None  # noqa: E731
        self._names.add(
            str(sandbox.address), sandbox.namespace, nobody, nobody, lambda _: resolver.host_resolver(False).servers
        )
        sandbox.named = True
        sandbox.sockets += 2

    def _address(self, subnet: IPv4Network) -> IPv4Address:
        first = int(subnet.network_address) + 2  # the first one is the bridge's
        every = range(first, min(int(subnet.broadcast_address), first + ADDRESSES_MAX))
        start = self._first % len(every) if every else 0
        for value in (*every[start:], *every[:start]):
            address = IPv4Address(value)
            if address not in self._taken:
                self._taken.add(address)
                return address
        raise OSError(errno.EADDRNOTAVAIL, f"all addresses of {subnet} are taken by steps", BRIDGE)

    def _drop(self, sandbox: Sandbox, *, again: bool = False) -> None:
        """The kernel takes some time to delete a pair, for which nobody waits. Never fails. `again`: what is left in
        it may be on its way out, which takes the kernel some time, too."""

        def body() -> None:
            if again:
                time.sleep(SETTLE_SECONDS)
                if self._keep(sandbox):
                    return
            if sandbox.named and self._names is not None:
                self._names.remove(str(sandbox.address))
            sandbox.close()
            try:
                if sandbox.number:
                    with netlink.Socket() as kernel:
                        kernel.send([netlink.delete_index(sandbox.number)])
            except OSError as error:
                if error.errno != errno.ENODEV:
                    log.warning("interface %d of a step cannot be deleted: %s", sandbox.number, error)
            with self._lock:
                self._taken.discard(sandbox.address)

        try:
            threading.Thread(target=body, name="veth", daemon=True).start()
        except RuntimeError:
            body()

    # The bridge

    def _ready(self) -> None:
        """The lock is held. Raises OSError, errors.Error."""
        if self._closed:
            raise errors.Unavailable("the builder is stopping")
        try:
            assert self._subnet is None or self._kernel is not None
            found = self._kernel.link(BRIDGE) if self._kernel is not None else None
            if self._subnet is None:
                self._bring_up()
            elif found is None or found.number != self._bridge:
                log.warning("somebody has taken away the bridge of the steps' network: it is made anew")
                self._bring_up()
            elif self._is_disturbed():
                self._mend(self._subnet)
        except nftables.Error as error:
            raise OSError(errno.EIO, f"the rules of the steps' network cannot be made: {error}", TABLE) from error

    def _bring_up(self) -> None:
        kernel = self._kernel = self._kernel or netlink.Socket()
        self._presence = self._presence or _announce()
        found = self._in_use(kernel)
        subnet = None if found is None else _subnet_of(kernel, found)
        if subnet is None:
            subnet = self._subnet or self._choose(kernel)
            gateway = next(subnet.hosts())
            if found is None:
                # Of its own: else it is that of one of its ports, and the steps' neighbour is gone when that one is.
                mac = "02:42:" + gateway.packed.hex(":")
                try:
                    kernel.send([netlink.new_bridge(BRIDGE, self._settings.mtu, mac)])
                except FileExistsError:  # another builder was as quick, and gives it an address just now
                    time.sleep(SETTLE_SECONDS)
                    self._bring_up()
                    return
                found = netlink.link_index(kernel.link(BRIDGE))
            kernel.send([netlink.add_address(found, gateway, subnet.prefixlen), netlink.set_up(found)])
        else:
            assert found is not None
            self._first = secrets.randbelow(ADDRESSES_MAX)
        if self._settings.subnet and subnet != IPv4Network(self._settings.subnet):
            log.warning("steps are in %s, that of another builder on this host", subnet)
        self._bridge = found
        self._forwarding.turn_on()
        # Who can send router advertisements in a step is not the host's router (CVE-2020-13401).
        ipv6 = Path(f"/proc/sys/net/ipv6/conf/{BRIDGE}/accept_ra")
        if ipv6.exists():
            ipv6.write_text("0")
        self._changes = self._changes or nftables.Changes()
        self._make_rules(subnet)
        self._subnet = subnet
        self._put_back(kernel)
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, args=(self._changes,), name="ruleset", daemon=True)
            self._watcher.start()

    def _in_use(self, kernel: Socket) -> int | None:
        """The number of a bridge that is somebody's, and stays; what only the dead have left goes. Raises OSError."""
        links = kernel.links()
        found = next((link for link in links if link.name == BRIDGE), None)
        if found is not None and found.kind != "bridge":
            raise OSError(errno.EEXIST, "an interface of this name is no bridge; rename it", BRIDGE)
        if _others(self._presence):
            return found.number if found is not None else None
        own = {sandbox.number for sandbox in (*self._spare, *self._out)}
        remove_left(kernel, [link for link in links if link.number not in own])
        if found is None or _has_strangers(links, found.number):
            return found.number if found is not None else None
        kernel.send([netlink.delete_index(found.number)])
        return None

    def _put_back(self, kernel: Socket) -> None:
        """What there is of sandboxes is on the bridge that there is now, where their addresses are good there."""
        assert self._subnet is not None
        for sandbox in (*self._spare, *self._out):
            try:
                if sandbox.address not in self._subnet:
                    raise OSError(errno.EADDRNOTAVAIL, f"{sandbox.address} is not in {self._subnet}")
                kernel.send([netlink.set_master(sandbox.number, self._bridge), netlink.isolated(sandbox.veth)])
            except OSError as error:
                log.warning("interface %s of a step has no way out any more: %s", sandbox.veth, error)
                if sandbox in self._spare:
                    self._spare.remove(sandbox)
                    self._drop(sandbox)

    def _choose(self, kernel: Socket) -> IPv4Network:
        if self._settings.subnet:
            return IPv4Network(self._settings.subnet)
        subnet = subnets.choose(kernel.routes(), reversed(subnets.POOLS))
        if subnet is None:
            raise OSError(errno.EADDRNOTAVAIL, "no subnet is free for the steps' network: configure one", BRIDGE)
        return subnet

    def _make_rules(self, subnet: IPv4Network) -> None:
        text = f"add table {TABLE}\ndelete table {TABLE}\n" + _RULES.format(bridge=BRIDGE, subnet=subnet)
        nftables.run(text)
        self._forwarding.stand_beside_others(OWNER, [BRIDGE])
        if firewalld.is_installed():
            try:
                with firewalld.Firewalld() as host:  # its zone's wildcard is of our bridge, too
                    host.let_out([])
            except FileNotFoundError:
                pass  # it does not run
            except OSError as error:
                log.warning("firewalld does not let steps out: %s", error)
        if self._changes is not None:
            self._changes.pending()  # ours

    def _is_disturbed(self) -> bool:
        """Whether somebody changed the ruleset in a way that may be ours to mend, since this was asked last."""
        found = self._changes.pending() if self._changes is not None else None
        return found is None or any(
            (change.table == TABLE and change.kind.startswith("delete")) or forwarding.concerns(change)
            for change in found
        )

    def _mend(self, subnet: IPv4Network) -> None:
        """The lock is held: somebody may have emptied the ruleset, as reloading nftables' own service does, or made the
        chain of a Docker that comes. Raises nftables.Error."""
        if _is_whole():
            self._forwarding.stand_beside_others(OWNER, [BRIDGE])
            return
        log.warning("somebody has changed the rules of the steps' network: they are made anew")
        self._make_rules(subnet)

    def _watch(self, changes: Changes) -> None:
        """While the bridge is there: what is disturbed is mended also while steps run."""
        poll = select.poll()
        poll.register(changes, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        while True:
            if any(descriptor == self._end for descriptor, _ in poll.poll()):
                return
            with self._lock:
                if self._closed or self._subnet is None:
                    return
                try:
                    if self._is_disturbed():
                        self._mend(self._subnet)
                except (OSError, nftables.Error) as error:
                    log.error("the rules of the steps' network cannot be made anew: %s", error)

    def sweep(self) -> None:
        """At the start: what a predecessor left that was killed. Never fails."""
        try:
            if _others(None):
                return
            with netlink.Socket() as kernel:
                found = kernel.link(BRIDGE)
                if found is not None and found.kind == "bridge":
                    _take_away(kernel, found.number)
        except OSError as error:
            log.warning("the network of an earlier builder is not all taken away: %s", error)

    def close(self) -> None:
        """The builder goes: all of it is taken away that no other builder has, and what steps still have goes with
        them."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while self._filling:
                self._idle.wait()
        os.eventfd_write(self._end, 1)
        if self._watcher is not None:
            self._watcher.join()
        os.close(self._end)
        with self._lock:
            own = {sandbox.number for sandbox in (*self._spare, *self._out)}
            for sandbox in self._spare:
                if sandbox.named and self._names is not None:
                    self._names.remove(str(sandbox.address))
                sandbox.close()
            self._spare.clear()
            if self._changes is not None:
                self._changes.close()
            if self._kernel is None:
                return
            try:
                if self._presence is not None:  # of two that leave at once each may be the last
                    self._presence.close()
                with self._kernel as kernel:
                    if _others(None):
                        remove_left(kernel, [link for link in kernel.links() if link.number in own])
                    else:
                        _take_away(kernel, self._bridge)
            except OSError as error:
                log.warning("the steps' network is not all taken away: %s", error)
            self._kernel = None


def _is_whole() -> bool:
    """Whether the table is there with all its rules."""
    try:
        listed = nftables.run(f"list table {TABLE}")
    except nftables.Error:
        return False
    return listed.count(" drop") == 2 and listed.count(" accept\n") == 1 and listed.count(" masquerade") == 1


def _take_away(kernel: Socket, bridge: int) -> None:
    """The bridge, unless somebody else has put an interface on it, what steps have on it, and the rules. Raises
    OSError."""
    links = kernel.links()
    remove_left(kernel, links)
    if not bridge:
        return
    if not _has_strangers(links, bridge):
        try:
            kernel.send([netlink.delete_index(bridge)])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
    try:
        nftables.run(f"add table {TABLE}\ndelete table {TABLE}\n")
        forwarding.beside_others(OWNER, [])
    except nftables.Error as error:
        raise OSError(errno.EIO, str(error), TABLE) from error


def _has_strangers(links: Iterable[Link], bridge: int) -> bool:
    """Whether there are interfaces on a bridge that are no steps'."""
    return any(link.master == bridge and not link.name.startswith(VETH) for link in links)


def _subnet_of(kernel: Socket, bridge: int) -> IPv4Network | None:
    """That of a bridge's first address; None where it has none."""
    for index, address, length in kernel.addresses():
        if index == bridge and isinstance(address, IPv4Address):
            return IPv4Network((address, length), strict=False)
    return None


def _announce() -> socket.socket:
    """Tell other builders of this network namespace that there is one, for as long as the socket is open."""
    result = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        result.bind(f"\0{PRESENT}{os.getpid()}-{secrets.token_hex(4)}")
    except BaseException:
        result.close()
        raise
    return result


def _others(own: socket.socket | None) -> bool:
    """Whether another builder lives. Raises OSError."""
    name = own.getsockname().lstrip(b"\0") if own is not None else b""
    begins = b"@" + PRESENT.encode()
    with open("/proc/thread-self/net/unix", "rb") as table:
        found = {words[-1] for words in map(bytes.split, table) if words[-1].startswith(begins)}
    return bool(found - {b"@" + name})


def _furnish() -> tuple[Socket, int, int]:
    """In a new namespace: a socket for its interfaces, its counts of sockets, and how many there were before."""
    counts = os.open("/proc/thread-self/net/sockstat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        before, _ = sockets_in(os.pread(counts, 4096, 0))
        for name, value in SYSCTLS.items():
            Path(f"/proc/sys/{name}").write_text(value)
        inner = netlink.Socket()
        try:
            inner.send([netlink.set_up(1)])
        except BaseException:
            inner.close()
            raise
    except BaseException:
        os.close(counts)
        raise
    return inner, counts, before


def remove_left(kernel: Socket, links: Iterable[Link]) -> None:
    """Interfaces of steps whose builder is no more."""
    for link in links:
        if link.kind == "veth" and link.name.startswith(VETH):
            try:
                kernel.send([netlink.delete_index(link.number)])
            except OSError as error:
                if error.errno != errno.ENODEV:
                    log.warning("interface %s cannot be deleted: %s", link.name, error)


def _refused(error: OSError) -> errors.Error:
    what = f" ({error.filename})" if error.filename else ""
    return errors.Error(f"failed to create the step's network: {error.strerror or error}{what}")


# What a step knows of names


def needs_resolver(settings: Settings) -> bool:
    """Whether a step with a network of its own could ask nobody."""
    return not settings.servers and not resolver.host_resolver(True, (4,)).servers


def resolv_conf(settings: Settings, own: bool, named: bool = False) -> str:
    """`own`: the step has a network of its own, from which servers on the host's loopback cannot be asked; `named`: it
    has a resolver of ours."""
    found = resolver.host_resolver(own, (4,))
    if named:
        found.servers = [dns.ADDRESS]
    if settings.servers:
        found.servers = list(settings.servers)
    if settings.search:
        found.search = list(settings.search)
    if settings.options:
        found.options = list(settings.options)
    return found.text()


def hosts(hostname: str, extra: Iterable[tuple[str, str]], gateway: str = "") -> str:
    """`extra`: (name, address); `gateway` stands for "host-gateway"."""
    text = f"127.0.0.1\tlocalhost {hostname or HOSTNAME}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    for name, address in extra:
        text += f"{(gateway or '127.0.0.1') if address == HOST_GATEWAY else address}\t{name}\n"
    return text
