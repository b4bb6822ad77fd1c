# SPDX-License-Identifier: Apache-2.0
"""What the worker keeps, as operations, sources, exporters and frontends see it: snapshots, blobs, and who holds them.

The worker's room implements these Protocols; the rooms above it know nothing of containerd.  Scratch, the empty root,
is None wherever a snapshot may be one.

Among results, which are never None, it is `Scratch`: `result` and `snapshot` turn the one into the other.

Every snapshot is a record of cache.db (cache.store.Record) and a snapshot of containerd under the same name; it lives
while somebody holds it, while a result of the cache leads to it, or while one that does stands on it.  Errors are those
of core.errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from teu.buildkit.core.op import Record, Ref
from teu.buildkit.core.selection import Selection

if TYPE_CHECKING:
    from teu.oci.image_spec import Descriptor as Descriptor
else:
    Descriptor = dict[str, Any]  # for those who name it at work


class Mount(NamedTuple):
    """A mount as containerd has it: overlay, bind, … with its options."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compression:
    """How layers are made: "uncompressed", "gzip", "estargz", "zstd", a level or None, whether
    layers that are there in another form are made again (`force`), media types of OCI or of Docker.  `epoch`: no
    file's time is later than that (seconds since 1970), for rewrite-timestamp."""

    kind: str = "gzip"
    level: int | None = None
    force: bool = False
    oci: bool = True
    epoch: int | None = None


class History(NamedTuple):
    """What made a layer, and when (seconds since 1970; 0 where that is not known: the layer is an image's)."""

    description: str
    created: float = 0.0


class Fetch(Protocol):
    """Where blobs come from that are not in the content store yet: a registry, a client's store."""

    def __call__(self, descriptor: Descriptor, offset: int) -> Iterator[bytes]:
        """Its bytes from that offset on."""


class Snapshot(Ref, Protocol):
    """A tree of files that no longer changes.  All methods may be called from any thread, while it is held."""

    def clone(self) -> Snapshot:
        """Hold it once more."""

    def mounts(self) -> list[Mount]:
        """As a root that is only read.  What lies in a registry is fetched and unpacked for it, now."""

    def mounted(self) -> AbstractContextManager[str]:
        """The folder where it is mounted, to be read, for the block.  Its content is a container's: paths in it are
        resolved inside it alone (linux.inside)."""

    def checksum(self, selections: Sequence[Selection]) -> str:
        """The digest of what is selected of it (cache.contenthash); what is known of it is kept with its record."""

    def layers(self, compression: Compression | None, *, make: bool = True) -> list[Descriptor] | None:
        """The blobs that it is made of, lowest first, each with the annotation containerd.io/uncompressed.

        None for `compression` takes them as they are.  Where there are none yet, they are made; with `make` false the
        answer is None then.  A blob of an image that was not fetched is a descriptor all the same (`open_blob`)."""

    def history(self) -> list[History]:
        """What made each of the layers (the descriptions of their records), lowest first."""

    def size(self) -> int:
        """Bytes of this one, without what it stands on."""


SCRATCH = "scratch"  # the name that caches know the empty root by


class Scratch(Ref):
    """The empty root as a result: there is nothing to hold."""

    @property
    def id(self) -> str:
        return SCRATCH

    def clone(self) -> Scratch:
        """Itself."""
        return self

    def release(self) -> None:
        """Nothing is held."""

    def describe(self) -> str:
        return SCRATCH


def result(snapshot: Snapshot | None) -> Ref:
    """What an operation returns for it."""
    return Scratch() if snapshot is None else snapshot


def snapshot(ref: Ref) -> Snapshot | None:
    """The snapshot that a result is, which stays borrowed; None for the empty root."""
    return None if ref.id == SCRATCH else cast(Snapshot, ref)


class Tree(Protocol):
    """What is known of the content of files that are being changed: cache.contenthash.Tree."""

    def changed(self, path: str | bytes) -> None:
        """What is at the path, and in it, is not what it was: made, changed or removed."""


