# SPDX-License-Identifier: Apache-2.0
"""`install`: the programs (and libraries) of an image, put on this host.

Only what lies directly in the image's /bin, and with --libs in its /lib, is taken. What is there already is an error
before anything of that layer is written over it, unless it is to be replaced."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from teu.ctr import blobs
from teu.ctr.client import Client
from teu.ctr.client import introspection_pb2 as pb
from teu.ctr.commands import Command, Ctr, need
from teu.ctr.errors import CommandError
from teu.ctr.flags import Options
from teu.oci import archive


class Reader:
    """A blob as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces = pieces
        self.rest = b""

    def read(self, size: int = -1, /) -> bytes:
        while not self.rest:
            try:
                self.rest = next(self.pieces)
            except StopIteration:
                return b""
        size = len(self.rest) if size < 0 else size
        data, self.rest = self.rest[:size], self.rest[size:]
        return data


def opt_folder(client: Client) -> str:
    """The folder that the daemon keeps for such programs."""
    found = client.introspection.Plugins(pb.PluginsRequest(filters=["id==opt"])).plugins
    if len(found) != 1:
        raise CommandError("opt service not enabled: give a folder with --path")
    path = found[0].exports.get("path", "")
    if not path:
        raise CommandError("opt path not exported: give a folder with --path")
    return str(path)


def put(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, root: Path, folders: list[str]) -> None:
    """One file or link, complete under a name of its own before it takes its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}"
    if member.issym():
        os.symlink(member.linkname, temporary)
    elif member.islnk():
        source = os.path.normpath(member.linkname.lstrip("/"))
        if os.path.dirname(source) not in folders:
            raise CommandError(f"{member.name} is a link to {member.linkname}, which is not installed")
        os.link(root / source, temporary, follow_symlinks=False)
    else:
        content = tar.extractfile(member)
        assert content is not None  # a regular file
        with open(temporary, "xb") as file:
            shutil.copyfileobj(content, file)
            os.fchown(file.fileno(), member.uid, member.gid)
            os.fchmod(file.fileno(), member.mode & 0o7777)
    os.replace(temporary, target)


def install(ctr: Ctr, options: Options, operands: list[str]) -> None:
    client = ctr.client
    image = blobs.get_image(client, need(operands, "image ref")[0])
    root = Path(options["path"] or opt_folder(client))
    folders = ["bin", "lib"] if options["libs"] else ["bin"]
    _, manifest = blobs.manifests(client, blobs.as_json(image.target))[0]
    for layer in manifest["layers"]:
        stream = archive.decompressed(Reader(blobs.read(client, layer["digest"])))
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
                for member in tar:
                    name = os.path.normpath(member.name.lstrip("/"))
                    if os.path.dirname(name) not in folders or os.path.basename(name).startswith(".wh."):
                        continue
                    if not (member.isreg() or member.issym() or member.islnk()):
                        continue
                    target = root / name
                    if not options["replace"] and os.path.lexists(target):
                        raise CommandError(f"cannot replace {name} in {root}")
                    put(tar, member, target, root, folders)
        except (tarfile.TarError, archive.ArchiveError) as error:
            raise CommandError(f"layer {layer['digest']}: {error}") from None


COMMANDS = {
    "install": Command(
        install,
        "[flags] <ref>",
        """
libs,l     bool    Libraries too: what is in the image's /lib
replace,r  bool    Replace what is there
path       string  Below this folder, not the daemon's own
""",
    )
}
