# SPDX-License-Identifier: Apache-2.0
"""LLB definitions, nearly right and far from it: graphs of every operation, whose fields are then changed."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from fuzz import mutate

IMAGE = "docker-image://docker.io/library/busybox:latest"
SOURCES = (
    IMAGE,
    IMAGE,
    IMAGE,
    "local://context",
    "local://../../etc",
    "git://127.0.0.1:1/x.git#main:../..",
    "http://127.0.0.1:1/x",
    "https://[",
    "oci-layout://x@sha256:" + "0" * 64,
    "docker-image://127.0.0.1:1/x:1",
    "docker-image://../x",
    "docker-image+blob://127.0.0.1:1/x@sha256:" + "0" * 64,
    "unknown://x",
    "://",
)
# What may run: nothing here is more than a container's, and it ends by itself.
COMMANDS = (["true"], ["sh", "-c", "echo x >/y"], ["sh", "-c", "cat /mnt/* /dev/null"], ["false"], ["/nothing"], [""])
PATHS = ("/", "/a", "/a/b", "a", "..", "../..", "/../etc/passwd", "", ".", "/bin", "/bin/sh", "/proc/1/root", "*", "/[")
PATHS += ("/dev/null", "/etc/*", "/x" * 2000, "/a\0b", "/tmp", "//", "/.", "a/..", "/proc/self/fd/3")


def definition(dice: random.Random) -> Any:
    """A pb.Definition of a few vertexes upon each other."""
    from teu.api.buildkit import ops_pb2 as pb

    made = pb.Definition()
    known: list[str] = []
    for _ in range(dice.choice((1, 1, 2, 2, 3, 5, 9))):
        op = _operation(dice, pb, known)
        if dice.random() < 0.35:
            for _ in range(dice.choice((1, 1, 2, 4))):
                _change(dice, op)
        data = op.SerializeToString(deterministic=True)
        if dice.random() < 0.03:
            data = mutate.data(dice, data)
        known.append(_add(made, data))
        if dice.random() < 0.1:
            _metadata(dice, made.metadata[known[-1]])
    last = pb.Op()
    if dice.random() < 0.98:
        last.inputs.add(digest=known[-1], index=dice.choice((0, 0, 0, 0, 0, 0, 1, 7, -1, (1 << 31) - 1)))
    _add(made, last.SerializeToString())
    if dice.random() < 0.03:
        blobs = getattr(made, "def")
        blobs.insert(0, blobs.pop())
    return made


def _add(made: Any, data: bytes) -> str:
    getattr(made, "def").append(data)
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _metadata(dice: random.Random, told: Any) -> None:
    told.ignore_cache = dice.random() < 0.5
    told.description["llb.customname"] = mutate.text(dice).encode(errors="replace").decode()
    told.caps[dice.choice(("source.image", "exec.meta.base", "no.such", "cache.s3"))] = True
    told.export_cache.Value = dice.random() < 0.5
    if dice.random() < 0.3:
        _change(dice, told)


def _operation(dice: random.Random, pb: Any, known: list[str]) -> Any:
    op = pb.Op()
    for digest in dice.choices(known, k=dice.randrange(3)) if known else ():
        op.inputs.add(digest=digest, index=dice.choice((0, 0, 0, 0, 1)))
    count = len(op.inputs)
    kind = dice.choice(("source", "exec", "exec", "file", "file", "file", "merge", "diff", "build", "passthrough"))
    if not known:
        kind = dice.choice(("source", "source", "file"))

    def one(least: int = -1) -> int:
        return dice.randrange(least, count) if count > least and dice.random() < 0.97 else dice.choice((-2, -1, 9))

    if kind == "source":
        del op.inputs[:]
        op.source.identifier = dice.choice(SOURCES)
        if dice.random() < 0.2:
            op.source.attrs[dice.choice(("local.sharedkeyhint", "http.filename", "git.keepgitdir", "x"))] = dice.choice(
                PATHS
            )
    elif kind == "exec":
        op.exec.meta.args.extend(dice.choice(COMMANDS))
        op.exec.meta.cwd = dice.choice(PATHS) if dice.random() < 0.1 else "/"
        op.exec.mounts.add(input=one(), dest="/", output=0)
        for _ in range(dice.choice((0, 0, 1, 2))):
            _mount(dice, pb, op.exec.mounts.add(), one())
    elif kind == "file":
        for number in range(dice.choice((1, 1, 2, 4))):
            _action(dice, op.file.actions.add(), count, number)
        op.file.actions[-1].output = 0
    elif kind == "merge":
        for _ in range(dice.choice((0, 1, 2, 3))):
            op.merge.inputs.add(input=one())
    elif kind == "diff":
        op.diff.lower.input, op.diff.upper.input = one(), one()
    elif kind == "build":
        op.build.builder = dice.choice((-1, 0, 9))
        op.build.inputs["buildkit.llb.definition"].input = one()
        op.build.attrs["llbfile"] = dice.choice(PATHS)
    else:
        op.passthrough.id = "x"
        op.passthrough.outputs.extend(max(one(), 0) for _ in range(dice.choice((1, 1, 2))))
    if dice.random() < 0.3:
        op.platform.OS = dice.choice(("linux", "linux", "windows", ""))
        op.platform.Architecture = dice.choice(("amd64", "amd64", "arm64", "../x"))
    return op


def _mount(dice: random.Random, pb: Any, mount: Any, given: int) -> None:
    mount.dest = dice.choice(("/mnt", "/mnt/a/b", *PATHS))
    mount.input, mount.output = given, dice.choice((-1, -1, -1, 1, 2, 0))
    mount.selector = dice.choice(("", "", *PATHS))
    mount.readonly = dice.random() < 0.5
    mount.mountType = dice.choice((0, 0, 1, 2, 3, 4, 7))
    if mount.mountType == pb.CACHE:
        mount.cacheOpt.ID = dice.choice(("fuzz", "../../x", "", "\0"))
        mount.cacheOpt.sharing = dice.randrange(4)
    elif mount.mountType == pb.SECRET:
        mount.secretOpt.ID = dice.choice(("fuzz", "../x", ""))
        mount.secretOpt.optional = dice.random() < 0.7
    elif mount.mountType == pb.SSH:
        mount.SSHOpt.ID = dice.choice(("default", ""))
        mount.SSHOpt.optional = dice.random() < 0.7
    elif mount.mountType == pb.TMPFS:
        mount.TmpfsOpt.size = dice.choice((0, 1 << 20, -1, 1 << 62))


def _action(dice: random.Random, action: Any, count: int, number: int) -> None:
    total = count + number
    action.input = total - 1 if dice.random() < 0.8 else dice.randrange(-1, total + 1)
    action.secondaryInput = dice.randrange(-1, total) if total and dice.random() < 0.9 else -1
    action.output = -1 if dice.random() < 0.9 else dice.choice((0, 1, 9, -2))
    kind = dice.choice(("copy", "copy", "mkfile", "mkdir", "rm", "symlink"))
    path = dice.choice(PATHS)
    if kind == "copy":
        action.copy.src, action.copy.dest = path, dice.choice(PATHS)
        action.copy.mode = dice.choice((-1, -1, 0o755, 1 << 30))
        action.copy.timestamp = dice.choice((-1, 0, 1 << 62, -(1 << 63)))
        action.copy.modeStr = dice.choice(("", "", "u+x", "go=u-w,a+X", "9", "\0"))
        for name in ("followSymlink", "dirCopyContents", "allowWildcard", "allowEmptyWildcard", "createDestPath"):
            setattr(action.copy, name, dice.random() < 0.7)
        action.copy.attemptUnpackDockerCompatibility = dice.random() < 0.3
        if dice.random() < 0.2:
            action.copy.exclude_patterns.append(dice.choice(("*", "**/a", "[", "!a", "")))
            action.copy.include_patterns.append(dice.choice(("*", "b*", "[", "!", "/")))
        _owner(dice, action.copy.owner, total)
    elif kind == "mkfile":
        action.mkfile.path, action.mkfile.mode = path, dice.choice((0o644, 0o7777, -1))
        action.mkfile.data = dice.choice((b"", b"data", b"x" * 100_000))
        action.mkfile.timestamp = dice.choice((-1, 0, (1 << 63) - 1))
        _owner(dice, action.mkfile.owner, total)
    elif kind == "mkdir":
        action.mkdir.path, action.mkdir.mode = path, dice.choice((0o755, 0, -1))
        action.mkdir.makeParents = dice.random() < 0.5
        action.mkdir.timestamp = dice.choice((-1, 0, 1 << 60))
    elif kind == "rm":
        action.rm.path = path
        action.rm.allowNotFound, action.rm.allowWildcard = dice.random() < 0.5, dice.random() < 0.5
    else:
        action.symlink.oldpath, action.symlink.newpath = dice.choice(PATHS), path
        action.symlink.timestamp = -1


def _owner(dice: random.Random, owner: Any, total: int) -> None:
    if dice.random() < 0.2:
        owner.user.byName.name = dice.choice(("root", "nobody", "", "0", "\n"))
        owner.user.byName.input = dice.randrange(-2, total + 1)
    elif dice.random() < 0.2:
        owner.group.byID = dice.choice((0, 1000, (1 << 32) - 1))


def _change(dice: random.Random, message: Any) -> None:
    """One field somewhere in a message becomes another value, comes, or goes."""
    place, field = message, None
    while True:
        fields = place.DESCRIPTOR.fields
        field = dice.choice(fields)
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry or dice.random() < 0.1:
            break
        if field.label == field.LABEL_REPEATED:
            repeated = getattr(place, field.name)
            if not repeated or dice.random() < 0.1:
                repeated.add()
                return
            place = dice.choice(repeated)
        else:
            place = getattr(place, field.name)
            place.SetInParent()
    if dice.random() < 0.3 or field.message_type is not None:
        place.ClearField(field.name)
        return
    value = _value(dice, field)
    if field.label == field.LABEL_REPEATED:
        getattr(place, field.name).append(value)
    else:
        setattr(place, field.name, value)


def _value(dice: random.Random, field: Any) -> Any:
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_ENUM):
        bits = 63 if field.cpp_type == field.CPPTYPE_INT64 else 31
        return dice.choice((0, 1, -1, -2, 5, 100, 65536, (1 << bits) - 1, -(1 << bits)))
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        return dice.choice((0, 1, 7, 100_000, (1 << 32) - 1))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return dice.random() < 0.5
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return dice.choice((0.0, -1.5, 1e300))
    text = dice.choice((mutate.text(dice), *PATHS))
    return text.encode(errors="replace") if field.type == field.TYPE_BYTES else text.encode(errors="replace").decode()
