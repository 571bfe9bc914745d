"""Claims about the figures: what they draw, and that saving them is reproducible."""

import json
import math
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cotspec import alignment, figures, profiles
from cotspec.alignment import table as targets
from cotspec.figures import style
from cotspec.teacher.studies import KINDS

TRACE = {
    "token_bytes": [b"If", b" $5", b".\n"],
    "token_logprobs": np.log([0.1, 0.75, 0.9]).tolist(),
    "topk_bytes": [[b"If", b"Nat"], [b" $5", b" 5"], [b".", b".\n"]],
    "topk_logprobs": np.log([[0.1, 0.5], [0.75, 0.2], [0.05, 0.9]]).tolist(),
}


def frame(columns, rows):
    return pd.DataFrame(rows, columns=columns.split())


SPAN = "side token start end rule"
SPANS = frame(
    SPAN,
    [
        ("teacher", "48", 0, 2, ""),
        ("teacher", "/", 2, 3, ""),
        ("teacher", "2", 3, 4, ""),
        ("student", "▁48", 0, 2, "identical"),
        ("student", "/2", 2, 4, "starts_together"),
    ],
)
ALL_RULES = frame(
    SPAN,
    [
        (side, "word", 4 * i, 4 * i + 4, rule if side == "student" else "")
        for i, rule in enumerate(style.RULE_STYLES)
        for side in ("teacher", "student")
    ],
)
ASKED = {
    "gsm8k": "zero_shot_answer_only",
    "svamp": "zero_shot_answer_only",
    "bbh/navigate": "answer_only",
}
RESULTS = frame(
    "task prompt_mode step accuracy ci_low ci_high gain_low gain_high",
    [
        (task, mode, step, accuracy, accuracy - 0.05, accuracy + 0.05, 0.1, 0.3)
        for task, mode in ASKED.items()
        for step, accuracy in ((0, 0.1), (60, 0.3))
    ],
)
GROUPS = {"in-distribution": ["gsm8k"], "generic": ["bbh/navigate"]}
METRICS = frame(
    "step epoch loss batch learning_rate",
    [
        (1, 0.1, 3.0, "with reasoning", 1e-4),
        (2, 0.2, 2.0, "with reasoning", 5e-4),
        (3, 0.3, 1.5, "with reasoning", 2e-4),
    ],
)
PARTS = figures.example_parts(
    {
        "data_format": name,
        "inputs": "Q: 1+1?\nA: The answer is 2.\n\nQ: 2+2?\nA:",
        "targets": "It costs $2 and $2. The answer is 4.",
    }
    for name in profiles.DATA_FORMATS
)
COUNTS = frame("right steps questions", [(0, "1", 10), (2, "1", 30), (2, "2", 4)])
SHARES = frame("method rule share", [("a", "identical", 0.75), ("a", "inside", 0.25)])
CURVES = frame(
    "series k accuracy ci_low ci_high",
    [("t", 1, 0.2, 0.1, 0.3), ("t", 2, 0.3, 0.2, 0.4), ("t", 4, 0.5, 0.4, 0.6)],
)
CONDITIONS = frame(
    "claim condition effect ci_low ci_high unit status",
    [
        ("C1", "small", 0.2, 0.1, 0.3, "points", "met"),
        ("C3", "falls", -0.3, -0.4, -0.2, "points", "opposite"),
        ("C7", "a long condition " * 9, 0.012, 0.01, 0.014, "nats", "open"),
    ],
)
PANELS = frame(
    "panel series x value low high",
    [
        (panel, series, x, 0.1 * x, 0.1 * x - 0.05, 0.1 * x + 0.05)
        for panel in ("left", "right")
        for series in ("raw", "after", "my own")
        for x in (1, 2, 3)
    ],
)
PATHS = PANELS.drop(columns=["low", "high"])
LENGTHS = frame("kind length", [("right", 4), ("right", 9), ("wrong", 30)])
MEASURES = {
    ("accuracy", "one sample"): (0.7, 0.4),
    ("accuracy", "majority of 8"): (0.75, 0.6),
    ("accuracy", "any of 8"): (0.8, 0.9),
    ("diversity", "different texts"): (0.3, 0.9),
    ("diversity", "different answers"): (0.2, 0.6),
}
STUDY = frame(
    "temperature group measure value ci_low ci_high",
    [
        (t, *named, value, value - 0.1, value + 0.1)
        for named, values in MEASURES.items()
        for t, value in zip((0.2, 1.0), values, strict=True)
    ],
)
FAILURES = frame(
    "steps kind count share num_questions",
    [(n, kind, 2, 1 / len(KINDS), 7) for n in ("1", "2", "6+", "?") for kind in KINDS],
)
PUSHES = frame(
    "loss token push",
    [(n, t, p) for n in style.OBJECTIVE_STYLES for t, p in (("a", 0.4), ("b", -1))],
)
SHAPES = frame(
    "loss probability nats",
    [("bucket", 0.2, 0.5), ("bucket", 0.6, 0.0), ("bucket", 0.9, 0.3)],
)
STEPS = frame(
    "level width notebook step leaves",
    [
        (0, 1.0, "00", "problems", "questions | answers"),
        (1, 0.5, "03", "texts", "pairs"),
        (1, 0.5, "04", "targets", ""),
        (2, 0.9, "05", "student", "checkpoints"),
        (2, 0.1, "", "", ""),
        (3, 0.4, "06", "test", ""),
        (3, 0.6, "07–10", "price", "effects"),
    ],
)
ALTERNATIVES = figures.top_alternatives(TRACE)

