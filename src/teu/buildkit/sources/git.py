# SPDX-License-Identifier: Apache-2.0
"""git://HOST/PATH#REF:SUBDIR: the files of a commit.

    git.fullurl            the address as git takes it (https, http, ssh, git, user@host:path)
    git.keepgitdir         "true": with .git, of that commit alone
    git.checksum           (the begin of) the commit that the reference has to be
    git.skipsubmodules     "true": without them
    git.mtime              commit: all files have the commit's time
    git.fetchbycommit      "true": the commit of git.checksum is fetched, whatever the reference is
    git.authtokensecret    secrets of the client, with the host behind a dot or without: a token, or the whole header
    git.authheadersecret   Authorization (HTTPS)
    git.mountsshsock       the client's ssh agent of this id
    git.knownsshhosts      a known_hosts file; without it any host is spoken to

What was fetched of a remote is kept in a bare repository, in a tree of its own that no step sees. Files are checked out
with a repository that goes with the checkout: nothing of one commit (submodules, index) is left for the next.

Neither address nor reference can be an option of git, nor lead to files of this host; a subdirectory is opened through
no link. Who wrote the repository decides what is in the files, and nothing else.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import posixpath
import re
import secrets as random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from teu.buildkit.cache.store import GIT_CHECKOUT, REGULAR
from teu.buildkit.core import errors
from teu.buildkit.core.op import Gone, Record
from teu.buildkit.core.snapshots import Active, Kind, Snapshot, Worker
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.session import secrets, ssh
from teu.buildkit.session.manager import Manager
from teu.buildkit.sources.base import Asker, Key, Locks, Material, ask_any, no_meta, shown
from teu.buildkit.sources.gitcli import Git, GitError
from teu.linux import trees
from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

SCHEMES = ("http", "https", "ssh", "git")
SCP = re.compile(
    r"(?P<user>[a-zA-Z0-9_][a-zA-Z0-9\-_]*)@(?P<host>[a-zA-Z0-9][a-zA-Z0-9\-.]*):(?P<path>[^-].*)\Z", re.DOTALL
)
COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
CHECKSUM = re.compile(r"[0-9a-fA-F]{1,64}\Z")
# What git's own check-ref-format refuses, and whatever could be read as an option or as a pattern.
BAD_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|\A[-/+.]|/\.|\.lock(?:/|\Z)|[/.]\Z")
REF_MAX = 1024
URL_MAX = 4096
HEAD = re.compile(rb"^ref: (refs/heads/[^\t\n]+)\tHEAD$", re.MULTILINE)
GITHUB = ("https://github.com/", "https://www.github.com/")  # one token is for all of it, as for CI runners
DAMAGED = re.compile(
    r"not a git repository|bad object|corrupt|loose object|unable to read|missing (?:blob|tree|commit)|"
    r"unable to (?:create|update)|did not (?:receive|send) all|invalid (?:object|sha1 pointer)|packfile",
    re.IGNORECASE,
)
BY_COMMIT_REFUSED = re.compile(r"not our ref|unadvertised object|no such remote ref|couldn't find remote ref")
SHALLOW_REFUSED = re.compile(r"shallow|depth", re.IGNORECASE)
UNSUPPORTED = {
    "git.bundle": "bundles of git are not read by this builder",
    "git.checkoutbundle": "bundles of git are not read by this builder",
    "git.sig.pubkey": "signatures of commits are not verified by this builder",
    "git.sig.rejectexpired": "signatures of commits are not verified by this builder",
    "git.sig.requiresignedtag": "signatures of commits are not verified by this builder",
    "git.sig.ignoresignedtag": "signatures of commits are not verified by this builder",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operation says. `remote` is without credentials; these are (name, password), or None."""

    remote: str
    host: str
    credentials: tuple[str, str] | None = None
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep: bool = False
    submodules: bool = True
    commit_time: bool = False
    by_commit: bool = False
    token_secret: str = ""
    header_secret: str = ""
    agent: str = ""
    known_hosts: str = ""

    def key(self, commit: str, ref: str) -> str:
        """As BuildKit writes it."""
        key = commit
        if self.keep:
            key += ".git" + (f"#{ref}" if ref else "")
        if self.subdir:
            key += f":{self.subdir}"
        if not self.submodules:
            key += "(skip-submodules)"
        if self.commit_time:
            key += "(mtime=commit)"
        return key


