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

from cotspec import alignment, figures, models, profiles
from cotspec.alignment import table as targets

TRACE = {
    "token_bytes": [b"If", b" $5", b".\n"],
    "token_logprobs": [math.log(0.1), math.log(0.75), math.log(0.9)],
    "topk_bytes": [[b"If", b"Nat"], [b" $5", b" 5"], [b".", b".\n"]],
    "topk_logprobs": [
        [math.log(0.1), math.log(0.5)],
        [math.log(0.75), math.log(0.2)],
        [math.log(0.05), math.log(0.9)],
    ],
}
SPANS = pd.DataFrame(
    [
        ("teacher", "48", 0, 2, ""),
        ("teacher", "/", 2, 3, ""),
        ("teacher", "2", 3, 4, ""),
        ("student", "▁48", 0, 2, "identical"),
        ("student", "/2", 2, 4, "starts_together"),
    ],
    columns=["side", "token", "start", "end", "rule"],
)
RESULTS = pd.DataFrame(
    [
        (task, mode, step, accuracy, accuracy - 0.05, accuracy + 0.05)
        for task, mode in (
            ("gsm8k", "zero_shot_answer_only"),
            ("svamp", "zero_shot_answer_only"),
            ("bbh/navigate", "answer_only"),
        )
        for step, accuracy in ((0, 0.1), (60, 0.3))
    ],
    columns=["task", "prompt_mode", "step", "accuracy", "ci_low", "ci_high"],
)
GROUPS = {"in-distribution": ["gsm8k"], "generic": ["bbh/navigate", "bbh/snarks"]}
METRICS = pd.DataFrame(
    {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.5], "learning_rate": [1e-4, 5e-4, 2e-4]}
)
PARTS = figures.example_parts(
    [
        {
            "data_format": name,
            "inputs": "Q: 1+1?\nA: The answer is 2.\n\nQ: 2+2?\nA:",
            "targets": "It costs $2 and $2. The answer is 4.",
        }
        for name in profiles.DATA_FORMATS
    ]
)
STAGES = pd.DataFrame(
    {"stage": ["sampled", "right"], "count": [10, 4], "reason": ["", "wrong"]}
)
SHARES = pd.DataFrame(
    {"method": ["a", "a"], "rule": ["identical", "inside"], "share": [0.75, 0.25]}
)
CURVES = pd.DataFrame(
    {"series": "t", "k": [1, 2, 4], "accuracy": [0.2, 0.3, 0.5]}
).assign(ci_low=lambda f: f["accuracy"] - 0.1, ci_high=lambda f: f["accuracy"] + 0.1)
CONDITIONS = pd.DataFrame(
    {
        "claim": ["C1", "C3", "C7"],
        "condition": ["small", "falls", "a long condition " * 9],
        "effect": [0.2, -0.3, 0.012],
        "ci_low": [0.1, -0.4, 0.01],
        "ci_high": [0.3, -0.2, 0.014],
        "unit": ["points", "points", "nats"],
        "status": ["met", "opposite", "open"],
    }
)
PANELS = pd.DataFrame(
    [
        (panel, series, x, 0.1 * x, 0.1 * x - 0.05, 0.1 * x + 0.05)
        for panel in ("left", "right")
        for series in ("raw", "after", "my own")
        for x in (1, 2, 3)
    ],
    columns=["panel", "series", "x", "value", "low", "high"],
)
LENGTHS = pd.DataFrame({"kind": ["right", "right", "wrong"], "length": [4, 9, 30]})

ALL_RULES = pd.DataFrame(
    [
        (side, "word", 4 * i, 4 * i + 4, rule if side == "student" else "")
        for i, rule in enumerate(figures.RULE_STYLES)
        for side in ("teacher", "student")
    ],
    columns=SPANS.columns,
)

CHARTS = {
    "probability_strip": lambda: figures.probability_strip(
        figures.top_alternatives(TRACE)
    ),
    "probability_strip in a column": lambda: figures.probability_strip(
        figures.top_alternatives(TRACE), width=3.3, columns=4
    ),
    "token_alignment in a column": lambda: figures.token_alignment(
        ALL_RULES, width=3.3
    ),
    "token_alignment of all rules": lambda: figures.token_alignment(ALL_RULES),
    "token_alignment": lambda: figures.token_alignment(SPANS),
    "four_formats": lambda: figures.four_formats(PARTS),
    "funnel": lambda: figures.funnel(STAGES),
    "rule_shares": lambda: figures.rule_shares(SHARES),
    "loss_curves": lambda: figures.loss_curves(METRICS),
    "length_histogram": lambda: figures.length_histogram(LENGTHS, limit=30),
    "accuracy_bars": lambda: figures.accuracy_bars(RESULTS, GROUPS),
    "claim_effects": lambda: figures.claim_effects(CONDITIONS),
    "curve_panels": lambda: figures.curve_panels(PANELS, chance=0.2),
    "curve_panels over size": lambda: figures.curve_panels(
        PANELS.iloc[:4], xlabel="parameters", is_log=True
    ),
    "pass_at_k": lambda: figures.pass_at_k(CURVES),
}


