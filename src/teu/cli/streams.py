# SPDX-License-Identifier: Apache-2.0
"""Conversations with a container's process: the raw stream of attach and exec, the terminal, signals,
detaching.

Called by run, start, attach and exec through `Session`. One poll loop serves everything in one thread: the
hijacked connection, our standard input, the answer of `wait`, and signals (by a signalfd)."""

from __future__ import annotations

import _socket
import gc
import os
import select

from teu.cli.command import whole_python
from teu.cli.errors import APIError, CommandError, ConnectError
from teu.linux.signals import NUMBERS
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from teu.cli.http import Client, Response
    from teu.linux.signalfd import SignalFile

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
SIGWINCH = NUMBERS["WINCH"]
# Never passed on: what cannot be caught, what is about us, and what a fault of our own would raise.
NOT_FORWARDED = frozenset(
    (
        *(
            NUMBERS[name]
            for name in ("KILL", "STOP", "CHLD", "PIPE", "URG", "SEGV", "BUS", "FPE", "ILL", "ABRT", "TRAP")
        ),
        *(NUMBERS[name] for name in ("SYS", "PROF", "WINCH", "TTIN", "TTOU")),
        32,
        33,
    )
)
CONTROL = {f"ctrl-{chr(96 + number)}": number for number in range(1, 27)}
CONTROL.update({"ctrl-@": 0, "ctrl-[": 27, "ctrl-\\": 28, "ctrl-]": 29, "ctrl-^": 30, "ctrl-_": 31})


def detach_sequence(text: str) -> bytes:
    """`ctrl-p,ctrl-q` as bytes."""
    keys = bytearray()
    for key in text.split(","):
        if key in CONTROL:
            keys.append(CONTROL[key])
        elif len(key) == 1 and key.isascii():
            keys += key.encode()
        else:
            raise CommandError(f"invalid detach keys ({text}): Unknown character: '{key}'")
    return bytes(keys)


class DetachKeys:
    """Finds the detach sequence in what the user types. Without keys everything is passed on."""

    def __init__(self, keys: bytes) -> None:
        self.keys = keys
        self.held = b""  # the end of the input so far, when it may be the start of the sequence

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what is to be sent now, whether the sequence was found after it)."""
        data = self.held + data
        found = data.find(self.keys) if self.keys else -1
        if found >= 0:
            return data[:found], True
        keep = max(len(self.keys) - 1, 0)
        while keep and not data.endswith(self.keys[:keep]):
            keep -= 1
        split = len(data) - keep
        self.held = data[split:]
        return data[:split], False


def write_all(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(file, view) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(file, select.POLLOUT)
            poller.poll()


class Demultiplexer:
    """Splits the daemon's stream of frames (stream number, three zeros, length in big endian, data)."""

    def __init__(self, outputs: dict[int, int]) -> None:
        self.outputs = outputs
        self.buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> None:
        buffer = self.buffer
        buffer += data
        position, size = 0, len(buffer)
        parts: list[bytes] = []
        current = -1
        while size - position >= 8:
            length = int.from_bytes(buffer[position + 4 : position + 8], "big")
            if size - position - 8 < length:
                break
            stream = buffer[position]
            if stream > 3:
                raise ConnectError(f"the daemon sent a frame of an unknown stream: {stream}")
            if stream != current and parts:
                self._write(current, parts)
                parts = []
            current = stream
            parts.append(bytes(buffer[position + 8 : position + 8 + length]))
            position += 8 + length
        if parts:
            self._write(current, parts)
        del buffer[:position]

    def _write(self, stream: int, parts: list[bytes]) -> None:
        if stream == 3:
            raise ConnectError("error from daemon in stream: " + b"".join(parts).decode("utf-8", "replace"))
        file = self.outputs.get(stream or 1, -1)
        if file >= 0:
            write_all(file, b"".join(parts))


