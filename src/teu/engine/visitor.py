# SPDX-License-Identifier: Apache-2.0
"""A process that works inside a container's root and nowhere else: stat, tar and untar for cp and export.

The engine starts it (archive.py) with a descriptor of the root. It imports all it needs, then makes that
root its own, so that no path, link or archive entry can name anything outside of it.

    python3 -ISP visitor.py ROOT-FD VERB JSON      stat: JSON on stdout; tar: archive on stdout;
                                                   untar: archive on stdin

Exit status 0; or 1 with {"kind": "missing"|"bad"|"error", "message": …} on stderr.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import stat
import sys
import tarfile
from typing import Any

# Go's os.FileMode, which the API uses
GO_MODES = (
    (stat.S_ISDIR, 1 << 31), (stat.S_ISLNK, 1 << 27), (stat.S_ISBLK, 1 << 26), (stat.S_ISFIFO, 1 << 25),
    (stat.S_ISSOCK, 1 << 24), (stat.S_ISCHR, 1 << 26 | 1 << 21),
)  # fmt: skip
GO_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))


class Missing(Exception):
    pass


class Bad(Exception):
    pass


def located(path: str) -> tuple[str, str]:
    """Where a path leads (its last component not followed, unless it ends in / or /.), and its name."""
    absolute = posixpath.normpath("/" + path)
    trailing = path.endswith(("/", "/."))
    if trailing or absolute == "/":
        found = os.path.realpath(absolute)
        name = "." if path.endswith("/.") else posixpath.basename(absolute) or "/"
    else:
        parent, name = posixpath.split(absolute)
        found = posixpath.join(os.path.realpath(parent), name)
    if not os.path.lexists(found):
        raise Missing(path)
    if trailing and not os.path.isdir(found):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR).lower(), path)
    return found, name


def describe(path: str) -> dict[str, Any]:
    import time

    found, name = located(path)
    info = os.lstat(found)
    mode = stat.S_IMODE(info.st_mode) & 0o777
    for test, bit in GO_MODES:
        if test(info.st_mode):
            mode |= bit
    for kernel, bit in GO_BITS:
        if info.st_mode & kernel:
            mode |= bit
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(info.st_mtime_ns // 10**9))
    return {
        "name": name,
        "size": info.st_size,
        "mode": mode,
        "mtime": f"{seconds}.{info.st_mtime_ns % 10**9:09d}Z",
        "linkTarget": os.path.realpath(found) if stat.S_ISLNK(info.st_mode) else "",
    }


def pack(path: str, whole: bool) -> None:
    """A tar of the path on stdout. whole: one file system only, as export wants it."""
    found, name = located(path)
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 18) as archive:
        _add(archive, found, "" if whole else name, os.lstat(found).st_dev if whole else None)


def _add(archive: tarfile.TarFile, path: str, name: str, device: int | None) -> None:
    info = os.lstat(path)
    if stat.S_ISSOCK(info.st_mode):
        return
    if name:
        _entry(archive, path, name)
    if not stat.S_ISDIR(info.st_mode) or device is not None and info.st_dev != device:
        return
    for child in sorted(os.listdir(path)):
        try:
            _add(archive, posixpath.join(path, child), posixpath.join(name, child), device)
        except FileNotFoundError:
            continue  # it went away meanwhile


def _entry(archive: tarfile.TarFile, path: str, name: str) -> None:
    entry = archive.gettarinfo(path, name)
    if entry is None:
        return
    entry.name = name
    entry.uname = entry.gname = ""
    for attribute in ("security.capability",):
        try:
            value = os.getxattr(path, attribute, follow_symlinks=False)
        except OSError:
            continue
        headers = {f"SCHILY.xattr.{attribute}": value.decode("utf-8", "surrogateescape")}
        entry.pax_headers = {**entry.pax_headers, **headers}
    if not entry.isreg():
        archive.addfile(entry)
        return
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        entry.size = min(entry.size, size)
        archive.addfile(entry, file)


def unpack(path: str, replace: bool, owner: list[int] | None) -> None:
    """Extract stdin's archive into a folder."""
    target = os.path.realpath(posixpath.normpath("/" + path))
    if not os.path.lexists(target):
        raise Missing(path)
    if not os.path.isdir(target):
        raise Bad("extraction point is not a directory")
    os.chdir(target)
    folders: list[tuple[str, tarfile.TarInfo]] = []
    source = open(0, "rb", closefd=False)  # a reader that can peek
    if not source.peek(1):
        return  # nothing at all is an empty archive
    with tarfile.open(fileobj=source, mode="r|*") as archive:
        for entry in archive:
            name = posixpath.normpath(entry.name.lstrip("/") or ".")
            if name == ".." or name.startswith("../"):
                raise Bad(f"invalid path in the archive: {entry.name!r} leads out of the folder")
            if owner is not None:
                entry.uid, entry.gid = owner
            _extract(archive, entry, name, replace)
            if entry.isdir():
                folders.append((name, entry))
    for name, entry in reversed(folders):
        os.utime(name, (entry.mtime, entry.mtime))
    while source.read(1 << 18):
        pass  # what pads the archive


