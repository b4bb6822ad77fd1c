# SPDX-License-Identifier: Apache-2.0
"""Making definitions of LLB: what a build does, as a graph of operations.

    base = image("docker.io/library/debian:13")
    built = base.run(("make",), mounts=[Mount("/src", local("context"))]).root
    definition = scratch().file(copy(built, "/out", "/")).definition(platform)

A State is a file system to come, with the environment that a process in it would have. States never change: every
method gives a new one, and work is described, not done. A definition is the same bytes for the same States: operations
stand after their inputs, and an operation's digest is that of its bytes, in which names, places and groups for the
progress do not count: these are metadata beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from teu.api.buildkit import ops_pb2 as pb
from teu.buildkit.llb import platforms
from teu.buildkit.llb.actions import Action, Copy, Mkdir, Mkfile, Owner, Remove, Symlink, clean, join, owner
from teu.buildkit.llb.marks import BuildError, Group, Marks, SourceMap, texts
from teu.buildkit.llb.outputs import Later, Output, Vertex, settled_output
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.llb.vertexes import (
    SSH,
    Build,
    Defined,
    Device,
    Diff,
    Exec,
    File,
    Merge,
    Mount,
    Process,
    Proxy,
    Secret,
    Source,
    Ulimit,
)
from teu.oci import jsontext

__all__ = [
    "SSH", "BuildError", "Copy", "Device", "Group", "Later", "Marks", "Mkdir", "Mkfile", "Mount", "Output", "Owner",
    "Process", "Proxy", "Remove", "Run", "Secret", "SourceMap", "State", "Symlink", "Ulimit", "build", "copy", "diff",
    "from_definition", "git", "http", "image", "later", "local", "merge", "oci_layout", "owner", "scratch",
]  # fmt: skip
AUTH_TOKEN = "GIT_AUTH_TOKEN"
AUTH_HEADER = "GIT_AUTH_HEADER"


@dataclass(frozen=True)
class State:
    """A file system to come (None: an empty one), and what a process in it would find."""

    output: Output | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = ""
    hostname: str = ""
    network: str = ""
    platform: Platform | None = None

    def env(self, key: str, value: str) -> State:
        """With a variable, which comes last."""
        environment = {name: old for name, old in self.environment.items() if name != key}
        environment[key] = value
        return replace(self, environment=environment)

    def dir(self, path: str) -> State:
        return replace(self, directory=path if path.startswith("/") else join(self.directory or "/", path))

    def with_(self, **changes: Any) -> State:
        """With another user, hostname, network or platform."""
        return replace(self, **changes)

    def at(self, output: Output | None) -> State:
        """The same surroundings of another file system."""
        known = output.platform if output is not None else None
        return replace(self, output=output, platform=known or self.platform)

    def run(
        self,
        args: Sequence[str],
        mounts: Iterable[Mount] = (),
        process: Process | None = None,
        marks: Marks | None = None,
    ) -> Run:
        """A process in this file system."""
        vertex = Exec(self, args, mounts, process or Process(), marks or Marks())
        return Run(self, vertex)

    def file(self, actions: Action | Sequence[Action], marks: Marks | None = None) -> State:
        """Changes of this file system's files, in their order."""
        given = [actions] if isinstance(actions, Action) else list(actions)
        return self.at(Output(File(self, given, marks or Marks())))

    def with_image_config(self, config: Mapping[str, Any]) -> State:
        """With the environment, folder and platform of an image's configuration."""
        inner = config.get("config") or {}
        state = self
        for variable in inner.get("Env") or []:
            key, _, value = str(variable).partition("=")
            if key:
                state = state.env(key, value)
        state = state.dir(str(inner.get("WorkingDir") or ""))
        if config.get("architecture") and config.get("os"):
            state = state.with_(
                platform=Platform(
                    str(config["os"]),
                    str(config["architecture"]),
                    str(config.get("variant") or ""),
                    str(config.get("os.version") or ""),
                    tuple(config.get("os.features") or ()),
                )
            )
        return state

    def definition(self, platform: Platform | None = None) -> Any:
        """The pb.Definition. `platform` is that of operations that name none; the host's where it is None."""
        return _Writer(platform or platforms.host()).write(self)


