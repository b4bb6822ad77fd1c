# SPDX-License-Identifier: Apache-2.0
"""Containers that go on from a checkpoint: where the image of a new one is the archive of `checkpoint`'s, or of
containerd's or CRI-O's. Called by `containers`.

The archive is a file that is named by its path, or the one layer of an image with an annotation that says so, as
checkpointctl and buildah make them. What the container is follows from the request and from the image that the archive
names; of the archive are the memory, what was changed in the root file system, the log, and the command line. The
request must fit what was saved: criu gives a process back as it was, with its namespaces, mounts and rights.

    ROOT/cri/CONTAINER/saved/               what is taken of the archive, see teu.containerd.layers.checkpoint
    ROOT/cri/CONTAINER/saved/checkpoint/    criu's images, until the container has started
    ROOT/cri/CONTAINER/saved/container.log  its log, until it is the container's
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from teu.api.cri.v1 import cri_pb2 as cri
from teu.containerd.core.errors import Error, FailedPrecondition, InvalidArgument, NotFound
from teu.containerd.core.messages import Mount
from teu.containerd.cri import users
from teu.containerd.cri.checkpoint import check_criu
from teu.containerd.cri.handlers import Handler
from teu.containerd.cri.images import Image, Images
from teu.containerd.cri.records import NAMESPACE
from teu.containerd.cri.spec import place
from teu.containerd.layers.checkpoint import DIFFERENCE, IMAGES, LOG
from teu.containerd.layers.unpack import LayerError, clean
from teu.containerd.state import Context
from teu.linux.trees import discard_tree
from teu.oci import jsontext

log = logging.getLogger("teu.containerd.cri")

FOLDER = "saved"
OUR_RUNTIME = "teu-runc"
CONFINED = "io.teu.restore.confined"  # teu-runc lets no process go on with more rights than the specification gives
# Without these criu and teu-runc cannot begin.
NEEDED = ("inventory.img", "pstree.img", "descriptors.json")
DELETED_MAX = 1 << 20  # files, in deleted.files
_HEX = frozenset("0123456789abcdef")


def is_path(name: str) -> bool:
    """Whether the name of an image is the path of an archive."""
    return name.startswith("/")


def check(handler: Handler, namespaces: Any) -> None:
    """That containers can be made of checkpoints in a pod of that handler and NamespaceOption. FailedPrecondition."""
    if handler.shim or handler.binary and os.path.basename(handler.binary) != OUR_RUNTIME:
        runtime = " under ".join(filter(None, (handler.binary, handler.shim)))
        raise FailedPrecondition(
            f'a container of a checkpoint cannot be made by the runtime of "{handler.name}", {runtime}: what criu '
            f"restores under it is outside of the container's cgroup, and could not be ended; give the pod a "
            f"RuntimeClass whose handler is {OUR_RUNTIME}, or none"
        )
    if users.maps_of(namespaces) is not None:
        raise FailedPrecondition("a container of a checkpoint cannot be made in a pod with a user namespace")
    check_criu()


def memory() -> int:
    """Bytes that the processes of this host may have at most: what is saved of more cannot be restored."""
    found = 0
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "SwapTotal"):
                found += int(rest.split()[0]) << 10
    return found


@dataclass(frozen=True, slots=True)
class Saved:
    """An archive that has been taken apart into a folder."""

    folder: str
    difference: str  # digest of what has changed in the root file system; "" for nothing
    config: Mapping[str, Any]  # config.dump
    spec: Mapping[str, Any]  # spec.dump, any of whose members may be anything

    @property
    def images(self) -> str:
        """The folder with criu's images."""
        return os.path.join(self.folder, IMAGES)

    @property
    def arguments(self) -> list[str]:
        """The command line of what was saved."""
        return _texts(_member(self.spec, "process", dict), "args")

    @property
    def at(self) -> str:
        """When it was saved, as the archive says."""
        found = self.config.get("checkpointedTime") or self.config.get("checkpointedAt")
        return found[:64] if isinstance(found, str) and _is_text(found) else ""


def _member(document: Mapping[str, Any], name: str, kind: type) -> Any:
    """A member of a JSON object of others'; an empty one where it is missing. Raises InvalidArgument."""
    found = document.get(name)
    if found is None:
        return kind()
    if not isinstance(found, kind):
        raise InvalidArgument(f"the archive is damaged: {name} in its spec.dump is no {kind.__name__}")
    return found


def _texts(document: Mapping[str, Any], name: str) -> list[str]:
    found = _member(document, name, list)
    if not all(isinstance(one, str) and _is_text(one) for one in found):
        raise InvalidArgument(f"the archive is damaged: {name} in its spec.dump has what is no text")
    return list(found)


def _is_text(found: str) -> bool:
    try:
        found.encode()
    except UnicodeEncodeError:  # JSON can say half a sign
        return False
    return "\0" not in found


