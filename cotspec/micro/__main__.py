"""Command line of the micro-world's models: ``python -m cotspec.micro COMMAND``.

build       train the shipped models into --out; resumes
pack        write the models in --out into the package
card        measure the package's models, write MODEL_CARD.md beside them
tokenizers  make the two tokenizer files anew, in --out
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status, 2 for what the user got wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m cotspec.micro",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = ("build", "pack", "card", "tokenizers")
    parser.add_argument("command", choices=commands)
    parser.add_argument("--out", type=Path, default=Path("runs/micro_build"))
    name = "build this one only: teacher, small-raw-0, …; may be repeated"
    parser.add_argument("--only", action="append", metavar="NAME", help=name)
    options = parser.parse_args(arguments)
    # Imported here, since it takes seconds that --help need not wait for.
    from cotspec.micro import build, shipped, tokenizers

    try:
        if options.command == "build":
            for name in options.only or shipped.names():
                print(build.make(name, options.out))
        elif options.command == "pack":
            print(f"{build.pack(options.out) / 1e6:.1f} MB in {shipped.FOLDER}")
        elif options.command == "card":
            print(build.write_card())
        else:
            tokenizers.save(build.tokenizer_texts(), options.out)
            print(options.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
