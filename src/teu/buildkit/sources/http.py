# SPDX-License-Identifier: Apache-2.0
"""http://… and https://…: one file, as a tree with that file in it.

    http.checksum          its digest: then nobody is asked before the file is needed
    http.filename          its name; else that of Content-Disposition, else the last of the address
    http.perm              its mode (0600), uid, gid: as Go reads numbers ("0644", "420")
    http.uid, http.gid
    http.header.accept     headers of the request; others than accept and user-agent are dropped, as BuildKit does
    http.header.user-agent
    http.authheadersecret  the secret whose value is the header Authorization. Where none is named, those named
                           HTTP_AUTH_HEADER_HOST and HTTP_AUTH_TOKEN_HOST of the client are tried

What was downloaded is kept with its ETag and its date: the next build asks whether it is still that. An upload of the
client (`http://buildkit-session/ID`, a context from its standard input) is read from the session instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from teu import __version__
from teu.buildkit.cache.store import REGULAR
from teu.buildkit.core import errors
from teu.buildkit.core.identifiers import digest_of
from teu.buildkit.core.op import Gone, Record
from teu.buildkit.core.snapshots import Kind, Snapshot, Worker
from teu.buildkit.llb.platforms import Platform
from teu.buildkit.session import secrets, upload
from teu.buildkit.session.manager import Manager, Session
from teu.buildkit.sources.base import Asker, Key, Material, ask_any, go_json, no_meta, number, parsed_url, shown
from teu.linux.inside import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from teu.oci import digest as digests

if TYPE_CHECKING:
    from teu.buildkit.sources.download import Response

SIZE_MAX = 64 << 30  # bytes of one download, where nobody configured another limit
HEADERS = {"accept": "Accept", "user-agent": "User-Agent"}
HEADER_PREFIX = "http.header."
SIGNATURES = ("http.sig.pubkey", "http.sig.signature")
DEFAULT_NAME = "download"
DEFAULT_MODE = 0o600
NAME_MAX = 255
ETAGS_MAX = 16  # earlier downloads of one address that are told of
SUFFIX_MAX = 4 << 10
CHUNK = 1 << 20
STEP = 256 << 10  # bytes between two tellings


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an operation says."""

    url: str
    checksum: str = ""
    filename: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    secret: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def place(self) -> str:
        """What downloads are kept by: the same request, and a file that is made the same."""
        value = [self.url, self.filename, self.mode, self.uid, self.gid, self.secret, self.headers]
        return digest_of(go_json(value))

    def key(self, found: Found) -> str:
        """As BuildKit writes it."""
        value: dict[str, Any] = {
            "Filename": found.filename,
            "Perm": self.mode,
            "UID": self.uid,
            "GID": self.gid,
            "Checksum": found.digest,
        }
        if found.modified:
            value["LastModTime"] = found.modified
        if self.secret:
            value["AuthHeaderSecret"] = self.secret
        if self.headers:
            value["Header"] = [{"Name": name, "Value": text} for name, text in self.headers]
        return digest_of(go_json(value))


@dataclass(frozen=True, slots=True)
class Found:
    """What the address has now. `record`: the tree that it lies in; empty where it was not downloaded."""

    digest: str
    filename: str
    modified: str = ""  # as HTTP writes it
    record: str = ""


