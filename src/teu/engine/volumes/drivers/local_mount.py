# SPDX-License-Identifier: Apache-2.0
"""Mounts one volume with options; a program of its own, started by local.py, which kills it when it takes too long.

On its standard input is {"path": where, "options": {"type", "device", "o"}}: nobody is to read a password in a command
line. Where something is mounted already, that is it: a volume is never stacked. Failures are said on stderr.

The kernel knows no names of servers: for NFS and CIFS they are looked up here, as by mount.nfs(8) and mount.cifs(8),
which need not be installed; and so is a file of credentials, whose password no volume has to have among its options.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.abspath(__file__).removesuffix("/teu/engine/volumes/drivers/local_mount.py"))


from teu.linux import mountflags, trees
from teu.linux.mounts import MS_BIND, MS_RDONLY, MS_REMOUNT
from teu.linux.syscalls import NR_mount, syscall

NFS, CIFS = ("nfs", "nfs4"), ("cifs", "smb3")
# Options of fstab(5) that say who mounts and when: they are mount(8)'s own.
_OF_FSTAB = re.compile(r"(no)?(auto|user|users|owner|group|fail)|_netdev|comment=.*|x-.*", re.IGNORECASE | re.DOTALL)
_SECRET = re.compile(r"((?:^|,)(?:pass|password|password2)=)(?:,,|[^,])*", re.IGNORECASE)
_CREDENTIALS = {
    "username": "username",
    "user": "username",
    "password": "password",
    "pass": "password",
    "domain": "domain",
    "dom": "domain",
    "workgroup": "domain",
}


def masked(text: str) -> str:
    """Options without passwords, to be shown."""
    return _SECRET.sub(r"\1********", text)


def split(text: str) -> list[str]:
    """The options of o; ,, is a comma within one."""
    return [option for option in re.split(r"(?<!,),(?!,)", text) if option and not _OF_FSTAB.fullmatch(option)]


def _value(data: list[str], *names: str) -> tuple[int, str]:
    """(place, value) of the last option with one of these names; (-1, "") where there is none."""
    for number in range(len(data) - 1, -1, -1):
        name, equals, value = data[number].partition("=")
        if equals and name.lower() in names:
            return number, value
    return -1, ""


def resolve(host: str, version: int = 0) -> str:
    """The first address of a server, of this version of IP or of any; an address is its own, that of a link as well.
    Raises OSError with the reason."""
    import socket  # 12 ms, which other mounts do without

    families = {4: socket.AF_INET, 6: socket.AF_INET6}
    for family in families.values():
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host.partition("%")[0])
            return host
    try:
        found = socket.getaddrinfo(host, None, families.get(version, 0), socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no name"
        told = f"error resolving passed in network volume address: {host}: {reason}"
        raise OSError(errno.EHOSTUNREACH, told) from None
    return str(found[0][4][0])


def _server(kind: str, device: str) -> str:
    """Who has the files: of SERVER:/path, or //SERVER/share."""
    if kind in CIFS:
        return device.replace("\\", "/").removeprefix("//").partition("/")[0] if device[:2] in ("//", "\\\\") else ""
    return device.partition(":/")[0].strip("[]")


def with_address(kind: str, device: str, data: list[str]) -> list[str]:
    """The options, with the address of the server. Raises OSError where none is named, or has none."""
    names = ("addr", "ip") if kind in CIFS else ("addr",)
    place, host = _value(data, *names)
    server = host or _server(kind, device)
    if not server:
        form = "//SERVER/SHARE" if kind in CIFS else "SERVER:/PATH"
        raise OSError(errno.EINVAL, f"no server is named: give device={form}, or addr=SERVER in o")
    version = 6 if _value(data, "proto")[1].endswith("6") else 0
    option = f"{names[-1]}={resolve(server, version)}"
    if place < 0:
        return [*data, option]
    return [*data[:place], option, *data[place + 1 :]]


def with_credentials(data: list[str]) -> list[str]:
    """The options, with what is in the file that credentials= names in its place. Raises OSError."""
    place, path = _value(data, "credentials", "cred")
    if place < 0:
        return data
    found = {}
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no path"
        raise OSError(errno.EACCES, f"the credentials in {path} cannot be read: {reason}") from None
    for line in lines:
        name, equals, value = line.strip().partition("=")
        if equals and (key := _CREDENTIALS.get(name.strip().lower())):
            found[key] = value.replace(",", ",,")
    return [*data[:place], *data[place + 1 :], *(f"{key}={value}" for key, value in found.items())]


def mount(path: str, options: dict[str, str]) -> None:
    """mount(2) with the options of a volume, as mount(8) understands them. Raises OSError with what was asked for."""
    flags, propagation, data = mountflags.parse(split(options.get("o") or ""))
    device, kind = options.get("device") or "", options.get("type") or ""
    if kind == "none":
        kind = ""
    if kind in CIFS:
        data = with_credentials(data)
    if kind in (*NFS, *CIFS):
        data = with_address(kind, device, data)
    text = ",".join(data)
    arguments = [os.fsencode(value) for value in (device, path, kind)]
    what = f"mount {device}:{path}, flags: {flags:#x}, data: {masked(text)}"
    syscall(what, NR_mount, *arguments, flags, os.fsencode(text) if text else None)
    if flags & MS_BIND and flags & MS_RDONLY:
        syscall(what, NR_mount, None, arguments[1], None, flags | MS_REMOUNT, None)
    if propagation:
        syscall(what, NR_mount, None, arguments[1], None, propagation, None)


def main() -> int:
    """The program: 0, or 1 with the reason on standard error."""
    asked = json.load(sys.stdin)
    try:
        if not trees.is_mount_root(asked["path"]):
            mount(asked["path"], asked["options"])
    except OSError as error:
        what, colon, reason = (error.strerror or str(error)).rpartition(": ")
        sys.stderr.write(what + colon + reason.lower())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
