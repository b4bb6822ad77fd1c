# SPDX-License-Identifier: Apache-2.0
"""Our side of a session: the builder asks, a thread for each of its calls answers. Called by solve.

grpc.health.v1.Health                   whether we are here
moby.filesync.v1.FileSync, FileSend     folders to the builder; results to us
moby.filesync.v1.Auth, …secrets, …ssh   what of the user's a build may use
moby.upload.v1.Upload                   a context that came on the standard input
containerd.services.content.v1.Content  stores with an OCI layout
"""

from __future__ import annotations

import os
import threading

from teu.cli.builds import keys, receiving, sending, store
from teu.cli.builds.messages import decode, encode
from teu.cli.builds.wire import ALREADY_EXISTS, NOT_FOUND, PEER, UNIMPLEMENTED, UNKNOWN, BuildError
from teu.cli.errors import CommandError
from teu.cli.options import TRUE
from teu.http2.calls import Asked, unescaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from teu.cli.config import ConfigFile
    from teu.http2.connection import Stream

HEADER = "X-Docker-Expose-Session-"
EXPORTER_ID = "buildkit-attachable-exporter-id"
UPLOAD_HOST = "buildkit-session"
CHUNK = 1 << 20
SERVING = 1


class Offer:
    """What a build lets its builder have."""

    def __init__(self, config: ConfigFile) -> None:
        self.config = config
        self.folders: dict[str, str] = {}  # name: path
        self.targets: dict[int, receiving.Target | str] = {}  # number of the exporter: a file, or the path of a folder
        self.secrets: dict[str, keys.Secret] = {}
        self.agents = keys.Agents()
        self.uploads: dict[str, Callable[[], Iterator[bytes]]] = {}
        self.stores: dict[str, store.Store] = {}
        self.shared_key = ""


def _listed(metadata: dict[str, list[str]], key: str) -> list[str]:
    values = metadata.get(key, [])
    if (metadata.get(f"{key}-encoded") or ["0"])[0] in ("1", "true"):
        return [unescaped(value.replace("+", " "), "surrogateescape") for value in values]
    return values


