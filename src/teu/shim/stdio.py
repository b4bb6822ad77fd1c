# SPDX-License-Identifier: Apache-2.0
"""The standard streams of a container's process.

Without a terminal the process gets the client's FIFO (or log file, or the logging binary's pipe) itself
as its standard stream: no byte passes through the shim, and a slow or absent reader holds up only
the writer.  What the shim does is to keep the FIFO alive:

- `holds` (read-write) make sure that the process neither blocks in opening nor is told EOF or EPIPE while
  clients come, go and crash.  They are closed when the process has exited, so that readers see EOF;
  stdin's is closed by CloseIO, so that the process does.
- `keeps` (read-only, never read) keep what is in the FIFO for a reader that is not there at the moment,
  until the process is deleted.

Standard error is a pipe of the shim's, relayed to its FIFO from the successful start on: the OCI runtime
has it first, and writes there why it failed, which the client is told in another way.  With a terminal the
bytes must move between the pty and the FIFOs.  Both is done by splice(2), in the kernel.

A logging binary that is not ready yet holds up its own container alone, and has two seconds for the last lines. After
the exit a late reader has to open the FIFO with O_RDONLY|O_NONBLOCK: it gets what is left, and then end of file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import struct
import termios

from teu.linux import sockets
from teu.shim.crilog import SCHEME as CRI_SCHEME
from teu.shim.crilog import LogFile
from teu.shim.loop import EPOLLIN, EPOLLOUT, Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from teu.shim.loop import Coroutine, Loop

# bytes moved by one splice(2)
SPLICE_LENGTH = 1 << 20

LOGGER_SCHEMES = ("binary", "binary-v2")


def is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def parse_uri(uri: str) -> tuple[str, str, list[str]]:
    """A log URI as (scheme, path, arguments): `binary:///usr/bin/logger?key=value` gives
    ("binary", "/usr/bin/logger", ["key", "value"]); a bare path has the scheme "fifo"."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "fifo", uri, []
    if scheme == CRI_SCHEME:
        return scheme, rest, []  # a path as it is
    path, _, query = rest.partition("?")
    arguments = []
    if query:
        from urllib.parse import parse_qsl, unquote  # 2 ms and 0.1 MB

        for key, value in parse_qsl(query, keep_blank_values=True):
            arguments += [key, value] if value else [key]
        path = unquote(path)
    return scheme, path, arguments


def own_null() -> int:
    """A null device that is nobody else's, open for reading and writing. OSError."""
    from teu.linux import mounts  # 4 ms and 0.4 MB, for those runtimes alone that may change its owner

    tree = mounts.new_filesystem("tmpfs", "tmpfs", ["mode=700", "size=4k"], mounts.MOUNT_ATTR_NOSUID)
    try:
        os.mknod("null", stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=tree)
        os.chmod("null", 0o666, dir_fd=tree)
        return os.open("null", os.O_RDWR | os.O_CLOEXEC, dir_fd=tree)
    finally:
        os.close(tree)


