"""Claims about the figures: what they draw, and that saving them is reproducible."""

import json
import math
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cotspec import alignment, profiles
from cotspec.figures import pipeline, results, style, tokens
from cotspec.teacher.studies import KINDS

TRACE = {
    "token_bytes": [b"If", b" $5", b".\n", b"\xe2\x82"],
    "token_logprobs": np.log([0.1, 0.75, 0.9, 1]).tolist(),
    "topk_bytes": [[b"If", b"Nat"], [b" $5", b" 5"], [b".", b".\n"], [b"\xe2\x82"]],
    "topk_logprobs": [*np.log([[0.1, 0.5], [0.75, 0.2], [0.05, 0.9]]).tolist(), [0.0]],
}
ALTERNATIVES = tokens.top_alternatives(TRACE)
SPAN = "side token start end rule".split()
RESULTS = pd.DataFrame(
    {
        "task": ["gsm8k", "bbh/navigate"] * 2,
        "prompt_mode": ["zero_shot_answer_only", "answer_only"] * 2,
        "step": [0, 0, 60, 60],
        "accuracy": [0.1, 0.1, 0.3, 0.3],
        "chance": [np.nan, 0.5] * 2,
    }
)
GROUPS = {"in-distribution": ["gsm8k"], "generic": ["bbh/navigate"]}
METRICS = pd.DataFrame(
    [(1, 0.1, 3.0, 1e-4), (2, 0.2, 2.0, 5e-4), (3, 0.3, 1.5, 2e-4)],
    columns="step epoch loss learning_rate".split(),
).assign(batch="with reasoning")


def committed(name):
    """The data of a figure of the default profile."""
    path = REPOSITORY / "figures" / f"{name}.csv"
    return pd.read_csv(path, keep_default_na=False, na_values=["nan"])


def spans(*rows):
    return pd.DataFrame(rows, columns=SPAN)


FAILURES = committed("02_failures")
STUDY = committed("01_temperature")
PANELS = committed("figure3a")
MATH = "in-distribution"
PATHS = {"across": "generic, CoT", "up": MATH, "chance": 0.2}

# By the figure that holds what is drawn: the function and its options.
CHARTS = {
    "00_pipeline": (pipeline.pipeline_map, {}),
    "01_probability_strip": (tokens.probability_strip, {}),
    "01_temperature": (pipeline.temperature_study, {"used": 0.5}),
    "02_failures": (pipeline.failures_by_steps, {}),
    "02_pass_at_k": (results.pass_at_k, {}),
    "02_right_per_question": (pipeline.right_per_question, {}),
    "03_four_formats": (tokens.four_formats, {}),
    "03_input_lengths": (pipeline.length_histogram, {"limit": 30}),
    "04_rule_shares": (pipeline.rule_shares, {}),
    "04_token_alignment": (tokens.token_alignment, {}),
    "05_loss_curves": (pipeline.loss_curves, {}),
    "05_six_tokens_push": (tokens.logit_pushes, {}),
    "06_accuracy": (results.before_and_after, {"groups": {"math": ["micro/math"]}}),
    "07_paths": (results.ability_paths, PATHS),
    "11_claims": (results.claim_effects, {}),
    "figure1c": (tokens.token_alignment, {}),
    "figure2": (results.curve_panels, {"is_log": True}),
    "figure3a": (results.curve_panels, {"chance": 0.2}),
}


def texts(chart):
    return [text.get_text() for text in chart.findobj(matplotlib.text.Text)]


