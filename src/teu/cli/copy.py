# SPDX-License-Identifier: Apache-2.0
"""`cp`.

The rules are docker's: a source that ends in `/.` means its contents; a target that is a folder takes the source in;
otherwise the target is the source's new name. What comes out of a container is not trusted: nothing is written outside
the target, also not through links that came from the container."""

from __future__ import annotations

import binascii
import os
import posixpath
import stat
import tarfile

from teu.cli.archives import TAR, read_file, write_output
from teu.cli.command import Cli, Command
from teu.cli.errors import CommandError
from teu.cli.options import Options
from teu.oci import jsontext, units

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from teu.cli.http import Response

# Bits of the mode in the daemon's stat header (Go's file modes).
GO_DIRECTORY, GO_SYMLINK = 1 << 31, 1 << 27


def split_path(text: str) -> tuple[str, str]:
    """(container, path); no container for a local path: one that begins with `/` or `.`, or has no colon."""
    if text.startswith("/"):
        return "", text
    container, colon, path = text.partition(":")
    if not colon or container.startswith("."):
        return "", text
    return container, path


def stat_of(response: Response) -> dict[str, Any]:
    header = response.headers.get("x-docker-container-path-stat", "")
    try:
        found: dict[str, Any] = jsontext.loads(binascii.a2b_base64(header), exact=True)
    except ValueError:
        raise CommandError("the daemon did not say what the path is") from None
    return found


def stat_in(cli: Cli, container: str, path: str) -> dict[str, Any] | None:
    """What `path` is in the container; None where nothing is there."""
    response = cli.client.open("HEAD", f"/containers/{container}/archive", {"path": path}, check=False)
    cli.client.done(response)
    if response.status == 404:
        # The answer to a HEAD has no body: ask whether it is the container that is unknown.
        cli.client.get(f"/containers/{container}/json")
        return None
    if response.status >= 400:
        response = cli.client.open("GET", f"/containers/{container}/archive", {"path": path})
    return stat_of(response)


def names_contents(path: str) -> bool:
    return path == "." or path.endswith("/.")


def wants_folder(path: str) -> bool:
    return path.endswith("/") or names_contents(path)


def clean(path: str) -> str:
    """Normalised, but with the `/` or `/.` at its end that has a meaning."""
    result = posixpath.normpath(path or ".")
    if names_contents(path) and result != ".":
        return result.rstrip("/") + "/."
    if path.endswith("/") and result != "/":
        return result + "/"
    return result


