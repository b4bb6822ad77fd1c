# SPDX-License-Identifier: Apache-2.0
"""What a build may use of the user's: credentials for registries, secrets, ssh agents. Called by session."""

from __future__ import annotations

import _socket
import binascii
import os
import threading

from teu.cli.builds.messages import decode, encode
from teu.cli.builds.receiving import Replacing, write
from teu.cli.builds.wire import NOT_FOUND, UNKNOWN, BuildError
from teu.cli.config import DEFAULT_INDEX, ConfigFile
from teu.cli.errors import CommandError
from teu.cli.options import split_csv
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from teu.http2.calls import Asked

SECRET_MAX = 500 << 10  # bytes, as BuildKit has it
AGENT_KEY = "buildkit.ssh.id"
CHUNK = 32 << 10
HUB = ("registry-1.docker.io", "docker.io", "index.docker.io")


class Secret:
    """Where a secret is: the path of a file, or the name of a variable."""

    __slots__ = ("path", "variable")

    def __init__(self, path: str, variable: str) -> None:
        self.path = path
        self.variable = variable


def parse_secret(text: str) -> tuple[str, Secret]:
    """--secret: id=NAME[,src=PATH][,env=VARIABLE][,type=file|env]; (its id, where it is)."""
    found = dict.fromkeys(("id", "src", "env", "type"), "")
    for field in split_csv(text):
        key, equals, value = field.partition("=")
        key = "src" if key.lower() == "source" else key.lower()
        if not equals:
            raise CommandError(f"invalid field '{field}' must be a key=value pair")
        if key not in found:
            raise CommandError(f"unexpected key '{key}' in '{field}'")
        found[key] = value
    identifier, path, variable, kind = found.values()
    if kind not in ("", "file", "env"):
        raise CommandError(f'unsupported secret type "{kind}"')
    if not identifier:
        raise CommandError(f"secret missing ID: {text}" if text else "secret missing ID")
    if kind == "env" and not variable:
        path, variable = "", path
    if not path and not variable:
        # A bare id is a variable of this name, else a file.
        if kind != "file" and (kind == "env" or identifier in os.environ):
            variable = identifier
        else:
            path = identifier
    if path:
        path = os.path.expanduser(path) if path.startswith("~/") else path
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise CommandError(f"failed to stat {path}: {error.strerror}") from None
        if size > SECRET_MAX:
            raise CommandError(f"secret {identifier} too big. max size 500KB")
    elif variable and variable not in os.environ and kind == "env":
        raise CommandError(f'secret {identifier}: the variable "{variable}" is not set')
    return identifier, Secret(path, variable)


def secret_value(secrets: dict[str, Secret], identifier: str) -> bytes:
    """BuildError NOT_FOUND where there is none of this id."""
    secret = secrets.get(identifier)
    if secret is None:
        raise BuildError(NOT_FOUND, f"secret {identifier}: not found")
    if secret.variable:
        return os.environ.get(secret.variable, "").encode("utf-8", "surrogateescape")
    try:
        with open(secret.path, "rb") as file:
            data = file.read(SECRET_MAX + 1)
    except OSError as error:
        raise BuildError(UNKNOWN, f"failed to read {secret.path}: {error.strerror}") from None
    if len(data) > SECRET_MAX:
        raise BuildError(UNKNOWN, f"secret {identifier} too big. max size 500KB")
    return data


class Registries:
    """The user's credentials for registries, each asked for once.

    A builder may have them, or it has tokens fetched here, so that no password leaves: it knows then a public key for
    each registry, made of its own salt and of a seed that this user has for the registry. The seeds are docker's, in
    .token_seed beside config.json, so that builds of either client share tokens."""

    def __init__(self, config: ConfigFile) -> None:
        self._config = config
        self._known: dict[str, dict[str, str]] = {}
        self._seeds: dict[str, bytes] = {}

    def of(self, host: str) -> dict[str, str]:
        """As the API's AuthConfig; empty where there are none."""
        if host not in self._known:
            try:
                self._known[host] = self._config.auth(DEFAULT_INDEX if host in HUB else host)
            except CommandError as error:
                raise BuildError(UNKNOWN, error.text) from None
        return self._known[host]

    def credentials(self, request: bytes) -> bytes:
        auth = self.of(decode("moby.filesync.v1.CredentialsRequest", request)["Host"])
        name, secret = auth.get("username", ""), auth.get("password", "")
        if auth.get("identitytoken"):
            name, secret = "", auth["identitytoken"]
        return encode("moby.filesync.v1.CredentialsResponse", Username=name, Secret=secret)

    def authority(self, request: bytes) -> bytes:
        """The public key for a registry."""
        from teu.oci import ed25519  # 4 ms, for registries alone

        asked = decode("moby.filesync.v1.GetTokenAuthorityRequest", request)
        key = ed25519.public_key(self._key(asked["Host"], asked["Salt"]))
        return encode("moby.filesync.v1.GetTokenAuthorityResponse", PublicKey=key)

    def verify(self, request: bytes) -> bytes:
        """Proof that the key is ours: what is to be signed, behind its signature."""
        from teu.oci import ed25519  # 4 ms, for registries alone

        asked = decode("moby.filesync.v1.VerifyTokenAuthorityRequest", request)
        signature = ed25519.sign(self._key(asked["Host"], asked["Salt"]), asked["Payload"])
        return encode("moby.filesync.v1.VerifyTokenAuthorityResponse", Signed=signature + asked["Payload"])

    def fetch(self, request: bytes) -> bytes:
        """A token, from the server that the registry named to the builder."""
        from teu.oci.distribution import Credentials, Registry, RegistryError  # 60 ms, for registries alone

        asked = decode("moby.filesync.v1.FetchTokenRequest", request)
        auth = self.of(asked["Host"])
        names = ("username", "password", "identitytoken", "registrytoken")
        known = Credentials(*(auth.get(name, "") for name in names))
        try:
            with Registry("docker.io" if asked["Host"] in HUB else asked["Host"], known) as registry:
                token = known.registry_token or registry.fetch_token(
                    asked["Realm"], asked["Service"], asked["Scopes"], ""
                )
        except RegistryError as error:
            raise BuildError(UNKNOWN, f"failed to fetch a token for {asked['Host']}: {error}") from None
        return encode("moby.filesync.v1.FetchTokenResponse", Token=token)

    def _key(self, host: str, salt: bytes) -> bytes:
        import hmac  # 1 ms, for registries alone

        auth = self.of(host)
        seed = self._seed(host) if auth.get("password") or auth.get("identitytoken") else b""
        return hmac.digest(salt, seed, "sha256")

    def _seed(self, host: str) -> bytes:
        """What only this user has for a registry: kept, where the folder can be written to."""
        if host in self._seeds:
            return self._seeds[host]
        path = os.path.join(os.path.dirname(self._config.path), ".token_seed")
        known: dict[str, Any] = {}
        try:
            found = jsontext.loads(jsontext.read_file(path))
            known = found if isinstance(found, dict) else {}
            seed = binascii.a2b_base64(known[host]["Seed"])
        except (OSError, ValueError, KeyError, TypeError):
            seed = b""
        if not seed:
            seed = os.urandom(16)
            known[host] = {"Seed": binascii.b2a_base64(seed, newline=False).decode()}
            try:
                with Replacing(path, 0o600) as descriptor:
                    write(descriptor, jsontext.dumps(known).encode())
            except OSError:
                pass  # it is one for this build
        self._seeds[host] = seed
        return seed


