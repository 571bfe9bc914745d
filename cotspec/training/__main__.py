"""Train from the command line: what ``accelerate launch -m cotspec.training`` starts.

Enters: a profile's name, Parquet files of examples and aligned targets, a folder.
Leaves: what `cotspec.training.train` leaves there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cotspec import artifacts, profiles
from cotspec.models import load_student
from cotspec.training.loop import TrainResult, train


def main(arguments: list[str] | None = None) -> TrainResult:
    """Train from the command line: what ``accelerate launch`` starts."""
    parser = argparse.ArgumentParser(prog="python -m cotspec.training")
    parser.add_argument("profile", help="such as flan-t5-xl")
    parser.add_argument("examples", type=Path, help="training examples, Parquet")
    parser.add_argument("work_dir", type=Path, help="where log and checkpoints go")
    parser.add_argument("--aligned", type=Path, help="aligned targets, Parquet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="override of the profile; may be repeated",
    )
    given = parser.parse_args(arguments)
    overrides = dict(item.split("=", 1) for item in given.set)
    profile = profiles.resolve(given.profile, overrides)
    return train(
        load_student(profile.student, seed=given.seed),
        artifacts.read_dataset(given.examples),
        profile.training,
        work_dir=given.work_dir,
        aligned=artifacts.read_dataset(given.aligned) if given.aligned else None,
        loss=profile.loss,
        formats=profile.formats,
        seed=given.seed,
    )


if __name__ == "__main__":
    main()