class Downloads:
    """The schemes http and https."""

    def __init__(self, worker: Worker, sessions: Manager, scheme: str, size_max: int = SIZE_MAX) -> None:
        self.worker = worker
        self.sessions = sessions
        self.scheme = scheme
        self.size_max = size_max

    def open(self, text: str, attributes: Mapping[str, str], platform: Platform) -> HTTPSource:
        checksum = attributes.get("http.checksum", "")
        if checksum and not digests.is_digest(checksum):
            raise errors.InvalidArgument(f"invalid checksum digest format: {errors.cut(checksum, 200)}")
        if any(name in attributes for name in SIGNATURES):
            raise errors.Unimplemented("signatures of downloads are not verified by this builder")
        headers = []
        for name, value in sorted(attributes.items()):
            known = HEADERS.get(name.removeprefix(HEADER_PREFIX).lower()) if name.startswith(HEADER_PREFIX) else None
            if known:
                if not value.isascii() or not value.isprintable():
                    raise errors.InvalidArgument(f"{name}: a header cannot hold {errors.cut(value, 100)!r}")
                headers.append((known, value))
        wanted = Wanted(
            f"{self.scheme}://{text}",
            checksum,
            attributes.get("http.filename", ""),
            number(attributes, "http.perm", 0, 0o7777) or 0,
            number(attributes, "http.uid", 0, (1 << 32) - 2) or 0,
            number(attributes, "http.gid", 0, (1 << 32) - 2) or 0,
            attributes.get("http.authheadersecret", ""),
            tuple(sorted(headers)),
        )
        parsed_url(wanted.url)
        return HTTPSource(self, wanted)

    def meta(self, request: Any, text: str, platform: Platform, asker: Asker) -> Any:
        source = self.open(text, dict(request.Source.attrs), platform)
        answer = no_meta()
        asked = request.HTTP.ChecksumRequest if request.HTTP.HasField("ChecksumRequest") else None
        if asked is not None and len(asked.Suffix) > SUFFIX_MAX:
            raise errors.InvalidArgument(f"http checksum request suffix exceeds max size {SUFFIX_MAX}")
        with contextlib.closing(source):
            found = source.found(asker, download=asked is not None)
            answer.HTTP.Checksum = found.digest
            answer.HTTP.Filename = found.filename
            modified = _time(found.modified)
            if modified is not None:
                answer.HTTP.LastModified.FromNanoseconds(modified)
            if asked is not None:
                kind = {0: "sha256", 1: "sha384", 2: "sha512"}.get(asked.Algo)
                if kind is None:
                    raise errors.InvalidArgument(f"unsupported checksum algorithm {asked.Algo}")
                answer.HTTP.ChecksumResponse.Digest = source.hashed(asker, found, kind, asked.Suffix)
                answer.HTTP.ChecksumResponse.Suffix = asked.Suffix
        return answer


