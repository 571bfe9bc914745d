"""Samples on disk, as they arrive and compacted.

Enters: samples under their keys. Leaves: after any number of runs, killed or not, each
key once. Shards are append-only JSON lines; a torn last line, the trace of a killed
run, is cut off and its sample drawn again. When all that was asked for is there, the
shards become a Parquet file, a segment, which has the number of the last of them:
shards up to that number, should a kill have left any, are in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path

from cotspec.teacher.segments import Segment, write_segment
from cotspec.teacher.traces import Completion

SHARD_BYTES = 256 * 2**20  # a new shard is begun past this size
SHARDS = "shard-*.jsonl"
SEGMENTS = "samples-*.parquet"
_KEY = re.compile(rb'{"key":("(?:[^"\\]|\\.)*"),')


class MemoryStore(dict[str, Completion]):
    """Samples of a run that keeps nothing on disk."""

    folder = None

    def append(self, samples: Iterable[tuple[str, Completion]]) -> None:
        """Add samples under their keys."""
        self.update(samples)


@dataclass(frozen=True)
class Shard:
    """One file of JSON lines."""

    path: Path

    def get(self, offset: int) -> Completion:
        """Return the sample of the line at `offset`, in bytes."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return decode_line(file.readline())[1]


class SampleStore:
    """Append-only shards and segments in one folder; one writer at a time.

    Parameters
    ----------
    folder : Path, made if need be
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.num_duplicates = 0
        self.num_torn = 0
        self._read_places()

    def _read_places(self) -> None:
        """Index all files; remove shards that a segment has taken over."""
        self._places: dict[str, tuple[Segment | Shard, int]] = {}
        self._shards: list[Path] = []
        self._last = -1  # number of the latest file
        for path in sorted(self.folder.glob(SEGMENTS)):
            segment, self._last = Segment(path), _number(path)
            rows = zip(repeat(segment), count())
            self._places.update(zip(segment.keys(), rows, strict=False))
        for path in sorted(self.folder.glob(SHARDS)):
            if _number(path) <= self._last:
                path.unlink()
            else:
                self._shards.append(path)
        for path in self._shards:
            self._last = _number(path)
            self._read_keys(path)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def get(self, key: str) -> Completion:
        """Return the sample of `key`, read from its file."""
        source, place = self._places[key]
        return source.get(place)

    def append(self, samples: Iterable[tuple[str, Completion]]) -> None:
        """Append samples in one write; keys already there are counted and left out."""
        lines: dict[str, bytes] = {}
        for key, completion in samples:
            if key in self._places or key in lines:
                self.num_duplicates += 1
            else:
                lines[key] = encode_line(key, completion)
        shard, offset = self._end()
        with shard.open("ab", buffering=0) as file:
            _write_all(file, b"".join(lines.values()))
        source = Shard(shard)
        for key, line in lines.items():
            self._places[key] = (source, offset)
            offset += len(line)

    def compact(self, order: Iterable[str] = ()) -> None:
        """Turn all shards into one segment; killed at any moment, nothing is lost.

        Parameters
        ----------
        order : keys in the order in which they will be read; others follow them
        """
        places = self._places.items()
        loose = {key for key, (source, _) in places if isinstance(source, Shard)}
        if not loose:
            return
        keys = (k for k in dict.fromkeys((*order, *self._places)) if k in loose)
        path = self.folder / f"samples-{self._last:05d}.parquet"
        write_segment(((key, self.get(key)) for key in keys), path)
        self._read_places()

    def _end(self) -> tuple[Path, int]:
        """Return the shard to write to, and its size."""
        size = os.path.getsize(self._shards[-1]) if self._shards else SHARD_BYTES
        if size >= SHARD_BYTES:
            self._last += 1
            self._shards.append(self.folder / f"shard-{self._last:05d}.jsonl")
            self._shards[-1].touch()
            size = 0
        return self._shards[-1], size

    def _read_keys(self, shard: Path) -> None:
        """Index a shard; cut it at the first line that is not whole."""
        source, offset = Shard(shard), 0
        with shard.open("rb") as file:
            for line in file:
                key = _key_of(line)
                if key is None:
                    break
                if key in self._places:
                    self.num_duplicates += 1
                self._places.setdefault(key, (source, offset))
                offset += len(line)
        if offset < shard.stat().st_size:
            self.num_torn += 1
            os.truncate(shard, offset)


def _write_all(file, data: bytes) -> None:
    """Write all bytes; an unbuffered write may take only some."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _key_of(line: bytes) -> str | None:
    """Return the key of a whole line; of the rest of it, only the ends are looked at.

    Lines are appended, so that a kill leaves one without its end; where the power
    failed, zeros may stand in its middle.
    """
    found = _KEY.match(line)
    if not found or not line.endswith(b"}\n") or b"\0" in line:
        return None
    return json.loads(found[1])


def encode_line(key: str, completion: Completion) -> bytes:
    """Return one JSON line; bytes are written as Latin-1 text, which loses none."""
    names = (field.name for field in dataclasses.fields(completion))
    record = {"key": key} | {name: getattr(completion, name) for name in names}
    record["token_bytes"] = [b.decode("latin-1") for b in completion.token_bytes]
    record["topk_bytes"] = [
        [b.decode("latin-1") for b in step] for step in completion.topk_bytes
    ]
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes) -> tuple[str, Completion]:
    """Invert `encode_line`."""
    record = json.loads(line)
    key = record.pop("key")
    record["token_bytes"] = [b.encode("latin-1") for b in record["token_bytes"]]
    record["topk_bytes"] = [
        [b.encode("latin-1") for b in step] for step in record["topk_bytes"]
    ]
    return key, Completion(**record)
