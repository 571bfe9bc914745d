"""One real task: which set it is in, how many problems it has, what its prompts show.

Enters: a task name and a folder, None for the hub. Leaves: its rows, counted against
the published number, each with its id; its demonstrations.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cotspec.profiles import BBH_TASKS
from cotspec.prompts import Demonstration
from cotspec.tasks import readers

# Published numbers of problems, unscorable golds included.
NUM_PUBLISHED = {
    "gsm8k": 8_792,  # 7,473 train (200 of them held out) and 1,319 test
    "multiarith": 600,
    "asdiv": 2_305,
    "svamp": 1_000,
} | dict.fromkeys(BBH_TASKS, 250)
NUM_PUBLISHED |= {
    "bbh/causal_judgement": 187,
    "bbh/penguins_in_a_table": 146,
    "bbh/snarks": 178,
}
REAL_TASKS = tuple(NUM_PUBLISHED)

_READERS = {
    "gsm8k": readers.gsm8k,
    "multiarith": readers.multiarith,
    "svamp": readers.svamp,
    "asdiv": readers.asdiv,
    "bbh": readers.bbh,
}


def problems(name: str, folder: Path | None) -> list[dict]:
    """Read a real task, count it, and give every row its id and `reason`."""
    read = _READERS["bbh" if name.startswith("bbh/") else name]
    rows = list(read(name, folder))
    if len(rows) != NUM_PUBLISHED[name]:
        raise ValueError(
            f"{name}: {len(rows)} problems in {folder or 'the hub'}, "
            f"{NUM_PUBLISHED[name]} were published"
        )
    width = len(str(max(row["index"] for row in rows)))
    for row in rows:
        row["task"] = name
        row["problem_id"] = f"{name}/{row['split']}/{row['index']:0{width}d}"
        row.setdefault("rationale", "")
        row.setdefault("reason", "")
    return rows


def data_folder(source: Path | str | None) -> Path | None:
    """Return the data folder, or None for the hub."""
    chosen = source or os.environ.get("COTSPEC_DATA")
    if not chosen:
        return None
    if not Path(chosen).is_dir():
        origin = "source" if source else "COTSPEC_DATA"
        raise ValueError(f"{origin}: no folder {chosen}; see README.md for its layout")
    return Path(chosen)


def demonstrations(name: str, folder: Path | None) -> list[Demonstration]:
    """Return what a prompt of a real task shows; math shows GSM8K's."""
    if name.startswith("bbh/"):
        return list(readers.bbh_prompt(name)[1])
    return readers.gsm8k_demonstrations(folder)


def missing(names: Iterable[str], source: Path | str) -> list[str]:
    """Return what is wrong with a data folder, one sentence a task; seconds.

    Every file the tasks need is read and counted, so a folder with nothing missing
    also loads.
    """
    folder = Path(source)
    if not folder.is_dir():
        return [f"COTSPEC_DATA: no folder {folder}; see README.md for its layout"]
    found = []
    for name in names:
        try:
            problems(name, folder)
            demonstrations(name, folder)
        except ValueError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))
