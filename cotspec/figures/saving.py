"""Writing a figure for good: picture, vector, the numbers behind it, the caption.

Enters: a figure, its data frame and its caption. Leaves: ``<name>.png`` (200 dpi),
``<name>.svg``, ``<name>.csv`` and ``<name>.json``, the same bytes for the same input.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from cotspec import artifacts
from cotspec.figures.style import DEFAULTS

PNG_DPI = 200


def save_figure(
    figure: Figure,
    folder: str | Path,
    name: str,
    *,
    data: pd.DataFrame,
    caption: str,
    provenance: Mapping[str, object] | None = None,
) -> dict[str, Path]:
    """Write a figure, the data behind it and its caption; each file atomically.

    Parameters
    ----------
    figure : Figure
        What a chart function returned.
    folder : path
        Made if it is missing.
    name : str
        Stem of the four files: letters, digits, ``_`` and ``-``.
    data : DataFrame
        What the figure draws, one observation a row.
    caption : str
        What is shown and what the bars or bands mean; also the picture's alt text.
    provenance : mapping, optional
        JSON-ready facts (seed, commit, parents). Kept as given: leave the time out
        where equal runs must give equal bytes.

    Returns
    -------
    dict
        ``{"png": Path, "svg": Path, "csv": Path, "json": Path}``.

    Raises
    ------
    ValueError
        A name that is not a plain stem, or an empty caption.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(
            f"name: {name!r} must be letters, digits, '_' and '-' (no folder, no dot)"
        )
    if not caption.strip():
        raise ValueError(f"caption: empty for figure {name!r}; say what it shows")
    folder = Path(folder)
    contents = {
        "png": _rendered(figure, name, "png"),
        "svg": _rendered(figure, name, "svg"),
        "csv": data.to_csv(
            index=False, lineterminator="\n", float_format="%.6g"
        ).encode(),
        "json": _described(name, caption, data, provenance),
    }
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in contents}
    for suffix, content in contents.items():
        artifacts.write_bytes(paths[suffix], content)
    return paths


def _rendered(figure: Figure, name: str, suffix: str) -> bytes:
    # Without these, SVG ids are random and both formats carry date or version.
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": "cotspec"}}
    buffer = io.BytesIO()
    look = DEFAULTS | {"svg.hashsalt": name, "svg.fonttype": "path"}
    with matplotlib.rc_context(look):
        figure.savefig(buffer, format=suffix, dpi=PNG_DPI, metadata=metadata[suffix])
    content = buffer.getvalue()
    return _numbered(content, name) if suffix == "svg" else content


def _numbered(svg: bytes, name: str) -> bytes:
    """Number the ids that matplotlib makes by hashing coordinates.

    It hashes them unrounded, so that equal pictures can differ in them.
    """
    hashed = re.findall(rb'id="([a-z]+[0-9a-f]{10})"', svg)
    numbered = {
        old: b"%s-%s-%d" % (old[:-10], name.encode(), number)
        for number, old in enumerate(dict.fromkeys(hashed))
    }
    return re.sub(
        rb'(?<=["#])[a-z]+[0-9a-f]{10}(?=["\)])',
        lambda found: numbered.get(found[0], found[0]),
        svg,
    )


def _described(
    name: str,
    caption: str,
    data: pd.DataFrame,
    provenance: Mapping[str, object] | None,
) -> bytes:
    description = {
        "name": name,
        "caption": " ".join(caption.split()),
        "columns": list(data.columns),
        "rows": len(data),
        "provenance": dict(provenance or {}),
    }
    text = json.dumps(description, indent=2, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode()
