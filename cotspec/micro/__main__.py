"""Command line of the micro-world: ``python -m cotspec.micro build|pack|card``.

Enters: a folder. Leaves: trained models, the package's weights, or the two tokenizer
files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cotspec.micro import tokenizers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status, 2 for what the user got wrong."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cotspec.micro")
    commands = parser.add_subparsers(required=True)
    build = commands.add_parser("build", help="train the shipped models; resumes")
    build.add_argument("--out", type=Path, default=Path("runs/micro_build"))
    build.add_argument(
        "--only", action="append", metavar="NAME", help="teacher, small-raw-0, …"
    )
    build.set_defaults(run=_build)
    pack = commands.add_parser("pack", help="write built models into the package")
    pack.add_argument("--out", type=Path, default=Path("runs/micro_build"))
    pack.set_defaults(run=_pack)
    card = commands.add_parser("card", help="measure the weights, write MODEL_CARD.md")
    card.set_defaults(run=_card)
    make = commands.add_parser("tokenizers", help="make the tokenizer files again")
    make.add_argument("--out", type=Path, default=tokenizers.FOLDER)
    make.set_defaults(run=_tokenizers)
    return parser


def _build(options: argparse.Namespace) -> None:
    from cotspec.micro import build, shipped

    for name in options.only or shipped.names():
        print(build.make(name, options.out))


def _pack(options: argparse.Namespace) -> None:
    from cotspec.micro import build, shipped

    print(f"{build.pack(options.out) / 1e6:.1f} MB in {shipped.FOLDER}")


def _card(_: argparse.Namespace) -> None:
    from cotspec.micro import card

    print(card.write())


def _tokenizers(options: argparse.Namespace) -> None:
    from cotspec.micro import build

    tokenizers.save(build.tokenizer_texts(), options.out)
    print(options.out)


if __name__ == "__main__":
    sys.exit(main())
