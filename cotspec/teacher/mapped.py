"""A Parquet file as a `Dataset` that takes neither memory nor time to open.

Enters: a file with the columns of `traces.FEATURES`, in types that may be narrower
(float16). Leaves: a table whose rows are decoded when they are read, a row group at a
time, with the types of `FEATURES`. An Arrow file would need no decoding, but three
times the space: it can neither compress nor spell a repeated token once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import TableBlock

from cotspec.teacher.traces import FEATURES


class MappedTable(TableBlock):
    """Rows of a Parquet file, for `Dataset`; what is not overridden here reads all.

    Parameters
    ----------
    path : Path of the file
    columns : names among `FEATURES`, all by default
    rows : range of step 1, all by default
    """

    def __init__(
        self,
        path: Path,
        columns: Sequence[str] = tuple(FEATURES),
        rows: range | None = None,
    ):
        self.path, self._columns = path, list(columns)
        # Kept open, so that the rows stay should another file take the path.
        self._open(pq.ParquetFile(path, memory_map=True), rows)

    def _open(self, file: pq.ParquetFile, rows: range | None) -> None:
        metadata = file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._file = file
        self._offsets = np.cumsum([0, *sizes])
        self._rows = range(metadata.num_rows) if rows is None else rows
        schema = FEATURES.arrow_schema
        self._schema = pa.schema([schema.field(name) for name in self._columns])
        self._latest: tuple[int, pa.Table | None] = (-1, None)

    def _view(self, columns: Sequence[str], rows: range) -> MappedTable:
        view = MappedTable.__new__(MappedTable)
        view.path, view._columns = self.path, list(columns)
        view._open(self._file, rows)
        return view

    def __deepcopy__(self, memo: dict) -> MappedTable:
        return self  # never changes

    def __reduce__(self):
        return MappedTable, (self.path, self._columns, self._rows)

    @property
    def table(self) -> pa.Table:
        """All rows, in memory."""
        return pa.Table.from_batches(self._batches_of(self._rows), self._schema)

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def num_columns(self) -> int:
        return len(self._columns)

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_rows, self.num_columns

    @property
    def column_names(self) -> list[str]:
        return list(self._columns)

    @property
    def nbytes(self) -> int:
        """The bytes of the whole file."""
        return self.path.stat().st_size

    def replace_schema_metadata(self, metadata: dict | None = None) -> MappedTable:
        """Return the rows under a schema with other metadata."""
        view = self._view(self._columns, self._rows)
        view._schema = view._schema.with_metadata(metadata)
        return view

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        return f"MappedTable({str(self.path)!r}, {self._columns}, {self._rows})"

    __str__ = __repr__

    def select(self, columns: Sequence[str]) -> MappedTable:
        """Return some columns; nothing is read."""
        return self._view(columns, self._rows)

    def drop(self, columns: Sequence[str]) -> MappedTable:
        """Return the other columns; nothing is read."""
        return self.select([name for name in self._columns if name not in columns])

    def slice(self, offset: int = 0, length: int | None = None) -> MappedTable:
        """Return some rows that follow each other; nothing is read."""
        end = None if length is None else offset + length
        return self._view(self._columns, self._rows[offset:end])

    def fast_slice(self, offset: int = 0, length: int | None = None) -> pa.Table:
        """Read some rows that follow each other."""
        end = None if length is None else offset + length
        batches = self._batches_of(self._rows[offset:end])
        return pa.Table.from_batches(batches, self._schema)

    def fast_gather(self, indices: Sequence[int] | np.ndarray) -> pa.Table:
        """Read some rows in the order of `indices`; each row group is read once."""
        rows = np.asarray(indices) + self._rows.start
        groups = np.searchsorted(self._offsets, rows, side="right") - 1
        parts = [
            self._group(group).take(rows[groups == group] - self._offsets[group])
            for group in np.unique(groups)
        ]
        order = np.argsort(groups, kind="stable")
        return pa.concat_tables(parts).take(np.argsort(order, kind="stable"))

    def to_reader(self, max_chunksize: int | None = None) -> pa.RecordBatchReader:
        """Read the rows as they are asked for."""
        batches = self._batches_of(self._rows, max_chunksize)
        return pa.RecordBatchReader.from_batches(self._schema, batches)

    def _batches_of(
        self, rows: range, size: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows of the file, a row group at a time."""
        if not rows:
            return
        first = np.searchsorted(self._offsets, rows.start, side="right") - 1
        last = np.searchsorted(self._offsets, rows.stop, side="left")
        for group in range(first, last):
            start, end = self._offsets[group : group + 2]
            begin = max(rows.start, start)
            part = self._group(group).slice(begin - start, min(rows.stop, end) - begin)
            yield from part.to_batches(max_chunksize=size)

    def _group(self, group: int) -> pa.Table:
        """Return a row group; it is kept for the next call."""
        if self._latest[0] != group:
            # One thread: more cost more than the reading of so few rows.
            read = self._file.read_row_group(group, self._columns, use_threads=False)
            table = read.select(self._columns).cast(self._schema).combine_chunks()
            self._latest = group, table
        return self._latest[1]