# By what is drawn: the function, what it draws, its options.
CHARTS = {
    "strip": (figures.probability_strip, ALTERNATIVES, {}),
    "alignment": (figures.token_alignment, SPANS, {}),
    "all rules": (figures.token_alignment, ALL_RULES, {}),
    "formats": (figures.four_formats, PARTS, {}),
    "right": (figures.right_per_question, COUNTS, {}),
    "rule shares": (figures.rule_shares, SHARES, {}),
    "pipeline": (figures.pipeline_map, STEPS, {}),
    "losses": (figures.loss_curves, METRICS, {}),
    "lengths": (figures.length_histogram, LENGTHS, {"limit": 30}),
    "accuracy": (figures.before_and_after, RESULTS, {"groups": GROUPS}),
    "effects": (figures.claim_effects, CONDITIONS, {}),
    "curves": (figures.curve_panels, PANELS, {"chance": 0.2}),
    "paths": (figures.ability_paths, PATHS, {"across": "raw", "up": "after"}),
    "sizes": (figures.curve_panels, PANELS.iloc[:4], {"is_log": True}),
    "pass at k": (figures.pass_at_k, CURVES, {}),
    "temperatures": (figures.temperature_study, STUDY, {"used": 0.5}),
    "failures": (figures.failures_by_steps, FAILURES, {}),
    "pushes": (figures.logit_pushes, PUSHES, {}),
    "shapes": (figures.loss_shapes, SHAPES, {"teacher": 0.6}),
}


def texts(chart):
    return [text.get_text() for text in chart.findobj(matplotlib.text.Text)]


def save(folder, *, name="05_loss", caption="Loss against\n the update.", chart=None):
    """Save a chart of METRICS with its seed."""
    chart = chart or figures.loss_curves(METRICS)
    facts = {"data": METRICS, "caption": caption, "provenance": {"seed": 1}}
    return figures.save_figure(chart, folder, name, **facts)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_renders_whole_and_readable_without_pyplot_state(name):
    draw, frame, options = CHARTS[name]
    chart = draw(frame, **options)
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