@dataclass(frozen=True)
class Run:
    """A process's results."""

    base: State
    vertex: Exec

    @property
    def root(self) -> State:
        """The file system after the process."""
        for mount in self.vertex.mounts:
            if mount.target == "/":
                return self.output(mount)
        raise BuildError("a process without a root")

    def output(self, mount: Mount) -> State:
        """What a mount holds after the process."""
        if mount.readonly:
            return self.base.at(mount.source.output if mount.source is not None else None)
        if mount.tmpfs is not None:
            raise BuildError(f"tmpfs mount for {mount.target} can't be used as a parent")
        if not mount.has_output:
            raise BuildError(f"mount marked no-output and {mount.target} can't be used as a parent")
        return self.base.at(Output(self.vertex, self.vertex.output_of(mount), self.vertex.marks.platform))


class _Writer:
    """Writes one definition: every operation once, after its inputs."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.digests: dict[int, str] = {}
        self.kept: list[Vertex] = []  # keeps the ids above from being used again
        self.result = pb.Definition()
        self.written: set[str] = set()
        self.maps: list[SourceMap] = []
        self.locations: dict[str, list[Any]] = {}

    def refer(self, output: Output) -> Any:
        return pb.Input(digest=self.digests[id(output.vertex)], index=output.index)

    def write(self, state: State) -> Any:
        last = settled_output(state.output)
        if last is None:
            return self.result
        # Without recursion: a Dockerfile may have more steps than Python has frames.
        waiting: list[tuple[Vertex, bool]] = [(last.vertex, False)]
        entered: set[int] = set()
        while waiting:
            vertex, ready = waiting.pop()
            if id(vertex) in self.digests:
                continue
            if ready:
                self.add(vertex)
                continue
            if id(vertex) in entered:
                raise BuildError("an operation needs its own result")
            entered.add(id(vertex))
            self.kept.append(vertex)
            waiting.append((vertex, True))
            waiting += [(part.vertex, False) for part in reversed(vertex.inputs())]
        end = pb.Op(inputs=[self.refer(last)])
        data = end.SerializeToString(deterministic=True)
        caps = {"constraints", "platform"}
        for metadata in self.result.metadata.values():
            if metadata.ignore_cache:
                caps.add("meta.ignorecache")
            if metadata.description:
                caps.add("meta.description")
            if metadata.HasField("export_cache"):
                caps.add("meta.exportcache")
        self.append(data, Marks(caps=caps).message())
        self.sources()
        return self.result

    def add(self, vertex: Vertex) -> None:
        if isinstance(vertex, Defined):
            digest = self.append(vertex.data, vertex.metadata)
        else:
            op = vertex.op(self.refer, self.platform)
            digest = self.append(op.SerializeToString(deterministic=True), vertex.marks.message())
        self.digests[id(vertex)] = digest
        for source_map, ranges in vertex.marks.locations:
            if source_map not in self.maps:
                self.maps.append(source_map)
            location = pb.Location(sourceIndex=self.maps.index(source_map))
            for part in ranges:
                location.ranges.add(start=pb.Position(line=part.start), end=pb.Position(line=part.end))
            self.locations.setdefault(digest, []).append(location)

    def append(self, data: bytes, metadata: Any) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        known = self.result.metadata[digest]
        if metadata is not None:
            if metadata.HasField("progress_group"):
                known.ClearField("progress_group")
            known.MergeFrom(metadata)
        if digest not in self.written:
            self.written.add(digest)
            getattr(self.result, "def").append(data)
        return digest

    def sources(self) -> None:
        source = self.result.Source
        source.SetInParent()
        source.infos.extend(one.message() for one in self.maps)
        for digest, locations in self.locations.items():
            source.locations[digest].locations.extend(locations)


def scratch() -> State:
    """An empty file system."""
    return State()


def _source(identifier: str, attributes: Mapping[str, str], marks: Marks, *caps: str) -> State:
    marks.caps.update(caps)
    return State().at(Output(Source(identifier, attributes, marks), 0, marks.platform))


def image(
    reference: str,
    platform: Platform | None = None,
    resolve_mode: str = "default",
    checksum: str = "",
    record_type: str = "",
    marks: Marks | None = None,
) -> State:
    """An image by its full reference. resolve_mode: default, pull (ask the registry) or local (take what is there)."""
    marks = marks or Marks()
    marks.platform = platform or marks.platform
    attributes = {}
    caps = ["source.image"]
    if resolve_mode not in ("", "default"):
        attributes["image.resolvemode"] = resolve_mode
        if resolve_mode == "pull":
            caps.append("source.image.resolvemode")
    if record_type:
        attributes["image.recordtype"] = record_type
    if checksum:
        attributes["image.checksum"] = checksum
        caps.append("source.image.checksum")
    return _source("docker-image://" + reference, attributes, marks, *caps)


def local(
    name: str,
    session: str = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow: Sequence[str] = (),
    shared_key: str = "",
    differ: str = "",
    unique: str = "",
    marks: Marks | None = None,
) -> State:
    """A folder of the client, by the name that its session knows it by."""
    attributes: dict[str, str] = {}
    caps = ["source.local"]
    for key, value, cap in (
        ("local.session", session, "sessionid"),
        ("local.includepattern", _json(include), "includepatterns"),
        ("local.followpaths", _json(follow), "followpaths"),
        ("local.excludepatterns", _json(exclude), "excludepatterns"),
        ("local.sharedkeyhint", shared_key, "sharedkeyhint"),
        ("local.unique", "" if session else unique, "unique"),
    ):
        if value:
            attributes[key] = value
            caps.append("source.local." + cap)
    if differ:
        attributes["local.differ"] = differ
    return _source("local://" + name, attributes, marks or Marks(), *caps)


def _json(values: Sequence[str]) -> str:
    if not values:
        return ""
    # Go's encoder also hides these three, for pages of HTML; whoever compares attributes sees them.
    encoded = jsontext.dumps(texts(values))
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def git(
    remote: str,
    host: str,
    path: str,
    ref: str = "",
    subdir: str = "",
    keep_git_dir: bool = False,
    checksum: str = "",
    submodules: bool = True,
    mtime: str = "",
    fetch_by_commit: bool = False,
    ssh: bool = False,
    marks: Marks | None = None,
) -> State:
    """A git repository; `remote` is its address for git, host and path name it whatever the protocol."""
    identifier = host + clean("/" + path)
    if ref or subdir:
        identifier += "#" + ref + (":" + subdir if subdir else "")
    attributes = {"git.authtokensecret": AUTH_TOKEN, "git.authheadersecret": AUTH_HEADER}
    caps = ["source.git"]
    for key, value, cap in (
        ("git.fullurl", remote, "fullurl"),
        ("git.keepgitdir", "true" if keep_git_dir else "", "keepgitdir"),
        ("git.checksum", checksum, "checksum"),
        ("git.skipsubmodules", "" if submodules else "true", "skipsubmodules"),
        ("git.mtime", mtime, "mtime"),
        ("git.fetchbycommit", "true" if fetch_by_commit else "", "fetchbycommit"),
        ("git.mountsshsock", "default" if ssh else "", "mountsshsock"),
    ):
        if value:
            attributes[key] = value
            caps.append("source.git." + cap)
    return _source("git://" + identifier, attributes, marks or Marks(), *caps)


def http(url: str, filename: str = "", checksum: str = "", mode: int = 0, marks: Marks | None = None) -> State:
    """A download: one file of that name."""
    attributes = {}
    caps = ["source.http"]
    if checksum:
        attributes["http.checksum"] = checksum
        caps.append("source.http.checksum")
    if filename:
        attributes["http.filename"] = filename
    if mode:
        attributes["http.perm"] = f"0{mode & 0o777:o}"
        caps.append("source.http.perm")
    return _source(url, attributes, marks or Marks(), *caps)


def oci_layout(
    reference: str, session: str = "", store: str = "", platform: Platform | None = None, marks: Marks | None = None
) -> State:
    """An image in a layout that the client's session serves."""
    marks = marks or Marks()
    marks.platform = platform or marks.platform
    attributes = {}
    if session:
        attributes["oci.session"] = session
    if store:
        attributes["oci.store"] = store
    return _source("oci-layout://" + reference, attributes, marks, "source.ocilayout")


