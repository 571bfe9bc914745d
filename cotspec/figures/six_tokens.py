"""Six tokens and six losses: what each loss pushes for, and what it costs.

Enters: tidy frames of a vocabulary so small that every number can be drawn. Leaves:
charts for notebook 05. A loss has one colour and one marker in both of them.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cotspec.figures.style import (
    BLACK,
    BLUE,
    FULL_WIDTH,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    Chart,
    Style,
    new_chart,
    require_columns,
    themed,
)

# By the options of `losses.distribution_matching`.
OBJECTIVE_STYLES = MappingProxyType(
    {
        "sample_matching": Style("sample matching", ORANGE, "s", "", "--"),
        "bucket": Style("matching, tail in a bucket", BLUE, "o"),
        "renormalized": Style("matching, renormalized", SKY_BLUE, "D", "", "-."),
        "paper": Style("matching, as published", VERMILLION, "^", "", ":"),
        "reverse_kl": Style("reverse KL", PURPLE, "X", "", "--"),
        "jensen_shannon": Style("Jensen–Shannon", GREEN, "P", "", "-."),
    }
)
_PER_ROW = 3
_HIGHEST = 2.0  # nats; above it a curve leaves the chart


@themed
def logit_pushes(pushes: pd.DataFrame, *, width: float = FULL_WIDTH) -> Chart:
    """Draw where one step of gradient descent moves each token, one panel a loss.

    Parameters
    ----------
    pushes : DataFrame
        ``loss`` (a key of `OBJECTIVE_STYLES`), ``token``, ``push`` (minus the gradient
        of the loss by the token's logit; positive: more probable).
    width : float
        Inches.
    """
    require_columns(pushes, ("loss", "token", "push"), "logit_pushes")
    names = list(dict.fromkeys(pushes["loss"]))
    num_rows = -(-len(names) // _PER_ROW)
    chart = new_chart(width, 1.35 * num_rows + 0.25)
    panels = chart.subplots(num_rows, _PER_ROW, sharey=True, squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels, names, strict=False):
        _draw_pushes(axes, pushes[pushes["loss"] == name])
        axes.set_title(OBJECTIVE_STYLES[name].label)
    chart.supylabel("push on the logit (− gradient)", fontsize=8)
    return chart


def _draw_pushes(axes: Axes, picked: pd.DataFrame) -> None:
    up = picked["push"].to_numpy() > 0
    place = np.arange(len(picked))
    for chosen, colour, hatch in ((up, BLUE, ""), (~up, VERMILLION, "////")):
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "width": 0.7}
        axes.bar(place[chosen], picked["push"].to_numpy()[chosen], **look)
    axes.axhline(0, color=BLACK, lw=0.7)
    axes.set_xticks(place, [str(token) for token in picked["token"]])
    axes.tick_params(axis="x", length=0)


@themed
def loss_shapes(
    shapes: pd.DataFrame, *, teacher: float, width: float = FULL_WIDTH
) -> Chart:
    """Draw each loss against the student's probability of one token.

    Parameters
    ----------
    shapes : DataFrame
        ``loss`` (a key of `OBJECTIVE_STYLES`), ``probability`` (0 to 1), ``nats``.
    teacher : float
        The teacher's probability of that token: a dotted line.
    width : float
        Inches.

    Returns
    -------
    Chart
        The marker on a curve is its lowest point.
    """
    require_columns(shapes, ("loss", "probability", "nats"), "loss_shapes")
    chart = new_chart(width, 2.7)
    axes = chart.subplots()
    axes.axhline(0, color=GREY, lw=0.6)
    axes.axvline(teacher, color=BLACK, ls=":", lw=1, label="the teacher")
    for name in dict.fromkeys(shapes["loss"]):
        curve, style = shapes[shapes["loss"] == name], OBJECTIVE_STYLES[name]
        x, y = curve["probability"].to_numpy(), curve["nats"].to_numpy()
        # Hollow: three of them lie at the same point.
        lowest = {"marker": style.marker, "markevery": [int(y.argmin())]}
        lowest |= {"markersize": 8, "mfc": "none", "mew": 1.3}
        axes.plot(x, y, style.line, c=style.colour, label=style.label, **lowest)
    axes.set(xlim=(0, 1), ylim=(min(-0.1, shapes["nats"].min() * 1.1), _HIGHEST))
    axes.set_xlabel("student's probability of the sampled token")
    axes.set_ylabel("loss (nats)")
    chart.legend(loc="outside upper center", ncols=3)
    return chart