def _extract(archive: tarfile.TarFile, entry: tarfile.TarInfo, name: str, replace: bool) -> None:
    parent = posixpath.dirname(name)
    if parent and not os.path.lexists(parent):
        os.makedirs(parent, 0o755, exist_ok=True)
    try:
        old = os.lstat(name)
    except FileNotFoundError:
        old = None
    if old is not None and name != ".":
        if stat.S_ISDIR(old.st_mode) and not entry.isdir():
            if not replace:
                raise Bad(f"cannot overwrite directory {name!r} with non-directory")
            import shutil

            shutil.rmtree(name)
        elif not stat.S_ISDIR(old.st_mode):
            if entry.isdir() and not replace:
                raise Bad(f"cannot overwrite non-directory {name!r} with directory")
            os.unlink(name)
    if entry.isdir():
        if not os.path.isdir(name):
            os.mkdir(name, 0o700)
    elif entry.issym():
        os.symlink(entry.linkname, name)
    elif entry.islnk():
        link = posixpath.normpath(entry.linkname.lstrip("/"))
        if link == ".." or link.startswith("../"):
            raise Bad(f"invalid hard link in the archive: {entry.linkname!r}")
        os.link(link, name, follow_symlinks=False)
        return
    elif entry.isfifo():
        os.mkfifo(name, 0o600)
    elif entry.ischr() or entry.isblk():
        kind = stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(entry.devmajor, entry.devminor))
    elif entry.isreg():
        source = archive.extractfile(entry)
        assert source is not None
        with open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            while part := source.read(1 << 18):
                file.write(part)
    else:
        return
    os.chown(name, entry.uid, entry.gid, follow_symlinks=False)
    if not entry.issym():
        os.chmod(name, stat.S_IMODE(entry.mode))
    capability = entry.pax_headers.get("SCHILY.xattr.security.capability")
    if capability and entry.isreg():
        os.setxattr(name, "security.capability", capability.encode("utf-8", "surrogateescape"))
    if not entry.isdir():
        os.utime(name, (entry.mtime, entry.mtime), follow_symlinks=False)


def main() -> int:
    import bz2  # noqa: F401
    import gzip  # noqa: F401
    import lzma  # noqa: F401
    import shutil  # noqa: F401
    import time  # noqa: F401  (nothing is imported once the root has changed)

    # tarfile would ask for the names of users: by the container's libraries (CVE-2019-14271).
    tarfile.pwd = tarfile.grp = None  # type: ignore[attr-defined]
    root, verb, options = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    os.umask(0)
    try:
        os.fchdir(root)
        os.chroot(".")
        os.chdir("/")
        os.close(root)
        if verb == "stat":
            print(json.dumps(describe(options["path"])))
        elif verb == "tar":
            pack(options["path"], options.get("whole", False))
        elif verb == "untar":
            unpack(options["path"], options.get("replace", True), options.get("owner"))
        sys.stdout.flush()
        return 0
    except Missing as error:
        problem = {"kind": "missing", "message": str(error)}
    except (Bad, tarfile.TarError, EOFError) as error:
        problem = {"kind": "bad", "message": str(error)}
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        problem = {"kind": "error", "message": f"{error.filename or ''}: {error.strerror}".lstrip(": ")}
    sys.stderr.write(json.dumps(problem))
    return 1


if __name__ == "__main__":
    sys.exit(main())
