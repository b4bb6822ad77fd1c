# SPDX-License-Identifier: Apache-2.0
"""The client's ssh agents. Called by the executor for ssh mounts, and by the git source.

A step sees a socket; what connects to it is carried, connection by connection, to the agent that the client lets the
builder use. The socket lies in a folder that the caller owns, and goes with the `Forwarding`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

from teu.api.buildkit.session import ssh_pb2
from teu.buildkit.core import errors
from teu.buildkit.session.manager import Session
from teu.buildkit.session.rpc import Call

log = logging.getLogger("teu.buildkit.session")

PREFIX = "/moby.sshforward.v1.SSH/"
DEFAULT = "default"
AGENT_KEY = "buildkit.ssh.id"
CONNECTIONS_MAX = 64  # of one socket at a time; more wait
CHUNK = 32 << 10
SECONDS = 60.0
NAME = "ssh_auth_sock"


def check(session: Session, identifier: str = DEFAULT) -> None:
    """An error where the client has no agent of this id, or none at all."""
    request = ssh_pb2.CheckAgentRequest(ID=identifier or DEFAULT)
    session.call(f"{PREFIX}CheckAgent", request, ssh_pb2.CheckAgentResponse, timeout=SECONDS)


class Forwarding:
    """A socket `ssh_auth_sock` in a folder, of the client's agent `identifier`; a context manager.

    folder: an existing one, of which only the caller and the step know. uid, gid, mode: the socket's."""

    def __init__(
        self, session: Session, folder: str, identifier: str = DEFAULT, uid: int = 0, gid: int = 0, mode: int = 0o600
    ) -> None:
        self._session = session
        self._metadata = [(AGENT_KEY, identifier or DEFAULT)]
        self.path = os.path.join(folder, NAME)
        self._lock = threading.Lock()
        self._free = threading.Semaphore(CONNECTIONS_MAX)
        self._open: set[tuple[Call[Any], socket.socket]] = set()
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # A path that is longer than a socket's may be is still reached through its folder.
            descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                place = f"/proc/self/fd/{descriptor}/{NAME}"
                self._listener.bind(place)
                os.chmod(place, mode & 0o777)
                os.chown(place, uid, gid)
            finally:
                os.close(descriptor)
            self._listener.listen(CONNECTIONS_MAX)
        except BaseException:
            self._listener.close()
            raise
        self._forget = session.on_end(self._shut)
        self._thread = threading.Thread(target=self._accept, name="ssh agent", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            self._free.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="ssh agent", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        pair: tuple[Call[Any], socket.socket] | None = None
        try:
            with self._session.stream(f"{PREFIX}ForwardAgent", ssh_pb2.BytesMessage, self._metadata) as call:
                pair = (call, connection)
                with self._lock:
                    if self._closed:
                        return
                    self._open.add(pair)
                back = threading.Thread(target=_back, args=(call, connection), name="ssh agent", daemon=True)
                back.start()
                while data := connection.recv(CHUNK):
                    call.send(ssh_pb2.BytesMessage(data=data))
                call.end()
                back.join()
        except (errors.Error, OSError) as error:
            log.debug("an ssh agent's connection ended: %s", error)
        finally:
            with self._lock:
                if pair is not None:
                    self._open.discard(pair)
            connection.close()
            self._free.release()

    def _shut(self) -> None:
        """Wake everything that waits; from any thread, and without waiting for it."""
        with self._lock:
            self._closed = True
            still = list(self._open)
            try:
                self._listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._free.release()
        for call, connection in still:
            call.cancel()
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        """End all connections and remove the socket."""
        self._forget()
        self._shut()
        self._thread.join()
        self._listener.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass

    def __enter__(self) -> Forwarding:
        return self

    def __exit__(self, *problem: Any) -> None:
        self.close()


def _back(call: Call[Any], connection: socket.socket) -> None:
    """The agent's answers to the step. The agent's end is the step's end to read; a broken one ends the connection."""
    how = socket.SHUT_RDWR
    try:
        for message in call:
            connection.sendall(message.data)
        how = socket.SHUT_WR
    except (errors.Error, OSError) as error:
        log.debug("an ssh agent's answer ended: %s", error)
    try:
        connection.shutdown(how)
    except OSError:
        pass
