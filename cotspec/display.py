"""Coloured text for notebooks, as HTML that also reads in the exported page.

Enters: tables, or tokens with probabilities. Leaves: an `HTML` object the
notebook shows; all text is escaped, all style is inline, colours are the figures' own.
"""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib import colors

from cotspec.figures.style import SKY_BLUE, printable

_MONO = "font-family:'DejaVu Sans Mono',monospace;font-size:12px;line-height:1.45"


def table(frame: pd.DataFrame) -> HTML:
    """Show a table without its index; text is escaped, so that ``<unk>`` is seen."""
    plain = {"index": False, "border": 0, "na_rep": ""}
    return HTML(frame.to_html(float_format="{:.3f}".format, **plain))


def confidence_text(tokens: Sequence, probabilities: Sequence[float]) -> HTML:
    """Show a text whose tokens are shaded by how unsure the model was of them.

    Parameters
    ----------
    tokens : sequence of bytes or str, length T
        In order; joined they are the text.
    probabilities : sequence of float, length T
        Of each token, 0 to 1; shown when the pointer rests on it. White is sure.

    Raises
    ------
    ValueError
        Different lengths.
    """
    text = "".join(_shaded(*each) for each in zip(tokens, probabilities, strict=True))
    scale = " ".join(_shaded(f"{p:.2f}", p) for p in (1.0, 0.75, 0.5, 0.25, 0.0))
    box = f"{_MONO};white-space:pre-wrap;color:#000;background:#fff;padding:6px"
    return HTML(
        f'<div style="{box}">{text}</div>'
        f'<p style="font-size:12px">probability of the token: {scale}</p>'
    )


def _shaded(token: bytes | str, probability: float) -> str:
    text = token.decode("utf-8", "backslashreplace") if type(token) is bytes else token
    doubt = 1 - min(probability, 1.0)
    # The less probable, the less white is in the colour.
    colour = colors.to_hex(1 - doubt * (1 - np.array(colors.to_rgb(SKY_BLUE))))
    underline = ";border-bottom:2px solid #000" if probability < 0.5 else ""
    title = html.escape(f"{printable(text)} {probability:.3f}", quote=True)
    look = f"background:{colour};color:#000{underline}"
    return f'<span style="{look}" title="{title}">{html.escape(text)}</span>'