class Streams:
    """What the shim holds for one process's streams."""

    def __init__(self, complain: Callable[[str], None] = lambda _text: None) -> None:
        """`complain` is told of output that cannot be written."""
        self._complain = complain
        # whether a process without an input or an output gets a null device of its own in the place of the host's
        self.own_null = False
        self._stdin_hold = -1
        self._holds: list[int] = []
        self._keeps: list[int] = []
        self._child: list[int] = []
        # standard error's pipe and FIFO, until they are relayed
        self._error: tuple[int, int] | None = None
        self.relay: Relay | None = None
        self.console: Console | None = None
        # the log that this shim itself writes
        self.log: LogFile | None = None
        self.logger_pid = 0
        # done when the logging binary has ended
        self.logger_gone = Future()
        # the pipe by which the logging binary says that it is ready, and whether it has to
        self._ready = -1
        self._must_say_ready = False

    def child_fds(self) -> tuple[int, int, int]:
        """The three descriptors for the process; close_child() them once the runtime has them."""
        stdin, stdout, stderr = self._child
        return stdin, stdout, stderr

    def started(self, loop: Loop) -> None:
        """The runtime has succeeded: from now on standard error is the process's."""
        self.close_child()
        if self._error:
            source, sink = self._error
            self._error = None
            self.relay = Relay(loop, source, sink, True)
        if self.log:
            self.log.start(loop)

    def close_child(self) -> None:
        for fd in set(self._child):
            os.close(fd)
        self._child = []

    def close_stdin(self) -> None:
        """CloseIO: from now on the process reads EOF when the last client has closed."""
        if self._stdin_hold >= 0:
            os.close(self._stdin_hold)
            self._stdin_hold = -1
        if self.console:
            self.console.close_stdin()

    def exited(self) -> None:
        """The process is gone: let readers see EOF behind the last byte."""
        self.close_stdin()
        for fd in self._holds:
            os.close(fd)
        self._holds = []
        if self.console:
            self.console.exited()

    def close(self) -> None:
        """Give everything up."""
        self.close_child()
        self.exited()
        if self.relay:
            self.relay.end()
        if self.console:
            self.console.close()
        if self.log:
            self.log.close()
            self.log = None
        for fd in self._error or ():
            os.close(fd)
        self._error = None
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1
        for fd in self._keeps:
            os.close(fd)
        self._keeps = []

    def _open_null(self) -> int:
        return own_null() if self.own_null else os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def _open_output(self, path: str, uid: int, gid: int) -> int:
        if not path:
            return self._open_null()
        if not is_fifo(path):
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._holds.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        self._keeps.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        if uid or gid:
            os.fchown(fd, uid, gid)
        return fd

    def _open_error(self, path: str, uid: int, gid: int) -> int:
        if not path or not is_fifo(path):
            return self._open_output(path, uid, gid)
        self._keeps.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        sink = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        source, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(source, False)
        self._error = (source, sink)
        if uid or gid:
            os.fchown(write_end, uid, gid)
        return write_end

    def open(
        self, stdin: str, stdout: str, stderr: str, *, container: str, namespace: str, uid: int = 0, gid: int = 0
    ) -> None:
        """Prepare the streams of a process without a terminal.

        The paths are FIFOs, or stdout is a file://, cri:// or binary:// URI that takes both outputs; empty means
        none.  With cri:// stderr is the socket for those who look on.  `uid` and `gid` shall own the FIFOs (the
        runtime options io_uid and io_gid)."""
        try:
            if stdin:
                hold = os.open(stdin, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self._stdin_hold = hold
                self._child.append(os.open(stdin, os.O_RDONLY | os.O_CLOEXEC))
                if uid or gid:
                    os.fchown(hold, uid, gid)
            else:
                self._child.append(self._open_null())
            scheme, path, arguments = parse_uri(stdout)
            if scheme == "fifo":
                self._child.append(self._open_output(path, uid, gid))
                self._child.append(self._open_error(stderr, uid, gid))
            elif scheme == "file":
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._child += [os.open(path, flags, 0o644)] * 2
            elif scheme == CRI_SCHEME:
                self.log = LogFile(path, self._complain, stderr)
                for name in ("stdout", "stderr"):
                    sink = self.log.stream(name)
                    self._child.append(sink)
                    if uid or gid:
                        os.fchown(sink, uid, gid)
            elif scheme in LOGGER_SCHEMES:
                self._child += self._start_logger(scheme, path, arguments, container, namespace)
            else:
                raise ValueError(f"unknown STDIO scheme {scheme}")
        except BaseException:
            self.close()
            raise

    def open_terminal_logger(self, stdout: str, stderr: str, *, container: str, namespace: str) -> int:
        """For a process with a terminal: where its output goes if that is a logging binary or this shim's own log,
        else -1."""
        scheme, path, arguments = parse_uri(stdout)
        if scheme == CRI_SCHEME:
            self.log = LogFile(path, self._complain, stderr)
            sink = self.log.stream("stdout")
            os.set_blocking(sink, False)
            return sink
        if scheme not in LOGGER_SCHEMES:
            return -1
        out_write, err_write = self._start_logger(scheme, path, arguments, container, namespace)
        os.close(err_write)  # a terminal has no standard error of its own
        os.set_blocking(out_write, False)
        return out_write

    def _start_logger(
        self, scheme: str, path: str, arguments: list[str], container: str, namespace: str
    ) -> tuple[int, int]:
        """containerd's logging binary: it has stdout and stderr to read at 3 and 4, and closes 5 when it is ready.

        The ends to write to."""
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        # The targets 3 to 5 may be in use as sources: move all sources out of the way first.
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (out_read, err_read, ready_write)]
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        environment = dict(os.environ, CONTAINER_ID=container, CONTAINER_NAMESPACE=namespace)
        actions = [(os.POSIX_SPAWN_DUP2, null, n) for n in (0, 1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate(moved, start=3)]
        self._ready = ready_read
        self._must_say_ready = scheme == "binary-v2"
        try:
            self.logger_pid = os.posix_spawn(path, [path, *arguments], environment, file_actions=actions)
        except BaseException:
            os.close(out_write)
            os.close(err_write)
            raise
        finally:
            for fd in (out_read, err_read, ready_write, null, *moved):
                os.close(fd)
        return out_write, err_write

    def logger_ready(self, loop: Loop) -> Coroutine:
        """Wait until the logging binary is ready, if there is one; only this container waits for it."""
        if self._ready < 0:
            return
        ready = Future()
        loop.watch(self._ready, EPOLLIN, lambda _events: ready.set())
        try:
            yield ready
            said = os.read(self._ready, 1)
        finally:
            loop.unwatch(self._ready)
            os.close(self._ready)
            self._ready = -1
        if self._must_say_ready and not said:
            raise ValueError("logging binary did not call ready (it may have crashed or exited prematurely)")


class Relay:
    """Moves bytes from `source` to `sink` in the kernel until the source ends, then closes the sink.

    Both are non-blocking and become the relay's own."""

    def __init__(self, loop: Loop, source: int, sink: int, sink_is_pipe: bool) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._sink_is_pipe = sink_is_pipe
        self._finishing = False
        # done when everything is in the sink
        self.drained = Future()
        loop.watch(source, EPOLLIN, self._copy)

    def _copy(self, _events: int = 0) -> None:
        # Asked before the move: if a reader took something meanwhile, the source would look empty.
        had_room = self._finishing and self._has_room()
        try:
            count = self._move()
        except BlockingIOError:
            if had_room:
                self.end()  # it is empty, and no writer is left
            elif self._sink_is_pipe:
                # The source had something, so the reader of the sink is slow.
                self._loop.unwatch(self._source)
                self._loop.watch(self._sink, EPOLLOUT, self._on_writable)
            return
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            count = 0
        if count == 0:
            self.end()
        elif self._finishing:
            self._copy()

    def _move(self) -> int:
        try:
            return os.splice(self._source, self._sink, SPLICE_LENGTH, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # This kernel cannot splice between these two.
        data = os.read(self._source, 4096)
        if data and self._sink_is_pipe:
            os.set_blocking(self._sink, True)
            try:
                os.write(self._sink, data)
            finally:
                os.set_blocking(self._sink, False)
        elif data:
            os.write(self._sink, data)
        return len(data)

    def _has_room(self) -> bool:
        """Whether the sink takes something now. What a terminal still has cannot be asked for: some of it may be on its
        way to where it is counted, and comes only when it is read."""
        if not self._sink_is_pipe:
            return True
        poll = select.poll()
        poll.register(self._sink, select.POLLOUT)
        return any(events & select.POLLOUT for _, events in poll.poll(0))

    def _on_writable(self, _events: int) -> None:
        self._loop.unwatch(self._sink)
        self._loop.watch(self._source, EPOLLIN, self._copy)
        self._copy()

    def finish(self) -> None:
        """No writer is left: end when what is there has been moved."""
        if not self._finishing and not self.drained.done:
            self._finishing = True
            self._copy()

    def end(self) -> None:
        """End now."""
        if self._sink >= 0:
            self._loop.unwatch(self._source)
            self._loop.unwatch(self._sink)
            os.close(self._source)
            os.close(self._sink)
            self._source = self._sink = -1
        self.drained.set()


class Console:
    """A terminal's master end, and the copying between it and the client's FIFOs."""

    def __init__(self, loop: Loop, master: int, stdin: str, stdout: str, logger: int = -1) -> None:
        """`logger` is the pipe of a logging binary, if the output goes to one; it stays the caller's."""
        self._loop = loop
        self._master = master
        self._in = self._in_hold = self._keep = -1
        os.set_blocking(master, False)
        try:
            scheme, path, _ = parse_uri(stdout)
            fifo = scheme == "fifo" and is_fifo(path)
            if logger >= 0:
                out, fifo = fcntl.fcntl(logger, fcntl.F_DUPFD_CLOEXEC, 3), True
            elif fifo:
                out = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self._keep = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            elif scheme == "file":
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            elif scheme != "fifo":
                raise ValueError(f"unknown STDIO scheme {scheme}")
            else:
                out = os.open(path or "/dev/null", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            # A descriptor of its own, because both directions are watched independently.
            self.output = Relay(loop, fcntl.fcntl(master, fcntl.F_DUPFD_CLOEXEC, 3), out, fifo)
            if stdin:
                self._in = os.open(stdin, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._in_hold = os.open(stdin, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                loop.watch(self._in, EPOLLIN, self._on_input)
        except BaseException:
            self.close()
            raise
        self._pending = b""

    def resize(self, width: int, height: int) -> None:
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    # input: FIFO -> master

    def _on_input(self, _events: int) -> None:
        try:
            if not self._pending:
                self._pending = os.read(self._in, 65536)
                if not self._pending:
                    self._stop_input()
                    return
            while self._pending:
                self._pending = self._pending[os.write(self._master, self._pending) :]
        except BlockingIOError:
            if self._pending:
                # The terminal's input queue is full: go on when it has room.
                self._loop.unwatch(self._in)
                self._loop.watch(self._master, EPOLLOUT, self._on_room)
        except OSError:
            self._stop_input()

    def _on_room(self, _events: int) -> None:
        self._loop.unwatch(self._master)
        self._loop.watch(self._in, EPOLLIN, self._on_input)
        self._on_input(0)

    def _stop_input(self) -> None:
        if self._in >= 0:
            self._loop.unwatch(self._in)
            self._loop.unwatch(self._master)
            os.close(self._in)
            self._in = -1

    def close_stdin(self) -> None:
        if self._in_hold >= 0:
            os.close(self._in_hold)
            self._in_hold = -1

    def exited(self) -> None:
        """The process is gone: copy what the terminal still has, then end."""
        self._stop_input()
        self.output.finish()

    def close(self) -> None:
        self._stop_input()
        self.close_stdin()
        if hasattr(self, "output"):
            self.output.end()
        for fd in (self._master, self._keep):
            if fd >= 0:
                os.close(fd)
        self._master = self._keep = -1


class ConsoleSocket:
    """The unix socket by which the runtime hands over a terminal (--console-socket)."""

    def __init__(self, folder: str, name: str) -> None:
        os.makedirs(folder, 0o711, exist_ok=True)
        self.path = os.path.join(folder, name)
        self.unlink()  # the name has our pid in it: what is there was left by a shim that was killed
        self._listener = sockets.Socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._listener.settimeout(10)

    def receive(self) -> int:
        """The master's descriptor; to be called when the runtime has ended."""
        peer, _ = self._listener.accept()
        with peer:
            peer.settimeout(10)
            _, master = sockets.receive_with(peer, 4096)
        if master < 0:
            raise OSError(errno.ENOTTY, "the OCI runtime sent no terminal")
        return master

    def close(self) -> None:
        self._listener.close()
        self.unlink()

    def unlink(self) -> None:
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass


def wait_drained(loop: Loop, relay: Relay | LogFile, seconds: float, log: Callable[[str], None]) -> Coroutine:
    """Wait until the last output is in the FIFO, at most so long."""

    def give_up() -> None:
        if not relay.drained.done:
            log("output was not read: dropped what is left")
            relay.end()

    relay.finish()
    if not relay.drained.done:
        loop.after(seconds, give_up)
        yield relay.drained