@pytest.mark.parametrize("name", CHARTS)
def test_a_frame_it_cannot_draw_is_an_error_naming_chart_and_column(name):
    draw, frame, options = CHARTS[name]
    for other in (frame.drop(columns=frame.columns[-1]), frame.head(0)):
        message = rf"{draw.__name__}: needs rows of .* got {len(other)} rows of \["
        with pytest.raises(ValueError, match=message):
            draw(other, **options)


def test_drawing_leaves_the_callers_settings_alone():
    before = dict(matplotlib.rcParams)
    figures.loss_curves(METRICS)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("styles", "names"),
    [
        (style.FORMAT_STYLES, profiles.DATA_FORMATS),
        (style.RULE_STYLES, tuple(rule.name.lower() for rule in alignment.Rule)),
        (style.KIND_STYLES, KINDS),
    ],
)
def test_every_format_rule_and_kind_has_a_look_of_its_own(styles, names):
    assert tuple(styles) == names
    assert len({(look.colour, look.hatch) for look in styles.values()}) == len(names)


def test_each_data_format_has_its_own_okabe_ito_colour_and_marker():
    looks = style.FORMAT_STYLES.values()
    assert len({look.marker for look in looks}) == 4
    okabe_ito = style.BLUE, style.SKY_BLUE, style.VERMILLION, style.ORANGE
    assert tuple(look.colour for look in looks) == okabe_ito


def test_alternatives_are_ranked_and_the_sampled_one_is_marked():
    first = ALTERNATIVES[ALTERNATIVES["position"] == 0]
    assert first["alternative"].tolist() == ["Nat", "If"]
    assert first["is_sampled"].tolist() == [False, True]
    assert np.allclose(first["probability"], [0.5, 0.1])


def test_the_strip_shows_spaces_newlines_and_dollars_literally():
    shown = texts(figures.probability_strip(ALTERNATIVES))
    assert "␣$5" in shown and ".↵" in shown


def test_a_token_that_is_half_a_character_is_shown_as_bytes():
    trace = TRACE | {"token_bytes": [b"\xe2\x82", b" $5", b".\n"]}
    assert figures.top_alternatives(trace)["sampled"][0] == "\\xe2\\x82"


def test_the_strip_wraps_after_its_columns():
    four = figures.top_alternatives({name: 4 * TRACE[name] for name in TRACE})
    one_row, two_rows = (
        figures.probability_strip(four[four["position"] < n]) for n in (9, 10)
    )
    assert two_rows.get_figheight() > 1.5 * one_row.get_figheight()


def test_a_student_token_is_joined_to_every_teacher_token_under_it():
    (axes,) = figures.token_alignment(SPANS).axes
    assert len(axes.lines) == 3  # 48–48, / and 2 to /2


def test_pairs_are_joined_where_they_are_given_and_no_row_cuts_one():
    (axes,) = figures.token_alignment(SPANS, pairs=[(0, 0), (2, 1)]).axes
    assert len(axes.lines) == 2
    long = [
        (side, "word", 4 * i, 4 * i + 4, rule)
        for side, rule in (("teacher", ""), ("student", "not_one_to_one"))
        for i in range(40)
    ]
    across = [(i, min(i + 1, 39)) for i in range(0, 40, 2)]
    (axes,) = figures.token_alignment(frame(SPAN, long), pairs=across).axes
    assert len(axes.lines) == 20
    assert all(max(line.get_xdata()) <= style.FULL_WIDTH for line in axes.lines)


def test_each_cell_of_a_cost_matrix_holds_its_distance():
    matrix = pd.DataFrame([[0, 4], [3, 2]], index=["a", "b"], columns=["a", "s"])
    assert texts(figures.cost_matrix(matrix, [(0, 0), (1, 1)]))[:4] == list("0432")


@pytest.mark.parametrize("share", [0.0005, 0.0])
def test_a_kind_that_no_bar_shows_is_not_in_the_legend(share):
    shares = FAILURES.assign(share=share)
    shares.loc[shares["kind"] == "right", "share"] = 1 - share
    chart = figures.failures_by_steps(shares)
    assert [text.get_text() for text in chart.legends[0].get_texts()] == ["right"]