def _objects(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = _member(document, name, list)
    if not all(isinstance(one, dict) for one in found):
        raise InvalidArgument(f"the archive is damaged: {name} in its spec.dump has what is no object")
    return list(found)


def read(folder: str, difference: str) -> Saved:
    """What an archive says of itself, after it was taken apart. Raises InvalidArgument."""
    documents = []
    for name in ("config.dump", "spec.dump"):
        try:
            with open(os.path.join(folder, name), "rb") as file:
                document = jsontext.loads(file.read())
        except FileNotFoundError:
            raise InvalidArgument(f"it is no archive of a checkpoint: it has no {name}") from None
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"the archive is damaged: {name}: {error}") from None
        if not isinstance(document, dict):
            raise InvalidArgument(f"the archive is damaged: {name} is no object")
        documents.append(document)
    for name in NEEDED:
        if not os.path.exists(os.path.join(folder, IMAGES, name)):
            raise InvalidArgument(f"the archive is damaged: {IMAGES}/{name} is missing")
    return Saved(folder, difference, documents[0], documents[1])


def base_names(config: Mapping[str, Any]) -> list[str]:
    """By which names the image of a container may be known that config.dump is of: by its digest or its id. Raises
    InvalidArgument where there is none: another image of the same tag has other files."""
    given = [config.get(name) for name in ("rootfsImageRef", "rootfsImageName", "rootfsImage")]
    found = [
        name
        for name in given
        if isinstance(name, str) and len(name) < 1024 and ("@sha256:" in name or _is_id(name.removeprefix("sha256:")))
    ]
    if not found:
        raise InvalidArgument("the archive is damaged: its config.dump names no image by its digest")
    return list(dict.fromkeys(found))


def _is_id(text: str) -> bool:
    return len(text) == 64 and _HEX.issuperset(text)


def compare(saved: Saved, made: Mapping[str, Any], *, whole: bool = False) -> None:
    """That what is asked for fits what was saved: criu cannot make it another. `made` is the new specification;
    `whole`: the request describes all of the process, and must be right. FailedPrecondition."""
    was, process = _member(saved.spec, "process", dict), made["process"]
    linux = _member(saved.spec, "linux", dict)
    _same("terminal", bool(was.get("terminal")), bool(process.get("terminal")))
    user = _member(was, "user", dict)
    for name in ("uid", "gid"):
        _same(f"the process's {name}", user.get(name, 0), process["user"][name])
    ours = {one["type"]: "path" in one for one in made["linux"]["namespaces"]}
    theirs = {str(one.get("type")): bool(one.get("path")) for one in _objects(linux, "namespaces")}
    for kind in sorted(ours.keys() | theirs.keys()):
        _same(f"the {kind} namespace", _namespace(theirs, kind), _namespace(ours, kind))
    _rights(was, linux, made)
    _mounts(saved, made)
    if whole:
        _same("the process's args", _texts(was, "args"), process["args"])
        _same("the process's env", sorted(_texts(was, "env")), sorted(process["env"]))
        _same("the process's cwd", was.get("cwd"), process["cwd"])


def _namespace(found: Mapping[str, bool], kind: str) -> str:
    if kind not in found:
        return "the host's"
    return "a shared one" if found[kind] else "its own"


def _same(what: str, was: object, now: object) -> None:
    if was != now:
        raise FailedPrecondition(f"the container does not fit its checkpoint: {what} was {was!r}, and is to be {now!r}")


