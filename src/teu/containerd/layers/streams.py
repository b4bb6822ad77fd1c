# SPDX-License-Identifier: Apache-2.0
"""Compressed streams, in threads: one reads and inflates, one hashes, the caller consumes. Called by `worker`.

Between them are short queues of chunks, so memory is bounded whatever the layer's size. zlib, zstd, the hash and the
reads release the interpreter's lock, so the threads do run side by side.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from queue import Queue

from teu.oci import gzips

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

CHUNK = 1 << 20
DEPTH = 6  # chunks waiting in each queue

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class StreamError(ValueError):
    """The compressed stream is damaged or unknown."""


def _inflate_gzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """One or many members, as a parallel compressor writes them; zeros after the last are padding."""
    try:
        from isal import isal_zlib as library  # not on every host, and only for what is compressed by gzip
    except ImportError:
        library = zlib
    inflater = library.decompressobj(31)
    fresh = True
    for data in chunks:
        while data:
            if fresh and not data.strip(b"\0"):
                data = b""
                break
            try:
                out = inflater.decompress(data, CHUNK)
                data = inflater.unconsumed_tail
                fresh = False
                if out:
                    yield out
                while not inflater.eof and not data and len(out) == CHUNK:
                    out = inflater.decompress(b"", CHUNK)  # what it still holds
                    data = inflater.unconsumed_tail
                    if out:
                        yield out
            except (zlib.error, library.error) as error:
                raise StreamError(f"gzip: {error}") from None
            if inflater.eof:
                data = inflater.unused_data
                inflater = library.decompressobj(31)
                fresh = True
    if not fresh:
        raise StreamError("gzip: unexpected end of the stream")


def _inflate_zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard  # 7 ms of a process that starts for each layer

    class Reader:
        """A file to zstandard, which reads the frames one after another."""

        def __init__(self) -> None:
            self.left = b""

        def read(self, size: int = -1) -> bytes:
            if not self.left:
                self.left = next(chunks, b"")
            data, self.left = self.left[:size], self.left[size:]
            return data

    # a window of 2^27 is what the format's recommended decoders accept
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    source: Any = Reader()
    reader = decompressor.stream_reader(source, read_size=CHUNK, read_across_frames=True)
    try:
        while out := reader.read(CHUNK):
            yield out
    except zstandard.ZstdError as error:
        raise StreamError(f"zstd: {error}") from None


def inflate(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The stream without its compression, which its first bytes tell."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 4:
            break

    def again() -> Iterator[bytes]:
        yield head
        yield from chunks

    if head.startswith(GZIP_MAGIC):
        return _inflate_gzip(again())
    if head.startswith(ZSTD_MAGIC):
        return _inflate_zstd(again())
    return again() if head else iter(())


class Inflated:
    """The content of `fd` without compression, for one caller's thread. `next_chunk()` until b"", which it goes on to
    say then; after that the digests."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._raw_hash = hashlib.sha256()
        self._hash = hashlib.sha256()
        self.size = 0
        self._chunks: Queue[Any] = Queue(DEPTH)
        self._to_hash: Queue[bytes] = Queue(DEPTH)
        self._last: Any = None  # b"" or the failure, when there will be no more
        self._hasher = threading.Thread(target=self._work_hash, daemon=True)
        self._inflater = threading.Thread(target=self._work_inflate, daemon=True)
        self._hasher.start()
        self._inflater.start()

    def _raw(self) -> Iterator[bytes]:
        while chunk := os.read(self._fd, CHUNK):
            self._raw_hash.update(chunk)
            yield chunk

    def _work_inflate(self) -> None:
        try:
            for chunk in inflate(self._raw()):
                self.size += len(chunk)
                self._to_hash.put(chunk)
                self._chunks.put(chunk)
            for _ in self._raw():
                pass
            self._to_hash.put(b"")
            self._chunks.put(b"")
        except BaseException as error:
            self._to_hash.put(b"")
            self._chunks.put(error)

    def _work_hash(self) -> None:
        while chunk := self._to_hash.get():
            self._hash.update(chunk)

    def next_chunk(self) -> bytes:
        chunk = self._chunks.get() if self._last is None else self._last
        if isinstance(chunk, BaseException):
            self._last = chunk
            raise chunk
        if not chunk:
            self._last = chunk
        return bytes(chunk) if not isinstance(chunk, bytes) else chunk

    def digests(self) -> tuple[str, str]:
        """(of the stream as it was, of its content), after the end."""
        self._inflater.join()
        self._hasher.join()
        return f"sha256:{self._raw_hash.hexdigest()}", f"sha256:{self._hash.hexdigest()}"


class Deflated:
    """A sink for a tar stream: hashes it and writes it, compressed, to `write`; and hashes that, too."""

    def __init__(
        self, write: Callable[[bytes], None], compression: str, skip: Callable[[int], None] | None = None
    ) -> None:
        """`skip` leaves out so many bytes of what is written; it has to be given where `leave_out` is called."""
        self._hash = hashlib.sha256()
        self._packed_hash = hashlib.sha256() if compression else self._hash
        self.size = 0
        self.written = 0
        self._buffer = bytearray()
        self._queue: Queue[Any] = Queue(DEPTH)
        self._write = write
        self._skip = skip
        self._compression = compression
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def write(self, data: bytes | memoryview) -> None:
        """`data` is not changed afterwards."""
        if len(data) >= CHUNK:
            self._flush()
            self._take(data)
            return
        self._buffer += data
        if len(self._buffer) >= CHUNK:
            self._flush()

    def leave_out(self, data: memoryview) -> int:
        """The data belongs to the stream, and is not written: where in it that is."""
        assert self._skip is not None and not self._compression
        self._flush()
        at = self.size
        self._hash.update(data)
        self.size += len(data)
        self._queue.put(len(data))
        return at

    def _flush(self) -> None:
        if self._buffer:
            chunk = bytes(self._buffer)
            self._buffer.clear()
            self._take(chunk)

    def _take(self, chunk: bytes | memoryview) -> None:
        if self._failure is not None:
            raise self._failure
        self._hash.update(chunk)
        self.size += len(chunk)
        self._queue.put(chunk)

    def _put(self, data: bytes) -> None:
        if data:
            if self._compression:
                self._packed_hash.update(data)
            self.written += len(data)
            self._write(data)

    def _work(self) -> None:
        ended = False
        try:
            if self._compression == "gzip":
                packer: Any = gzips.Gzip()
            elif self._compression == "zstd":
                import zstandard  # 7 ms

                packer = zstandard.ZstdCompressor(level=3, threads=0).compressobj()
            else:
                packer = None
            while chunk := self._queue.get():
                if isinstance(chunk, int):
                    self.written += chunk
                    if self._skip is not None:
                        self._skip(chunk)
                else:
                    self._put(packer.compress(chunk) if packer is not None else chunk)
            ended = True
            if packer is not None:
                self._put(packer.flush())
        except BaseException as error:
            self._failure = error
            while not ended and self._queue.get():
                pass

    def give_up(self) -> None:
        """Nothing more comes; what came may not have reached `write`."""
        self._queue.put(b"")

    def finish(self) -> tuple[str, str]:
        """(Digest of the stream, digest of what was written of it), when everything has reached `write`."""
        self._flush()
        self._queue.put(b"")
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return f"sha256:{self._hash.hexdigest()}", f"sha256:{self._packed_hash.hexdigest()}"
