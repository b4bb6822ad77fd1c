# SPDX-License-Identifier: Apache-2.0
"""Where files come from: the Dockerfile, the main context, and named contexts.

context            local (the default), a git URL, an http URL (an archive, or one Dockerfile), or an input
classic-context    in the options, which POST /build of an engine sets: the context is used as a classic builder does
context:NAME       docker-image://ref, oci-layout://store@digest, git and http URLs, local:NAME, input:NAME;
context:NAME::PLATFORM the same for one platform
"""

from __future__ import annotations

import base64
import posixpath
import tarfile
import threading
from collections.abc import Callable, Mapping
from typing import Any

from teu.buildkit.core import exports
from teu.buildkit.core.identifiers import without_credentials
from teu.buildkit.frontends.dockerfile import gitref
from teu.buildkit.frontends.dockerfile.client import CONTEXT, DOCKERFILE, IGNORE_FILE, Client, NotAnImage, Options
from teu.buildkit.frontends.dockerfile.errors import DockerfileError
from teu.buildkit.frontends.dockerfile.ignore import Ignored, clean, read_ignore_file
from teu.buildkit.frontends.dockerfile.image import Image
from teu.buildkit.frontends.dockerfile.lint import boolean
from teu.buildkit.llb import build, platforms
from teu.buildkit.llb.build import Copy, Marks, Remove, SourceMap, State
from teu.buildkit.llb.platforms import Platform
from teu.oci import jsontext, reference