def _rights(was: Mapping[str, Any], linux: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """A process comes back with the rights that it had: they must not be more than it is to have."""
    process = made["process"]
    capabilities = _member(was, "capabilities", dict)
    more = set(_texts(capabilities, "bounding")) - set(process["capabilities"]["bounding"])
    if more:
        raise FailedPrecondition(
            f"the container does not fit its checkpoint: that has capabilities which it is not to have: "
            f"{', '.join(sorted(more))}"
        )
    for what, had, has in (
        ("no_new_privs", was.get("noNewPrivileges"), process.get("noNewPrivileges")),
        ("a seccomp profile", linux.get("seccomp"), made["linux"].get("seccomp")),
    ):
        if has and not had:
            raise FailedPrecondition(f"the container does not fit its checkpoint: it was saved without {what}")
    if profile := process.get("apparmorProfile"):
        _same("the AppArmor profile", was.get("apparmorProfile") or "", profile)


def _mounts(saved: Saved, made: Mapping[str, Any]) -> None:
    theirs = {place(str(one.get("destination") or "/")) for one in _objects(saved.spec, "mounts")}
    ours = {place(one["destination"]) for one in made["mounts"]}
    for places, told in ((theirs - ours, "needs mounts at"), (ours - theirs, "has no mounts at")):
        if places:
            raise FailedPrecondition(
                f"the container does not fit its checkpoint: that {told} {', '.join(sorted(places)[:20])}"
            )


def whiteouts(text: bytes) -> bytes:
    """deleted.files as a layer that removes them: a list of paths in JSON. Raises InvalidArgument."""
    try:
        names = jsontext.loads(text)
        if names is None:  # Go's empty list
            names = []
        if not isinstance(names, list) or len(names) > DELETED_MAX:
            raise ValueError("it is no list, or too long")
        made = BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as layer:
            for name in names:
                above, _, base = clean(name).rpartition("/")
                if base:
                    layer.addfile(tarfile.TarInfo(os.path.join(above, f".wh.{base}")))
    except (LayerError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidArgument(f"the archive is damaged: deleted.files: {error}") from None
    return made.getvalue()


class Restores:
    """Takes archives apart for new containers."""

    def __init__(self, context: Context, images: Images) -> None:
        self._context = context
        self._images = images

    def take_apart(self, folder: str, name: str, image: Image | None) -> Saved:
        """What a container goes on from: the archive at the path `name`, or in an image. `folder` is the container's.
        Raises InvalidArgument for what is none, NotFound. Blocks."""
        target = os.path.join(folder, FOLDER)
        blob, digest = self._opened(name, image)
        try:
            os.makedirs(target, 0o700)
            difference = self._context.layers.take_apart(blob, digest, target, memory())
            return read(target, difference)
        except Error as error:
            raise type(error)(f"checkpoint {name}: {error.message}") from None
        finally:
            os.close(blob)

    def _opened(self, name: str, image: Image | None) -> tuple[int, str]:
        """(descriptor, digest) of an archive; "" for one that has none."""
        if image is not None:
            layers = image.details.saved or []
            if len(layers) != 1:
                raise InvalidArgument(f"checkpoint {name}: its image has {len(layers)} layers, and not one")
            return self._context.content.open(NAMESPACE, layers[0]), layers[0]
        try:
            blob = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            kind = NotFound if isinstance(error, FileNotFoundError) else InvalidArgument
            raise kind(f"checkpoint {name}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(blob).st_mode):
            os.close(blob)
            raise InvalidArgument(f"checkpoint {name}: it is no file")
        return blob, ""

    def found(self, saved: Saved) -> Image | None:
        """The image of which the container was that was saved, if it is here. Blocks."""
        for name in base_names(saved.config):
            try:
                image = self._images.find(name)
            except InvalidArgument as error:
                raise InvalidArgument(f"the archive is damaged: config.dump: {error.message}") from None
            if image is not None:
                if image.details.saved is not None:
                    raise InvalidArgument(f"the archive is damaged: its image, {name}, is one of a checkpoint itself")
                return image
        return None

    async def pull_base(self, saved: Saved) -> None:
        """Get that image from its registry, by its digest, as any other. NotFound where it cannot be."""
        names = base_names(saved.config)
        name = next((name for name in names if "@" in name), "")
        if not name:
            raise NotFound(f"the image of the checkpoint is not here: pull {names[0]}")
        try:
            await self._images.pull(name, cri.AuthConfig())
        except Error as error:
            told = f"the image of the checkpoint is not here, and {name} cannot be pulled"
            raise type(error)(f"{told}: {error.message}") from None

    def apply(self, saved: Saved, mounts: Sequence[Mount]) -> None:
        """Do to a new root file system what was done to that of the checkpoint. Blocks."""
        layers = self._context.layers
        if saved.difference:
            with open(os.path.join(saved.folder, DIFFERENCE), "rb") as file:
                layers.apply(file.fileno(), saved.difference, mounts)
            os.unlink(os.path.join(saved.folder, DIFFERENCE))
        try:
            with open(os.path.join(saved.folder, "deleted.files"), "rb") as file:
                layer = whiteouts(file.read())
        except FileNotFoundError:
            return
        path = os.path.join(saved.folder, "deleted.tar")
        with open(path, "wb+") as file:
            file.write(layer)
            file.seek(0)
            layers.apply(file.fileno(), f"sha256:{hashlib.sha256(layer).hexdigest()}", mounts)
        os.unlink(path)


def begin_log(folder: str, path: str) -> None:
    """Give a container that is about to start the log of its checkpoint, where it has none. Raises OSError. Blocks."""
    source, unfinished = os.path.join(folder, FOLDER, LOG), f"{path}.restored"
    if not path or os.path.lexists(path) or not os.path.exists(source):
        return
    with suppress(FileNotFoundError):
        os.unlink(unfinished)  # of a daemon that ended meanwhile
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(source, "rb") as there, open(os.open(unfinished, flags, 0o640), "wb") as file:
        shutil.copyfileobj(there, file)
    os.rename(unfinished, path)


def let_go(folder: str) -> None:
    """Remove what is not needed any more of a container that has started. Blocks."""
    discard_tree(os.path.join(folder, FOLDER))