@pytest.mark.parametrize(("num", "ticks"), [(5, "12345"), (10, "1248")])
def test_few_samples_are_marked_one_by_one_many_by_powers_of_two(num, ticks):
    curve = frame(
        " ".join(CURVES), [("t", k, 0.5, 0.4, 0.6) for k in range(1, num + 1)]
    )
    (axes,) = figures.pass_at_k(curve).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(ticks)


def test_a_long_alignment_wraps_only_where_both_sides_have_a_boundary():
    starts = range(0, 200, 4)
    tokens = [("teacher", "ab", 2 * i, 2 * i + 2, "") for i in range(100)]
    tokens += [("student", "abab", i, i + 4, "starts_together") for i in starts]
    chart = figures.token_alignment(frame(SPAN, tokens))
    (axes,) = chart.axes
    assert len(axes.lines) == 100  # no pair was torn apart
    right = max(p.get_x() + p.get_width() for p in axes.patches)
    assert right <= chart.get_figwidth()


def test_a_student_token_on_folded_whitespace_is_joined_to_the_word_alone():
    spans = [
        ("teacher", "\n", 0, 1, ""),
        ("teacher", "In", 1, 3, ""),
        ("student", "▁In", 1, 3, "same_span"),
    ]
    (axes,) = figures.token_alignment(frame(SPAN, spans)).axes
    assert len(axes.lines) == 1


def test_effects_are_drawn_in_points_and_other_units_are_written():
    chart = figures.claim_effects(CONDITIONS)
    drawn = [
        (line.get_marker(), round(float(line.get_xdata()[0]), 6))
        for line in chart.axes[0].lines
        if line.get_marker() != "None" and len(line.get_xdata())
    ]
    assert drawn == [("o", 20.0), ("X", -30.0)]
    assert any("+0.012 [+0.010, +0.014] nats" in text for text in texts(chart))


def test_curves_stand_in_their_panels_with_one_legend_and_the_line_of_chance():
    chart = figures.curve_panels(PANELS, chance=0.2)
    assert [axes.get_title("left") for axes in chart.axes] == ["left", "right"]
    (legend,) = chart.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["raw", "after", "my own", "chance, generic"]
    line = next(line for line in chart.axes[0].lines if line.get_label() == "after")
    assert line.get_ydata() == pytest.approx([0.1, 0.2, 0.3])
    assert chart.axes[0].get_ylim()[0] == 0
    below = figures.curve_panels(PANELS.assign(low=-0.4), ylabel="points")
    assert below.axes[0].get_ylim()[0] < -0.4


def test_the_bars_of_right_solutions_add_up_and_leave_no_count_out():
    chart = figures.right_per_question(COUNTS)
    (axes,) = chart.axes
    one, two = (container.datavalues.tolist() for container in axes.containers)
    assert (one, two) == ([10, 0, 30], [0, 0, 4])
    assert {"10", "0", "34"} <= set(texts(chart))


def test_example_parts_join_to_the_inputs_and_targets():
    one = PARTS[PARTS["data_format"] == "zero_shot_answer_only"]
    assert one["part"].tolist() == ["demonstrations", "question", "rationale", "answer"]
    assert one["text"].tolist()[2:] == ["It costs $2 and $2. ", "The answer is 4."]
    assert "".join(one["text"][:2]) == ("Q: 1+1?\nA: The answer is 2.\n\nQ: 2+2?\nA:\n")


def test_long_demonstrations_are_cut_and_the_cut_is_counted():
    long = PARTS.assign(text=PARTS["text"].str.replace("1+1?", "word " * 300))
    shown = texts(figures.four_formats(long))
    assert any("more lines" in text for text in shown)