class RawTerminal:
    """Standard input's terminal in raw mode while the context lasts."""

    def __init__(self, file: int) -> None:
        self.file = file

    def __enter__(self) -> None:
        import termios  # 0.4 ms

        whole_python()  # what ends us must not leave the terminal as it is then

        self.saved = termios.tcgetattr(self.file)
        mode: list[Any] = termios.tcgetattr(self.file)
        mode[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        mode[1] &= ~termios.OPOST
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.file, termios.TCSANOW, mode)

    def __exit__(self, *_: object) -> None:
        import termios  # loaded since __enter__

        termios.tcsetattr(self.file, termios.TCSANOW, self.saved)


def terminal_size(file: int = 1) -> tuple[int, int] | None:
    """(rows, columns) of the terminal at `file`, or None."""
    try:
        size = os.get_terminal_size(file)
    except OSError:
        return None
    return size.lines, size.columns


class Signals:
    """Catches signals while the context lasts and makes them readable from `file`, which is -1 where there are none to
    catch."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.source: SignalFile | None = None
        self.file = -1

    def __enter__(self) -> Signals:
        if self.numbers:
            from teu.linux.signalfd import SignalFile  # 0.1 ms, as a script 0.6, that others than run do not pay

            self.source = SignalFile(self.numbers)
            self.file = self.source.file
        return self

    def take(self) -> list[int]:
        return self.source.read() if self.source is not None else []

    def __exit__(self, *_: object) -> None:
        if self.source is not None:
            self.source.close()


def caught(tty: bool, forwards: bool) -> list[int]:
    """The signals to catch: with a terminal a change of its size, and where `forwards` those that are passed on."""
    if forwards:
        return [number for number in range(1, 65) if number not in NOT_FORWARDED or (tty and number == SIGWINCH)]
    return [SIGWINCH] if tty else []


class Attachment:
    """What of a process is attached: its input, its outputs, with a terminal (`tty`) or without; and the keys that
    detach from it, as the user wrote them."""

    def __init__(
        self, *, tty: bool, stdin: bool, stdout: bool = True, stderr: bool = True, detach_keys: str = ""
    ) -> None:
        self.tty = tty
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.detach_keys = detach_keys

    def query(self) -> dict[str, Any]:
        """Of `POST /containers/ID/attach`."""
        return {
            "stream": True,
            "stdin": self.stdin,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "detachKeys": self.detach_keys,
        }


class Session:
    """One attached conversation.

    `stream`: the hijacked answer, which is raw with a terminal, else frames.
    `waiter`: the open answer of `POST /containers/ID/wait`, whose end ends the session.
    `resize(rows, columns)` and `forward(signal)` tell the daemon."""

    def __init__(
        self,
        client: Client,
        stream: Response | None,
        attached: Attachment,
        *,
        waiter: Response | None = None,
        resize: Callable[[int, int], None] | None = None,
        forward: Callable[[int], None] | None = None,
    ) -> None:
        self.client = client
        self.stream = stream
        self.attached = attached
        self.keys = detach_sequence(attached.detach_keys or DEFAULT_DETACH_KEYS)
        self.waiter = waiter
        self.resize = resize
        self.forward = forward
        self.detached = False
        self.status: int | None = None
        self.poller = select.poll()
        self.output = Demultiplexer({1: 1 if attached.stdout else -1, 2: 2 if attached.stderr else -1})
        self.outgoing = bytearray()  # input that the daemon has not taken yet; meanwhile no more is read
        self.reading = False  # whether our standard input is still open
        self.sock: Any = None  # the stream's socket, until the daemon closes it
        self.sock_file = self.wait_file = -1
        # Further descriptors to wait for, each with what to do when it is readable; what that takes out is let go.
        self.also: dict[int, Callable[[], None]] = {}

    def run(self, signals: Signals) -> int | None:
        """Talk until the stream ends (and the waiter answers) or the user detaches. The exit status as the
        waiter told it, or None."""
        gc.enable()  # which a quick start has not done: this may go on for days
        if self.attached.tty and self.attached.stdin and os.isatty(0):
            with RawTerminal(0):
                self._loop(signals, DetachKeys(self.keys))
        else:
            self._loop(signals, DetachKeys(b""))
        return self.status

    def fit(self) -> None:
        """Give the process's terminal our terminal's size."""
        if self.resize is not None and (size := terminal_size()) is not None:
            try:
                self.resize(*size)
            except (APIError, ConnectError):
                pass  # the process may have ended already

    def _loop(self, signals: Signals, keys: DetachKeys) -> None:
        self._open_stream()
        self._open_waiter()
        if signals.file >= 0:
            self.poller.register(signals.file, select.POLLIN)
        for file in self.also:
            self.poller.register(file, select.POLLIN)
        while not self.detached and not self._is_over():
            events = self._poll()
            if signals.file in events:
                self._pass_signals(signals)
            for file in [file for file in self.also if file in events]:
                self.also[file]()
                if file not in self.also:
                    self.poller.unregister(file)
            if self.wait_file in events:
                self.poller.unregister(self.wait_file)
                self.wait_file = -1
                self._read_status()
            if self.sock is not None:
                happened = events.get(self.sock_file, 0)
                if happened & select.POLLOUT and self.outgoing:
                    self._send_rest()
                if happened & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    self._receive()
            if self.reading and 0 in events:
                self._read_input(keys)

    def _open_stream(self) -> None:
        if self.stream is None:
            return
        connection = self.stream.connection
        self.sock = connection.sock
        self.sock_file = self.sock.fileno()
        self.poller.register(self.sock, select.POLLIN)
        self._show(connection.buffer)
        connection.buffer.clear()
        if self.attached.stdin:
            self.poller.register(0, select.POLLIN)
            self.reading = True

    def _open_waiter(self) -> None:
        if self.waiter is None:
            return
        if self.waiter.connection.buffer:
            self._read_status()
        else:
            self.wait_file = self.waiter.connection.sock.fileno()
            self.poller.register(self.wait_file, select.POLLIN)

    def _is_over(self) -> bool:
        """The stream has ended, or shows nothing, and the exit status is known where one was asked for."""
        if self.waiter is None:
            return self.sock is None
        shows = self.attached.stdout or self.attached.stderr
        return self.status is not None and (self.sock is None or not shows)

    def _poll(self) -> dict[int, int]:
        """What happened, by file descriptor."""
        # TLS keeps decoded data back, which the kernel's poll does not see.
        decoded = getattr(self.sock, "pending", None)
        events = dict(self.poller.poll(0 if decoded is not None and decoded() else None))
        if decoded is not None and decoded():
            events[self.sock_file] = select.POLLIN
        return events

    def _pass_signals(self, signals: Signals) -> None:
        for number in signals.take():
            if number == SIGWINCH:
                self.fit()
            elif self.forward is not None:
                self.forward(number)

    def _receive(self) -> None:
        """Show what the daemon sent. At the stream's end no input is read any more either."""
        try:
            data = receive(self.sock, 1 << 17)
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        if data:
            self._show(data)
            return
        self.poller.unregister(self.sock)
        if self.reading and not self.outgoing:
            self.poller.unregister(0)
        self.reading = False
        self.sock.close()
        self.sock = None

    def _read_input(self, keys: DetachKeys) -> None:
        """Send what the user typed; the detach sequence ends the conversation."""
        try:
            data = os.read(0, 1 << 16)
        except OSError:
            data = b""
        if data:
            data, self.detached = keys.feed(data)
            self.outgoing += data
        else:
            self.outgoing += keys.held
            self.reading = False
            self.poller.unregister(0)
        if self.outgoing:
            self._send()
        if self.detached:
            self.sock.close()
        elif self.outgoing:
            self.poller.modify(self.sock, select.POLLIN | select.POLLOUT)
            if self.reading:
                self.poller.unregister(0)
        elif not self.reading:
            self._half_close()

    def _send_rest(self) -> None:
        """Send more of what waits; when nothing is left, read our input again or tell that it has ended."""
        self._send()
        if self.outgoing:
            return
        self.poller.modify(self.sock, select.POLLIN)
        if self.reading:
            self.poller.register(0, select.POLLIN)
        else:
            self._half_close()

    def _show(self, data: bytes | bytearray) -> None:
        if not data:
            return
        if not self.attached.tty:
            self.output.feed(data)
        elif self.attached.stdout or self.attached.stderr:
            write_all(1, bytes(data))

    def _half_close(self) -> None:
        """Tell the process that its input has ended, and keep reading its output."""
        half_close(self.sock)

    def _send(self) -> None:
        """Send what the socket takes at once; the rest stays in `outgoing`."""
        try:
            if self.client.tls is None:
                sent = self.sock.send(self.outgoing, _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)
            else:
                sent = self.sock.send(self.outgoing)
            del self.outgoing[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.outgoing.clear()  # the other side takes no more input

    def _read_status(self) -> None:
        assert self.waiter is not None
        self.status = exit_status(self.waiter)


def receive(sock: Any, size: int) -> bytes:
    """What comes next; empty at the end, also of a connection of TLS whose own end was said already."""
    try:
        data: bytes = sock.recv(size)
    except OSError as error:
        if type(error).__name__ != "SSLZeroReturnError":  # ssl's, which is not loaded without TLS
            raise
        return b""
    return data


def half_close(sock: Any) -> None:
    """Say that nothing more comes, and keep reading. With TLS that is its own last word (RFC 8446 section 6.1): the
    shutdown() of Python's socket would end the encryption of what is still to be read."""
    try:
        if hasattr(sock, "unwrap"):
            _last_word(sock)
        else:
            sock.shutdown(_socket.SHUT_WR)
    except OSError:
        pass


def _last_word(sock: Any) -> None:
    """That of TLS. OpenSSL looks for the other side's at once, and gives the connection up where it finds data instead,
    which are lost then: for that moment the descriptor is one on which nothing comes."""
    descriptor, patience = sock.fileno(), sock.gettimeout()
    real = os.dup(descriptor)
    near, far = _socket.socketpair()
    try:
        os.dup2(near.fileno(), descriptor, inheritable=False)
        try:
            sock.setblocking(False)
            sock.unwrap()
        except OSError:
            pass  # it is said: what is missing is the other side's
        finally:
            os.dup2(real, descriptor, inheritable=False)
            sock.settimeout(patience)
        near.close()
        write_all(real, far.recv(1 << 16))
    finally:
        os.close(real)
        near.close()
        far.close()


def exit_status(waiter: Response) -> int:
    """The container's exit status from an answer of `wait`; 125 when waiting itself failed."""
    try:
        answer = jsontext.loads(waiter.read())
    except (ValueError, ConnectError, OSError) as error:
        os.write(2, f"error waiting for container: {error}\n".encode())
        return 125
    if answer.get("Error"):
        os.write(2, f"Error waiting for container: {answer['Error'].get('Message', '')}\n".encode())
        return 125
    return int(answer.get("StatusCode", 0))


def container_resize(client: Client, container: str) -> Callable[[int, int], None]:
    path = f"/containers/{container}/resize"
    return lambda rows, columns: client.call("POST", path, {"h": str(rows), "w": str(columns)})


def container_forward(client: Client, container: str) -> Callable[[int], None]:
    def forward(number: int) -> None:
        try:
            client.call("POST", f"/containers/{container}/kill", {"signal": str(number)})
        except (APIError, ConnectError):
            pass  # not running any more

    return forward


def check_terminal(attach_stdin: bool, tty: bool) -> None:
    if attach_stdin and tty and not os.isatty(0):
        raise CommandError("the input device is not a TTY")
