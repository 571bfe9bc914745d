"""Claims about the charts of the teacher's samples."""

import matplotlib
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cotspec.figures import pipeline
from cotspec.teacher.studies import KINDS

STUDY = pd.DataFrame(
    [
        (t, group, measure, value, value - 0.1, value + 0.1)
        for group, measure, values in (
            ("accuracy", "one sample", (0.7, 0.4)),
            ("accuracy", "majority of 8", (0.75, 0.6)),
            ("accuracy", "any of 8", (0.8, 0.9)),
            ("diversity", "different texts", (0.3, 0.9)),
            ("diversity", "different answers", (0.2, 0.6)),
        )
        for t, value in zip((0.2, 1.0), values, strict=True)
    ],
    columns=["temperature", "group", "measure", "value", "ci_low", "ci_high"],
)
SHARES = pd.DataFrame(
    [
        (steps, kind, 2, 1 / len(KINDS), 7)
        for steps in ("1", "2", "6+", "?")
        for kind in KINDS
    ],
    columns=["steps", "kind", "count", "share", "num_questions"],
)
CHARTS = {
    "temperature_study": lambda: pipeline.temperature_study(STUDY, used=0.5),
    "failures_by_steps": lambda: pipeline.failures_by_steps(SHARES),
}


def texts(chart):
    return [text.get_text() for text in chart.findobj(matplotlib.text.Text)]


@pytest.mark.parametrize("name", CHARTS)
def test_nothing_of_a_chart_is_cut_at_the_edge(name):
    chart = CHARTS[name]()
    renderer = FigureCanvasAgg(chart).get_renderer()
    chart.draw(renderer)
    drawn = chart.get_tightbbox(renderer)  # inches, from the lower left
    assert drawn.x0 >= -0.01 and drawn.x1 <= chart.get_figwidth() + 0.01
    assert drawn.y0 >= -0.01 and drawn.y1 <= chart.get_figheight() + 0.01


def test_curves_pass_through_the_values():
    accuracy, diversity = pipeline.temperature_study(STUDY).axes
    assert [len(axes.containers) for axes in (accuracy, diversity)] == [3, 2]
    line = accuracy.containers[0].lines[0]
    assert sorted(line.get_ydata()) == [0.4, 0.7]
    low, high = accuracy.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.6, 0.8))


def test_the_temperature_of_the_run_is_marked():
    assert "this run: 0.5" in texts(pipeline.temperature_study(STUDY, used=0.5))
    assert not any("this run" in t for t in texts(pipeline.temperature_study(STUDY)))


def test_parts_of_a_bar_add_up_to_the_whole():
    axes = pipeline.failures_by_steps(SHARES).axes[0]
    widths = [bar.get_width() for bar in axes.patches if bar.get_y() < 0]
    assert len(widths) == len(KINDS) and sum(widths) == pytest.approx(1)


def test_bars_say_how_many_questions_and_solutions_they_hold():
    assert "6+  (7 q., 14 sol.)" in texts(pipeline.failures_by_steps(SHARES))


def test_a_kind_that_never_occurs_is_not_in_the_legend():
    shares = SHARES.assign(share=(SHARES["kind"] == "right").astype(float))
    shown = texts(pipeline.failures_by_steps(shares))
    assert "right" in shown and "no answer" not in shown


def test_every_kind_has_a_look_of_its_own():
    assert tuple(pipeline.KIND_STYLES) == KINDS
    looks = {(style.colour, style.hatch) for style in pipeline.KIND_STYLES.values()}
    assert len(looks) == len(KINDS)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match=r"missing columns \['share'\]"):
        pipeline.failures_by_steps(SHARES.drop(columns="share"))
