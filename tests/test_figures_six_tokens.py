"""The charts of six tokens: what is drawn is what the frame says."""

import pandas as pd
import pytest

from cotspec.figures import tokens


def test_a_loss_has_a_panel_with_a_bar_per_token():
    rows = [(n, t, p) for n in ("bucket", "paper") for t, p in (("a", 0.4), ("b", -1))]
    chart = tokens.logit_pushes(pd.DataFrame(rows, columns=["loss", "token", "push"]))
    panels = [axes for axes in chart.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == [
        "matching, tail in a bucket",
        "matching, as published",
    ]
    for axes in panels:
        assert sorted(bar.get_height() for bar in axes.patches) == [-1, 0.4]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]


def test_a_curve_is_marked_at_its_lowest_point():
    rows = [("bucket", 0.2, 0.5), ("bucket", 0.6, 0.0), ("bucket", 0.9, 0.3)]
    shapes = pd.DataFrame(rows, columns=["loss", "probability", "nats"])
    chart = tokens.loss_shapes(shapes, teacher=0.6)
    curve = chart.axes[0].lines[-1]
    assert curve.get_markevery() == [1]
    assert curve.get_ydata().tolist() == [0.5, 0.0, 0.3]


@pytest.mark.parametrize("draw", (tokens.logit_pushes, tokens.loss_shapes))
def test_a_missing_column_is_named(draw):
    options = {"teacher": 0.6} if draw is tokens.loss_shapes else {}
    with pytest.raises(ValueError, match="missing columns.*loss"):
        draw(pd.DataFrame({"token": ["a"]}), **options)