class Pipe:
    """A file for tarfile to write to, whose blocks are taken out again."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self.parts.append(bytes(data))
        self.size += len(data)
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self.parts)
        self.parts.clear()
        return data


def add_member(archive: tarfile.TarFile, path: str, name: str, owners: bool) -> None:
    """Add a file, a folder without what is in it, or a link; a socket is left out. Without `owners`, root owns it."""
    info = archive.gettarinfo(path, name)
    if info is None:
        return  # a socket
    if not owners:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
    if info.isreg():
        with open(path, "rb") as file:
            archive.addfile(info, file)
    else:
        archive.addfile(info)


def pack(source: str, name: str, owners: bool, pipe: Pipe) -> Iterator[bytes]:
    """`source` and all below it as a tar stream under `name` (empty: the contents only)."""

    def members() -> Iterator[tuple[str, str]]:
        yield source, name or "."
        if os.path.isdir(source) and not os.path.islink(source):
            for base, folders, files in os.walk(source):
                inner = os.path.relpath(base, source)
                for entry in sorted(folders + files):
                    yield os.path.join(base, entry), posixpath.normpath(posixpath.join(name, inner, entry))

    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 16) as archive:  # type: ignore[call-overload]
        for path, inner in members():
            add_member(archive, path, inner, owners)
            yield pipe.take()
    yield pipe.take()


def to_container(cli: Cli, options: Options, source: str, container: str, target: str) -> int:
    client = cli.client
    target = clean(posixpath.join("/", target))
    found = stat_in(cli, container, target.rstrip("/") or "/")
    if found is not None and found["mode"] & GO_SYMLINK:
        link = found.get("linkTarget") or ""
        if not link.startswith("/"):
            link = posixpath.join(posixpath.dirname(target.rstrip("/")), link)
        target = clean(link)
        found = stat_in(cli, container, target)
    query: dict[str, Any] = {"noOverwriteDirNonDir": "true"}
    if options["archive"]:
        query["copyUIDGID"] = "true"
    if source == "-":
        if found is None or not found["mode"] & GO_DIRECTORY:
            raise CommandError(f'destination "{container}:{target}" must be a directory')
        query["path"] = target
        client.call("PUT", f"/containers/{container}/archive", query, read_file(0), headers=TAR)
        return 0
    contents = names_contents(source)
    local = os.path.realpath(source) if options["follow-link"] else os.path.abspath(source)
    try:
        mode = os.stat(local).st_mode if contents or source.endswith("/") else os.lstat(local).st_mode
    except OSError as error:
        raise CommandError(f"lstat {local}: {(error.strerror or '').lower()}") from None
    is_folder = stat.S_ISDIR(mode)
    if source.endswith("/") and not is_folder:
        raise CommandError(f"{source}: not a directory")
    target_is_folder = found is not None and bool(found["mode"] & GO_DIRECTORY)
    if found is not None and not target_is_folder:
        if wants_folder(target):
            raise CommandError(f"cannot copy to {container}:{target}: not a directory")
        if is_folder:
            raise CommandError("cannot copy directory")
    if target_is_folder:
        folder = target
        name = "" if contents and is_folder else os.path.basename(local)
    else:
        if found is None and wants_folder(target) and not is_folder:
            raise CommandError("no such directory")
        plain = target.removesuffix(".").rstrip("/") or "/"
        folder, name = posixpath.dirname(plain), posixpath.basename(plain)
    query["path"] = folder
    pipe = Pipe()
    body = pack(local, name, options["archive"], pipe)
    client.call("PUT", f"/containers/{container}/archive", query, body, headers=TAR)
    tell(cli, options, pipe.size, f"{container}:{target}")
    return 0


def tell(cli: Cli, options: Options, size: int, where: str) -> None:
    if not options["quiet"] and os.isatty(1):
        cli.warn(f"Successfully copied {units.human_size(size)} to {where}")


class Body:
    """The body of an answer as a file to read from."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self.rest = b""
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self.rest) < size:
            piece = self.response.chunk()
            if not piece:
                break
            self.rest += piece
            self.size += len(piece)
        if size < 0:
            data, self.rest = self.rest, b""
        else:
            data, self.rest = self.rest[:size], self.rest[size:]
        return data


def safe_parent(root: str, path: str) -> None:
    """Refuse a path below `root` that leads through a link; make the folders that are not there."""
    inner = os.path.relpath(os.path.dirname(path), root)
    current = root
    for part in [] if inner == "." else inner.split("/"):
        if part == "..":
            raise CommandError(f"the archive from the container names a path outside of the target: {path}")
        current = os.path.join(current, part)
        try:
            mode = os.lstat(current).st_mode
        except FileNotFoundError:
            os.mkdir(current, 0o755)
            continue
        if not stat.S_ISDIR(mode):
            raise CommandError(f"refusing to write through {current}, which is not a directory")


def unpack(body: Body, root: str, old: str, new: str, owners: bool) -> None:
    """Extract an archive whose entries are below `old` into `root`, below `new` instead."""
    with tarfile.open(fileobj=body, mode="r|", bufsize=1 << 16) as archive:  # type: ignore[call-overload]
        extraction = Extraction(archive, root, old, new, owners)
        for member in archive:
            extraction.extract(member)
        extraction.finish_folders()


