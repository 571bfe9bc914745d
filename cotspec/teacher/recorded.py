"""Solutions that were sampled before, by anyone.

Enters: a Parquet or JSON-lines file with the columns of `traces.FEATURES`. Leaves: the
completions of the questions asked, matched by the question's text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from datasets import Dataset

from cotspec import artifacts
from cotspec.teacher.traces import (
    FEATURES,
    Completion,
    Request,
    Sample,
    SamplingOptions,
    as_dataset,
)

logger = logging.getLogger(__name__)

_LISTS = ("token_ids", "token_bytes", "token_logprobs")
_TOPS = ("topk_ids", "topk_bytes", "topk_logprobs")


@dataclass(frozen=True)
class RecordedBackend:
    """Recorded traces as a backend; what is not in the file is left out and counted."""

    path: Path
    max_new_tokens: int = 256
    top_k: int = 5

    @property
    def model(self) -> str:
        return f"recorded {self.path.name} {artifacts.checksum(self.path)[:16]}"

    @cached_property
    def traces(self) -> Dataset:
        """The file's traces."""
        return read_traces(self.path)

    def complete(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        missing: Mapping[int, set[int]],
        folder: Path | None = None,
    ) -> Iterator[list[Sample]]:
        """Yield what the file has of each request, see `Backend`."""
        places = places_by_question(self.traces)
        num_absent = 0
        for index, wanted in missing.items():
            found = places.get(fold(requests[index].question), {})
            num_absent += len(wanted - found.keys())
            rows = [(s, self.traces[found[s]]) for s in sorted(wanted & found.keys())]
            yield [(index, s, as_completion(row, options.top_k)) for s, row in rows]
        if num_absent:
            logger.warning("%s: %d samples are not in it", self.path, num_absent)


def read_traces(path: Path | str) -> Dataset:
    """Read traces from ``.parquet`` or ``.jsonl`` (bytes as Latin-1 text).

    Raises
    ------
    ValueError
        Another kind of file, or a missing column.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        table = Dataset.from_parquet(str(path), keep_in_memory=False)
        _check_columns(path, table.column_names)
        return table.select_columns(list(FEATURES)).cast(FEATURES)
    if path.suffix != ".jsonl":
        raise ValueError(f"teacher.path: {str(path)!r}. Allowed: *.parquet, *.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    for row in rows:
        _check_columns(path, row)
        row["token_bytes"] = [b.encode("latin-1") for b in row["token_bytes"]]
        row["topk_bytes"] = [
            [b.encode("latin-1") for b in step] for step in row["topk_bytes"]
        ]
    return as_dataset(rows)


def _check_columns(path: Path, names: Sequence[str]) -> None:
    absent = [name for name in FEATURES if name not in names]
    if absent:
        raise ValueError(
            f"{path}: column {absent[0]!r} is missing. Needed: {', '.join(FEATURES)}"
        )


def places_by_question(traces: Dataset) -> dict[str, dict[int, int]]:
    """Return, per folded question, the row of each sample id."""
    places: dict[str, dict[int, int]] = {}
    columns = (traces["question"], traces["sample_id"])
    for row, (question, sample_id) in enumerate(zip(*columns, strict=True)):
        places.setdefault(fold(question), {}).setdefault(sample_id, row)
    return places


def fold(question: str) -> str:
    """Return a question without regard to white space."""
    return " ".join(question.split())


def as_completion(row: Mapping[str, object], top_k: int) -> Completion:
    """Return a trace's completion with at most `top_k` alternatives per token."""
    tops = {name: [step[:top_k] for step in row[name]] for name in _TOPS}
    lists = {name: row[name] for name in _LISTS}
    reason = row["finish_reason"]
    return Completion(row["completion"], **lists, **tops, finish_reason=reason)
