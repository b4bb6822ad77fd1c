# SPDX-License-Identifier: Apache-2.0
"""The user's file: `config.json` in docker's format, in $TEU_CONFIG, $DOCKER_CONFIG or ~/.docker, so that log-ins and
preferences are shared with docker. Read only by the commands that need it, and by all where it has HttpHeaders.
The keys in OBJECTS, LISTS and TEXTS are understood; every other one is kept as it is when the file is written."""

from __future__ import annotations

import binascii
import os

from teu.cli.errors import CommandError
from teu.cli.options import split_csv
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The key under which the default registry's credentials have always been kept.
DEFAULT_INDEX = "https://index.docker.io/v1/"

# What the keys that are understood hold: so many levels of objects, and texts in them; or a text.
OBJECTS = {"auths": 2, "credHelpers": 1, "HttpHeaders": 1, "proxies": 2, "plugins": 2, "aliases": 1, "features": 1}
WHOLE = ("credHelpers", "HttpHeaders", "aliases", "features")
LISTS = ("cliPluginsExtraDirs", "pruneFilters")
KNOWN = ("auth", "identitytoken", "registrytoken", "httpProxy", "httpsProxy", "ftpProxy", "noProxy", "allProxy")
TEXTS = (
    "credsStore",
    "currentContext",
    "detachKeys",
    "psFormat",
    "imagesFormat",
    "networksFormat",
    "pluginsFormat",
    "volumesFormat",
    "statsFormat",
)

# What a header's name may have besides letters and digits, RFC 9110; and the names that are the client's own.
TOKEN = "!#$%&'*+-.^_`|~"
OWN_HEADERS = ("Host", "User-Agent", "Content-Length", "Transfer-Encoding", "Trailer", "Connection", "Upgrade")


def checked_headers(given: dict[str, Any], where: str) -> dict[str, str]:
    """Headers for every request, without those that are the client's own. Raises CommandError for what is none."""
    found = {}
    for name, value in given.items():
        value = value or ""
        if not name or not name.isascii() or not all(c.isalnum() or c in TOKEN for c in name):
            raise CommandError(f"{where}: {name!r} is no name of a header: correct it")
        if not all(c == "\t" or c.isprintable() for c in value):
            raise CommandError(f"{where}: {name} has a character that no header can have: correct it")
        name = "-".join(part.capitalize() for part in name.split("-"))
        if name not in OWN_HEADERS:
            found[name] = value.strip()
    return found


def headers_of_environment(text: str) -> dict[str, str]:
    """DOCKER_CUSTOM_HEADERS, NAME=VALUE with commas between, which go in the place of those of the file."""
    given = {}
    for field in split_csv(text):
        name, equals, value = field.partition("=")
        name = name.strip()
        if not equals or not name:
            what = "a key=value pair with an empty key" if equals else 'no "=" in a key=value pair'
            raise CommandError(f"DOCKER_CUSTOM_HEADERS has {what}: {field!r}")
        given[name] = value
    return checked_headers(given, "DOCKER_CUSTOM_HEADERS")