@dataclass(frozen=True, slots=True)
class Found:
    """What the reference is now: its full name (or the commit, where it was one), the object, and for an annotated tag
    the commit that it is of."""

    ref: str
    object: str
    commit: str = ""

    @property
    def name(self) -> str:
        return "" if COMMIT.match(self.ref) else self.ref


class Repositories:
    """The scheme git. `folder`: where processes find what only they need; it is this one's alone."""

    def __init__(self, worker: Worker, sessions: Manager, folder: str | None = None) -> None:
        self.worker = worker
        self.sessions = sessions
        self.folder = folder
        self.locks = Locks()

    def recover(self) -> None:
        """What a builder that was killed left goes: sockets of agents, lists of hosts, half a repository."""
        if self.folder is not None:
            if os.path.lexists(self.folder):
                trees.discard_tree(self.folder)
            os.makedirs(self.folder, 0o700, exist_ok=True)

    def open(self, text: str, attributes: Mapping[str, str], platform: Platform) -> GitSource:
        for name, why in UNSUPPORTED.items():
            if attributes.get(name) not in (None, "", "false"):
                raise errors.Unimplemented(why)
        address, _, fragment = text.partition("#")
        ref, _, subdir = unquote(fragment).partition(":")
        remote = attributes.get("git.fullurl") or address
        wanted = replace(
            located(remote),
            ref=ref,
            subdir=posixpath.normpath(f"/{subdir}").lstrip("/"),
            checksum=attributes.get("git.checksum", ""),
            keep=attributes.get("git.keepgitdir") == "true",
            submodules=attributes.get("git.skipsubmodules") != "true",
            commit_time=_time(attributes.get("git.mtime", "")),
            by_commit=attributes.get("git.fetchbycommit") == "true",
            token_secret=attributes.get("git.authtokensecret", ""),
            header_secret=attributes.get("git.authheadersecret", ""),
            agent=attributes.get("git.mountsshsock", ""),
            known_hosts=attributes.get("git.knownsshhosts", ""),
        )
        if ref:
            check_ref(ref)
        if wanted.checksum and not CHECKSUM.match(wanted.checksum):
            raise errors.InvalidArgument(
                f"invalid checksum {errors.cut(wanted.checksum, 100)} for Git URL, expected hex commit hash"
            )
        return GitSource(self, wanted)

    def meta(self, request: Any, text: str, platform: Platform, asker: Asker) -> Any:
        source = self.open(text, dict(request.Source.attrs), platform)
        answer = no_meta()
        with source.git(asker) as git:
            found = source.found(asker, git)
            if request.Git.ReturnObject:
                found, commit, tag = source.objects(asker, git, found)
                answer.Git.CommitObject = commit
                answer.Git.TagObject = tag
        answer.Git.Checksum, answer.Git.Ref, answer.Git.CommitChecksum = found.object, found.ref, found.commit
        return answer


def located(text: str) -> Wanted:
    """A remote by its address. Raises InvalidArgument for what is none, or none of the network."""
    bad = errors.InvalidArgument(f"invalid git remote {shown(text)!r}")
    if len(text) > URL_MAX or any(letter <= " " or letter == "\x7f" for letter in text) or text.startswith("-"):
        raise bad
    scheme, separator, _ = text.partition("://")
    if not separator:
        match = SCP.match(text)
        if match:
            return Wanted(text, match["host"])
        if "@" in text.partition("/")[0]:
            raise bad
        scheme, text = "https", f"https://{text}"
    if scheme.lower() not in SCHEMES:
        raise errors.InvalidArgument(f"invalid git remote {shown(text)!r}: invalid protocol {scheme!r}")
    try:
        parts = urlsplit(text)
        host = parts.hostname or "" if parts.port != 0 else ""  # a port that is none raises
    except ValueError:
        raise bad from None
    if not host or host.startswith("-") or (parts.username or "").startswith("-") or parts.path.startswith("/-"):
        raise bad
    place = parts.netloc.rpartition("@")[2]
    parts = parts._replace(scheme=scheme.lower(), query="", fragment="")
    if scheme.lower() in ("http", "https") and "@" in parts.netloc:
        # Not among the arguments of git, nor in the configuration of a repository that is kept.
        given = (unquote(parts.username or ""), unquote(parts.password or ""))
        return Wanted(parts._replace(netloc=place).geturl(), place, given)
    if parts.password:
        raise errors.InvalidArgument(f"invalid git remote {shown(text)!r}: a password has no place in it")
    return Wanted(parts.geturl(), place)