def save(folder, *, name="05_loss", chart=None, **changes):
    """Save a chart of METRICS with its seed."""
    chart = chart or pipeline.loss_curves(METRICS)
    facts = {"data": METRICS, "caption": "Loss against\n the update."} | changes
    return style.save_figure(chart, folder, name, provenance={"seed": 1}, **facts)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_renders_whole_and_readable_without_pyplot_state(name):
    draw, options = CHARTS[name]
    before = dict(matplotlib.rcParams)
    chart = draw(committed(name), **options)
    assert dict(matplotlib.rcParams) == before
    assert chart._repr_png_().startswith(b"\x89PNG")
    assert 3.3 <= chart.get_figwidth() <= 6.9  # inches: a column, the page
    assert plt.get_fignums() == []
    renderer = FigureCanvasAgg(chart).get_renderer()
    chart.draw(renderer)
    drawn = chart.get_tightbbox(renderer)
    assert drawn.x0 >= -0.01 and drawn.x1 <= chart.get_figwidth() + 0.01
    assert drawn.y0 >= -0.01 and drawn.y1 <= chart.get_figheight() + 0.01
    written = [t for t in chart.findobj(matplotlib.text.Text) if t.get_text()]
    assert written and min(text.get_fontsize() for text in written) >= 5  # points


def test_every_format_rule_and_kind_has_a_look_of_its_own():
    rules = [rule.name.lower() for rule in alignment.Rule]
    kinds = (style.FORMAT_STYLES, style.RULE_STYLES, style.KIND_STYLES)
    for styles, names in zip(kinds, (profiles.DATA_FORMATS, rules, KINDS), strict=True):
        assert list(styles) == list(names)
        looks = styles.values()
        assert len({look.colour for look in looks}) == len(names)
        assert len({look.marker + look.hatch for look in looks}) == len(names)


def test_alternatives_are_ranked_and_drawn_with_spaces_and_dollars_shown():
    first = ALTERNATIVES[ALTERNATIVES["position"] == 0]
    assert first["alternative"].tolist() == ["Nat", "If"]
    assert first["is_sampled"].tolist() == [False, True]
    assert np.allclose(first["probability"], [0.5, 0.1])
    shown = texts(tokens.probability_strip(ALTERNATIVES))
    assert {"␣$5", ".↵", "\\xe2\\x82"} <= set(shown)  # half a character: its bytes


SLASH = spans(
    ("teacher", "48", 0, 2, ""),
    ("teacher", "/", 2, 3, ""),
    ("teacher", "2", 3, 4, ""),
    ("student", "▁48", 0, 2, "identical"),
    ("student", "/2", 2, 4, "starts_together"),
)
FOLDED = spans(
    ("teacher", "\n", 0, 1, ""),
    ("teacher", "In", 1, 3, ""),
    ("student", "▁In", 1, 3, "same_span"),
)


@pytest.mark.parametrize(
    ("rows", "pairs", "num_lines"),
    [(SLASH, None, 3), (SLASH, [(0, 0), (2, 1)], 2), (FOLDED, None, 1)],
)
def test_tokens_are_joined_where_they_share_letters_or_as_given(rows, pairs, num_lines):
    (axes,) = tokens.token_alignment(rows, pairs=pairs).axes
    assert len(axes.lines) == num_lines


def test_a_long_alignment_wraps_where_no_token_and_no_given_pair_is_cut():
    rows = [("teacher", "ab", 2 * i, 2 * i + 2, "") for i in range(100)]
    halves = range(0, 200, 4)
    rows += [("student", "abab", i, i + 4, "starts_together") for i in halves]
    (axes,) = tokens.token_alignment(spans(*rows)).axes
    assert len(axes.lines) == 100  # no pair was torn apart
    assert all(p.get_x() + p.get_width() <= style.FULL_WIDTH for p in axes.patches)
    places = [("word", 4 * i, 4 * i + 4) for i in range(40)]
    long = [("teacher", *place, "") for place in places]
    long += [("student", *place, "not_one_to_one") for place in places]
    across = [(i, min(i + 1, 39)) for i in range(0, 40, 2)]
    (axes,) = tokens.token_alignment(spans(*long), pairs=across).axes
    assert len(axes.lines) == 20
    assert all(max(line.get_xdata()) <= style.FULL_WIDTH for line in axes.lines)


