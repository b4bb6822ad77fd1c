# SPDX-License-Identifier: Apache-2.0
"""What a build is made from: the context, the Dockerfile, named contexts. Called by request.

A folder stays where it is and is offered to the builder under a name. What comes on the standard input is a tar
archive, which is uploaded when the builder asks, or a Dockerfile, which becomes a folder of its own. URLs are the
builder's work.
"""

from __future__ import annotations

import os
import sys

from teu.cli.builds.session import UPLOAD_HOST, Offer
from teu.cli.builds.store import Store
from teu.cli.errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 1 << 20
HEADER = 512 * 2
REMOTE = ("http://", "https://", "git://", "git@", "github.com/", "ssh://")
MAGIC = (b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")


def is_remote(text: str) -> bool:
    """A URL, or a repository of git without one, which the builder fetches itself."""
    return text.startswith(REMOTE) or (text.partition(":")[0].partition("@")[2] != "" and ":" in text and "/" in text)


def is_archive(head: bytes) -> bool:
    """Does a stream begin as a tar archive does, or as one that is compressed?"""
    return head.startswith(MAGIC) or head[257:262] == b"ustar" or _sum_fits(head[:512])


def _sum_fits(head: bytes) -> bool:
    """The checksum of a tar header, for archives that are older than the mark `ustar`."""
    if len(head) < 512 or not any(head):
        return False
    try:
        told = int(head[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return told == sum(head[:148]) + 8 * 0x20 + sum(head[156:])


class Inputs:
    """The inputs of one build; a context manager, for some are made in folders that have to go again."""

    def __init__(self, offer: Offer) -> None:
        self.attributes: dict[str, str] = {}
        self.source = ""  # what the Dockerfile is called in errors
        self._offer = offer
        self._made: list[str] = []
        self._read = b""  # of the standard input, before anybody knew what it is

    def add(self, where: str, file: str) -> None:
        """where: the operand PATH | URL | -; file: what -f says, or "". CommandError where there is no such thing."""
        folder, name = "", file
        if not where:
            raise CommandError('please specify build context (e.g. "." for the current directory)')
        if where == "-":
            folder = self._add_stdin(file)
            name = "Dockerfile" if folder else file
        elif os.path.isdir(where):
            self._offer.folders["context"] = where
            self._offer.shared_key = shared_key(where)
            if file == "-":
                folder, name = self._dockerfile(), "Dockerfile"
            elif file.startswith(("http://", "https://")):
                folder, name = self._fetched(file), "Dockerfile"
            else:
                folder = (os.path.dirname(file) or ".") if file else where
                name = os.path.basename(file)
        elif is_remote(where):
            self.attributes["context"] = where
            if file == "-":
                folder, name = self._dockerfile(), "Dockerfile"
            elif os.path.isabs(file):
                folder, name = os.path.dirname(file), os.path.basename(file)
                self.attributes["dockerfilekey"] = "dockerfile"
        else:
            raise CommandError(f'unable to prepare context: path "{where}" not found')
        name = name or "Dockerfile"
        if folder:
            if not os.path.isdir(folder):
                raise CommandError(
                    "unable to prepare context: unable to evaluate symlinks in Dockerfile path: "
                    f"lstat {folder}: no such file or directory"
                )
            if not os.path.lexists(f"{folder}/{name}") and os.path.lexists(f"{folder}/{name.lower()}"):
                name = name.lower()
            self._offer.folders["dockerfile"] = folder
        self.attributes["filename"] = name
        self.source = file if file != "-" else "stdin"

    def _add_stdin(self, file: str) -> str:
        if file == "-":
            raise CommandError("invalid argument: can't use stdin for both build context and dockerfile")
        while len(self._read) < HEADER and (data := os.read(0, HEADER - len(self._read))):
            self._read += data
        if is_archive(self._read):
            number = os.urandom(8).hex()
            self.attributes["context"] = f"http://{UPLOAD_HOST}/{number}"
            self._offer.uploads[number] = self._stdin
            return ""
        if file:
            raise CommandError("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles")
        self._offer.folders["context"] = self._folder()
        return self._dockerfile()

    def _stdin(self) -> Iterator[bytes]:
        yield self._read
        while data := os.read(0, CHUNK):
            yield data

    def _folder(self) -> str:
        folder = f"{os.environ.get('TMPDIR') or '/tmp'}/teu-build-{os.urandom(8).hex()}"
        os.mkdir(folder, 0o700)
        self._made.append(folder)
        return folder

    def _dockerfile(self) -> str:
        """A folder with the Dockerfile from the standard input."""
        folder = self._folder()
        self.attributes["dockerfilekey"] = "dockerfile"
        with open(f"{folder}/Dockerfile", "wb") as out:
            for data in self._stdin():
                out.write(data)
        return folder

    def _fetched(self, url: str) -> str:
        """A folder with the Dockerfile of a URL."""
        import urllib.request  # 60 ms, for -f URL alone

        folder = self._folder()
        self.attributes["dockerfilekey"] = "dockerfile"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, open(f"{folder}/Dockerfile", "wb") as out:
                out.write(answer.read(1 << 20))
        except (OSError, ValueError) as error:
            raise CommandError(f"failed to fetch the Dockerfile {url}: {error}") from None
        return folder

    def add_named(self, text: str) -> None:
        """--build-context NAME=VALUE: a folder, docker-image://, oci-layout://, or a URL."""
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise CommandError(f"invalid context value: {text}, expected key=value")
        self.attributes["frontend.caps"] = "moby.buildkit.frontend.contexts+forward"
        key = f"context:{name}"
        if value.startswith("docker-image://") or is_remote(value):
            self.attributes[key] = value
        elif value.startswith("oci-layout://"):
            self.attributes[key] = self._layout(name, value.removeprefix("oci-layout://"))
        elif os.path.isdir(value):
            local = f"_{name}" if name in ("context", "dockerfile") else name
            self._offer.folders[local] = value
            self.attributes[key] = f"local:{local}"
        else:
            reason = "not a directory" if os.path.exists(value) else "no such file or directory"
            raise CommandError(f"failed to get build context path {{{value} <nil>}}: stat {value}: {reason}")

    def _layout(self, name: str, text: str) -> str:
        """PATH[:TAG][@DIGEST] of a folder with an OCI layout, as the builder asks for it."""
        path, _, digest = text.partition("@")
        tag = ""
        if not os.path.isdir(path):
            before, colon, after = path.rpartition(":")
            if colon and os.path.isdir(before):
                path, tag = before, after
        if not os.path.isdir(path):
            raise CommandError(f"invalid path {path}: no such directory")
        store = Store(path, writes=False)
        digest = digest or store.find(tag or "latest")
        if not digest:
            raise CommandError(f"{path}: the layout has no {tag or 'latest'}")
        identifier = os.urandom(8).hex()
        self._offer.stores[f"oci:{identifier}"] = store
        return f"oci-layout://{identifier}{':' + tag if tag else ''}@{digest}"

    def close(self) -> None:
        for folder in self._made:
            for name in os.listdir(folder):
                os.unlink(f"{folder}/{name}")
            os.rmdir(folder)


def shared_key(folder: str) -> str:
    """By which a builder finds again what it has of this folder. Not the name alone, as that of buildx: two folders of
    one name would take turns with one tree there, and travel whole each time. Nor path and machine themselves: what the
    builder has to know is that they are the same, and no header can carry some of them."""
    import hashlib  # 3 ms, for folders alone

    text = f"{_machine()}\0{os.path.realpath(folder)}"
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _machine() -> str:
    """What tells this machine's folder from one of the same name elsewhere."""
    try:
        with open("/etc/machine-id", encoding="ascii") as file:
            return file.read(64).strip()
    except (OSError, ValueError):
        return sys.platform