class ConfigFile:
    def __init__(self, directory: str) -> None:
        self.path = directory + "/config.json"
        self.values: dict[str, Any] = {}
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            with open(file, "rb") as stream:
                text = stream.read()
        except OSError as error:  # a folder, for one
            raise CommandError(f"cannot read {self.path}: {error.strerror}") from None
        try:
            values = jsontext.loads(text, exact=True) if text.strip() else {}
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise CommandError(f"{self.path} is not a JSON object: correct it, or move it away")
        for key, depth in OBJECTS.items():
            self._check(values.get(key), key, depth)
        for key in TEXTS:
            self._check(values.get(key), key, 0)
        for key in LISTS:
            value = values.get(key)
            if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
                raise CommandError(f"{self.path}: {key} must be a list of strings: correct it")
        self.values = values

    def _check(self, value: Any, path: str, depth: int) -> None:
        """Texts below so many levels of objects; what is null is not there."""
        if value is None:
            return
        if not isinstance(value, dict if depth else str):
            raise CommandError(f"{self.path}: {path} must be {'an object' if depth else 'a string'}: correct it")
        if isinstance(value, dict):
            for key, item in value.items():
                # What else an entry of auths or proxies may have is not ours.
                if depth > 1 or key in KNOWN or path in WHOLE or path.startswith("plugins."):
                    self._check(item, f"{path}.{key}", depth - 1)

    def get(self, key: str) -> str:
        return str(self.values.get(key) or "")

    def headers(self) -> dict[str, str]:
        """Those that go with every request to the daemon, but for what is the client's own, as docker has it."""
        return checked_headers(self.values.get("HttpHeaders") or {}, f"{self.path}: HttpHeaders")

    def save(self) -> None:
        """Replace the file by one that only its owner may read."""
        try:
            self._replace()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise CommandError(f"cannot write {self.path}: {getattr(error, 'strerror', None) or error}") from None

    def _replace(self) -> None:
        directory = os.path.dirname(self.path)
        os.makedirs(directory, 0o700, exist_ok=True)
        target = os.path.realpath(self.path)
        temporary = f"{target}.{os.getpid()}"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(file, "w", encoding="utf-8") as stream:
                stream.write(jsontext.dumps(self.values, "\t"))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise

    def helper(self, server: str) -> str:
        """The credential helper in charge of a registry; empty for the file itself."""
        helpers = self.values.get("credHelpers") or {}
        return str(helpers.get(server) or self.get("credsStore"))

    def auth(self, server: str) -> dict[str, str]:
        """The credentials for a registry as the API's AuthConfig; empty where there are none. DOCKER_AUTH_CONFIG has
        the first word."""
        text = os.environ.get("DOCKER_AUTH_CONFIG")
        if text and (found := auth_of_environment(text, server)):
            return found
        helper = self.helper(server)
        if helper:
            answer = run_helper(helper, "get", server)
            if answer is None:
                return {}
            try:
                found = jsontext.loads(answer, exact=True)
                user, secret = found.get("Username", ""), found.get("Secret", "")
                if not isinstance(user, str) or not isinstance(secret, str):
                    raise ValueError
            except (ValueError, AttributeError):
                raise CommandError(f"docker-credential-{helper} get gave no credentials as JSON") from None
            auth = {"serveraddress": server}
            if user == "<token>":
                auth["identitytoken"] = secret
            else:
                auth["username"], auth["password"] = user, secret
            return auth
        auths = self.values.get("auths") or {}
        entry = auths.get(server)
        if entry is None:
            for key, value in auths.items():
                if host_of(key) == host_of(server):
                    entry = value
                    break
        if not entry:
            return {}
        auth = {"serveraddress": server}
        if entry.get("auth"):
            try:
                user, _, password = binascii.a2b_base64(entry["auth"]).decode().partition(":")
            except ValueError:
                raise CommandError(f"{self.path}: the credentials of {server} are damaged: log in again") from None
            auth["username"], auth["password"] = user, password.rstrip("\0")
        for source, target in (("identitytoken", "identitytoken"), ("registrytoken", "registrytoken")):
            if entry.get(source):
                auth[target] = entry[source]
        return auth

    def logins(self) -> dict[str, dict[str, str]]:
        """Of every registry what such a file has of it, from wherever it is kept. Of DOCKER_AUTH_CONFIG alone where
        that has any."""
        text = os.environ.get("DOCKER_AUTH_CONFIG")
        if text:
            auth_of_environment(text, "")  # raises what is wrong with it
            if given := jsontext.loads(text, exact=True)["auths"]:
                return {server: {"auth": entry["auth"]} for server, entry in given.items()}
        servers = list(self.values.get("auths") or {})
        if helper := self.get("credsStore"):
            try:
                servers = list(jsontext.loads(run_helper(helper, "list", "") or "{}"))
            except ValueError:
                raise CommandError(f"docker-credential-{helper} list gave no credentials as JSON") from None
        servers += [server for server in self.values.get("credHelpers") or {} if server not in servers]
        found = ((server, self.auth(server)) for server in servers)
        return {server: entry_of(auth) for server, auth in found if len(auth) > 1}

    def store(self, server: str, auth: dict[str, str]) -> None:
        helper = self.helper(server)
        auths = self.values["auths"] = self.values.get("auths") or {}
        if helper:
            secret = auth.get("identitytoken") or auth.get("password", "")
            user = "<token>" if auth.get("identitytoken") else auth.get("username", "")
            run_helper(helper, "store", jsontext.dumps({"ServerURL": server, "Username": user, "Secret": secret}))
            auths[server] = {}
        else:
            auths[server] = entry_of(auth)
        self.save()

    def erase(self, server: str) -> None:
        helper = self.helper(server)
        if helper:
            run_helper(helper, "erase", server)
        auths = self.values.get("auths") or {}
        for key in [key for key in auths if key == server or host_of(key) == host_of(server)]:
            del auths[key]
        self.save()