def test_each_cell_of_a_cost_matrix_holds_its_distance():
    matrix = pd.DataFrame([[0, 4], [3, 2]], index=["a", "b"], columns=["a", "s"])
    assert texts(tokens.cost_matrix(matrix, [(0, 0), (1, 1)]))[:4] == list("0432")


@pytest.mark.parametrize("share", [0.0005, 0.0])
def test_a_kind_that_no_bar_shows_is_not_in_the_legend(share):
    shares = FAILURES.assign(share=share)
    shares.loc[shares["kind"] == "right", "share"] = 1 - share
    chart = pipeline.failures_by_steps(shares)
    assert [text.get_text() for text in chart.legends[0].get_texts()] == ["right"]


def test_effects_are_drawn_in_points_and_other_units_are_written():
    columns = "claim condition effect ci_low ci_high unit status".split()
    rows = [
        ("C1", "small", 0.2, 0.1, 0.3, "points", "met"),
        ("C3", "falls", -0.3, -0.4, -0.2, "points", "opposite"),
        ("C7", "a long condition " * 9, 0.012, 0.01, 0.014, "nats", "open"),
    ]
    chart = results.claim_effects(pd.DataFrame(rows, columns=columns))
    points = [line for line in chart.axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_marker() for line in points] == ["o", "X"]
    assert [float(*line.get_xdata()) for line in points] == pytest.approx([20, -30])
    assert any("open: +0.012 [+0.01, +0.014] nats" in text for text in texts(chart))


def test_curves_stand_in_their_panels_with_one_legend_and_the_line_of_chance():
    chart = results.curve_panels(PANELS, chance=0.99)
    titles = [axes.get_title("left") for axes in chart.axes]
    assert titles == list(PANELS["panel"].unique())
    (legend,) = chart.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*PANELS["series"].unique(), "chance, generic"]
    line = next(line for line in chart.axes[0].lines if line.get_label() == MATH)
    curve = PANELS[(PANELS["panel"] == titles[0]) & (PANELS["series"] == MATH)]
    assert line.get_ydata() == pytest.approx(curve["value"])
    assert chart.axes[0].get_ylim() == pytest.approx((0, 1.08 * 0.99 + 1e-3))
    below = results.curve_panels(PANELS.assign(low=-0.4), ylabel="points")
    assert below.axes[0].get_ylim()[0] < -0.4
    margin = results.curve_panels(PANELS.assign(series="within 5 points, as C7 asks"))
    assert len(margin.legends[0].get_patches()) == 1  # a band, no line


@pytest.mark.parametrize(("num_points", "marker"), [(5, "o"), (32, "None")])
def test_a_curve_of_many_points_has_no_markers(num_points, marker):
    x = range(num_points)
    curve = pd.DataFrame({"x": x, "value": 1.0, "low": 0.9, "high": 1.1})
    curve = curve.assign(panel="training", series="distribution matching")
    (line,) = results.curve_panels(curve).axes[0].lines
    assert line.get_marker() == marker


def test_the_bars_of_right_solutions_add_up_and_leave_no_count_out():
    counts = [(0, "1", 10), (2, "1", 30), (2, "2", 4)]
    counts = pd.DataFrame(counts, columns="right steps questions".split())
    chart = pipeline.right_per_question(counts)
    (axes,) = chart.axes
    one, two = (container.datavalues.tolist() for container in axes.containers)
    assert (one, two) == ([10, 0, 30], [0, 0, 4])
    assert {"10", "0", "34"} <= set(texts(chart))


def test_example_parts_join_to_the_inputs_and_targets_and_long_ones_are_cut():
    one = {"inputs": "Q: 1+1?\nA: The answer is 2.\n\nQ: 2+2?\nA:"}
    one |= {"data_format": "zero_shot_answer_only"}
    one |= {"targets": "It costs $2 and $2. The answer is 4."}
    parts = tokens.example_parts([one])
    names = ["demonstrations", "question", "rationale", "answer"]
    assert parts["part"].tolist() == names
    assert parts["text"].tolist()[2:] == ["It costs $2 and $2. ", "The answer is 4."]
    assert "".join(parts["text"][:2]) == one["inputs"] + "\n"
    long = parts.assign(text=parts["text"].str.replace("1+1?", "word " * 300))
    assert any("more lines" in text for text in texts(tokens.four_formats(long)))


