"""Samples on disk, as they arrive and compacted.

Enters: samples under their keys. Leaves: after any number of runs, killed or not, each
key once. Shards are append-only JSON lines; a torn last line, the trace of a killed
run, is cut off and its sample drawn again. `compact` writes one Parquet file.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from cotspec.teacher.records import Completion

SHARD_BYTES = 256 * 2**20  # a new shard is begun past this size
SHARDS = "shard-*.jsonl"


class MemoryStore(dict[str, Completion]):
    """Samples of a run that keeps nothing on disk."""

    folder = None

    def append(self, samples: Iterable[tuple[str, Completion]]) -> None:
        """Add samples under their keys."""
        self.update(samples)


class SampleStore:
    """Append-only shards in one folder; one writer at a time.

    Parameters
    ----------
    folder : Path, made if need be
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.num_duplicates = 0
        self.num_torn = 0
        self._places: dict[str, tuple[Path, int]] = {}
        self._shards = sorted(self.folder.glob(SHARDS))
        for shard in self._shards:
            self._read_keys(shard)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def get(self, key: str) -> Completion:
        """Return the sample of `key`, read from its shard."""
        shard, offset = self._places[key]
        with shard.open("rb") as file:
            file.seek(offset)
            return decode_line(file.readline())[1]

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
        for key, line in lines.items():
            self._places[key] = (shard, offset)
            offset += len(line)

    def _end(self) -> tuple[Path, int]:
        """Return the shard to write to, and its size."""
        size = os.path.getsize(self._shards[-1]) if self._shards else SHARD_BYTES
        if size >= SHARD_BYTES:
            name = f"shard-{len(self._shards):05d}.jsonl"
            self._shards.append(self.folder / name)
            self._shards[-1].touch()
            size = 0
        return self._shards[-1], size

    def _read_keys(self, shard: Path) -> None:
        """Index a shard; cut it at the first line that is not whole."""
        offset = 0
        with shard.open("rb") as file:
            for line in file:
                key = _key_of(line)
                if key is None:
                    break
                if key in self._places:
                    self.num_duplicates += 1
                self._places.setdefault(key, (shard, offset))
                offset += len(line)
        if offset < shard.stat().st_size:
            self.num_torn += 1
            os.truncate(shard, offset)


def _write_all(file, data: bytes) -> None:
    """Write all bytes; an unbuffered write may take only some."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _key_of(line: bytes) -> str | None:
    if not line.endswith(b"}\n"):
        return None
    try:
        return json.loads(line)["key"]
    except (ValueError, KeyError):
        return None


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
