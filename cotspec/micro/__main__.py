"""Command line of the micro-world's models: ``python -m cotspec.micro COMMAND``.

build  train the shipped models into --out; resumes
pack   write the models in --out into the package
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cotspec.micro import build, shipped


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; what the user got wrong ends with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m cotspec.micro",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("build", "pack"))
    parser.add_argument("--out", type=Path, default=Path("runs/micro_build"))
    names, text = shipped.names(), "build this one only: teacher, small-raw-0, …"
    parser.add_argument("--only", choices=names, metavar="NAME", help=text)
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            for name in [options.only] if options.only else names:
                print(build.make(name, options.out))
        else:
            print(f"{build.pack(options.out) / 1e6:.1f} MB in {shipped.FOLDER}")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