def outcomes(after=0.3, gain_low=0.1, gain_high=0.3):
    accuracy = RESULTS["accuracy"].where(RESULTS["step"] == 0, after)
    ends = {"ci_low": accuracy - 0.04, "ci_high": accuracy + 0.04}
    ends |= {"gain_low": gain_low, "gain_high": gain_high}
    return RESULTS.assign(accuracy=accuracy, **ends)


def drawn_changes(rows):
    axes = results.before_and_after(rows, GROUPS).axes
    return [[line for line in one.lines if len(line.get_xdata()) == 2] for one in axes]


@pytest.mark.parametrize(
    ("after", "way"), [(0.16, "rose"), (0.12, "either"), (0.01, "fell")]
)
def test_a_line_joins_before_and_after_and_says_whether_the_change_is_clear(after, way):
    gain = after - 0.1
    _, answers, *_ = drawn_changes(outcomes(after, gain - 0.05, gain + 0.05))
    joined, before, end = ([round(x, 2) for x in line.get_xdata()] for line in answers)
    assert joined == [0.1, after]
    assert before == [0.06, 0.14]
    assert end == [round(after - 0.04, 2), round(after + 0.04, 2)]
    assert answers[0].get_color() == style.CHANGE_STYLES[way].colour


def test_reasoning_is_left_and_bare_answers_right_and_guessing_a_line():
    reasoned = outcomes().assign(prompt_mode="in_context_chain_of_thought")
    for rows, is_left in ((outcomes(), False), (reasoned, True)):
        drawn = [bool(lines) for lines in drawn_changes(rows)]
        assert drawn == [is_left, not is_left] * 2
    chart = results.before_and_after(outcomes(), GROUPS)
    *_, generic = (axes.collections for axes in chart.axes)
    assert generic[0].get_segments()[0][:, 0].tolist() == [0.5, 0.5]