def drawn_changes(results):
    chart = figures.before_and_after(results, GROUPS)
    return [
        [line for line in axes.lines if len(line.get_xdata()) == 2]
        for axes in chart.axes
    ]


@pytest.mark.parametrize(
    ("after", "way"), [(0.16, "rose"), (0.12, "either"), (0.01, "fell")]
)
def test_a_line_joins_before_and_after_and_says_whether_the_change_is_clear(after, way):
    changed = RESULTS["accuracy"].where(RESULTS["step"] == 0, after)
    ends = {"ci_low": changed - 0.04, "ci_high": changed + 0.04}
    ends |= {"gain_low": changed - 0.15, "gain_high": changed - 0.05}  # overlap: clear
    _, answers, *_ = drawn_changes(RESULTS.assign(accuracy=changed, **ends))
    joined, before, at_end = (
        [round(x, 2) for x in line.get_xdata()] for line in answers
    )
    assert joined == [0.1, after]
    assert before == [0.06, 0.14]
    assert at_end == [round(after - 0.04, 2), round(after + 0.04, 2)]
    assert answers[0].get_color() == style.CHANGE_STYLES[way].colour


def test_reasoning_is_left_and_bare_answers_right():
    reasoned = RESULTS.assign(prompt_mode="in_context_chain_of_thought")
    for results, is_left in ((RESULTS, False), (reasoned, True)):
        drawn = [bool(lines) for lines in drawn_changes(results)]
        assert drawn == [is_left, not is_left] * 2


def test_guessing_is_a_line_in_the_rows_that_have_it():
    chance = RESULTS["task"].map({"bbh/navigate": 0.5})
    chart = figures.before_and_after(RESULTS.assign(chance=chance), GROUPS)
    *_, generic = (axes.collections for axes in chart.axes)
    assert generic[0].get_segments()[0][:, 0].tolist() == [0.5, 0.5]
    assert "chance" in [text.get_text() for text in chart.legends[0].get_texts()]


def test_a_saved_figure_is_four_files_with_the_same_bytes_every_time(tmp_path):
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        paths = save(folder)
        assert set(paths) == {"png", "svg", "csv", "json"}
        assert {p.name for p in folder.iterdir()} == {f"05_loss.{s}" for s in paths}
        written.append({suffix: path.read_bytes() for suffix, path in paths.items()})
    assert written[0] == written[1]


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


def test_a_saved_figure_carries_its_numbers_and_its_caption(tmp_path):
    chart = figures.loss_curves(METRICS)
    paths = save(tmp_path, chart=chart)
    pixels = plt.imread(paths["png"]).shape[1]
    assert pixels == round(chart.get_figwidth() * 200)  # dots per inch
    pd.testing.assert_frame_equal(pd.read_csv(paths["csv"]), METRICS)
    described = json.loads(paths["json"].read_text())
    assert described["caption"] == "Loss against the update."
    assert described["provenance"] == {"seed": 1}


def test_a_figure_name_with_a_folder_or_no_caption_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"name: '\.\./loss'"):
        save(tmp_path, name="../loss")
    with pytest.raises(ValueError, match="caption: empty"):
        save(tmp_path, caption=" ")
    assert list(tmp_path.iterdir()) == []


def test_curves_of_temperatures_pass_through_the_values_beside_the_runs_own():
    chart = figures.temperature_study(STUDY, used=0.5)
    accuracy, diversity = chart.axes
    assert [len(axes.containers) for axes in (accuracy, diversity)] == [3, 2]
    line = accuracy.containers[0].lines[0]
    assert sorted(line.get_ydata()) == [0.4, 0.7]
    low, high = accuracy.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.6, 0.8))
    assert "this run: 0.5" in texts(chart)


def test_parts_of_a_bar_add_up_to_the_whole_and_its_label_says_of_how_many():
    chart = figures.failures_by_steps(FAILURES)
    widths = [bar.get_width() for bar in chart.axes[0].patches if bar.get_y() < 0]
    assert len(widths) == len(KINDS) and sum(widths) == pytest.approx(1)
    assert "6+  (7 q., 14 sol.)" in texts(chart)


