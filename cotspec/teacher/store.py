"""Samples on disk as they arrive, and the table that a finished run makes of them.

Enters: samples under their keys. Leaves: after any number of runs, killed or not, each
key once. ``samples.jsonl`` is append-only; a torn last line, the trace of a killed run,
is cut off and its sample drawn again. Nothing else is ever deleted, since samples may
have cost money: damaged lines are passed over. ``traces.arrow`` is made of it and
mapped into memory.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from filelock import FileLock, Timeout

from cotspec import artifacts
from cotspec.teacher.traces import FEATURES, Completion, as_tables

logger = logging.getLogger(__name__)

SAMPLES, TRACES, MADE_OF = "samples.jsonl", "traces.arrow", "traces.sha256"
# Lines without zeros, which a power failure leaves; an editor may have saved the file.
_SAMPLE = re.compile(rb'(?:\xef\xbb\xbf)?{"key":"([^"]+)",[^\0]*}\r?\n')


class SampleStore:
    """The samples of one folder; a context manager, for one process at a time.

    Parameters
    ----------
    folder : Path, made if need be

    Attributes
    ----------
    offsets : dict of int, where each key's line begins
    """

    def __init__(self, folder: Path | str):
        self.path = Path(folder) / SAMPLES
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_suffix(".lock"))

    def __enter__(self) -> SampleStore:
        """Wait for whoever samples into the folder; then read the keys."""
        try:
            self._lock.acquire(timeout=1)
        except Timeout:
            logger.warning("%s: another run samples into it; waiting", self.path)
            self._lock.acquire()
        self._file = self.path.open("ab+")
        self._file.seek(0)
        self.offsets: dict[str, int] = {}
        offset = num_damaged = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # torn: it is drawn again
            if found := _SAMPLE.fullmatch(line):
                self.offsets.setdefault(found[1].decode(), offset)
            num_damaged += not found
            offset += len(line)
        self._file.truncate(offset)
        if num_damaged:
            logger.warning("%s: %d damaged lines passed over", self.path, num_damaged)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.release()

    def __getitem__(self, key: str) -> Completion:
        self._file.seek(self.offsets[key])
        try:
            record = with_bytes(json.loads(self._file.readline()))
            return Completion(**{n: record[n] for n in record if n != "key"})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            place = f"{self.path}: the sample at byte {self.offsets[key]}"
            raise ValueError(f"{place} is damaged ({error}); delete its line") from None

    def __contains__(self, key: object) -> bool:
        return key in self.offsets

    def update(self, samples: Iterable[tuple[str, Completion]]) -> None:
        """Append samples; keys already there are left out."""
        for key, completion in samples:
            if key not in self:
                self.offsets[key] = self._file.seek(0, os.SEEK_END)
                self._file.write(encode_line(key, completion))
        self._file.flush()


def encode_line(key: str, completion: Completion) -> bytes:
    """Return one JSON line; bytes are written as Latin-1 text, which loses none."""
    record = {"key": key} | vars(completion)
    spelled = {"separators": (",", ":"), "default": lambda b: b.decode("latin-1")}
    return json.dumps(record, **spelled).encode() + b"\n"


def with_bytes(record: dict) -> dict:
    """Turn a JSON record's Latin-1 texts back into bytes."""
    tokens, tops = record["token_bytes"], record["topk_bytes"]
    record["token_bytes"] = [b.encode("latin-1") for b in tokens]
    record["topk_bytes"] = [[b.encode("latin-1") for b in step] for step in tops]
    return record


def write_traces(
    rows: Iterable[Mapping[str, object]], folder: Path, *, identity: str
) -> Dataset:
    """Write traces as they come, with flat memory, and map them.

    Parameters
    ----------
    identity : str
        Names what they were made from; `kept_traces` asks for it.
    """
    path, schema = folder / TRACES, FEATURES.arrow_schema
    with artifacts.replacing(path) as part, pa.ipc.new_file(part, schema) as writer:
        for table in as_tables(rows):
            writer.write_table(table)
    artifacts.write_text(folder / MADE_OF, f"{identity} {artifacts.checksum(path)}")
    return kept_traces(folder, identity=identity)


def kept_traces(folder: Path, *, identity: str) -> Dataset | None:
    """Map the folder's traces if they are those that `identity` names, unharmed."""
    path, made_of = folder / TRACES, folder / MADE_OF
    # Arrow believes the file: damage would end the process, or be read as solutions.
    mark = f"{identity} {artifacts.checksum(path)}".encode()
    if not made_of.exists() or made_of.read_bytes() != mark:
        return None
    return artifacts.dataset_of(artifacts.map_table(path))