def entry_of(auth: dict[str, str]) -> dict[str, str]:
    """The API's AuthConfig as an entry of `auths`."""
    tokens = {name: auth[name] for name in ("identitytoken", "registrytoken") if auth.get(name)}
    password = "" if tokens else auth.get("password", "")
    pair = f"{auth.get('username', '')}:{password}".encode()
    return {"auth": binascii.b2a_base64(pair, newline=False).decode(), **tokens}


def auth_of_environment(text: str, server: str) -> dict[str, str]:
    """What DOCKER_AUTH_CONFIG, {"auths": {SERVER: {"auth": base64 of USER:PASSWORD}}}, has for a registry; empty for
    nothing. Raises CommandError where it is none: a log-in that is not meant would be used in its place."""
    try:
        auths = jsontext.loads(text, exact=True)["auths"]
        for key, entry in auths.items():
            user, colon, password = binascii.a2b_base64(entry["auth"]).decode().partition(":")
            if not colon:
                raise ValueError
            if key == server or host_of(key) == host_of(server):
                return {"serveraddress": server, "username": user, "password": password.rstrip("\0")}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CommandError(
            'DOCKER_AUTH_CONFIG must be {"auths": {SERVER: {"auth": BASE64 of USER:PASSWORD}}}: correct or unset it'
        ) from None
    return {}


def run_helper(helper: str, verb: str, text: str) -> str | None:
    """docker-credential-HELPER VERB with `text` on its input; None when it knows no such credentials."""
    import subprocess  # 11 ms, and few users have a credential helper

    program = "docker-credential-" + helper
    try:
        done = subprocess.run([program, verb], input=text.encode(), capture_output=True, check=False)
    except OSError as error:
        raise CommandError(f"cannot run the credential helper {program}: {error.strerror}") from None
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace")
    message = (done.stdout or done.stderr).decode("utf-8", "replace").strip()
    if verb == "get" and "credentials not found" in message:
        return None
    raise CommandError(f"the credential helper {program} {verb} failed: {message}")


def host_of(server: str) -> str:
    return server.partition("://")[2].partition("/")[0] if "://" in server else server.partition("/")[0]


def registry_of(image: str) -> str:
    """The key of an image's registry in `auths`."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost") and first != "docker.io":
        return first
    return DEFAULT_INDEX


def auth_header(config: ConfigFile, server: str) -> dict[str, str]:
    """The X-Registry-Auth header for a registry: the API wants URL-safe base64 of JSON."""
    text = jsontext.dumps(config.auth(server)).encode()
    encoded = binascii.b2a_base64(text, newline=False).decode().replace("+", "-").replace("/", "_")
    return {"X-Registry-Auth": encoded}