def test_a_loss_has_a_panel_with_a_bar_per_token():
    chart = figures.logit_pushes(PUSHES)
    panels = [axes for axes in chart.axes if axes.get_visible()]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == [look.label for look in style.OBJECTIVE_STYLES.values()]
    for axes in panels:
        assert sorted(bar.get_height() for bar in axes.patches) == [-1, 0.4]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]


def test_the_map_joins_every_box_to_those_below_it_and_leads_a_line_past_one():
    axes = figures.pipeline_map(STEPS).axes[0]
    arrows = [t for t in axes.texts if getattr(t, "arrow_patch", None)]
    # 00 to two, both by one line to 05, 05 to two, the line to the last.
    assert len(arrows) == 2 + 1 + 2 + 1
    boxes = [(p.get_x(), p.get_x() + p.get_width(), p.get_y()) for p in axes.patches]
    assert len(boxes) == 6  # the line past 05 is none
    ends = [arrow.xy for arrow in arrows]
    for left, right, top in boxes[1:]:
        assert any(left < x < right and y == pytest.approx(top) for x, y in ends)
    assert sum(y == pytest.approx(boxes[-1][2]) for _, y in ends) == 3
    shown = texts(axes)
    assert {"questions", "answers", "checkpoints"} <= set(shown)
    assert "effects" not in shown  # nothing below takes it


def test_the_loss_of_answers_alone_has_a_curve_of_its_own():
    alone = METRICS.assign(batch=["with reasoning", "answers alone", "with reasoning"])
    left, right = figures.loss_curves(alone).axes
    assert [list(line.get_xdata()) for line in left.lines] == [[1, 3], [2]]
    assert [list(line.get_xdata()) for line in right.lines] == [[1, 2, 3]]


def test_updates_are_also_told_in_epochs():
    left = figures.loss_curves(METRICS).axes[0]
    [above] = left.child_axes
    assert above.get_xlabel() == "epoch"
    assert above._functions[0](30) == pytest.approx(3)


def test_a_limit_far_beyond_the_lengths_does_not_stretch_the_axis():
    near = figures.length_histogram(LENGTHS, limit=30).axes[0]
    far = figures.length_histogram(LENGTHS, limit=3000).axes[0]
    assert far.get_xlim()[1] < 60 and "limit 3,000 →" in texts(far)
    assert "limit 30" in texts(near.figure)


def test_a_curve_is_marked_at_its_lowest_point():
    curve = figures.loss_shapes(SHAPES, teacher=0.6).axes[0].lines[-1]
    assert curve.get_markevery() == [1]
    assert list(curve.get_ydata()) == [0.5, 0.0, 0.3]


def test_a_real_codex_solution_is_drawn_whole(data_dir):
    steps = json.loads((data_dir / "codex/per_step_probs_question0.json").read_text())
    trace = alignment.TeacherTrace.from_token_strings(steps[0][2:])
    alternatives = figures.top_alternatives(vars(trace))
    shown = texts(figures.probability_strip(alternatives))
    assert alternatives.groupby("position")["is_sampled"].sum().eq(1).all()
    assert "␣answer" in shown and "␣72" in shown


def test_a_real_alignment_is_drawn_with_every_token_of_both_sides(t5):
    text = "If 48/2 = 24.\nIn total"
    tokens = ("If", " 48", "/", "2", " =", " 24", ".", "\n", "In", " total")
    steps = [[(token, 1.0), (token, 1.0)] for token in tokens]
    trace = alignment.TeacherTrace.from_token_strings(steps)
    assert trace.text == text
    spans = targets.token_spans(trace, t5, method="offsets")
    shown = texts(figures.token_alignment(spans))
    for token in ("If", "␣If", "␣48", "/2", "↵", "␣In", "In"):
        assert token in shown