class Agents:
    """The ssh agents that a build may use, by id; a context manager, as those that we start have to end."""

    def __init__(self) -> None:
        self._sockets: dict[str, str] = {}
        self._started: list[Any] = []
        self._folder = ""

    def add(self, text: str) -> None:
        """--ssh: default, or ID[=SOCKET|KEY[,KEY]]. CommandError where there is no such agent or key."""
        identifier, _, rest = text.partition("=")
        paths = [path for path in rest.split(",") if path]
        if not paths:
            found = os.environ.get("SSH_AUTH_SOCK")
            if not found:
                raise CommandError("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
            paths = [found]
        kinds = []
        for path in paths:
            try:
                kinds.append(os.stat(path).st_mode & 0o170000)
            except OSError as error:
                raise CommandError(f"failed to stat {path}: {error.strerror}") from None
        if 0o140000 in kinds:
            if len(paths) > 1:
                raise CommandError("only single socket allowed")
            self._sockets[identifier or "default"] = paths[0]
            return
        self._sockets[identifier or "default"] = self._agent_with(paths)

    def _agent_with(self, keys: list[str]) -> str:
        """The socket of an agent of our own that knows these keys: OpenSSH's, since it reads all their forms."""
        import subprocess  # 11 ms, for keys in files alone

        if not self._folder:
            self._folder = f"{os.environ.get('TMPDIR') or '/tmp'}/teu-ssh-{os.urandom(8).hex()}"
            os.mkdir(self._folder, 0o700)
        path = f"{self._folder}/{len(self._started)}"
        try:
            agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
            self._started.append(agent)
            for _ in range(3000):  # 30 s, of a host that is very busy
                if os.path.exists(path) or agent.poll() is not None:
                    break
                threading.Event().wait(0.01)
            added = subprocess.run(
                ["ssh-add", "-q", *keys],
                env={**os.environ, "SSH_AUTH_SOCK": path},
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except OSError as error:
            raise CommandError(f"ssh keys from files need OpenSSH's ssh-agent and ssh-add: {error.strerror}") from None
        if added.returncode:
            raise CommandError(f"failed to add the ssh keys {', '.join(keys)}")
        return path

    def __bool__(self) -> bool:
        return bool(self._sockets)

    def socket(self, identifier: str) -> str:
        try:
            return self._sockets[identifier or "default"]
        except KeyError:
            raise BuildError(UNKNOWN, f"unset ssh forward key {identifier or 'default'}") from None

    def forward(self, asked: Asked) -> None:
        """One connection to an agent: bytes in both directions, until both ends have said all."""
        path = self.socket((asked.metadata.get(AGENT_KEY) or ["default"])[0])
        connection: Any = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            try:
                connection.connect(path)
            except OSError as error:
                raise BuildError(UNKNOWN, f"failed to connect to {path}: {error.strerror}") from None
            back = threading.Thread(target=_answers, args=(connection, asked), daemon=True)
            back.start()
            for message in asked:
                data = decode("moby.sshforward.v1.BytesMessage", message)["data"]
                connection.sendall(data, _socket.MSG_NOSIGNAL)
            connection.shutdown(_socket.SHUT_WR)
            back.join()
        except OSError as error:
            raise BuildError(UNKNOWN, f"the ssh agent left: {error.strerror}") from None
        finally:
            connection.close()

    def close(self) -> None:
        """End the agents that were started here."""
        for agent in self._started:
            agent.terminate()
            agent.wait()
        if self._folder:
            for name in os.listdir(self._folder):
                os.unlink(f"{self._folder}/{name}")
            os.rmdir(self._folder)
            self._folder = ""


def _answers(connection: Any, asked: Asked) -> None:
    try:
        while data := connection.recv(CHUNK):
            asked.send(encode("moby.sshforward.v1.BytesMessage", data=data))
    except (OSError, BuildError):
        pass  # the other direction says why
    # The agent's end is the call's end, whatever the step would still say.
    asked.finish()