class HTTPSource:
    """One file to download."""

    def __init__(self, downloads: Downloads, wanted: Wanted) -> None:
        self._downloads = downloads
        self._wanted = wanted
        self._lock = threading.Lock()
        self._found: Found | None = None
        self._held: Snapshot | None = None  # what was downloaded to know its key, for as long as nothing leads to it

    def close(self) -> None:
        with self._lock:
            held, self._held = self._held, None
        if held is not None:
            held.release()

    def key(self, asker: Asker) -> Key:
        found = self.found(asker)
        return Key(self._wanted.key(found), found.digest)

    def load(self, asker: Asker, record: Record) -> Snapshot:
        return self._downloads.worker.load(record)

    def material(self) -> Material:
        pin = self._found.digest if self._found is not None else self._wanted.checksum
        secrets_ = (self._wanted.secret,) if self._wanted.secret else ()
        return Material("http", self._wanted.url, pin, secrets=secrets_)

    def found(self, asker: Asker, download: bool = False) -> Found:
        """What it is now: of a checksum that is told nobody is asked, but where the file is wanted."""
        with self._lock:
            if self._found is None and self._wanted.checksum and not download:
                self._found = Found(self._wanted.checksum, file_name(self._wanted))
            elif self._found is None or (download and not self._found.record):
                self._found = self._download(asker)
            return self._found

    def snapshot(self, asker: Asker) -> Snapshot:
        found = self.found(asker)
        with self._lock:
            if self._held is not None:
                return self._held.clone()
            if found.record:
                with contextlib.suppress(Gone):
                    return self._downloads.worker.load(Record(found.record, 0.0))
            again = self._download(asker)
            if again.digest != found.digest:
                raise errors.FailedPrecondition(f"digest mismatch {again.digest}: {found.digest}")
            self._found = again
            if self._held is None:
                raise errors.Unavailable(f"{shown(self._wanted.url)}: it was removed while it was used")
            return self._held.clone()

    def hashed(self, asker: Asker, found: Found, kind: str, suffix: bytes) -> str:
        """The digest of the file and what is to stand behind it."""
        snapshot = self.snapshot(asker)
        try:
            whole = hashlib.new(kind)
            with _opened(snapshot, found.filename) as file:
                while chunk := file.read(CHUNK):
                    whole.update(chunk)
            whole.update(suffix)
        finally:
            snapshot.release()
        return f"{kind}:{whole.hexdigest()}"

    # The download

    def _download(self, asker: Asker) -> Found:
        """Have the file here, and hold it: the one of an earlier download where the server says that it is still that,
        or where it is what the checksum says. The lock is held."""
        wanted = self._wanted
        if urlsplit(wanted.url).hostname == upload.HOST:
            return ask_any(self._downloads.sessions, asker, lambda session: self._uploaded(asker, session))
        from teu.buildkit.sources import download  # http.client, 8 ms

        known = self._known()
        for each in known.values():
            if each["digest"] == wanted.checksum and self._hold(each["record"]):
                return _kept(each)
        known = {name: each for name, each in known.items() if each.get("etag") or each.get("modified")}
        headers = self._headers(asker)
        etags = [each["etag"] for each in known.values() if each.get("etag")]
        if etags:
            headers["If-None-Match"] = ", ".join(etags)
        elif len(known) == 1:
            headers["If-Modified-Since"] = next(iter(known.values()))["modified"]
        with download.get(wanted.url, headers, asker) as response:
            kept = _still(response, known)
            if kept is not None and self._hold(kept.record):
                return self._checked(kept)
            if response.status == 304:
                raise errors.Unavailable(f"{shown(wanted.url)}: what it says is not modified is not here any more")
            if not 200 <= response.status < 300:
                raise _refused(response.status)
            modified = response.header("Last-Modified") if _time(response.header("Last-Modified")) is not None else ""
            name = file_name(wanted, response.header("Content-Disposition"))
            etag = _etag(response.header("ETag"))
            body = response.body(self._downloads.size_max)
            return self._save(asker, body, response.length, name, modified, etag)

    def _hold(self, record: str) -> bool:
        """Hold an earlier download; False where it is gone."""
        try:
            self._take(self._downloads.worker.load(Record(record, 0.0)))
        except Gone:
            return False
        return True

    def _take(self, snapshot: Snapshot) -> None:
        before, self._held = self._held, snapshot
        if before is not None:
            before.release()

    def _uploaded(self, asker: Asker, session: Session) -> Found:
        body = upload.pull(session, self._wanted.url, self._downloads.size_max)
        with contextlib.closing(body):  # type: ignore[type-var]
            return self._save(asker, _watched(body, asker), 0, file_name(self._wanted), "", "")

    def _headers(self, asker: Asker) -> dict[str, str]:
        wanted = self._wanted
        headers = {"User-Agent": f"teu-buildkitd/{__version__}", **dict(wanted.headers)}
        host = urlsplit(wanted.url).hostname or ""
        if wanted.secret:
            named = [(wanted.secret, "")]
        else:
            named = [(f"HTTP_AUTH_HEADER_{host}", ""), (f"HTTP_AUTH_TOKEN_{host}", "Bearer ")]
        for name, before in named:
            try:
                value = ask_any(self._downloads.sessions, asker, partial(secrets.get, identifier=name))
            except errors.Error as error:
                if wanted.secret:
                    raise error.prefixed(f"failed to retrieve HTTP auth secret {wanted.secret}") from None
                continue
            text = value.decode("latin-1")
            if not all(" " <= letter != "\x7f" for letter in text):
                raise errors.InvalidArgument(f"secret {name} cannot be a header: it has control characters")
            headers["Authorization"] = before + text
        return headers

    def _known(self) -> dict[str, Mapping[str, Any]]:
        """Earlier downloads that are still here, by record."""
        worker = self._downloads.worker
        found: dict[str, Mapping[str, Any]] = {}
        for name in worker.find(REGULAR, http=self._wanted.place())[:ETAGS_MAX]:
            data = worker.data(name)
            if data is not None and data.get("digest"):
                found[name] = {**data, "record": name}
        return found

    def _checked(self, found: Found) -> Found:
        if self._wanted.checksum and found.digest != self._wanted.checksum:
            raise errors.FailedPrecondition(
                f"digest mismatch for {shown(self._wanted.url)}: {found.digest} (expected: {self._wanted.checksum})"
            )
        return found

    def _save(self, asker: Asker, body: Iterator[bytes], length: int, name: str, modified: str, etag: str) -> Found:
        """Make the tree, and hold it. The next build finds it as long as a result leads to it."""
        wanted = self._wanted
        worker = self._downloads.worker
        status = f"downloading {name}"
        kind = (wanted.checksum or "sha256:").partition(":")[0]
        whole = hashlib.new(kind)
        data = {"http": wanted.place()}
        active = worker.active(None, Kind(REGULAR, f"http url {shown(wanted.url)}", data=data))
        try:
            with active.mounted() as place:
                folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._write(asker, folder, name, _Counted(body, length, status, asker), whole)
                    _finish(folder, name, wanted, _time(modified) or 0)
                finally:
                    os.close(folder)
            found = self._checked(Found(f"{kind}:{whole.hexdigest()}", name, modified, active.id))
            active.note(digest=found.digest, name=name, modified=modified, etag=etag)
            snapshot = active.commit()
        except BaseException:
            active.discard()
            raise
        self._take(snapshot)
        return Found(found.digest, name, modified, snapshot.id)

    def _write(self, asker: Asker, folder: int, name: str, body: _Counted, whole: Any) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
            with open(descriptor, "wb", buffering=0) as file:
                for chunk in body:
                    whole.update(chunk)
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[file.write(rest) :]
        except OSError as error:
            kind = errors.ResourceExhausted if error.errno in (28, 122) else errors.Error
            raise kind(f"{name}: {error.strerror}") from error