def check_ref(text: str) -> None:
    """Raises InvalidArgument for what is no reference: nothing of it may be an option or a pattern to git."""
    if not text or len(text) > REF_MAX or BAD_REF.search(text) or text == "@":
        raise errors.InvalidArgument(f"invalid git ref {errors.cut(text, 200)!r}")


def _time(text: str) -> bool:
    if text not in ("", "checkout", "commit"):
        raise errors.InvalidArgument(f"invalid git.mtime {errors.cut(text, 100)!r}")
    return text == "commit"


class GitSource:
    """One commit's files."""

    def __init__(self, repositories: Repositories, wanted: Wanted) -> None:
        self._repositories = repositories
        self._wanted = wanted
        self._lock = threading.Lock()
        self._found: Found | None = None

    def close(self) -> None:
        """It holds nothing."""

    def material(self) -> Material:
        wanted = self._wanted
        remote = wanted.remote + (f"#{wanted.ref}" if wanted.ref else "")
        named = tuple(name for name in (wanted.token_secret, wanted.header_secret) if name)
        pin = self._found.object if self._found is not None else ""
        return Material("git", remote, pin, secrets=named, ssh=(wanted.agent,) if wanted.agent else ())

    def load(self, asker: Asker, record: Record) -> Snapshot:
        return self._repositories.worker.load(record)

    def key(self, asker: Asker) -> Key:
        known = self._known()
        if known is None:
            with self.git(asker) as git:
                known = self.found(asker, git)
        self._found = known
        return Key(self._key(known), known.object)

    def _key(self, found: Found) -> str:
        if not found.name:
            return self._wanted.key(found.ref, found.ref)
        commit = found.commit if found.commit and not self._wanted.keep else found.object
        return self._wanted.key(commit, found.ref)

    # What it is

    def found(self, asker: Asker, git: Git) -> Found:
        """Asks the remote what the reference is, once. Raises FailedPrecondition where it is not what it has to be."""
        with self._lock:
            if self._found is None:
                self._found = self._known() or self._ask(git)
            return self._found

    def _known(self) -> Found | None:
        """What nobody needs to be asked for: a commit by its name."""
        wanted = self._wanted
        if COMMIT.match(wanted.ref):
            self._check(wanted.ref)
            return Found(wanted.ref, wanted.ref)
        if wanted.by_commit:
            if not COMMIT.match(wanted.checksum):
                raise errors.InvalidArgument(
                    "fetch-by-commit requires a checksum or a commit SHA ref"
                    if not wanted.checksum
                    else f"fetch-by-commit requires a full commit SHA checksum, got {wanted.checksum!r}"
                )
            ref = wanted.ref or wanted.checksum
            if wanted.ref and not ref.startswith("refs/"):
                ref = f"refs/heads/{ref}"
            return Found(ref, wanted.checksum)
        return None

    def _check(self, *found: str) -> None:
        checksum = self._wanted.checksum
        if checksum and not any(each.startswith(checksum) for each in found if each):
            others = " or ".join(each for each in found if each)
            raise errors.FailedPrecondition(f"expected checksum to match {checksum}, got {others}")

    def _ask(self, git: Git) -> Found:
        remote, ref = self._wanted.remote, self._wanted.ref
        if not ref:
            answer = self._tried(
                git, "error fetching default branch for repository", "ls-remote", "--symref", "--", remote, "HEAD"
            )
            match = HEAD.search(answer)
            if match is None:
                raise errors.NotFound(f"could not find default branch for repository: {shown(remote)}")
            ref = match[1].decode(errors="replace")
            check_ref(ref)
        answer = self._tried(git, "failed to fetch remote", "ls-remote", "--", remote, ref, f"{ref}^{{}}")
        listed: dict[str, str] = {}
        for line in answer.decode(errors="replace").splitlines():
            commit, _, name = line.partition("\t")
            listed[name] = commit
        # As git itself chooses: the name as it is, a branch, a tag.
        names = [f"refs/{ref.removeprefix('refs/')}", f"refs/heads/{ref.removeprefix('refs/heads/')}"]
        names.append(f"refs/tags/{ref.removeprefix('refs/tags/')}")
        name = next((one for one in names if listed.get(one)), "")
        if not name:
            raise errors.NotFound(f"repository {shown(remote)} does not contain ref {ref}")
        found, peeled = listed[name], listed.get(f"{name}^{{}}", "") if name.startswith("refs/tags/") else ""
        if not COMMIT.match(found) or (peeled and not COMMIT.match(peeled)):
            raise errors.DataLoss(f"{shown(remote)}: invalid commit sha {errors.cut(found, 100)!r}")
        self._check(found, peeled)
        return Found(name, found, "" if self._wanted.keep else peeled)

    def _tried(self, git: Git, what: str, *arguments: str, told: bool = True) -> bytes:
        try:
            return git.run(*arguments, told=told)
        except GitError as error:
            raise error.prefixed(f"{what} {shown(self._wanted.remote)}") from None

    # Speaking with the remote

    @contextlib.contextmanager
    def git(self, asker: Asker) -> Iterator[Git]:
        """git, with what the client lets it have."""
        wanted = self._wanted
        header = self._header(asker)
        scope = next((one for one in GITHUB if wanted.remote.startswith(one)), wanted.remote)
        settings = [(f"http.{scope}.extraheader", f"Authorization: {header}")] if header else []
        hidden = [header, header.rpartition(" ")[2]] if header else []
        with Git(asker, settings, hidden, self._repositories.folder) as git:
            if wanted.known_hosts:
                git.know_hosts(wanted.known_hosts)
            if not wanted.agent:
                yield git
                return
            with self._agent(asker, git.folder) as forwarding:
                git.socket = forwarding.path
                yield git

    def _agent(self, asker: Asker, folder: str) -> ssh.Forwarding:
        agent = self._wanted.agent

        def forward(session: Any) -> ssh.Forwarding:
            try:
                ssh.check(session, agent)
            except errors.Unimplemented:
                raise errors.FailedPrecondition(f"no SSH key {agent!r} forwarded from the client") from None
            return ssh.Forwarding(session, folder, agent)

        return ask_any(self._repositories.sessions, asker, forward)

    def _header(self, asker: Asker) -> str:
        """The value of Authorization; empty where the client has none for this remote."""
        wanted = self._wanted
        if not wanted.remote.startswith(("http://", "https://")):
            return ""
        if wanted.credentials is not None:
            pair = ":".join(wanted.credentials).encode("utf-8", "surrogateescape")
            return f"basic {base64.b64encode(pair).decode()}"
        names = [
            *([(f"{wanted.header_secret}.{wanted.host}", False)] if wanted.header_secret else []),
            *([(f"{wanted.token_secret}.{wanted.host}", True)] if wanted.token_secret else []),
            *([(wanted.header_secret, False)] if wanted.header_secret else []),
            *([(wanted.token_secret, True)] if wanted.token_secret else []),
        ]
        if not names or not asker.sessions():
            return ""

        def first(session: Any) -> tuple[bytes, bool]:
            for name, token in names:
                try:
                    return secrets.get(session, name), token
                except errors.NotFound:
                    continue
            raise errors.NotFound("the client has no secret for it")

        try:
            value, token = ask_any(self._repositories.sessions, asker, first)
        except errors.NotFound:
            return ""
        value = value.strip()
        if token:
            return "basic " + base64.b64encode(b"x-access-token:" + value).decode()
        text = value.decode("utf-8", "replace")
        if not text.isprintable():
            raise errors.InvalidArgument("the secret for git's Authorization cannot be a header")
        return text

    # Fetching

    @contextlib.contextmanager
    def _repository(self, asker: Asker, git: Git, found: Found) -> Iterator[str]:
        """The bare repository of the remote, which has the commit; for one at a time. One that turns out to be damaged
        is not kept."""
        with self._repositories.locks.hold(f"remote {self._wanted.remote}", asker), contextlib.ExitStack() as stack:
            active = self._reopened(found)
            if active is not None:
                try:
                    place = stack.enter_context(self._fetched_into(asker, git, found, active))
                except GitError as error:
                    if not DAMAGED.search(error.output):
                        raise
                    active = None
            if active is None:
                place = stack.enter_context(self._fetched_into(asker, git, found, self._made(found)))
            yield place

    @contextlib.contextmanager
    def _fetched_into(self, asker: Asker, git: Git, found: Found, active: Active) -> Iterator[str]:
        damaged = False
        try:
            with active.mounted() as place:
                try:
                    self._fetch(asker, git, place, found)
                    # That the commit is whole: what was kept may have been cut off by a power cut.
                    git.run("rev-parse", "--verify", "--quiet", f"{found.object}^{{tree}}", git_dir=place)
                    yield place
                except GitError as error:
                    damaged = DAMAGED.search(error.output) is not None
                    raise
        finally:
            if damaged:
                active.discard()
            else:
                active.release()

    def _reopened(self, found: Found) -> Active | None:
        worker = self._repositories.worker
        for name in worker.find(REGULAR, git_remote=self._record(found)):
            active = worker.reopen(name)
            if active is not None:
                return active
        return None

    def _made(self, found: Found) -> Active:
        description = f"shared git repo for {shown(self._wanted.remote)}"
        data = {"git_remote": self._record(found)}
        return self._repositories.worker.active(None, Kind(REGULAR, description, retained=True, data=data))

    def _record(self, found: Found) -> str:
        return f"{_format(found)} {self._wanted.remote}"

    def _fetch(self, asker: Asker, git: Git, place: str, found: Found) -> None:
        if not os.path.exists(os.path.join(place, "HEAD")):
            git.run("init", "--quiet", "--bare", "--template=", f"--object-format={_format(found)}", git_dir=place)
        elif _has(git, place, found.object):
            return
        for name in ("shallow.lock", "packed-refs.lock", "config.lock"):  # of one who was killed
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(place, name))
        if found.name and not self._wanted.by_commit:
            # Kept under a name that no other reference takes, so that the next fetch is told what is here.
            kept = f"refs/teu/{hashlib.sha256(found.name.encode()).hexdigest()}"
            self._fetched(git, place, "--depth=1", refspec=f"+{found.name}:{kept}")
            if _has(git, place, found.object):
                return
            asker.check()
        # The commit itself: that of a name which is another one by now, or which nobody told.
        try:
            self._fetched(git, place, "--depth=1", refspec=found.object)
        except GitError as error:
            if self._wanted.by_commit or not BY_COMMIT_REFUSED.search(error.output):
                raise
            more = ["--unshallow"] if os.path.exists(os.path.join(place, "shallow")) else []
            self._fetched(git, place, "--prune", *more, refspec="+refs/*:refs/teu-all/*")
        if not _has(git, place, found.object):
            raise errors.NotFound(
                f"fetched ref {found.ref} does not match expected commit {found.object} and commit can not be found "
                f"in the repository {shown(self._wanted.remote)}"
            )

    def _fetched(self, git: Git, place: str, *options: str, refspec: str) -> None:
        remote = self._wanted.remote
        arguments = ["fetch", "--quiet", "--no-tags", "--force", "--no-write-fetch-head", "--update-shallow"]
        try:
            try:
                git.run(*arguments, *options, "--", remote, refspec, git_dir=place, told=True)
            except GitError as error:
                if "--depth=1" not in options or not SHALLOW_REFUSED.search(error.output):
                    raise
                git.run(*arguments, "--", remote, refspec, git_dir=place, told=True)
        except GitError as error:
            raise error.prefixed(f"failed to fetch remote {shown(remote)}") from None

    def objects(self, asker: Asker, git: Git, found: Found) -> tuple[Found, bytes, bytes]:
        """What is found with the commit's own name, and the objects themselves: (found, commit, tag)."""
        with self._repository(asker, git, found) as place:
            kind = git.run("cat-file", "-t", found.object, git_dir=place).strip()
            tag = b""
            commit = found.object
            if kind == b"tag":
                tag = git.run("cat-file", "tag", found.object, git_dir=place)
                commit = git.run("rev-parse", f"{found.object}^{{commit}}", git_dir=place).decode().strip()
            elif kind != b"commit":
                raise errors.InvalidArgument(f"expected commit or tag object, got {kind.decode(errors='replace')}")
            data = git.run("cat-file", "commit", commit, git_dir=place)
        return replace(found, commit=commit if tag else ""), data, tag

    # Files

    def snapshot(self, asker: Asker) -> Snapshot:
        found = self._found
        if found is None:
            self.key(asker)
            found = self._found
        assert found is not None
        key = f"{self._key(found)}:{self._wanted.subdir}"
        worker = self._repositories.worker
        with self._repositories.locks.hold(f"snapshot {key}", asker):
            for name in worker.find(GIT_CHECKOUT, git_snapshot=key):
                with contextlib.suppress(Gone):
                    return worker.load(Record(name, 0.0))
            with self.git(asker) as git, self._repository(asker, git, found) as place:
                description = f"git snapshot for {shown(self._wanted.remote)}#{self._wanted.ref or found.ref}"
                active = worker.active(None, Kind(GIT_CHECKOUT, description, data={"git_snapshot": key}))
                try:
                    with active.mounted() as target:
                        self._check_out(git, place, found, target)
                    return active.commit()
                except BaseException:
                    active.release()
                    raise

    def _check_out(self, git: Git, place: str, found: Found, target: str) -> None:
        wanted = self._wanted
        tree = target
        if wanted.subdir:
            tree = os.path.join(target, f".checkout-{random.token_hex(8)}")
            os.mkdir(tree, 0o755)
        keep = wanted.keep and not wanted.subdir
        own = os.path.join(tree, ".git") if keep else os.path.join(git.folder, f"repository-{random.token_hex(4)}")
        git.run("init", "--quiet", "--template=", f"--object-format={_format(found)}", git_dir=own, work_tree=tree)
        # Addresses of submodules may be relative to this one.
        git.run("remote", "add", "--", "origin", wanted.remote, git_dir=own)
        try:
            if keep:
                self._clone(git, place, found, own, tree)
            else:
                _lend(place, own)
            git.run("checkout", "--quiet", "--force", "--detach", found.object, git_dir=own, work_tree=tree)
        except GitError as error:
            raise error.prefixed(f"failed to checkout remote {shown(wanted.remote)}") from None
        if wanted.submodules and os.path.lexists(os.path.join(tree, ".gitmodules")):
            self._submodules(git, own, tree)
        if keep:
            git.run("reflog", "expire", "--all", "--expire=now", git_dir=own)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(own, "FETCH_HEAD"))
        else:
            _without_git(tree)
        time = 0
        if wanted.commit_time:
            answer = git.run("log", "-1", "--format=%ct", f"{found.object}^{{commit}}", git_dir=own)
            time = int(answer.strip() or b"0") * 1_000_000_000
        if wanted.subdir:
            _raise_up(target, tree, wanted.subdir)
        if wanted.commit_time:
            _set_times(target, time)

    def _clone(self, git: Git, place: str, found: Found, own: str, tree: str) -> None:
        """What is kept of the commit, with the name that it was asked for by, in a repository of its own.

        From this host, by the protocol and not by links to files, which a repository could abuse."""
        sent = f"refs/teu/sent-{random.token_hex(8)}"
        git.run("update-ref", sent, found.object, git_dir=place)
        try:
            name = found.name
            refspec = f"+{sent}:{name}" if name.startswith("refs/") else sent
            arguments = ("fetch", "--quiet", "--update-head-ok", "--depth=1", "--no-tags")
            git.run(*arguments, "--", f"file://{place}", refspec, git_dir=own, work_tree=tree, local=True)
        finally:
            git.run("update-ref", "-d", sent, git_dir=place)

    def _submodules(self, git: Git, own: str, tree: str) -> None:
        arguments = ("submodule", "--quiet", "update", "--init", "--recursive")
        try:
            try:
                git.run(*arguments, "--depth=1", git_dir=own, work_tree=tree, told=True)
            except GitError as error:
                if not SHALLOW_REFUSED.search(error.output) and not BY_COMMIT_REFUSED.search(error.output):
                    raise
                git.run(*arguments, git_dir=own, work_tree=tree, told=True)
        except GitError as error:
            raise error.prefixed(f"failed to update submodules for {shown(self._wanted.remote)}") from None


