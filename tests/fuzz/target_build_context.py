# SPDX-License-Identifier: Apache-2.0
"""The session's file protocol: a context from a sender who has read it, and from one who wants out of the folder."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from fuzz import mutate
from fuzz.frame import Run, target

SLOW_SECONDS = 5
NAMES = (b"a", b"b", b"c", b"d", b"old", b"link", b"hard", b"\xff", b"\n", b"x" * 255, b".fsutil-metadata")
BAD_NAMES = (b"..", b".", b"", b"a/../../out", b"/etc/x", b"a//b", b"x" * 256, b"a\0b", b"../outside/secret")
DIR, LINK, DEVICE, FIFO, SOCKET, CHARACTER = 1 << 31, 1 << 27, 1 << 26, 1 << 25, 1 << 24, 1 << 21
MODES = (0o644, 0o4755, 0o000, DIR | 0o755, DIR | 0o700, DIR, LINK | 0o777, FIFO | 0o600, DEVICE | 0o600)
BAD_MODES = (SOCKET, DEVICE | CHARACTER, DIR | LINK, 1 << 19, CHARACTER, DIR | DEVICE | FIFO, (1 << 32) - 1)
LINKS = (b"a", b"b/a", b"old", b"../../outside", b"../../outside/secret", b"/", b"..", b"link", b"x" * 4096, b"a\0b")
XATTRS = ("user.a", "user." + "x" * 300, "security.capability", "trusted.overlay.opaque", "\0", "", "system.x")


def _stats(run: Run) -> list[Any]:
    """What a walk would tell, mostly in its order, with something wrong here and there."""
    from teu.api.buildkit.fsutil import raw_pb2

    dice = run.random
    paths: list[tuple[bytes, ...]] = []
    folders: list[tuple[bytes, ...]] = [()]
    kinds: dict[tuple[bytes, ...], int] = {}
    for _ in range(dice.randrange(1, 16)):
        path = (*dice.choice(folders), dice.choice(NAMES))
        if path in kinds or len(path) > 6:
            continue
        mode = dice.choice(MODES) if dice.random() < 0.98 else dice.choice(BAD_MODES)
        kinds[path] = mode
        paths.append(path)
        if mode & DIR or dice.random() < 0.05:
            folders.append(path)
    paths.sort()
    if dice.random() < 0.1:
        dice.shuffle(paths)
    found = []
    for path in paths:
        name = b"/".join(path) if dice.random() < 0.99 else dice.choice(BAD_NAMES)
        mode = kinds[path]
        linked = mode & LINK or dice.random() < 0.15
        one = raw_pb2.Stat(
            path=name,
            mode=mode,
            uid=dice.choice((0, 0, 1000, (1 << 32) - 1)),
            gid=dice.choice((0, 0, 7)),
            size=dice.choice((0, 5, 1 << 62, -1)) if dice.random() < 0.1 else 5,
            modTime=dice.choice((0, 1, 5, -(1 << 63), (1 << 63) - 1)),
            linkname=dice.choice(LINKS) if linked and dice.random() < 0.95 else b"",
            devmajor=dice.choice((1, 1, 0, 1 << 40, -1)) if mode & DEVICE else 0,
            devminor=dice.choice((3, 0, 1 << 21)) if mode & DEVICE else 0,
        )
        if linked and not mode & LINK and paths and dice.random() < 0.6:
            one.linkname = b"/".join(dice.choice(paths))  # a hard link to what came, or is to come
        for key in XATTRS if dice.random() < 0.1 else ():
            one.xattrs[key] = b"v" * dice.choice((1, 1, 70_000))
        found.append(one)
    return found


class _Sender:
    """A client's end of DiffCopy: what it tells is drawn, what it is asked for it sends, or something else."""

    def __init__(self, run: Run) -> None:
        from teu.api.buildkit.fsutil import raw_pb2

        self._dice, self._packet = run.random, raw_pb2.Packet
        self._honest = self._dice.random() < 0.6
        self._coming = deque(self._packet(type=0, stat=one) for one in _stats(run))
        if self._dice.random() < 0.9:
            self._coming.append(self._packet(type=0))
        for _ in range(0 if self._honest else self._dice.randrange(3)):
            self._coming.insert(self._dice.randrange(len(self._coming) + 1), self._odd())
        self.said: list[bytes] = []

    def _odd(self) -> Any:
        kind = self._dice.choice((0, 1, 2, 2, 2, 3, 4, 9))
        data = self._dice.choice((b"", b"data", b"x" * 1000, b"\xff\xfe"))
        return self._packet(type=kind, ID=self._dice.choice((0, 1, 2, 3, 1 << 31)), data=data)

    def receive(self) -> Any:
        from google.protobuf.message import DecodeError

        while self._coming:
            data = self._coming.popleft().SerializeToString()
            if not self._honest and self._dice.random() < 0.02:
                data = mutate.data(self._dice, data)
            self.said.append(data)
            try:
                return self._packet.FromString(data)
            except DecodeError:
                continue  # the call's own, below this protocol
        return None

    def waiting(self) -> bool:
        return self._dice.random() < 0.5

    def send_many(self, packets: list[Any]) -> None:
        for packet in packets:
            self.send(packet)

    def send(self, packet: Any) -> None:
        if packet.type == 1:
            for data in (b"12345"[:2], b"12345"[2:], b"") if self._dice.random() < 0.95 else (b"x",):
                self._coming.append(self._packet(type=2, ID=packet.ID, data=data))
        elif packet.type == 3:
            self._coming.append(self._packet(type=3))

    def end(self) -> None:
        pass


