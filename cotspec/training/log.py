"""The two tables a run leaves: what was learned, and how fast.

Enters: one row per update. Leaves: ``metrics.csv``, the same bytes for every run, and
``timing.csv``, which differs between runs.
"""

from __future__ import annotations

import time
from pathlib import Path

from cotspec import artifacts

METRICS = (
    "step,epoch,loss,learning_rate,grad_norm,num_examples,num_target_tokens".split(",")
)
TIMING = "step,seconds,examples_per_second,target_tokens_per_second".split(",")


def truncate(path: Path, header: list[str], step: int) -> None:
    """Keep the rows up to `step`; a torn last line goes with the rest.

    Parameters
    ----------
    path : Path
        Made, with its header, where there is none.
    header : list of str
    step : int
        Of the last row to keep.
    """
    lines = path.read_text("utf-8").splitlines()[1:] if path.exists() else []
    kept = [line for line in lines if line and int(line.split(",")[0]) <= step]
    text = "\n".join([",".join(header), *kept]) + "\n"
    artifacts.write_bytes(path, text.encode())


def append_row(path: Path, row: dict[str, float]) -> None:
    """Add one update to ``metrics.csv``, nine significant digits each."""
    values = [f"{row[name]:.9g}" for name in METRICS]
    with open(path, "a", encoding="utf-8") as file:
        file.write(",".join(values) + "\n")


class Clock:
    """Rates since the start of this process's run, written beside the log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.perf_counter()
        self.examples = self.target_tokens = 0

    def seconds(self) -> float:
        """Return the wall seconds since the start."""
        return time.perf_counter() - self.start

    def count(self, row: dict[str, float]) -> None:
        """Count one update's examples and target tokens."""
        self.examples += row["num_examples"]
        self.target_tokens += row["num_target_tokens"]

    def write(self, step: int) -> None:
        """Add a row to ``timing.csv``."""
        seconds = self.seconds()
        rates = (seconds, self.examples / seconds, self.target_tokens / seconds)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(",".join([str(step), *(f"{rate:.6g}" for rate in rates)]) + "\n")