def _format(found: Found) -> str:
    return "sha256" if len(found.object) == 64 else "sha1"


def _has(git: Git, place: str, name: str) -> bool:
    try:
        git.run("cat-file", "-e", f"{name}^{{commit}}", git_dir=place)
    except GitError:
        return False
    return True


def _lend(place: str, own: str) -> None:
    """A repository that has the objects of another one, and knows where their history is cut off."""
    os.makedirs(os.path.join(own, "objects", "info"), exist_ok=True)
    with open(os.path.join(own, "objects", "info", "alternates"), "w", encoding="utf-8") as file:
        file.write(os.path.join(place, "objects") + "\n")
    try:
        with open(os.path.join(place, "shallow"), "rb") as known, open(os.path.join(own, "shallow"), "wb") as copy:
            copy.write(known.read())
    except FileNotFoundError:
        pass


def _without_git(tree: str) -> None:
    """Submodules have a file .git each, which names a repository that goes: it is none of the commit's files."""
    folder = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = [path for path, _, name, _ in trees.walk(folder, mounts=False) if name == b".git"]
        for path in found:
            parent, _, name = path.rpartition(b"/")
            opened = openat2(folder, os.fsdecode(parent) or ".", os.O_PATH | os.O_DIRECTORY, _BENEATH)
            try:
                trees.remove_tree(b"/proc/self/fd/%d/%s" % (opened, name))
            finally:
                os.close(opened)
    finally:
        os.close(folder)


