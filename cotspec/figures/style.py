"""How every figure looks, and how it is saved.

Enters: nothing, or a chart with its data and caption. Leaves: Okabe-Ito colours (told
apart by colour-blind readers), a fixed colour, marker and hatch for each thing the
series draws, so that a reader who learned one figure can read the next, in colour and
in grey; and PNG, SVG, CSV and caption with the same bytes for the same figure.
"""

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from cotspec import artifacts

_FOLDER = Path(__file__).parent
# Okabe & Ito 2008, https://jfly.uni-koeln.de/color/
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, LIGHT_GREY = "#6B6B6B", "#D9D9D9"

COLUMN_WIDTH, FULL_WIDTH = 3.3, 6.9  # inches: one column, and the page
# On top of matplotlib's defaults: a user's own matplotlibrc must neither change a
# picture nor ask for LaTeX.
LOOK = ["default", seaborn.axes_style("ticks"), _FOLDER / "look.mplstyle"]


@dataclass(frozen=True)
class Style:
    """Fixed look of one thing: its label, colour, and marker and line, or hatch."""

    label: str
    colour: str
    marker: str = ""
    line: str = "-"
    hatch: str = ""


def _styles(thing: str) -> dict[str, Style]:
    """The looks of a thing's kinds, in order; their colours are named as above."""
    table = pd.read_csv(_FOLDER / "styles.csv", keep_default_na=False)
    styles = {}
    for _, kind, label, name, *look in table[table["thing"] == thing].to_numpy():
        styles[kind] = Style(label, globals()[name], *look)
    return styles


# Hue says in-context (blue) or zero-shot (red); the darker of the two reasons aloud.
FORMAT_STYLES = _styles("format")
OBJECTIVE_STYLES = _styles("objective")  # options of `losses.distribution_matching`
RULE_STYLES = _styles("rule")  # `alignment.Rule`; the last two leave targets one-hot
PART_STYLES = _styles("part")  # what the student reads, and what it must write
KIND_STYLES = _styles("kind")  # `teacher.studies.KINDS`; what fails is hatched
CURVE_STYLES = _styles("curve")  # each series looks the same wherever it is drawn
# What became of an accuracy; of after, whether the paired change is clear of 0.
CHANGE_STYLES = _styles("change")
STATUS_STYLES = _styles("status")
# For series without a fixed look of their own (tasks, samplers), in order.
SERIES_STYLES = tuple(_styles("series").values())


# Decorates a chart function: our look holds while it draws, the caller's comes back.
in_our_look = matplotlib.style.context(LOOK)


class Chart(Figure):
    """A figure without pyplot's global state that a notebook shows as a picture.

    IPython draws a bare `Figure` only where pyplot's inline backend was switched on;
    `_repr_png_` is the method it asks any object for.
    """

    @in_our_look
    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=140)
        return buffer.getvalue()


def new_chart(height: float, width: float = FULL_WIDTH, **grid: object):
    """Return a `Chart` of so many inches and its axes; `grid` as for `subplots`."""
    chart = Chart(figsize=(width, height), layout="constrained")
    return chart, chart.subplots(**grid)


def patch_legend(chart: Chart, styles: Iterable[Style], **place: object) -> None:
    """Explain filled areas below a canvas; `place` as `Figure.legend` takes it."""
    edge = {"ec": BLACK, "lw": 0.4}
    handles = [Patch(fc=s.colour, hatch=s.hatch, label=s.label, **edge) for s in styles]
    chart.legend(handles=handles, loc="lower center", **place)


MONO_ADVANCE = 0.602  # width of a DejaVu Sans Mono character, in font sizes
POINTS_PER_INCH = 72
_SHOWN = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "▁": "␣"})


def printable(token: bytes | str) -> str:
    """Return a token as visible text: space, newline and stray bytes are shown."""
    if isinstance(token, bytes):
        token = token.decode("utf-8", errors="backslashreplace")
    return token.translate(_SHOWN)


def text_width(text: str, fontsize: float) -> float:
    """Return the inches that monospaced `text` takes at `fontsize` points."""
    return len(text) * MONO_ADVANCE * fontsize / POINTS_PER_INCH


def canvas(height: float, width: float = FULL_WIDTH) -> tuple[Chart, Axes]:
    """Return a chart and axes that cover it, counting inches from the top left."""
    chart = Chart(figsize=(width, height))
    axes = chart.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return chart, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, **look) -> None:
    """Draw a rectangle from its upper left corner, in inches; borderless by default."""
    axes.add_patch(Rectangle((x, y), width, height, **{"ec": "none"} | look))


def write(axes: Axes, x: float, y: float, text: str, **look: object) -> None:
    """Write literal text at `x`, `y` inches; `look` as `Axes.text` takes it."""
    look = {"va": "center", "ha": "left", "fontsize": 6.5, "color": BLACK} | look
    axes.text(x, y, text, parse_math=False, **look)


def write_token(
    axes: Axes, x: float, y: float, text: str, room: float, fontsize: float, **look
) -> None:
    """Write monospaced text in at most `room` inches; under 5 points it is cut."""
    needed = text_width(text or " ", fontsize)
    shrunk = min(fontsize, max(5.0, fontsize * room / needed))
    fits = max(int(room / text_width(" ", shrunk) + 1e-6), 1)
    shown = text if len(text) <= fits else text[: fits - 1] + "…"
    write(axes, x, y, shown, fontsize=shrunk, family="monospace", **look)


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
        Stem of the four files.
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
        An empty caption or frame.
    """
    if data.empty or not caption.strip():
        raise ValueError(f"figure {name!r}: empty data, or an empty caption")
    description = {
        "name": name,
        "caption": " ".join(caption.split()),
        "columns": list(data.columns),
        "rows": len(data),
        "provenance": dict(provenance or {}),
    }
    pictures: dict[str, bytes] = {}
    # Without these, SVG ids are random and both formats carry date or version.
    look = {"svg.hashsalt": name, "svg.fonttype": "path"}
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": "cotspec"}}
    with matplotlib.style.context(["default", look]):
        for suffix, facts in metadata.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=PNG_DPI, metadata=facts)
            pictures[suffix] = buffer.getvalue()
    folder, svg = Path(folder), _numbered(pictures["svg"], name)
    return {
        "png": artifacts.write_bytes(folder / f"{name}.png", pictures["png"]),
        "svg": artifacts.write_bytes(folder / f"{name}.svg", svg),
        "csv": artifacts.write_frame(folder / f"{name}.csv", data),
        "json": artifacts.write_json(folder / f"{name}.json", description),
    }


def _numbered(svg: bytes, name: str) -> bytes:
    """Number the ids that matplotlib makes by hashing coordinates.

    It hashes them unrounded, so that equal pictures can differ in them.
    """
    hashed = re.findall(rb'id="([a-z]+[0-9a-f]{10})"', svg)
    numbered = {
        old: b"%s-%s-%d" % (old[:-10], name.encode(), number)
        for number, old in enumerate(dict.fromkeys(hashed))
    }
    uses = rb'(?<=["#])[a-z]+[0-9a-f]{10}(?=["\)])'
    return re.sub(uses, lambda found: numbered.get(found[0], found[0]), svg)
