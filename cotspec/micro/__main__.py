"""Command line of the micro-world: ``python -m cotspec.micro build|pack|card``.

Enters: a folder. Leaves: trained models, the package's weights, or the two tokenizer
files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status, 2 for what the user got wrong."""
    options = _parser().parse_args(arguments)
    # Imported here, since it takes seconds that --help need not wait for.
    from cotspec.micro import build, card, shipped, tokenizers

    try:
        if options.command == "build":
            for name in options.only or shipped.names():
                print(build.make(name, options.out))
        elif options.command == "pack":
            print(f"{build.pack(options.out) / 1e6:.1f} MB in {shipped.FOLDER}")
        elif options.command == "card":
            print(card.write())
        else:
            tokenizers.save(build.tokenizer_texts(), options.out)
            print(options.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cotspec.micro")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="train the shipped models; resumes")
    pack = commands.add_parser("pack", help="write built models into the package")
    commands.add_parser("card", help="measure the weights, write MODEL_CARD.md")
    make = commands.add_parser("tokenizers", help="make two tokenizer files anew")
    for command in (build, pack, make):
        command.add_argument("--out", type=Path, default=Path("runs/micro_build"))
    name = "teacher, small-raw-0, …"
    build.add_argument("--only", action="append", metavar="NAME", help=name)
    return parser


if __name__ == "__main__":
    sys.exit(main())