def texts(chart):
    return [text.get_text() for text in chart.findobj(matplotlib.text.Text)]


@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_renders_at_page_width_without_pyplot_state(name):
    chart = CHARTS[name]()
    assert chart._repr_png_().startswith(b"\x89PNG")
    assert 3.3 <= chart.get_figwidth() <= 6.9
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", CHARTS)
def test_nothing_of_a_chart_is_cut_at_the_edge(name):
    chart = CHARTS[name]()
    renderer = FigureCanvasAgg(chart).get_renderer()
    chart.draw(renderer)
    drawn = chart.get_tightbbox(renderer)  # inches, from the lower left
    assert drawn.x0 >= -0.01 and drawn.x1 <= chart.get_figwidth() + 0.01
    assert drawn.y0 >= -0.01 and drawn.y1 <= chart.get_figheight() + 0.01


@pytest.mark.parametrize("name", CHARTS)
def test_no_text_of_a_chart_is_smaller_than_five_points(name):
    sizes = [
        text.get_fontsize()
        for text in CHARTS[name]().findobj(matplotlib.text.Text)
        if text.get_text()
    ]
    assert sizes and min(sizes) >= 5


def test_drawing_leaves_the_callers_settings_alone():
    before = matplotlib.rcParams["axes.linewidth"], matplotlib.rcParams["font.size"]
    figures.loss_curves(METRICS)
    after = matplotlib.rcParams["axes.linewidth"], matplotlib.rcParams["font.size"]
    assert after == before


def test_each_data_format_has_its_own_okabe_ito_colour_and_marker():
    styles = figures.FORMAT_STYLES
    assert tuple(styles) == profiles.DATA_FORMATS
    assert len({style.colour for style in styles.values()}) == 4
    assert len({style.marker for style in styles.values()}) == 4
    assert {style.colour for style in styles.values()} <= set(figures.OKABE_ITO)


def test_alternatives_are_ranked_and_the_sampled_one_is_marked():
    frame = figures.top_alternatives(TRACE)
    first = frame[frame["position"] == 0]
    assert first["alternative"].tolist() == ["Nat", "If"]
    assert first["is_sampled"].tolist() == [False, True]
    assert np.allclose(first["probability"], [0.5, 0.1])


def test_the_strip_shows_spaces_newlines_and_dollars_literally():
    shown = texts(figures.probability_strip(figures.top_alternatives(TRACE)))
    assert "␣$5" in shown and ".↵" in shown


def test_a_token_that_is_half_a_character_is_shown_as_bytes():
    trace = TRACE | {"token_bytes": [b"\xe2\x82", b" $5", b".\n"]}
    assert figures.top_alternatives(trace)["sampled"][0] == "\\xe2\\x82"


def test_the_strip_wraps_after_its_columns():
    frame = figures.top_alternatives(TRACE)
    one_row = figures.probability_strip(frame, columns=3)
    three_rows = figures.probability_strip(frame, columns=1)
    assert three_rows.get_figheight() > 2 * one_row.get_figheight()


def test_a_student_token_is_joined_to_every_teacher_token_under_it():
    (axes,) = figures.token_alignment(SPANS).axes
    assert len(axes.lines) == 3  # 48–48, / and 2 to /2


def test_a_long_alignment_wraps_only_where_both_sides_have_a_boundary():
    tokens = [("teacher", "ab", 2 * i, 2 * i + 2, "") for i in range(100)]
    tokens += [
        ("student", "abab", 4 * i, 4 * i + 4, "starts_together") for i in range(50)
    ]
    spans = pd.DataFrame(tokens, columns=SPANS.columns)
    chart = figures.token_alignment(spans)
    (axes,) = chart.axes
    assert len(axes.lines) == 100  # no pair was torn apart
    right = max(p.get_x() + p.get_width() for p in axes.patches)
    assert right <= chart.get_figwidth()


def test_every_alignment_rule_has_a_look_of_its_own():
    assert list(figures.RULE_STYLES) == [rule.name.lower() for rule in alignment.Rule]
    looks = {(s.colour, s.hatch) for s in figures.RULE_STYLES.values()}
    assert len(looks) == len(alignment.Rule)


