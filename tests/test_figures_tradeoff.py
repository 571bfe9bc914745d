"""Claims about the charts of notebooks 07 and 08."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from cotspec import figures

CURVES = pd.DataFrame(
    [
        (name, step, accuracy, accuracy - 0.03, accuracy + 0.04)
        for name, values in {
            "in-distribution": (0.2, 0.35, 0.5, 0.55),
            "out of distribution": (0.15, 0.3, 0.35, 0.28),
            "generic CoT": (0.45, 0.2, 0.05, 0.0),
            "generic answer-only": (0.5, 0.4, 0.3, 0.25),
        }.items()
        for step, accuracy in zip((0, 20, 40, 60), values, strict=True)
    ],
    columns=["ability", "step", "accuracy", "low", "high"],
)
CHOICES = pd.DataFrame(
    [
        ("in-distribution", 0, 60),
        ("in-distribution", 1, 60),
        ("in-distribution", 2, 40),
        ("out of distribution", 0, 40),
        ("out of distribution", 1, 20),
        ("out of distribution", 2, 40),
    ],
    columns=["chosen_by", "seed", "step"],
)
MODES = [name for name in figures.FORMAT_STYLES]
MATRIX = pd.DataFrame(
    [
        (name, mode, accuracy, accuracy - 0.1, accuracy - 0.105, accuracy - 0.095)
        for i, name in enumerate(figures.TRAINED_ON)
        for mode, accuracy in zip(MODES, (0.11 * i, 0.3, 0.05, 0.12), strict=True)
    ],
    columns=["data_formats", "prompt_mode", "accuracy", "change", "ci_low", "ci_high"],
)


def texts(chart):
    return [text.get_text() for text in chart.findobj(matplotlib.text.Text)]


def test_every_ability_is_a_line_in_the_panel_of_its_kind():
    chart = figures.ability_curves(CURVES, CHOICES)
    math, generic, _ = chart.axes
    assert (math.get_title("left"), generic.get_title("left")) == (
        "math",
        "generic tasks",
    )
    line = math.get_legend_handles_labels()[0][0]
    assert line.get_ydata().tolist() == [0.2, 0.35, 0.5, 0.55]


def test_the_band_joins_lowest_and_highest_seed():
    chart = figures.ability_curves(CURVES, CHOICES)
    band = chart.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.17, 0.59))


def test_each_choice_is_marked_with_the_seeds_that_make_it():
    shown = texts(figures.ability_curves(CURVES, CHOICES))
    assert sorted(text for text in shown if text.startswith("×")) == [
        "×1",
        "×1",
        "×2",
        "×2",
    ]


def test_curves_without_choices_or_generic_tasks_are_drawn():
    is_math = CURVES["ability"].isin(["in-distribution", "out of distribution"])
    chart = figures.ability_curves(CURVES[is_math], CHOICES.head(0))
    assert len(chart.axes) == 2
    with pytest.raises(ValueError, match="ability_curves: no rows to draw"):
        figures.ability_curves(CURVES.head(0), CHOICES)


def test_the_matrix_writes_accuracy_and_change_but_no_change_for_the_start():
    shown = texts(figures.format_matrix(MATRIX))
    assert "0.0%" in shown and "30.0%" in shown
    assert shown.count("30.0%\n(+20.0)") == 5


def test_a_change_whose_interval_holds_zero_is_not_bold():
    flat = MATRIX.assign(ci_low=-0.1, ci_high=0.1)
    weights = {}
    for name, matrix in (("clear", MATRIX), ("flat", flat)):
        chart = figures.format_matrix(matrix)
        weights[name] = {
            text.get_fontweight()
            for text in chart.axes[0].texts
            if "\n" in text.get_text()
        }
    assert weights == {"clear": {"bold"}, "flat": {"normal"}}


def test_the_matrix_keeps_its_order_and_unknown_formats_come_last():
    shuffled = MATRIX.sample(frac=1, random_state=0)
    other = MATRIX.head(4).assign(data_formats="a,b")
    chart = figures.format_matrix(pd.concat([other, shuffled]))
    labels = [label.get_text() for label in chart.axes[0].get_yticklabels()]
    assert labels == [*figures.TRAINED_ON.values(), "a,b"]


def test_a_mode_that_was_not_measured_is_an_empty_cell():
    chart = figures.format_matrix(MATRIX.iloc[1:])
    assert np.isnan(chart.axes[0].images[0].get_array().filled(np.nan)[0, 0])


@pytest.mark.parametrize("width", [3.3, 6.9])
def test_both_charts_render_at_column_and_page_width(width):
    for chart in (
        figures.ability_curves(CURVES, CHOICES, width=width),
        figures.format_matrix(MATRIX, width=width),
    ):
        assert chart._repr_png_().startswith(b"\x89PNG")


def luminance(colour):
    """WCAG 2.2's relative luminance."""
    channels = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_every_number_of_the_matrix_can_be_read_on_its_cell():
    shades = MATRIX.assign(accuracy=np.linspace(0, 1, len(MATRIX)))
    axes = figures.format_matrix(shades).axes[0]
    image = axes.images[0]
    for text in axes.texts:
        column, row = text.get_position()
        cell = image.to_rgba(image.get_array()[row, column])[:3]
        dark, light = sorted(luminance(c) for c in (cell, text.get_color()))
        assert (light + 0.05) / (dark + 0.05) > 4.4
