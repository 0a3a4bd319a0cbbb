"""Features on disk, memory-mapped, shared by processes and runs.

A folder per key (everything that the values depend on, see `mmcl.model.identity`) holds shards of two files that only
grow. `NAME.data` is one record per image, all of one size; `NAME.index` says of each, in the same order, which image it
is and what its checksum is. An entry of the index is written after its record, so a reader that goes by the index never
sees half a record; what a killed writer left behind the last whole entry is cut off by the next one. Checksums catch
what a crash of the machine may leave.

All writers of a cache folder take turns (one file lock, held for one batch, given back by the system when its holder
dies); readers take no lock. Shards that no longer fit into the limit are deleted whole, the longest unused first. A
process that has mapped one goes on reading it: on Linux and macOS a deleted file lives as long as its mappings (so its
room on the disk comes free when they end); on Windows it can't be deleted before, and is passed over.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from torch import Tensor

from mmcl.errors import UserError
from mmcl.files import read_json, write_json
from mmcl.model.rounding import Bytes, Codec, RoundingError

SHARD_BYTES = 64 * 1024**2
LOCK_SECONDS = 60
"""A holder of the lock that takes longer has been stopped."""

_META = "meta.json"
_ENTRY = struct.Struct("<32sII")  # SHA-256 of the image's digest, CRC-32 of the record, CRC-32 of this entry


class FeatureStore:
    """Records of one key.

    Args:
        root: folder of all keys.
        key: names the folder of this one; other encoders, transforms and formats have other keys.
        codec: between features and records.
        limit_bytes: of all keys together, checked when something is written.
        about: what the key stands for, for people.
        shard_bytes: a shard is full at this size.

    Raises:
        OSError: the folder can't be made or read.
    """

    def __init__(
        self,
        root: Path,
        key: str,
        codec: Codec,
        *,
        limit_bytes: int,
        about: Mapping[str, Any] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.root = root
        self.folder = root / key
        self.codec = codec
        self.limit_bytes = limit_bytes
        self.about = dict(about or {})
        self.capacity = max(1, min(shard_bytes, limit_bytes // 8) // codec.size)
        self._shards: dict[str, _Shard] = {}
        self._places: dict[bytes, tuple[_Shard, int]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._refresh()

    def __contains__(self, digest: str) -> bool:
        return _name(digest) in self._places

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that have no record now."""
        wanted = list(digests)
        if any(digest not in self for digest in wanted):
            self._refresh()
        return [digest for digest in wanted if digest not in self]

    def get(self, digests: Sequence[str]) -> dict[str, Tensor]:
        """Features [T, W] (float32, CPU) of the images that are there, by digest."""
        if any(digest not in self for digest in digests):
            self._refresh()
        records = {}
        for digest in digests:
            place = self._places.get(_name(digest))
            record = place and place[0].record(place[1])
            if record is not None:
                records[digest] = record
            elif place:  # damaged: as if it had never been there
                del self._places[_name(digest)]
        if not records:
            return {}
        return dict(zip(records, self.codec.decode(np.stack(list(records.values()))), strict=True))

    def put(self, digests: Sequence[str], records: Bytes, error: RoundingError | None = None) -> bool:
        """Add records [I, size]; an image that another process has added meanwhile is left as it is.

        Args:
            digests: of the images.
            records: of `Codec.encode`.
            error: what the format lost on these; it is added to what `meta.json` says.

        Returns:
            Whether all are there now; False if there is no room that this process does not use itself.

        Raises:
            OSError: the disk is full, the folder can't be written, or another process keeps the lock (`Timeout`).
        """
        with FileLock(self.root / ".lock", timeout=LOCK_SECONDS):
            self._refresh()
            new = {_name(d): record for d, record in zip(digests, records, strict=True) if d not in self}
            if not new:
                return True
            if not self._make_room(len(new) * (self.codec.size + _ENTRY.size)):
                return False
            self.folder.mkdir(exist_ok=True)  # somebody may have cleared the cache
            self._write_meta(error)
            names = list(new)
            while names:
                shard = self._tail()
                now, names = names[: self.capacity - shard.count], names[self.capacity - shard.count :]
                shard.append([(name, new[name]) for name in now])
                self._refresh()
        return True

    @property
    def error(self) -> RoundingError:
        """What the format lost on everything that was ever written under this key."""
        return RoundingError.read(self._meta().get("error"))

    # ------------------------------------------------------------------------------------------------------ inside

    def _refresh(self) -> None:
        """Read what the indices have gained."""
        for path in sorted(self.folder.glob("*.index")):
            shard = self._shards.setdefault(path.stem, _Shard(self.folder / path.stem, self.codec.size))
            for number, name in shard.news():
                self._places[name] = (shard, number)

    def _tail(self) -> _Shard:
        """A shard with room, its loose ends cut off; called under the lock."""
        for shard in self._shards.values():
            if shard.count < self.capacity and shard.exists():
                shard.trim()
                return shard
        name = secrets.token_hex(8)
        self._shards[name] = _Shard(self.folder / name, self.codec.size)
        return self._shards[name]

    def _make_room(self, needed: int) -> bool:
        """Delete shards, the longest unused first, but none that this process uses; called under the lock."""
        shards = sorted(shards_in(self.root), key=lambda shard: shard.used)
        total = sum(shard.size for shard in shards) + needed
        own = {shard.path for shard in self._shards.values() if shard.in_use}
        for shard in shards:
            if total <= self.limit_bytes:
                return True
            if shard.path not in own and shard.delete():
                total -= shard.size
                if shard.path.parent == self.folder:
                    self._forget(shard.path.name)
        return total <= self.limit_bytes

    def _forget(self, name: str) -> None:
        gone = self._shards.pop(name, None)
        self._places = {key: place for key, place in self._places.items() if place[0] is not gone}

    def _meta(self) -> dict[str, Any]:
        path = self.folder / _META
        try:
            found = read_json(path) if path.exists() else {}
        except UserError:  # damaged: it explains the records but is not needed to read them
            found = {}
        return found if isinstance(found, dict) else {}

    def _write_meta(self, error: RoundingError | None) -> None:
        old = self._meta()
        if old and not (error and error.images):
            return
        known = RoundingError.read(old.get("error"))
        known.add(error or RoundingError())
        codec = dataclasses.asdict(self.codec)
        write_json(self.folder / _META, {**codec, **self.about, "error": dataclasses.asdict(known)})