class Extraction:
    """Makes the entries of one archive. `owners`: they keep their owners, else they are ours."""

    def __init__(self, archive: tarfile.TarFile, root: str, old: str, new: str, owners: bool) -> None:
        self.archive = archive
        self.root = root
        self.old = old
        self.new = new
        self.owners = owners
        self.folders: list[tuple[str, tarfile.TarInfo]] = []

    def place(self, name: str) -> str:
        """Where an entry goes. With `/.` at the end of the source the names begin at the folder, else above it."""
        inner = posixpath.normpath("/" + name).lstrip("/")
        if inner == self.old:
            inner = ""
        elif inner.startswith(self.old + "/"):
            inner = inner[len(self.old) + 1 :]
        inner = posixpath.join(self.new, inner).rstrip("/")
        return os.path.join(self.root, inner) if inner else self.root

    def extract(self, member: tarfile.TarInfo) -> None:
        path = self.place(member.name)
        if path != self.root:
            safe_parent(self.root, path)
        if member.isdir():
            self.make_folder(path)
            self.folders.append((path, member))
            return
        if os.path.lexists(path):
            if os.path.isdir(path) and not os.path.islink(path):
                raise CommandError(f"cannot overwrite directory {path} with non-directory")
            os.unlink(path)
        if self.make(path, member):
            self.set_attributes(path, member)

    def make_folder(self, path: str) -> None:
        is_link = os.path.islink(path) and path != self.root
        if os.path.lexists(path) and (is_link or not os.path.isdir(path)):
            raise CommandError(f"cannot overwrite non-directory {path} with directory")
        os.makedirs(path, exist_ok=True)

    def make(self, path: str, member: tarfile.TarInfo) -> bool:
        """Make what is no folder. False where it is of a kind that has no place in a file system."""
        if member.issym():
            os.symlink(member.linkname, path)
        elif member.islnk():
            source = self.place(member.linkname)
            safe_parent(self.root, source)
            os.link(source, path, follow_symlinks=False)
        elif member.isreg():
            self.write_file(path, member)
        elif member.isfifo():
            os.mkfifo(path)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(path, kind | 0o600, os.makedev(member.devmajor, member.devminor))
        else:
            return False
        return True

    def write_file(self, path: str, member: tarfile.TarInfo) -> None:
        data = self.archive.extractfile(member)
        assert data is not None
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(file, "wb") as out:
            while block := data.read(1 << 18):
                out.write(block)

    def set_attributes(self, path: str, member: tarfile.TarInfo) -> None:
        if self.owners:
            os.lchown(path, member.uid, member.gid)
        if not member.issym():
            os.chmod(path, member.mode)
            os.utime(path, (member.mtime, member.mtime))

    def finish_folders(self) -> None:
        """Set the attributes of folders last: a folder may be read-only, and what is made in it changes its time."""
        for path, member in reversed(self.folders):
            if path != self.root or self.new:
                self.set_attributes(path, member)


def from_container(cli: Cli, options: Options, container: str, source: str, target: str) -> int:
    client = cli.client
    source = clean(posixpath.join("/", source))
    if options["follow-link"]:
        found = stat_in(cli, container, source)
        if found is not None and found["mode"] & GO_SYMLINK:
            link = found.get("linkTarget") or ""
            source = clean(link if link.startswith("/") else posixpath.join(posixpath.dirname(source), link))
    response = client.open("GET", f"/containers/{container}/archive", {"path": source})
    if target == "-":
        if os.isatty(1):
            raise CommandError("refusing to write a tar archive to a terminal: redirect the output")
        write_output(response, "")
        return 0
    found = stat_of(response)
    is_folder = bool(found["mode"] & GO_DIRECTORY)
    target_is_folder = os.path.isdir(target)
    if os.path.lexists(target) and not target_is_folder and (wants_folder(target) or is_folder):
        raise CommandError("cannot copy directory" if is_folder else "not a directory")
    old = posixpath.basename(source.removesuffix("/.").rstrip("/")) or "."
    if target_is_folder:
        root = os.path.realpath(target)
        contents = names_contents(source) and is_folder
        new = "" if contents else old if old != "." else ""
        if source == "/":
            new = ""
    else:
        if wants_folder(target) and not is_folder:
            raise CommandError("no such directory")
        plain = os.path.abspath(target)
        root, new = os.path.realpath(os.path.dirname(plain)), os.path.basename(plain)
        if not os.path.isdir(root):
            raise CommandError(f'invalid output path: directory "{os.path.dirname(plain)}" does not exist')
    body = Body(response)
    try:
        unpack(body, root, old, new, options["archive"])
    except OverflowError as error:  # a device, an owner or a time that no file has
        raise CommandError(f"the archive has a number that is out of range: {error}") from None
    tell(cli, options, body.size, target)
    return 0


def copy(cli: Cli, options: Options, operands: list[str]) -> int:
    if not operands[0]:
        raise CommandError("source can not be empty")
    if not operands[1]:
        raise CommandError("destination can not be empty")
    source_container, source = split_path(operands[0]) if operands[0] != "-" else ("", "-")
    target_container, target = split_path(operands[1]) if operands[1] != "-" else ("", "-")
    if source_container and target_container:
        raise CommandError("copying between containers is not supported")
    if source_container:
        return from_container(cli, options, source_container, source, target)
    if target_container:
        return to_container(cli, options, source, target_container, target)
    raise CommandError("must specify at least one container source")


COMMANDS = {
    "container cp": Command(
        copy,
        "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|- | [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
        2,
        2,
        """
-a --archive      bool  Keep the owners
-L --follow-link  bool  Follow a symbolic link at SRC_PATH
-q --quiet        bool  Do not tell what was copied
""",
    ),
}