def test_a_saved_figure_is_four_files_with_the_same_bytes_every_time(tmp_path):
    for wrong in ({"caption": " "}, {"data": METRICS.head(0)}):
        with pytest.raises(ValueError, match="figure '05_loss': empty"):
            save(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []
    chart = pipeline.loss_curves(METRICS)
    one, two = (save(tmp_path / name, chart=chart) for name in ("one", "two"))
    names = [f"05_loss.{suffix}" for suffix in ("csv", "json", "png", "svg")]
    for suffix, path in one.items():
        assert sorted(p.name for p in path.parent.iterdir()) == names
        assert path.read_bytes() == two[suffix].read_bytes()
    pixels = plt.imread(one["png"]).shape[1]
    assert pixels == round(chart.get_figwidth() * 200)  # dots per inch
    pd.testing.assert_frame_equal(pd.read_csv(one["csv"]), METRICS)
    described = json.loads(one["json"].read_text())
    assert described["caption"] == "Loss against the update."
    assert described["provenance"] == {"seed": 1}


def test_a_last_bit_of_layout_changes_nothing_in_the_svg(tmp_path):
    written = []
    for left in (0.1, math.nextafter(0.1, 1)):
        figure = Figure()
        axes = figure.add_axes((left, 0.1, 0.8, 0.8))
        axes.plot([0, 1], [0, 1], marker="o")
        axes.bar([0], [1], hatch="//")
        written.append(save(tmp_path, name="bit", chart=figure)["svg"].read_text())
    assert written[0] == written[1]
    defined = re.findall(r'id="([^"]*)"', written[0])
    used = re.findall(r"(?:url\(|href=\")#([^)\"]*)", written[0])
    assert len(set(defined)) == len(defined)
    assert used and set(used) <= set(defined)
    assert any(name.startswith("p-bit-") for name in used)


def test_curves_of_temperatures_pass_through_the_values_beside_the_runs_own():
    chart = pipeline.temperature_study(STUDY, used=0.5)
    accuracy, diversity = chart.axes
    assert [len(axes.containers) for axes in (accuracy, diversity)] == [3, 2]
    line, _, (bars,) = accuracy.containers[0].lines
    curve = STUDY[STUDY["measure"] == accuracy.containers[0].get_label()]
    assert line.get_ydata() == pytest.approx(curve["value"])
    drawn = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(drawn, curve[["ci_low", "ci_high"]])
    assert "this run: 0.5" in texts(chart)


def test_parts_of_a_bar_add_up_to_the_whole_and_its_label_says_of_how_many():
    chart = pipeline.failures_by_steps(FAILURES)
    widths = [bar.get_width() for bar in chart.axes[0].patches if bar.get_y() < 0]
    first = FAILURES[FAILURES["steps"] == FAILURES["steps"].iloc[0]]
    assert sum(widths) == pytest.approx(1, abs=1e-5)
    name, questions = first[["steps", "num_questions"]].iloc[0]
    assert f"{name}  ({questions} q., {first['count'].sum():,} sol.)" in texts(chart)


def test_a_loss_has_a_panel_with_a_bar_per_token():
    pushes = committed("05_six_tokens_push")
    panels = [axes for axes in tokens.logit_pushes(pushes).axes if axes.get_visible()]
    losses = pushes.groupby("loss", sort=False)["push"]
    for axes, (name, bars) in zip(panels, losses, strict=True):
        assert axes.get_title(loc="left") == style.OBJECTIVE_STYLES[name].label
        heights = sorted(bar.get_height() for bar in axes.patches)
        assert heights == pytest.approx(sorted(bars))


def test_the_map_joins_every_box_to_those_below_it_and_leads_a_line_past_one():
    axes = pipeline.pipeline_map(pipeline.SERIES).axes[0]
    arrows = [t.xy for t in axes.texts if getattr(t, "arrow_patch", None)]
    # 00, 01, 02 to one or two; 03 and 04 by one line to 05; 05 to two; two to 11.
    assert len(arrows) == 1 + 1 + 2 + 1 + 2 + 2 + 1
    boxes = [(p.get_x(), p.get_x() + p.get_width(), p.get_y()) for p in axes.patches]
    assert len(boxes) == len(pipeline.SERIES) - 1  # the line past 05 is none
    for left, right, top in boxes[1:]:
        assert any(left < x < right and y == pytest.approx(top) for x, y in arrows)
    assert {"training questions", "answers"} <= set(texts(axes))


def test_the_loss_of_answers_alone_is_a_curve_and_updates_are_also_told_in_epochs():
    alone = METRICS.assign(batch=["with reasoning", "answers alone", "with reasoning"])
    left, right = pipeline.loss_curves(alone).axes
    assert [list(line.get_xdata()) for line in left.lines] == [[1, 3], [2]]
    assert [list(line.get_xdata()) for line in right.lines] == [[1, 2, 3]]
    [above] = left.child_axes
    assert above.get_xlabel() == "epoch"
    assert above._functions[0](30) == pytest.approx(3)


def test_a_limit_far_beyond_the_lengths_does_not_stretch_the_axis():
    one, other, *_ = profiles.DATA_FORMATS
    lengths = pd.DataFrame({"kind": [one, one, other], "length": [4, 9, 30]})
    near = pipeline.length_histogram(lengths, limit=30).axes[0]
    far = pipeline.length_histogram(lengths, limit=3000).axes[0]
    assert far.get_xlim()[1] < 60 and "limit 3,000 →" in texts(far)
    assert "limit 30" in texts(near.figure)