class Session:
    """Serves one build."""

    def __init__(self, offer: Offer) -> None:
        self.id = os.urandom(16).hex()
        self._offer = offer
        self._content = store.Service(offer.stores)
        self._lock = threading.Lock()
        self.failures: list[str] = []  # of this side, in words for a person
        self._methods: dict[str, Callable[[Asked], None]] = {
            "/grpc.health.v1.Health/Check": _healthy,
        }
        registries = keys.Registries(offer.config)
        answers = {"Credentials": registries.credentials}
        if os.environ.get("BUILDKIT_NO_CLIENT_TOKEN") not in TRUE:
            answers["GetTokenAuthority"] = registries.authority
            answers["VerifyTokenAuthority"] = registries.verify
            answers["FetchToken"] = registries.fetch
        for name, answer in answers.items():
            self._methods[f"/moby.filesync.v1.Auth/{name}"] = self._of_registries(answer)
        if offer.folders:
            self._methods["/moby.filesync.v1.FileSync/DiffCopy"] = self._send_folder
        if offer.targets:
            self._methods["/moby.filesync.v1.FileSend/DiffCopy"] = self._receive
        # Git asks for tokens by names of its own, so that the service is there in any case.
        self._methods["/moby.buildkit.secrets.v1.Secrets/GetSecret"] = self._secret
        # Without agents, too: a step that needs one is told which it is that was not given.
        self._methods["/moby.sshforward.v1.SSH/CheckAgent"] = self._check_agent
        self._methods["/moby.sshforward.v1.SSH/ForwardAgent"] = offer.agents.forward
        if offer.uploads:
            self._methods["/moby.upload.v1.Upload/Pull"] = self._upload
        if offer.stores:
            for name in store.Service.METHODS:
                self._methods[f"/containerd.services.content.v1.Content/{name}"] = self._of_store

    def identity(self) -> list[tuple[str, str]]:
        """The headers that say who we are and what we serve."""
        return [
            (f"{HEADER}Uuid", self.id),
            (f"{HEADER}Name", ""),
            (f"{HEADER}Sharedkey", self._offer.shared_key),
            *((f"{HEADER}Grpc-Method", method) for method in self._methods),
        ]

    def serve(self, stream: Stream) -> None:
        """Answer a call; in a thread of its own, for http2 waits."""
        threading.Thread(target=self._answer, args=(stream,), daemon=True).start()

    def _answer(self, stream: Stream) -> None:
        asked = Asked(stream, BuildError, PEER)
        code, text = 0, ""
        try:
            method = self._methods.get(asked.method)
            if method is None:
                raise BuildError(UNIMPLEMENTED, f"unknown method {asked.method}")
            method(asked)
        except BuildError as error:
            code, text = error.code, error.message
        except sending.Unreadable as error:
            code, text = UNKNOWN, str(error)
            self._tell(text)
        except CommandError as error:
            code, text = UNKNOWN, error.text
        except (OSError, ValueError) as error:
            code, text = UNKNOWN, str(error)
        try:
            asked.finish(code, text)
        except BuildError:
            pass  # the connection has ended

    def _tell(self, text: str) -> None:
        with self._lock:
            if text not in self.failures:
                self.failures.append(text)

    def _of_registries(self, answer: Callable[[bytes], bytes]) -> Callable[[Asked], None]:
        def method(asked: Asked) -> None:
            request = asked.receive() or b""
            with self._lock:  # a credential helper at a time: some ask the user
                found = answer(request)
            asked.send(found)

        return method

    def _send_folder(self, asked: Asked) -> None:
        name = (_listed(asked.metadata, "dir-name") or [""])[0]
        path = self._offer.folders.get(name)
        if path is None:
            raise BuildError(NOT_FOUND, f'no access allowed to dir "{name}"')
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise sending.Unreadable(f"open {path}: {str(error.strerror).lower()}") from None
        try:
            include = _listed(asked.metadata, "include-patterns")
            paths = _listed(asked.metadata, "followpaths")
            if paths:
                include = [*include, *sending.follow(folder, paths)]
            selection = sending.Selection(include, _listed(asked.metadata, "exclude-patterns"))
            sending.Sender(asked, folder, selection, self._tell).run()
        finally:
            os.close(folder)

    def _receive(self, asked: Asked) -> None:
        targets = self._offer.targets
        number = (asked.metadata.get(EXPORTER_ID) or [""])[0]
        # An older builder knows one exporter alone, and names none.
        target = targets.get(int(number)) if number.isdecimal() else next(iter(targets.values()))
        if target is None:
            raise BuildError(ALREADY_EXISTS, "target already exists")
        if isinstance(target, str):
            os.makedirs(target, exist_ok=True)
            folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                receiving.Receiver(asked, folder).run()
            finally:
                os.close(folder)
            return
        try:
            target.take(decode("moby.filesync.v1.BytesMessage", message)["data"] for message in asked)
        except OSError as error:
            raise BuildError(UNKNOWN, f"failed to write {target.path}: {error.strerror}") from None

    def _secret(self, asked: Asked) -> None:
        identifier = decode("moby.buildkit.secrets.v1.GetSecretRequest", asked.receive() or b"")["ID"]
        value = keys.secret_value(self._offer.secrets, identifier)
        asked.send(encode("moby.buildkit.secrets.v1.GetSecretResponse", data=value))

    def _check_agent(self, asked: Asked) -> None:
        self._offer.agents.socket(decode("moby.sshforward.v1.CheckAgentRequest", asked.receive() or b"")["ID"])
        asked.send(b"")

    def _upload(self, asked: Asked) -> None:
        path = (asked.metadata.get("urlpath") or [""])[0]
        source = self._offer.uploads.pop(path.strip("/"), None)
        if source is None:
            raise BuildError(NOT_FOUND, f"no http response from session for {path}")
        for data in source():
            for at in range(0, len(data), CHUNK):
                asked.send(encode("moby.upload.v1.BytesMessage", data=data[at : at + CHUNK]))

    def _of_store(self, asked: Asked) -> None:
        self._content.serve(asked.method.rpartition("/")[2], asked)


def _healthy(asked: Asked) -> None:
    asked.receive()
    asked.send(encode("grpc.health.v1.HealthCheckResponse", status=SERVING))