class _Shard:
    """Two files that grow together. `count` records are known to be whole; `path` lacks the suffixes."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.count = 0
        self.in_use = False
        self._checksums: list[int] = []
        self._checked = bytearray()
        self._map: mmap.mmap | None = None
        self._data, self._index = path.with_suffix(".data"), path.with_suffix(".index")

    def exists(self) -> bool:
        return self._data.exists() and self._index.exists()

    def news(self) -> Iterator[tuple[int, bytes]]:
        """Number and name of each record that came since the last call. Gone files bring none."""
        try:
            if self._index.stat().st_size < (self.count + 1) * _ENTRY.size:
                return
            with self._index.open("rb") as file, self._data.open("rb") as data:
                file.seek(self.count * _ENTRY.size)
                entries = file.read()
                room = os.fstat(data.fileno()).st_size // self.size  # after the index: it can only be more
                start = self.count
                for offset in range(0, len(entries) - _ENTRY.size + 1, _ENTRY.size):
                    name, checksum, own = _ENTRY.unpack_from(entries, offset)
                    if self.count >= room or own != zlib.crc32(entries[offset : offset + _ENTRY.size - 4]):
                        break
                    self.count += 1
                    self._checksums.append(checksum)
                    yield self.count - 1, name
                if self.count > start:
                    self._checked.extend(bytes(self.count - start))
                    self._map = mmap.mmap(data.fileno(), self.count * self.size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            return

    def record(self, number: int) -> Bytes | None:
        """A view of one record, or None if it is not what was written."""
        assert self._map is not None
        view = np.frombuffer(self._map, np.uint8, self.size, number * self.size)
        if not self._checked[number]:
            if zlib.crc32(view.data) != self._checksums[number]:
                return None
            self._checked[number] = 1
        self._use()
        return view

    def _use(self) -> None:
        """Say once per process that the shard is in use: its time decides when it is deleted."""
        if not self.in_use:
            self.in_use = True
            try:
                os.utime(self._data)
            except OSError:  # deleted meanwhile, or a cache that is only read
                return

    def trim(self) -> None:
        """Cut off what lies behind the last whole record: no reader has mapped that."""
        for path, size in ((self._data, self.size), (self._index, _ENTRY.size)):
            if path.stat().st_size > self.count * size:
                os.truncate(path, self.count * size)

    def append(self, rows: Sequence[tuple[bytes, Bytes]]) -> None:
        """Write records, then their entries."""
        self.in_use = True
        with self._data.open("ab") as file:
            file.write(b"".join(record.tobytes() for _, record in rows))
        entries = []
        for name, record in rows:
            entry = _ENTRY.pack(name, zlib.crc32(record.data), 0)[:-4]
            entries.append(entry + struct.pack("<I", zlib.crc32(entry)))
        with self._index.open("ab") as file:
            file.write(b"".join(entries))


@dataclasses.dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard as the file system shows it.

    Attributes:
        path: without the suffixes.
        size: bytes of both files.
        used: when it was last written, or first read by a process, in seconds since 1970.
    """

    path: Path
    size: int
    used: float

    def delete(self) -> bool:
        """Delete it, index first: a reader takes no record without an entry. False if the system holds it fast."""
        try:
            self.path.with_suffix(".index").unlink(missing_ok=True)
            self.path.with_suffix(".data").unlink(missing_ok=True)
        except PermissionError:
            return False
        rest = {path.name for path in self.path.parent.iterdir()}
        if rest <= {_META}:
            (self.path.parent / _META).unlink(missing_ok=True)
            self.path.parent.rmdir()
        return True


def shards_in(root: Path) -> list[ShardFile]:
    """All shards of all keys."""
    found = []
    for data in root.glob("*/*.data"):
        try:
            about = data.stat()
            index = data.with_suffix(".index")
            size = about.st_size + (index.stat().st_size if index.exists() else 0)
        except FileNotFoundError:
            continue
        found.append(ShardFile(data.with_suffix(""), size, about.st_mtime))
    return found


def _name(digest: str) -> bytes:
    return hashlib.sha256(digest.encode()).digest()
