# SPDX-License-Identifier: Apache-2.0
"""Contexts: named ways to a daemon, in docker's own store, so that docker's are teu's and teu's are docker's.

    CONFIG/contexts/meta/ID/meta.json           {"Name", "Metadata": {"Description", …},
                                                 "Endpoints": {"docker": {"Host", "SkipTLSVerify"}}}
                                                ID is the SHA-256 of the name, in hexadecimal digits
    CONFIG/contexts/tls/ID/docker/{ca,cert,key}.pem

The context `default` is in no file: it is what -H and the environment say. Loaded by `command.Cli` where another one is
chosen, and by the commands in `contexts`; a command without a context pays nothing for this."""

from __future__ import annotations

import hashlib  # 5 ms
import os

from teu.cli.errors import CommandError
from teu.oci import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT = "default"
DOCKER = "docker"  # the endpoint that is the Engine API's
META, TLS, META_FILE = "meta", "tls", "meta.json"
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
VALID = "^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$"
# What an archive of a context may have at most.
ARCHIVE_MAX = 10 << 20


def check_name(name: str) -> None:
    """Raises CommandError for what can be no context's name."""
    if not name:
        raise CommandError("context name cannot be empty")
    if name == DEFAULT:
        raise CommandError(f'"{DEFAULT}" is a reserved context name')
    if len(name) < 2 or name[0] not in LETTERS or not LETTERS.union("_.+-").issuperset(name):
        raise CommandError(f'context name "{name}" is invalid, names are validated against regexp "{VALID}"')


class NotFound(CommandError):
    """There is no context of that name."""