def _picture(folder: Path) -> dict[str, Any]:
    """What must not change, whoever sends."""
    found: dict[str, Any] = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        names = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in os.listxattr(path)]
        found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, data, names)
    return found


def _before(top: Path) -> Path:
    """The folder that is received into has things from earlier, and ways out that somebody may have put there."""
    outside, folder = top / "outside", top / "in/target"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (outside / "secret").chmod(0o600)
    folder.mkdir(parents=True)
    (folder / "old").mkdir()
    (folder / "old/a").write_text("12345")
    (folder / "link").symlink_to("../../outside")
    (folder / "old/link").symlink_to(outside)
    os.link(outside / "secret", folder / "hard")
    os.link(outside / "secret", folder / "old/b")
    return folder


def _how(run: Run) -> Any:
    from teu.buildkit.session import fsutil

    dice = run.random
    if dice.random() < 0.7:
        return fsutil.How()
    wanted = dice.choice((b"a", b"b", b"old", b"d/a"))
    return fsutil.How(dice.random() < 0.5, dice.choice((None, lambda path: path.startswith(wanted))))


@target("build-context", "packets of a build's context into the builder's receiver, alone")
def fuzz(run: Run) -> None:
    from teu.buildkit.core.errors import Error
    from teu.buildkit.session import fsutil

    def said(sender: _Sender) -> list[str]:
        return [str(sender._packet.FromString(data)) for data in sender.said[:40]]

    while run.going():
        top = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/tmp"))
        folder = _before(top)
        before = _picture(top / "outside")
        descriptors = len(os.listdir("/proc/self/fd"))
        sender = _Sender(run)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        begun = time.monotonic()
        run.tried()
        try:
            notify = (lambda change: None) if run.random.random() < 0.5 else None
            fsutil.receive(sender, opened, fsutil.Limits(1000, 1 << 20), notify, how=_how(run))  # type: ignore[arg-type]
        except Error:
            pass
        except Exception as error:
            run.finding(f"{type(error).__name__}: {error}"[:200], sender.said)
        finally:
            os.close(opened)
        if time.monotonic() - begun > SLOW_SECONDS:
            run.finding("a transfer took longer than it should", sender.said)
        if len(os.listdir("/proc/self/fd")) != descriptors:
            run.finding("a transfer left a descriptor open", sender.said)
        if _picture(top / "outside") != before:
            run.finding("a transfer changed what is outside of its folder", said(sender))
        if sorted(os.listdir(top)) != ["in", "outside"] or os.listdir(top / "in") != ["target"]:
            run.finding("a transfer made something outside of its folder", said(sender))
        shutil.rmtree(top, ignore_errors=True)
