"""Count lines of code by folder: ``python tests/count_lines.py [folder ...]``.

A line counts if it holds a token of code: comments, docstrings and blank lines do not.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

_NOT_CODE = "COMMENT NL NEWLINE INDENT DEDENT ENDMARKER".split()
_DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def code_lines(path: Path) -> int:
    """Return the number of lines of code in one Python file."""
    source = path.read_text("utf-8")
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] not in _NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def table(root: Path) -> dict[str, tuple[int, int]]:
    """Return ``{folder: (files, lines of code)}`` of a tree, folders in order."""
    rows: dict[str, tuple[int, int]] = {}
    for path in sorted(root.rglob("*.py")):
        files, lines = rows.get(str(path.parent), (0, 0))
        rows[str(path.parent)] = files + 1, lines + code_lines(path)
    return rows


def main() -> None:
    """Print the table of every folder named, or of the package and its tests."""
    for root in sys.argv[1:] or ("cotspec", "tests"):
        rows = table(Path(root))
        for folder, (files, lines) in rows.items():
            print(f"{folder:<28}{files:>5} files{lines:>8,} lines")
        files, lines = (sum(column) for column in zip(*rows.values(), strict=True))
        print(f"{root + ' in all':<28}{files:>5} files{lines:>8,} lines\n")


if __name__ == "__main__":
    main()