_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS


def _raise_up(target: str, tree: str, subdir: str) -> None:
    """What is in the subdirectory is all there is. No link leads there, and none out of the checkout."""
    top = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    out = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            inner = openat2(top, subdir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, _BENEATH)
        except NotADirectoryError:
            raise errors.InvalidArgument(f"git subpath {subdir!r} contains what is no directory") from None
        except FileNotFoundError:
            raise errors.NotFound(f"invalid subdir {subdir}: no such directory in the repository") from None
        except OSError as error:
            raise errors.InvalidArgument(f"invalid subdir {subdir}: {error.strerror}") from None
        moved = f".moved-{random.token_hex(8)}"
        try:
            # Away with the rest first: an entry may have the name of the folder that it comes from.
            os.mkdir(moved, 0o755, dir_fd=out)
            place = os.open(moved, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=out)
            try:
                for name in os.listdir(inner):
                    os.rename(name, name, src_dir_fd=inner, dst_dir_fd=place)
                trees.remove_tree(tree)
                for name in os.listdir(f"/proc/self/fd/{place}"):
                    os.rename(name, name, src_dir_fd=place, dst_dir_fd=out)
            finally:
                os.close(place)
            os.rmdir(moved, dir_fd=out)
        finally:
            os.close(inner)
    finally:
        os.close(top)
        os.close(out)


def _set_times(target: str, time: int) -> None:
    """Folders after what is in them."""
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        folders = []
        for path, parent, name, status in trees.walk(folder, mounts=False):
            if status.st_mode & 0o170000 == 0o040000:
                folders.append(path)
            os.utime(name, ns=(time, time), dir_fd=parent, follow_symlinks=False)
        for path in reversed(folders):
            opened = openat2(folder, os.fsdecode(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, _BENEATH)
            os.utime(opened, ns=(time, time))
            os.close(opened)
        os.utime(folder, ns=(time, time))
    finally:
        os.close(folder)