def test_a_student_token_on_folded_whitespace_is_joined_to_the_word_alone():
    spans = pd.DataFrame(
        [
            ("teacher", "\n", 0, 1, ""),
            ("teacher", "In", 1, 3, ""),
            ("student", "▁In", 1, 3, "same_span"),
        ],
        columns=SPANS.columns,
    )
    (axes,) = figures.token_alignment(spans).axes
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
    assert names == ["raw", "after", "my own", "chance"]
    line = next(line for line in chart.axes[0].lines if line.get_label() == "after")
    assert line.get_ydata() == pytest.approx([0.1, 0.2, 0.3])


def test_the_funnel_says_counts_shares_and_reasons():
    shown = " ".join(texts(figures.funnel(STAGES)))
    assert "4 (40%)" in shown and "−6 wrong" in shown


def test_example_parts_join_to_the_inputs_and_targets():
    one = PARTS[PARTS["data_format"] == "zero_shot_answer_only"]
    assert one["part"].tolist() == ["demonstrations", "question", "rationale", "answer"]
    assert one["text"].tolist()[2:] == ["It costs $2 and $2. ", "The answer is 4."]
    assert "".join(one["text"][:2]) == ("Q: 1+1?\nA: The answer is 2.\n\nQ: 2+2?\nA:\n")


def test_long_demonstrations_are_cut_and_the_cut_is_counted():
    long = PARTS.assign(text=PARTS["text"].str.replace("1+1?", "word " * 300))
    shown = texts(figures.four_formats(long, max_lines=5))
    assert any("more lines" in text for text in shown)


def test_bars_stand_at_the_accuracy_and_errors_at_the_interval():
    axes = figures.accuracy_bars(RESULTS, GROUPS).axes[0]
    assert [round(bar.get_height(), 3) for bar in axes.patches] == [0.1, 0.3]
    low, high = axes.collections[-1].get_segments()[0][:, 1]
    assert (round(low, 3), round(high, 3)) == (0.25, 0.35)


def test_published_accuracies_are_hollow_and_ours_are_filled():
    published = RESULTS.assign(accuracy=0.2).drop(columns=["ci_low", "ci_high"])
    chart = figures.accuracy_bars(RESULTS, GROUPS, published=published)
    faces = [
        (float(line.get_ydata()[0]), line.get_markerfacecolor())
        for line in chart.axes[0].lines
        if line.get_marker() == "D"
    ]
    assert sorted(faces) == [
        (0.1, "#E69F00"),
        (0.2, "white"),
        (0.2, "white"),
        (0.3, "#E69F00"),
    ]


def with_generic_tasks(count):
    tasks = profiles.BBH_TASKS[:count]
    generic = RESULTS[RESULTS["task"] == "bbh/navigate"]
    rows = [RESULTS[RESULTS["task"] == "gsm8k"]]
    frame = pd.concat([*rows, *(generic.assign(task=task) for task in tasks)])
    groups = {"in-distribution": ["gsm8k"], "generic": tasks}
    return figures.accuracy_bars(frame, groups)


@pytest.mark.parametrize(
    ("count", "per_row"),
    [(9, [9]), (10, [5, 5]), (11, [6, 5]), (27, [9, 9, 9])],
)
def test_a_long_group_wraps_into_rows_of_equal_length(count, per_row):
    chart = with_generic_tasks(count)
    assert [len(axes.get_xticks()) for axes in chart.axes] == [1, *per_row]


@pytest.mark.parametrize("count", [3, 10, 11, 27])
def test_bars_are_equally_wide_in_all_rows(count):
    chart = with_generic_tasks(count)
    chart.draw_without_rendering()
    groups = [axes.transData.transform([(0, 0), (1, 0)]) for axes in chart.axes]
    widths = [right - left for (left, _), (right, _) in groups]
    assert max(widths) < 1.05 * min(widths)


def test_groups_without_any_result_are_an_error_naming_them():
    with pytest.raises(ValueError, match="groups: no task of .*nowhere"):
        figures.accuracy_bars(RESULTS, {"g": ["nowhere"]})


def test_a_frame_without_a_column_is_an_error_naming_chart_and_column():
    with pytest.raises(ValueError, match=r"loss_curves: missing columns \['loss'\]"):
        figures.loss_curves(METRICS.drop(columns="loss"))
    with pytest.raises(ValueError, match="funnel: no rows"):
        figures.funnel(STAGES.head(0))