class Active(Protocol):
    """A tree of files that is being made.  One that is neither committed nor kept is removed by `release`."""

    @property
    def id(self) -> str:
        """The name of its record; of one that is retained, for `Worker.reopen`."""

    @property
    def tree(self) -> Tree:
        """What is known of its content.  Whoever changes files in one that was there before tells it (Tree.changed);
        `commit` keeps it with the record, and the checksum of what did not change is not made again.  That of a
        client's folder (cache.store.LOCAL_SOURCE) is a bare one."""

    def mounts(self) -> list[Mount]:
        """As a root that is written."""

    def mounted(self) -> AbstractContextManager[str]:
        """The folder where it is mounted, to be written, for the block; see Snapshot.mounted."""

    def note(self, **data: Any) -> None:
        """Add to its record's data (Kind.data), by which `Worker.find` finds it: what was not known at the begin."""

    def commit(self) -> Snapshot:
        """It no longer changes: the caller holds the snapshot.  Once, and it is released by that.

        One that is retained may be had again (`Worker.reopen`) when nobody holds the snapshot any more: the same tree,
        to be written again, without a copy; the snapshot that it was is gone then (op.Gone)."""

    def release(self) -> None:
        """Give it up; one that is retained stays, for the next that asks for it."""

    def discard(self) -> None:
        """Remove it, though it be retained: what is in it is not what it should be."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an image, or of a cache elsewhere: its blob, the digest of its tar, where it comes from.

    `fetch` tells itself how far it has come; `tell` is core.op.Context.status of the step that the layer belongs to,
    for what the worker does with it ("extracting DIGEST")."""

    descriptor: Descriptor
    diff_id: str
    fetch: Fetch | None = None
    history: str = ""
    tell: Callable[..., None] | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """What a record is for (the constants of cache.store), as `du` shows it."""

    kind: str = "regular"
    description: str = ""
    retained: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)


class Content(Protocol):
    """The content store.  What a build writes or reads is held by its lease until the lease ends."""

    def has(self, digest: str) -> bool:
        """Whether a blob is here, whole."""

    def size(self, digest: str) -> int:
        """Bytes.  Raises NotFound."""

    def read(self, digest: str, offset: int = 0) -> Iterator[bytes]:
        """Raises NotFound."""

    def read_whole(self, digest: str, limit: int = 32 << 20) -> bytes:
        """A blob of no more than `limit` bytes.  Raises NotFound, ResourceExhausted."""

    def write(
        self, chunks: Iterable[bytes], digest: str = "", size: int = 0, labels: Mapping[str, str] | None = None
    ) -> str:
        """Keep a blob, and hold it; what is there already is not written again.  Its digest is checked where given."""

    def fetch(self, descriptor: Descriptor, fetch: Fetch, progress: Callable[[int, int], None] | None = None) -> None:
        """Have a blob here: it goes on where an earlier attempt stopped, and two who want one fetch it once."""

    def label(self, digest: str, labels: Mapping[str, str]) -> None:
        """Labels of a blob, for the garbage collector: containerd.io/gc.ref.…; "" removes one."""


class Images(Protocol):
    """The images of containerd's namespace, which are the engine's."""

    def get(self, name: str) -> Descriptor | None:
        """What a name points to; None where there is no such image."""

    def named(self, digest: str) -> list[str]:
        """The names that point there."""

    def put(self, name: str, target: Descriptor, labels: Mapping[str, str] | None = None) -> None:
        """Make it, or let the name point there from now on."""


class Worker(Protocol):
    """The one worker of this host."""

    @property
    def id(self) -> str:
        """The same for as long as its cache is there; the references of results begin with it."""

    @property
    def labels(self) -> Mapping[str, str]:
        """What clients are told of it (`docker buildx inspect`)."""

    @property
    def platforms(self) -> Sequence[str]:
        """The host's first, then those that it can emulate: "linux/amd64", …"""

    @property
    def content(self) -> Content:
        """Where blobs are."""

    @property
    def images(self) -> Images:
        """Where names are."""

    def load(self, record: Record) -> Snapshot:
        """The result that a cache has: one of the worker's own, or layers of a remote cache (Record.remote is a
        sequence of Layer then).  The empty root (SCRATCH) is none: ops.results.load knows it.  Raises op.Gone."""

    def find(self, kind: str, **data: Any) -> list[str]:
        """The records of that kind whose data has these values, those used last first."""

    def data(self, id: str) -> Mapping[str, Any] | None:
        """What its record says (Kind.data, Active.note); None where it is gone."""

    def active(self, parent: Snapshot | None, kind: Kind) -> Active:
        """A new tree on that one."""

    def reopen(self, id: str) -> Active | None:
        """A retained one, for its next user; None where it is gone or somebody has it."""

    def image(self, layers: Sequence[Layer], kind: Kind, documents: Sequence[str] = ()) -> Snapshot | None:
        """An image's root.  Nothing is fetched before its files are needed.  None without layers.  `documents`: digests
        of blobs that stay as long as its record does, so that nobody need be asked for them again."""

    def merge(self, inputs: Sequence[Snapshot | None], kind: Kind) -> Snapshot | None:
        """The inputs one upon the other."""

    def diff(self, lower: Snapshot | None, upper: Snapshot | None, kind: Kind) -> Snapshot | None:
        """What the upper has and the lower has not."""

    def open_blob(self, snapshot: Snapshot, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of one of its layers, from the content store or from where it comes."""

    def hold(self) -> AbstractContextManager[Collection[str]]:
        """In the block whatever this thread (and those that it gives the context to) writes is held by one lease."""
