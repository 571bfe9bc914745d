"""Command line: ``python -m cotspec.teacher import-release DIR``.

Enters: the folder with the authors' released files. Leaves: one Parquet file of traces,
for ``teacher.backend=recorded``, and the repairs on the screen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from cotspec.teacher import RELEASE_FILE
from cotspec.teacher.release import import_release
from cotspec.teacher.traces import write_parquet


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cotspec.teacher")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "import-release", help="turn the authors' pickles into traces, safely"
    )
    command.add_argument("folder", type=Path)
    command.add_argument("--output", type=Path, help="default: in the folder")
    arguments = parser.parse_args(argv)
    target = arguments.output or arguments.folder / RELEASE_FILE
    try:
        traces, repairs = import_release(arguments.folder)
        num_rows = write_parquet(
            tqdm(traces, desc="importing", unit="solution"), target
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for fault, count in sorted(repairs.items()):
        print(f"{count:>9,}  {fault}")
    print(f"{num_rows:>9,}  solutions in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