_RECURSION = 10
_HTTP_FILE = "context"
_ARCHIVES = (b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\x00")

Loaded = tuple[State, Image | None]
Follow = Callable[[], list[str]]


def internal(name: str) -> Marks:
    return Marks(name="[internal] " + name)


def _shown(address: str) -> str:
    """An address as everybody may see it. The user alone is no secret with ssh, and is what people look for."""
    hidden = without_credentials(address)
    return address if hidden.startswith("ssh://xxxxx@") else hidden


def git_state(found: gitref.GitRef, name: str, keep: bool, mtime: str = "") -> State:
    return build.git(
        found.remote,
        found.host,
        found.path,
        found.ref,
        found.subdir,
        keep_git_dir=keep or bool(found.keep_git_dir),
        checksum=found.checksum,
        submodules=found.submodules is not False,
        mtime=found.mtime or mtime,
        fetch_by_commit=found.fetch_by_commit,
        ssh=found.scheme == "ssh",
        marks=internal("load git source " + _shown(name)),
    )


class Contexts:
    """The sources of one request; each is looked at once, when it is first asked for."""

    def __init__(self, options: Options, client: Client) -> None:
        self.options = options
        self.client = client
        raw = options.raw
        self.filename = raw.get("filename", DOCKERFILE)
        self.local_context = CONTEXT
        self.local_dockerfile = raw.get("dockerfilekey", "dockerfile")
        self._main: State | None = None
        self._dockerfile: State | None = None
        self._whole: State | None = None
        self._detected = False
        self._ignore: bytes | None = None
        self._ignore_name = IGNORE_FILE
        self._lock = threading.RLock()

    def _detect(self) -> None:
        with self._lock:
            if self._detected:
                return
            self._detected = True
            raw = self.options.raw
            given = raw.get(raw.get("contextkey", CONTEXT), "")
            found = gitref.parse(given)
            if found is not None:
                keep = boolean(raw.get("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR", "")) or False
                mtime = "commit" if raw.get("build-arg:SOURCE_DATE_EPOCH") else ""
                self._main = self._dockerfile = git_state(found, given, keep, mtime)
            elif given.startswith(("http://", "https://")):
                self._main = self._dockerfile = self._http(given)
            else:
                inputs = self.client.inputs()
                if "dockerfilekey" not in raw and self.local_dockerfile in inputs:
                    self._dockerfile = build.from_definition(inputs[self.local_dockerfile])
                if CONTEXT in inputs:
                    self._main = build.from_definition(inputs[CONTEXT])
            if self._main is not None and "contextsubdir" in raw:
                self._main = build.scratch().file(Copy(self._main, raw["contextsubdir"], "/", contents_only=True))

    def _http(self, url: str) -> State:
        state = build.http(url, _HTTP_FILE, marks=internal("load remote build context"))
        head = self.client.read_file(state.definition(), _HTTP_FILE, 1024)
        if head is None:
            raise DockerfileError("failed to read downloaded context")
        if not is_archive(head):
            self.filename = _HTTP_FILE
            return state
        return build.scratch().file(Copy(state, "/" + _HTTP_FILE, "/", unpack=True))

    def read_dockerfile(self, language: str = "Dockerfile") -> SourceMap:
        """The Dockerfile, with how it is had. Its own .dockerignore is read with it."""
        self._detect()
        name = self.filename
        state = self._dockerfile
        if state is None or "dockerfilekey" in self.options.raw:
            names = [name, name + IGNORE_FILE]
            if posixpath.basename(name) == DOCKERFILE:
                names.append(posixpath.join(posixpath.dirname(name), DOCKERFILE.lower()))
            state = build.local(
                self.local_dockerfile,
                self.options.session_of(self.local_dockerfile),
                follow=names,
                shared_key=self.local_dockerfile,
                differ="none",
                marks=internal("load build definition from " + name),
            )
        definition = state.definition()
        data = self.client.read_file(definition, name)
        if data is None and posixpath.basename(name) == DOCKERFILE:
            data = self.client.read_file(definition, posixpath.join(posixpath.dirname(name), DOCKERFILE.lower()))
        if data is None:
            raise DockerfileError(f"failed to read dockerfile: open {name}: no such file or directory")
        ignore = self.client.read_file(definition, name + IGNORE_FILE)
        if ignore is not None:
            self._ignore, self._ignore_name = ignore, name + IGNORE_FILE
        return SourceMap(name, data, language, definition)

    def ignore_patterns(self) -> list[str]:
        """What the context's .dockerignore leaves out; nothing for a context that is not local."""
        self._detect()
        if self._main is not None:
            return []
        with self._lock:
            if self._ignore is None:
                state = build.local(
                    self.local_context,
                    self.options.session_of(self.local_context),
                    follow=[IGNORE_FILE],
                    shared_key=f"{self.local_context}-{IGNORE_FILE}",
                    differ="none",
                    marks=internal("load " + IGNORE_FILE),
                )
                self._ignore = self.client.read_file(state.definition(), IGNORE_FILE) or b""
            return read_ignore_file(self._ignore)

    def main(self, follow: list[str]) -> State:
        """The main context; of a local one only the paths of `follow`, where there are any."""
        self._detect()
        if self._main is not None:
            return self._classic(self._main) if "classic-context" in self.options.raw else self._main
        return build.local(
            self.local_context,
            self.options.session_of(self.local_context),
            exclude=self.ignore_patterns(),
            follow=follow,
            shared_key=self.local_context,
            marks=internal("load build context"),
        )

    def _classic(self, state: State) -> State:
        """A whole context as dockerd's classic builder has it: a client sends the Dockerfile and .dockerignore whatever
        that says, and they are taken away from the files of the context where it leaves them out."""
        with self._lock:
            if self._whole is None:
                data = self.client.read_file(state.definition(), IGNORE_FILE)
                ignored = Ignored(read_ignore_file(data)) if data else ()
                names = [name for name in dict.fromkeys((IGNORE_FILE, clean(self.filename))) if name in ignored]
                removals = [Remove("/" + name, allow_not_found=True) for name in names]
                self._whole = state.file(removals, internal("leave out ignored files")) if names else state
            return self._whole

    def named(self, name: str, platform: Platform) -> NamedContext | None:
        """The named context that stands in for an image or a stage. Raises DockerfileError for a bad name."""
        try:
            familiar = reference.parse(name).familiar().removesuffix(":latest")
        except reference.ReferenceError_ as error:
            raise DockerfileError(f"invalid context name {name}: {error}") from None
        for key in (f"{familiar}::{platforms.normalized(platform).full}", familiar):
            given = self.options.raw.get("context:" + key)
            if given is not None:
                return NamedContext(self, familiar, key, given, platform)
        return None


class NamedContext:
    """A context of a name; `key` is the name, with the platform where it holds for one only."""

    def __init__(self, contexts: Contexts, name: str, key: str, given: str, platform: Platform) -> None:
        self.contexts = contexts
        self.name = name
        self.key = key
        self.given = given
        self.platform = platform

    def load(self, follow: Follow | None = None) -> Loaded:
        """Its State, and its configuration where it is an image. `follow` says the paths needed of a local one."""
        given = self.given
        for _attempt in range(_RECURSION + 1):
            try:
                return self._load(given, follow)
            except NotAnImage as error:
                scheme, separator, rest = error.updated.partition("://")
                if not separator:
                    raise DockerfileError(f"could not parse ref: {error.updated}") from None
                given = f"{scheme}:{rest}"
        raise DockerfileError(
            "context recursion limit exceeded; this may indicate a cycle in the provided source policies: " + given
        )

    def _load(self, given: str, follow: Follow | None) -> Loaded:
        scheme, separator, rest = given.partition(":")
        if not separator:
            raise DockerfileError(f"invalid context specifier {given} for {self.key}")
        if scheme.startswith("git@"):
            scheme = "git"
        if scheme == "docker-image":
            return self._image(rest.removeprefix("//"))
        if scheme in ("git", "http", "https"):
            found = gitref.parse(given)
            if found is not None:
                return git_state(found, given, False), None
            if scheme == "git":
                raise DockerfileError(f"invalid git context {_shown(given)}")
            return build.http(given, _HTTP_FILE, marks=Marks(name=f"[context {self.key}] {_shown(given)}")), None
        if scheme == "oci-layout":
            return self._layout(rest.removeprefix("//"))
        if scheme == "local":
            return self._local(rest, follow), None
        if scheme == "input":
            return self._input(rest)
        raise DockerfileError(f"unsupported context source {scheme} for {self.key}")

    def _image(self, name: str) -> Loaded:
        if name == "scratch":
            return build.scratch(), None
        try:
            full = str(reference.parse(name).with_default_tag())
        except reference.ReferenceError_ as error:
            raise DockerfileError(str(error)) from None
        log = f"[context {self.key}] load metadata for {name}"
        mode = self.contexts.options.resolve_mode
        found = self.contexts.client.resolve_image_config(full, self.platform, mode, log)
        image = Image.parse(found.config)
        image.head.pop("created", None)
        marks = Marks(name=f"[context {self.key}] {name}")
        state = build.image(found.reference, self.platform, marks=marks)
        return state.with_image_config(image.document()), image

    def _layout(self, given: str) -> Loaded:
        store, at, digest = given.partition("@")
        if not at:
            raise DockerfileError(f'oci-layout reference "{given}" has no digest')
        store = store.partition(":")[0] if ":" in store.rpartition("/")[2] else store
        try:
            full = str(reference.parse(f"{self.name.partition(':')[0]}@{digest}"))
        except reference.ReferenceError_ as error:
            raise DockerfileError(f'could not parse oci-layout reference "{given}": {error}') from None
        session = self.contexts.options.session
        log = f"[context {self.key}] load metadata for {full}"
        found = self.contexts.client.resolve_image_config(full, self.platform, "", log, (session, store))
        image = Image.parse(found.config)
        marks = Marks(name=f"[context {self.key}] OCI load from client")
        state = build.oci_layout(full, session, store, self.platform, marks)
        return state.with_image_config(image.document()), image

    def _local(self, name: str, follow: Follow | None) -> State:
        options = self.contexts.options
        session = options.session_of(name)
        ignore = build.local(
            name,
            session,
            follow=[IGNORE_FILE],
            shared_key=f"context:{self.key}-{IGNORE_FILE}",
            differ="none",
            marks=Marks(name=f"[context {self.key}] load {IGNORE_FILE}"),
        )
        excluded = read_ignore_file(self.contexts.client.read_file(ignore.definition(), IGNORE_FILE) or b"")
        shared = options.raw.get("sharedkey:localdir:" + self.key, "")

        def settle() -> State:
            return build.local(
                name,
                session,
                exclude=excluded,
                follow=follow() if follow is not None else (),
                shared_key=f"context:{self.key}-{shared}",
                marks=Marks(name=f"[context {self.key}] load from client"),
            )

        # Which of its paths are needed is known only when all stages are.
        return build.later(settle)

    def _input(self, name: str) -> Loaded:
        inputs = self.contexts.client.inputs()
        if name not in inputs:
            raise DockerfileError(f"invalid input {name} for {self.key}")
        state = build.from_definition(inputs[name])
        metadata = self.contexts.options.raw.get("input-metadata:" + name)
        if metadata is None:
            return state, None
        config = _metadata(metadata).get(exports.CONFIG)
        if config is None:
            return state, None
        image = Image.parse(config)
        return state.with_image_config(image.document()), image


def _metadata(text: str) -> Mapping[str, bytes]:
    """A result's metadata, as buildx hands them to the next build: a JSON object of base64 values."""
    try:
        document: Any = jsontext.loads(text)
        return {str(key): base64.b64decode(value or "", validate=True) for key, value in document.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DockerfileError(f"failed to parse input metadata {text}: {error}") from None


def is_archive(head: bytes) -> bool:
    """Whether a download is a tar archive, compressed or not, by its first bytes."""
    if head.startswith(_ARCHIVES):
        return True
    try:
        # The first header alone: it may be one of a longer name or a finer time, with more behind it than was read.
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
        return True
    except (tarfile.TarError, ValueError):
        return False