def test_a_saved_figure_is_four_files_with_the_same_bytes_every_time(tmp_path):
    written = []
    for folder in ("one", "two"):
        paths = figures.save_figure(
            figures.loss_curves(METRICS),
            tmp_path / folder,
            "05_loss",
            data=METRICS,
            caption="Loss against\n the update.",
            provenance={"seed": 1},
        )
        written.append({suffix: path.read_bytes() for suffix, path in paths.items()})
    assert set(written[0]) == {"png", "svg", "csv", "json"}
    assert written[0] == written[1]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "05_loss.csv",
        "05_loss.json",
        "05_loss.png",
        "05_loss.svg",
    ]


def test_a_last_bit_of_layout_changes_nothing_in_the_svg(tmp_path):
    written = []
    for left in (0.1, math.nextafter(0.1, 1)):
        figure = Figure()
        axes = figure.add_axes((left, 0.1, 0.8, 0.8))
        axes.plot([0, 1], [0, 1], marker="o")
        axes.bar([0], [1], hatch="//")
        paths = figures.save_figure(
            figure, tmp_path, "bit", data=METRICS, caption="A line."
        )
        written.append(paths["svg"].read_text())
    assert written[0] == written[1]
    defined = re.findall(r'id="([^"]*)"', written[0])
    used = re.findall(r"(?:url\(|href=\")#([^)\"]*)", written[0])
    assert len(set(defined)) == len(defined)
    assert used and set(used) <= set(defined)
    assert any(name.startswith("p-bit-") for name in used)


def test_a_saved_figure_carries_its_numbers_and_its_caption(tmp_path):
    paths = figures.save_figure(
        figures.loss_curves(METRICS),
        tmp_path,
        "loss",
        data=METRICS,
        caption="Loss against\n the update.",
        provenance={"seed": 1},
    )
    pd.testing.assert_frame_equal(pd.read_csv(paths["csv"]), METRICS)
    described = json.loads(paths["json"].read_text())
    assert described["caption"] == "Loss against the update."
    assert described["provenance"] == {"seed": 1}


def test_the_saved_picture_has_two_hundred_dots_per_inch(tmp_path):
    chart = figures.loss_curves(METRICS)
    paths = figures.save_figure(chart, tmp_path, "loss", data=METRICS, caption="c")
    pixels = plt.imread(paths["png"]).shape[1]
    assert pixels == round(chart.get_figwidth() * 200)


def test_a_figure_name_with_a_folder_or_no_caption_is_refused(tmp_path):
    chart = figures.loss_curves(METRICS)
    with pytest.raises(ValueError, match=r"name: '\.\./loss'"):
        figures.save_figure(chart, tmp_path, "../loss", data=METRICS, caption="c")
    with pytest.raises(ValueError, match="caption: empty"):
        figures.save_figure(chart, tmp_path, "loss", data=METRICS, caption=" ")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_figure_and_no_rubbish(tmp_path, monkeypatch):
    chart = figures.loss_curves(METRICS)
    paths = figures.save_figure(chart, tmp_path, "loss", data=METRICS, caption="old")
    before = paths["png"].read_bytes()

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        figures.save_figure(chart, tmp_path, "loss", data=METRICS, caption="new")
    assert paths["png"].read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4


def test_a_real_codex_solution_is_drawn_whole(data_dir):
    steps = json.loads((data_dir / "codex/per_step_probs_question0.json").read_text())
    steps = steps[0][2:]
    trace = {
        "token_bytes": [step[0][0].encode() for step in steps],
        "token_logprobs": [math.log(max(step[0][1], 1e-6)) for step in steps],
        "topk_bytes": [[token.encode() for token, _ in step[1:]] for step in steps],
        "topk_logprobs": [
            [math.log(max(p, 1e-6)) for _, p in step[1:]] for step in steps
        ],
    }
    frame = figures.top_alternatives(trace)
    shown = texts(figures.probability_strip(frame))
    assert frame.groupby("position")["is_sampled"].sum().eq(1).all()
    assert "␣answer" in shown and "␣72" in shown


def test_a_real_alignment_is_drawn_with_every_token_of_both_sides(data_dir):
    student = models.load_t5_tokenizer(str(data_dir / "t5"))
    text = "If 48/2 = 24.\nIn total"
    trace = alignment.TeacherTrace.from_token_strings(
        [
            [(token, 1.0), (token, 1.0)]
            for token in ("If", " 48", "/", "2", " =", " 24", ".", "\n", "In", " total")
        ]
    )
    assert trace.text == text
    spans = targets.token_spans(trace, student, method="offsets")
    shown = texts(figures.token_alignment(spans))
    for token in ("If", "␣If", "␣48", "/2", "↵", "␣In", "In"):
        assert token in shown
