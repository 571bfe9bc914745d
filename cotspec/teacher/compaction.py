"""Traces as one compact Parquet file that opens at once.

Enters: traces. Leaves: a file with a row group per question, int32 ids and float16
log-probabilities, repeated values spelled once, and `TraceFile`, which maps it into
memory and reads only the question it is asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from cotspec import artifacts
from cotspec.teacher.mapped import MappedTable
from cotspec.teacher.segments import ROWS, open_writer
from cotspec.teacher.traces import FEATURES, STORED, as_stored

_STATISTICS = ["problem_id"]


def compact(rows: Iterable[Mapping[str, object]] | Dataset, path: Path | str) -> Path:
    """Write traces, ordered by question, in one Parquet file.

    Equal traces make equal bytes. A killed call leaves the target as it was.

    Parameters
    ----------
    rows : traces; those of a question must follow each other

    Raises
    ------
    ValueError
        If a question's traces are not together, or two have one ``sample_id``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # a later call overwrites it
    seen: set[str] = set()
    with pq.ParquetWriter(
        part, STORED, compression="zstd", write_statistics=_STATISTICS
    ) as writer:
        for problem_id, table in _by_question(rows):
            sample_ids = table["sample_id"].to_pylist()
            if problem_id in seen or len(set(sample_ids)) != len(sample_ids):
                raise ValueError(
                    f"problem_id: {problem_id!r} has a trace twice, or its traces are "
                    "not together"
                )
            seen.add(problem_id)
            writer.write_table(table.cast(STORED), row_group_size=len(table))
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    return path


def write_mapped(rows: Iterable[Mapping[str, object]], path: Path) -> Dataset:
    """Write traces as they come to a Parquet file and map it; memory stays flat.

    Log-probabilities are rounded to float16 on disk; they are read as float32. The
    table has no cache files: what ``filter`` and ``map`` make of it does not settle
    beside the samples.
    """
    rows = iter(rows)
    with open_writer(path, STORED) as writer:
        while batch := list(islice(rows, ROWS)):
            writer.write_table(as_stored(batch))
    return _mapped(path)


def map_once(
    rows: Iterable[Mapping[str, object]], path: Path, *, identity: str
) -> Dataset:
    """Map the file of the traces that `identity` names.

    It is written, by `write_mapped`, unless the note beside it says that it holds
    just those; then `rows` is left alone.
    """
    if (kept := map_kept(path, identity=identity)) is not None:
        return kept
    note = _note(path)
    note.unlink(missing_ok=True)  # before the file changes, whatever happens then
    traces = write_mapped(rows, path)
    artifacts.write_bytes(note, identity.encode())
    return traces


def map_kept(path: Path, *, identity: str) -> Dataset | None:
    """Map the file if the note beside it says that it holds those traces."""
    note = _note(path)
    if path.exists() and note.exists() and note.read_text() == identity:
        return _mapped(path)
    return None


def _note(path: Path) -> Path:
    return path.with_suffix(".identity")


def _mapped(path: Path) -> Dataset:
    """Map a file of `write_mapped` into memory; only what is read is loaded."""
    return Dataset(MappedTable(path), fingerprint=_fingerprint(path))


def _fingerprint(path: Path, part: str = "") -> str:
    """Name a file's state; `datasets` would hash all of its contents instead."""
    state = path.stat()
    identity = f"{path.resolve()}\0{state.st_mtime_ns}\0{state.st_size}\0{part}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _by_question(
    rows: Iterable[Mapping[str, object]] | Dataset,
) -> Iterator[tuple[str, pa.Table]]:
    """Yield each run of rows with one ``problem_id`` as a table."""
    if not isinstance(rows, Dataset):
        for problem_id, group in groupby(rows, key=lambda row: row["problem_id"]):
            yield problem_id, as_stored(group)
        return
    traces = rows.select_columns(list(FEATURES)).with_format("arrow")
    start = 0
    for problem_id, group in groupby(rows["problem_id"]):
        end = start + sum(1 for _ in group)
        yield problem_id, traces[start:end]
        start = end


class TraceFile:
    """A compacted file, mapped into memory.

    Parameters
    ----------
    path : Path of a file that `compact` wrote
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._file = pq.ParquetFile(self.path, memory_map=True)
        metadata = self._file.metadata
        column = self._file.schema_arrow.get_field_index("problem_id")
        self._groups: dict[str, int] = {}
        for index in range(metadata.num_row_groups):
            statistics = metadata.row_group(index).column(column).statistics
            if statistics is None or statistics.min != statistics.max:
                raise ValueError(
                    f"{self.path}: row group {index} holds several questions. "
                    "Allowed: a file written by cotspec.teacher.compaction.compact"
                )
            self._groups[statistics.min] = index

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    @property
    def problem_ids(self) -> list[str]:
        """The questions in the file's order."""
        return list(self._groups)

    def question(self, problem_id: str) -> str:
        """Return the question's text."""
        column = self._file.read_row_group(self._groups[problem_id], ["question"])
        return column["question"][0].as_py()

    def solutions(self, problem_id: str) -> Dataset:
        """Return one question's traces, with log-probabilities as float32."""
        # One thread and a fingerprint of our own: either default costs more than this.
        table = self._file.read_row_group(self._groups[problem_id], use_threads=False)
        fingerprint = _fingerprint(self.path, problem_id)
        return Dataset(table.cast(FEATURES.arrow_schema), fingerprint=fingerprint)

    def dataset(self) -> Dataset:
        """Return all traces, in memory."""
        return Dataset(self._file.read().cast(FEATURES.arrow_schema))
