"""Compacted samples: Parquet files that take over what shards held.

Enters: samples under their keys. Leaves: a file of them that opens by its keys alone, a
tenth of the shards' size. Log-probabilities become float16, as in the traces: a sample
read from here makes the same row as one read from its shard.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cotspec.teacher.traces import (
    FEATURES,
    PROBLEM_COLUMNS,
    STORED,
    Completion,
)

ROWS = 64  # in a row group, the unit of reading
_NAMES = [field.name for field in fields(Completion)]
_TEXTS = [pa.field("key", pa.string()), pa.field("text", pa.string())]
SCHEMA = pa.schema(_TEXTS + [STORED.field(name) for name in _NAMES[1:]])
# Rounded in two steps, as `records.as_stored` does: one step may round otherwise.
_GIVEN = pa.schema(_TEXTS + [FEATURES.arrow_schema.field(n) for n in _NAMES[1:]])
# Signs and exponents repeat, digits do not: apart, they take half the space.
_FLOATS = [
    "token_logprobs.list.element",
    "topk_logprobs.list.element.list.element",
]
_REPEATED = [
    *PROBLEM_COLUMNS,
    "token_ids.list.element",
    "token_bytes.list.element",
    "topk_ids.list.element.list.element",
    "topk_bytes.list.element.list.element",
    "finish_reason",
]


@contextmanager
def open_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Open a compact Parquet file, which appears, whole, when the block ends.

    A block that is killed or fails leaves the file as it was.
    """
    part = path.with_name(f".{path.name}.part")  # a later call overwrites it
    with pq.ParquetWriter(
        part,
        schema,
        compression="zstd",
        write_statistics=False,
        use_dictionary=_REPEATED,
        use_byte_stream_split=_FLOATS,
    ) as writer:
        yield writer
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def write_segment(samples: Iterable[tuple[str, Completion]], path: Path) -> Path:
    """Write samples as they come, a row group at a time; memory stays flat.

    Equal samples make equal bytes. A killed call leaves no file of that name.
    """
    samples = iter(samples)
    with open_writer(path, SCHEMA) as writer:
        while batch := list(islice(samples, ROWS)):
            columns = {"key": [key for key, _ in batch]}
            for name in _NAMES:
                columns[name] = [getattr(completion, name) for _, completion in batch]
            writer.write_table(pa.table(columns, schema=_GIVEN).cast(SCHEMA))
    return path


class Segment:
    """One file of `write_segment`, mapped into memory.

    Parameters
    ----------
    path : Path of a file that `write_segment` wrote
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = pq.ParquetFile(path, memory_map=True)
        self._group = -1
        self._columns: dict[str, list] = {}

    def keys(self) -> list[str]:
        """Return the keys by row; nothing else is read."""
        return self._file.read(["key"], use_threads=False)["key"].to_pylist()

    def get(self, row: int) -> Completion:
        """Return the sample of one row; its row group is kept for the next."""
        group, place = divmod(row, ROWS)
        if group != self._group:
            table = self._file.read_row_group(group, _NAMES, use_threads=False)
            self._columns = {name: table[name].to_pylist() for name in _NAMES}
            self._group = group
        return Completion(**{name: self._columns[name][place] for name in _NAMES})