def copy(source: State, src: str, dest: str, **options: Any) -> Copy:
    return Copy(source, src, dest, **options)


def merge(states: Sequence[State], marks: Marks | None = None) -> State:
    """One file system over the other; empty ones do not count."""
    present = [state for state in states if state.output is not None]
    if not present:
        return scratch()
    if len(present) == 1:
        return present[0]
    return present[0].at(Output(Merge(present, marks or Marks())))


def diff(lower: State, upper: State, marks: Marks | None = None) -> State:
    """What `upper` has beyond `lower`."""
    if lower.output is None:
        return upper if upper.output is not None else scratch()
    return lower.at(Output(Diff(lower, upper, marks or Marks())))


def build(source: State, filename: str = "", marks: Marks | None = None) -> State:
    """The result of a definition in a file of `source`."""
    return State().at(Output(Build(source, filename, marks or Marks())))


def later(settle: Callable[[], State]) -> State:
    """A State that is decided when the first definition with it is made."""
    return State(Later(settle))


def from_definition(definition: Any) -> State:
    """The State of a definition that was made elsewhere. Raises BuildError where it hangs together badly."""
    data = list(getattr(definition, "def"))
    if not data:
        return scratch()
    messages: dict[str, tuple[bytes, Any]] = {}
    end = ""
    for one in data:
        message = pb.Op()
        try:
            message.ParseFromString(one)
        except Exception as error:  # protobuf's own class differs between its versions
            raise BuildError(f"failed to parse llb proto op: {error}") from None
        end = "sha256:" + hashlib.sha256(one).hexdigest()
        messages[end] = (one, message)
    # Operations stand after their inputs; what does not is asked for again below.
    vertexes: dict[str, Defined] = {}
    maps = [SourceMap(one.filename, one.data, one.language, one.definition) for one in definition.Source.infos]

    def outputs(message: Any) -> list[Output]:
        found = []
        for part in message.inputs:
            if part.digest not in vertexes:
                raise BuildError(f"invalid missing input digest {part.digest}")
            vertex = vertexes[part.digest]
            platform = None
            if vertex.message.HasField("platform"):
                known = vertex.message.platform
                platform = Platform(
                    known.OS, known.Architecture, known.Variant, known.OSVersion, tuple(known.OSFeatures)
                )
            found.append(Output(vertex, part.index, platform))
        return found

    for digest, (one, message) in messages.items():
        if digest == end:
            break
        metadata = definition.metadata.get(digest)
        vertex = Defined(one, digest, message, metadata, outputs(message))
        if digest in definition.Source.locations:
            for location in definition.Source.locations[digest].locations:
                if not 0 <= location.sourceIndex < len(maps):
                    raise BuildError(f"failed to find source map with index {location.sourceIndex}")
                ranges = tuple(_Lines(part.start.line, part.end.line) for part in location.ranges)
                vertex.marks.locations.append((maps[location.sourceIndex], ranges))
        vertexes[digest] = vertex
    last = outputs(messages[end][1])
    if not last:
        return scratch()
    return State().at(last[0])


@dataclass(frozen=True)
class _Lines:
    start: int
    end: int
