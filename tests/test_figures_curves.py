"""What the charts of the experiments draw, read back from their axes."""

import math

import numpy as np
import pandas as pd
import pytest

from cotspec import figures

CURVES = pd.DataFrame(
    [
        (panel, series, step, accuracy, accuracy - 0.02, accuracy + 0.03)
        for panel, names in (
            ("losses", ("distribution_matching", "sample_matching")),
            ("variants", ("distribution_matching", "tail paper", "alignment dtw")),
        )
        for series in names
        for step, accuracy in ((0, 0.1), (20, 0.2), (40, 0.3))
    ],
    columns="panel series step accuracy low high".split(),
)
SIZES = pd.DataFrame(
    [
        ("in-distribution", start, stage, size, y, y - 0.05, y + 0.04, y, y - 0.01, y)
        for start in ("instruction_tuned", "raw")
        for stage, shift in (("before", 0.0), ("after", 0.2))
        for size, y in ((8e4, 0.1 + shift), (3e5, 0.2 + shift), (1.2e6, 0.3 + shift))
    ],
    columns=(
        "panel start stage size accuracy ci_low ci_high fit fit_low fit_high"
    ).split(),
)


def labels(legend):
    return [text.get_text() for text in legend.get_texts()]


def bands(axes):
    """Lowest and highest y of every filled band."""
    found = [band.get_paths()[0].vertices[:, 1] for band in axes.collections]
    return [(y.min(), y.max()) for y in found if len(y) > 2]


def test_every_series_is_drawn_with_its_band_in_its_panel():
    chart = figures.accuracy_curves(CURVES, styles=figures.LOSS_STYLES)
    losses, variants = chart.axes
    assert [axes.get_title(loc="left") for axes in (losses, variants)] == [
        "losses",
        "variants",
    ]
    assert labels(losses.get_legend()) == ["distribution matching", "sample matching"]
    assert labels(variants.get_legend())[1:] == ["tail paper", "alignment dtw"]
    for line in losses.get_lines():
        np.testing.assert_allclose(line.get_ydata(), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(bands(losses), [(0.08, 0.33)] * 2)


def test_a_series_looks_the_same_in_every_panel_and_unlike_the_others():
    losses, variants = figures.accuracy_curves(CURVES, styles=figures.LOSS_STYLES).axes
    looks = [
        [(line.get_color(), line.get_marker()) for line in axes.get_lines()]
        for axes in (losses, variants)
    ]
    assert looks[0][0] == looks[1][0]
    assert len({look for panel in looks for look in panel}) == 4


def test_few_checkpoints_are_ticked_one_by_one_and_many_are_not():
    few = figures.accuracy_curves(CURVES, styles=figures.LOSS_STYLES).axes[0]
    assert few.get_xticks().tolist() == [0, 20, 40]
    longer = [CURVES.assign(step=CURVES["step"] + 60 * i) for i in range(4)]
    many = figures.accuracy_curves(pd.concat(longer), styles=figures.LOSS_STYLES)
    assert len(many.axes[0].get_xticks()) < 12


def test_without_panels_there_is_one_chart():
    curves = CURVES[CURVES["panel"] == "losses"].drop(columns="panel")
    assert len(figures.accuracy_curves(curves, styles=figures.LOSS_STYLES).axes) == 1


def test_sizes_are_on_a_log_axis_and_before_is_hollow():
    chart = figures.size_curves(SIZES)
    (axes,) = chart.axes
    assert axes.get_xscale() == "log"
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["80k", "300k", "1.2M"]
    assert labels(chart.legends[0]) == [
        "instruction-tuned start, before",
        "instruction-tuned start, after",
        "raw start, before",
        "raw start, after",
    ]
    faces = [line.get_markerfacecolor() for line in axes.get_lines()]
    assert faces.count("white") == 2


def test_points_have_their_interval_and_the_fit_its_band():
    (axes,) = figures.size_curves(SIZES).axes
    container = axes.containers[1]  # instruction-tuned, after
    segments = container[2][0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments][0], [0.25, 0.34])
    np.testing.assert_allclose(bands(axes)[1], (0.29, 0.5))


def test_one_size_has_points_and_no_line():
    one = SIZES[SIZES["size"] == 8e4].assign(fit=math.nan, fit_low=math.nan)
    (axes,) = figures.size_curves(one.assign(fit_high=math.nan)).axes
    assert len(axes.containers) == 4
    assert bands(axes) == []


@pytest.mark.parametrize(
    ("draw", "frame"),
    (
        (figures.size_curves, SIZES),
        (lambda c: figures.accuracy_curves(c, styles=figures.LOSS_STYLES), CURVES),
    ),
)
def test_a_missing_column_and_an_empty_table_are_named(draw, frame):
    with pytest.raises(ValueError, match="missing columns .*accuracy"):
        draw(frame.drop(columns="accuracy"))
    with pytest.raises(ValueError, match="no rows to draw"):
        draw(frame.head(0))