class Store:
    """The contexts below the folder of config.json."""

    def __init__(self, directory: str) -> None:
        self.root = directory + "/contexts"

    def meta_path(self, name: str) -> str:
        return f"{self.root}/{META}/{hashlib.sha256(os.fsencode(name)).hexdigest()}"

    def tls_path(self, name: str) -> str:
        return f"{self.root}/{TLS}/{hashlib.sha256(os.fsencode(name)).hexdigest()}"

    def read(self, name: str) -> dict[str, Any]:
        """meta.json of a context. Raises NotFound, and CommandError where it is damaged."""
        path = f"{self.meta_path(name)}/{META_FILE}"
        try:
            return _checked(path)
        except FileNotFoundError:
            text = f'context "{name}": context not found: open {path}: no such file or directory'
            raise NotFound(text) from None
        except OSError as error:
            raise CommandError(f'context "{name}": cannot read {path}: {error.strerror}') from None

    def all(self) -> list[dict[str, Any]]:
        """All that are in files."""
        try:
            folders = os.listdir(f"{self.root}/{META}")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CommandError(f"cannot read {self.root}/{META}: {error.strerror}") from None
        found = []
        for folder in folders:
            try:
                found.append(_checked(f"{self.root}/{META}/{folder}/{META_FILE}"))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise CommandError(f"cannot read {self.root}/{META}/{folder}: {error.strerror}") from None
        return found

    def write(self, meta: dict[str, Any]) -> None:
        """Make a context, or put it in the place of the one of its name."""
        data = jsontext.dumps(meta).encode()
        _write(self.meta_path(meta["Name"]), META_FILE, data, 0o755, 0o644)

    def tls_files(self, name: str) -> dict[str, list[str]]:
        """The names of a context's certificates and keys, by endpoint."""
        folder = self.tls_path(name)
        try:
            return {endpoint: sorted(os.listdir(f"{folder}/{endpoint}")) for endpoint in sorted(os.listdir(folder))}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise CommandError(f"cannot read {folder}: {error.strerror}") from None

    def tls_data(self, name: str) -> dict[tuple[str, str], bytes]:
        """(endpoint, file): what is in it, for all of a context's."""
        return {
            (endpoint, file): read_file(f"{self.tls_path(name)}/{endpoint}/{file}")
            for endpoint, files in self.tls_files(name).items()
            for file in files
        }

    def write_tls(self, name: str, data: dict[tuple[str, str], bytes]) -> None:
        """These certificates and keys, in the place of all that the context had."""
        self._remove_tls(name)
        for (endpoint, file), content in data.items():
            _write(f"{self.tls_path(name)}/{endpoint}", file, content, 0o700, 0o600)

    def remove(self, name: str) -> None:
        """Remove a context, if it is there."""
        folder = self.meta_path(name)
        try:
            for entry in os.listdir(folder):
                os.unlink(f"{folder}/{entry}")
            os.rmdir(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CommandError(f"failed to remove context {name}: {error.strerror}: {error.filename}") from None
        self._remove_tls(name)

    def _remove_tls(self, name: str) -> None:
        folder = self.tls_path(name)
        try:
            for endpoint, files in self.tls_files(name).items():
                for file in files:
                    os.unlink(f"{folder}/{endpoint}/{file}")
                os.rmdir(f"{folder}/{endpoint}")
            os.rmdir(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CommandError(f"failed to remove TLS data of {name}: {error.strerror}: {error.filename}") from None

    def endpoint(self, name: str) -> tuple[str, dict[str, str] | None]:
        """The daemon of a context: its address, and the files of its TLS as `http.Client` takes them; None: none."""
        try:
            found = self.read(name)["Endpoints"].get(DOCKER)
        except CommandError as error:
            raise CommandError(f"Failed to initialize: unable to resolve docker endpoint: {error.text}") from None
        if found is None:
            text = "cannot find docker endpoint in context"
            raise CommandError(f"Failed to initialize: unable to resolve docker endpoint: {text}")
        files = self.tls_files(name).get(DOCKER, ())
        skip = bool(found.get("SkipTLSVerify"))
        if not files and not skip:
            return found.get("Host") or "", None
        folder = f"{self.tls_path(name)}/{DOCKER}"
        tls = {key: f"{folder}/{key}.pem" for key in ("ca", "cert", "key") if f"{key}.pem" in files}
        if not skip:
            tls["verify"] = "yes"
        return found.get("Host") or "", tls


def read_file(path: str) -> bytes:
    """All of a file. Raises CommandError."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise CommandError(f"open {path}: {reason}") from None


def _checked(path: str) -> dict[str, Any]:
    """meta.json with its fields where they have to be. Raises OSError; CommandError where it is none."""
    with open(path, "rb") as file:
        text = file.read()
    try:
        return of_text(text)
    except ValueError as error:
        raise CommandError(f"parsing {path}: {error}") from None


def of_text(text: bytes) -> dict[str, Any]:
    """A context from the JSON of a store or an archive. Raises ValueError where it is none."""
    found = jsontext.loads(text, exact=True)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    # Go's decoder takes any case of a name
    plain = {key.lower(): value for key, value in found.items()}
    result = {
        "Name": plain.get("name") or "",
        "Metadata": plain.get("metadata") or {},
        "Endpoints": plain.get("endpoints") or {},
    }
    endpoints = result["Endpoints"]
    if not isinstance(result["Name"], str) or not isinstance(result["Metadata"], dict):
        raise ValueError("Name must be a text, and Metadata an object")
    if not isinstance(endpoints, dict) or not all(isinstance(value, dict) for value in endpoints.values()):
        raise ValueError("Endpoints must be an object of objects")
    if not isinstance(endpoints.get(DOCKER, {}).get("Host") or "", str):
        raise ValueError("Endpoints.docker.Host must be a text")
    if not isinstance(result["Metadata"].get("Description") or "", str):
        raise ValueError("Metadata.Description must be a text")
    return result


def _write(folder: str, name: str, data: bytes, folder_mode: int, mode: int) -> None:
    """A whole file or none: written beside, and renamed."""
    temporary = f"{folder}/.{name}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(folder), 0o755, exist_ok=True)
        os.makedirs(folder, folder_mode, exist_ok=True)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            with open(file, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, f"{folder}/{name}")
        except BaseException:
            os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot write {folder}/{name}: {getattr(error, 'strerror', None) or error}") from None