class _Counted:
    """A body that tells how much of it has come."""

    def __init__(self, body: Iterator[bytes], length: int, name: str, asker: Asker) -> None:
        self._body, self._length, self._name, self._asker = body, length, name, asker

    def __iter__(self) -> Iterator[bytes]:
        size = told = 0
        self._asker.status(self._name, 0, self._length, action="downloading")
        for chunk in self._body:
            yield chunk
            size += len(chunk)
            if size - told >= STEP:
                told = size
                self._asker.status(self._name, size, self._length, action="downloading")
        self._asker.status(self._name, size, self._length or size, action="downloading", completed=True)


def _watched(body: Iterator[bytes], asker: Asker) -> Iterator[bytes]:
    for chunk in body:
        asker.check()
        yield chunk


def _finish(folder: int, name: str, wanted: Wanted, time: int) -> None:
    """Owner, mode and time: in this order, for a change of the owner takes bits from the mode."""
    os.chown(name, wanted.uid, wanted.gid, dir_fd=folder, follow_symlinks=False)
    os.chmod(name, wanted.mode or DEFAULT_MODE, dir_fd=folder)
    os.utime(name, ns=(time, time), dir_fd=folder, follow_symlinks=False)


@contextlib.contextmanager
def _opened(snapshot: Snapshot, name: str) -> Iterator[Any]:
    with snapshot.mounted() as place:
        folder = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file = openat2(folder, name, os.O_RDONLY | os.O_NOFOLLOW, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        finally:
            os.close(folder)
        with open(file, "rb", buffering=0) as opened:
            yield opened


def _still(response: Response, known: Mapping[str, Mapping[str, Any]]) -> Found | None:
    """The earlier download that the answer means: not modified, or the same ETag after all."""
    etag = _etag(response.header("ETag"))
    chosen = [each for each in known.values() if etag and each.get("etag") == etag]
    if response.status == 304 and not etag and len(known) == 1:
        chosen = list(known.values())
    if not chosen or response.status not in (200, 304):
        return None
    return _kept(chosen[0])


def _kept(data: Mapping[str, Any]) -> Found:
    return Found(data["digest"], data["name"], data.get("modified") or "", data["record"])


def _etag(text: str) -> str:
    """Without the mark of a weak one: the same bytes are meant either way. What could be no header again is none."""
    text = text.removeprefix("W/")
    return text if text.isascii() and text.isprintable() and len(text) <= 1024 and "," not in text else ""


def _refused(status: int) -> errors.Error:
    kinds: dict[int, type[errors.Error]] = {
        401: errors.Unauthenticated,
        403: errors.PermissionDenied,
        404: errors.NotFound,
        410: errors.NotFound,
    }
    kind = kinds.get(status, errors.Unavailable if status >= 500 else errors.Error)
    return kind(f"invalid response status {status}")


def _time(text: str) -> int | None:
    """Nanoseconds since 1970 of a time as HTTP writes it."""
    for form in ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"):
        try:
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()) * 1_000_000_000
        except (ValueError, OverflowError):
            continue
    return None


# The file's name

_PARAMETER = re.compile(r';\s*(filename\*?)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;]+))', re.IGNORECASE)


def file_name(wanted: Wanted, disposition: str = "") -> str:
    """The name of the file: what was asked for, what the server says, what the address ends with; one name, whatever
    they say."""
    if wanted.filename:
        return safe_name(wanted.filename)
    said = {
        match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        for match in _PARAMETER.finditer(disposition[:4096])
    }
    name = said.get("filename", "")
    charset, _, extended = said.get("filename*", "").partition("'")
    if charset.lower() == "utf-8":
        name = unquote(extended.partition("'")[2], errors="replace")
    if name and not name.endswith("/"):
        return safe_name(name)
    return safe_name(unquote(urlsplit(wanted.url).path))


def safe_name(text: str) -> str:
    """The last name of a path, where it can be one."""
    name = posixpath.basename(text.strip().rstrip("/"))
    if name in ("", ".", "..") or len(os.fsencode(name)) > NAME_MAX:
        return DEFAULT_NAME
    if any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        return DEFAULT_NAME
    return name
