"""Claims about the findings: the right answer is evident from the counts."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotspec import profiles, report
from cotspec.report import formats, pairing, scaling, tradeoff

DATA = profiles.DataConfig(
    train_task="gsm8k",
    out_of_distribution_tasks=("multiarith", "svamp"),
    generic_tasks=("bbh/navigate",),
)
MATH, ZERO_SHOT = "in_context_chain_of_thought", "zero_shot_chain_of_thought"
COT, ANSWER = "chain_of_thought", "answer_only"
SEEDS = (0, 1, 2)
CELL = {
    "model": "m",
    "start": "instruction_tuned",
    "size": 100,
    "data_formats": "all",
    "loss": "distribution_matching",
    "tail": "bucket",
    "divergence": "forward_kl",
    "cross_entropy_weight": 0.0,
    "alignment": "offsets",
}
PUBLISHED = report.load_published()


def asked(right, step, *, task="gsm8k", mode=MATH, n=120, seeds=SEEDS, **cell):
    """`n` problems, the first `right` of them right; a tuple has one count a seed."""
    counts = right if isinstance(right, tuple) else [right] * len(seeds)
    fixed = CELL | {"split": "test", "step": step, "task": task, "prompt_mode": mode}
    return pd.DataFrame(
        [
            fixed
            | {"seed": seed, "problem_id": f"{task}/{i:03}", "is_correct": i < count}
            | cell
            for seed, count in zip(seeds, counts, strict=True)
            for i in range(n)
        ]
    )


def change(before, after, **where):
    return pd.concat([asked(before, 0, **where), asked(after, 60, **where)])


def findings(function, *parts):
    return function(pd.concat(parts, ignore_index=True), DATA, seed=0)


def verdicts(found):
    table = report.claims_table(found, PUBLISHED, scale="here")
    return dict(zip(table["claim"], table["verdict"], strict=True))


LIFT = [
    (12, 48, "reproduced"),
    (48, 12, "opposite"),
    (30, 31, "not reproduced"),
    (30, 30, "not reproduced"),
]


@pytest.mark.parametrize(("before", "after", "verdict"), LIFT)
def test_c1_follows_its_paired_interval(before, after, verdict):
    found = findings(report.specialization_findings, change(before, after))
    assert found["C1"].effect == pytest.approx((after - before) / 120)
    assert found["C1"].ci_low <= found["C1"].effect <= found["C1"].ci_high
    assert verdicts(found)["C1"] == verdict
    assert "(n = 120, 3 seeds)" in found["C1"].ours


def test_c2_pools_the_out_of_distribution_problems():
    found = findings(
        report.specialization_findings,
        change(0, 60, task="multiarith", n=60),
        change(0, 0, task="svamp", n=60),
    )
    assert found["C2"].effect == pytest.approx(0.5)
    assert "(n = 120, 3 seeds)" in found["C2"].ours


def test_a_lift_is_judged_where_it_is_smallest():
    small = change(12, 48, model="small", size=10)
    large = change(12, 13, model="large", size=20)
    found = findings(report.specialization_findings, large, small)
    assert found["C1"].effect == pytest.approx(1 / 120)
    assert verdicts(found)["C1"] == "not reproduced"
    assert found["C1"].ours.startswith("small 10.0% → 40.0%")  # smallest first


def test_one_size_that_falls_is_opposite_whatever_the_others_do():
    rising = change(12, 48, model="small", size=10)
    falling = change(48, 12, model="large", size=20)
    level = change(12, 12, model="middle", size=15)
    found = findings(report.specialization_findings, rising, falling, level)
    assert verdicts(found)["C1"] == "opposite"
    assert found["C1"].p_value < 0.001


def test_raw_starts_do_not_enter_c1():
    found = findings(
        report.specialization_findings, change(12, 48), change(48, 12, start="raw")
    )
    assert found["C1"].effect == pytest.approx(0.3)


def test_fewer_problems_than_the_rule_needs_are_not_judged():
    found = findings(report.specialization_findings, change(10, 90, n=99))
    assert found["C1"].reason == "99 problems; the rule needs 100"
    assert verdicts(found)["C1"] == "not testable at this scale"


@pytest.mark.parametrize(
    ("chain_of_thought", "answer_only", "verdict"),
    [
        ((60, 0), (48, 24), "reproduced"),
        ((60, 12), (48, 24), "reproduced"),
        ((60, 24), (48, 24), "not reproduced"),  # CoT keeps more than a fifth
        ((60, 0), (48, 47), "not reproduced"),  # answer-only hardly falls
        ((60, 0), (24, 48), "opposite"),
        ((5, 0), (48, 24), "not testable at this scale"),  # nothing to lose
    ],
)
def test_c3_needs_both_generic_modes_to_fall(chain_of_thought, answer_only, verdict):
    found = findings(
        report.tradeoff_findings,
        change(*chain_of_thought, task="bbh/navigate", mode=COT),
        change(*answer_only, task="bbh/navigate", mode=ANSWER),
    )
    assert verdicts(found)["C3"] == verdict


def test_a_generic_mode_that_was_not_tested_leaves_c3_out():
    part = change(60, 0, task="bbh/navigate", mode=COT)
    assert "C3" not in findings(report.specialization_findings, part)


def test_several_notebooks_answers_count_once():
    first = pd.concat(
        [change(12, 48), asked(20, 30), asked(20, 60, split="validation")]
    )
    other = change(12, 0, data_formats="zero_shot")
    both = report.before_and_after(first, pd.concat([change(12, 48), other]))
    assert len(both) == 2 * 3 * 120
    assert sorted(both["step"].unique()) == [0, 60]
    found = report.specialization_findings(both, DATA, seed=0)
    assert found["C1"].effect == pytest.approx(0.3)


def starts(raw, tuned, **where):
    return pd.concat(
        [
            change(0, raw, model=f"raw-{where.get('size', 100)}", start="raw", **where),
            change(0, tuned, **where),
        ]
    )


@pytest.mark.parametrize(("raw", "tuned", "verdict"), LIFT)
def test_c4_compares_the_starts_after_specialization(raw, tuned, verdict):
    found = findings(report.scaling_findings, starts(raw, tuned))
    assert found["C4"].effect == pytest.approx((tuned - raw) / 120)
    assert verdicts(found)["C4"] == verdict


def test_c4_is_the_mean_over_the_sizes_that_have_both_starts():
    found = findings(
        report.scaling_findings,
        starts(12, 24, size=10),
        starts(12, 36, size=20),
        change(0, 120, size=40),
    )
    assert found["C4"].effect == pytest.approx(0.15)
    assert "mean of 2 sizes" in found["C4"].ours


def test_c4_without_a_raw_start_says_so():
    found = findings(report.scaling_findings, change(12, 48))
    assert found["C4"].reason == "no size was specialized from both starts"
    assert math.isnan(found["C4"].effect)


def sizes(before, after, **where):
    """Sizes 100, 200, 400, …: one count of right answers each."""
    return pd.concat(
        [
            change(*counts, model=f"s{i}", size=100 * 2**i, **where)
            for i, counts in enumerate(zip(before, after, strict=True))
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((10, 20, 30, 40), (40, 50, 60, 70), "reproduced"),
        ((10, 20, 30, 40), (10, 20, 30, 40), "not reproduced"),  # no lift
        ((20, 20, 20, 20), (60, 60, 60, 60), "not reproduced"),  # no growth
        ((10, 10, 10, 10), (20, 20, 20, 110), "not reproduced"),  # emergence
        ((10, 20, 30, 40), (40, 50, 60, 20), "opposite"),
        ((10, 20), (40, 50), "not testable at this scale"),
    ],
)
def test_c5_needs_a_lift_growth_and_no_kink(before, after, verdict):
    found = findings(report.scaling_findings, sizes(before, after))
    assert verdicts(found)["C5"] == verdict


KINKS = [
    ((0.01, 0.09), True, ""),  # seen, but small
    ((-0.1, 0.1), True, ""),
    ((0.05, 0.15), False, ""),  # a kink
    ((-0.3, -0.2), False, ""),
    ((-0.05, 0.15), False, "a kink of more than 10 points"),  # open
]


@pytest.mark.parametrize(("interval", "is_straight", "reason"), KINKS)
def test_a_line_is_straight_only_where_its_kinks_interval_is_small(
    interval, is_straight, reason
):
    none = pd.Series({"ci_low": 0.0, "ci_high": 0.0})
    one = pd.Series(dict(zip(("ci_low", "ci_high"), interval, strict=True)))
    for kinks in ((none, one), (one, none)):
        found = scaling._shape(kinks)
        assert found[0] == is_straight
        assert found[1].startswith(reason) and bool(found[1]) == bool(reason)


def test_c5_is_open_where_seeds_differ_too_much_to_exclude_a_kink():
    after = (50, (65, 75, 85), 100)  # the seeds disagree on the middle size alone
    found = findings(report.scaling_findings, sizes((10, 20, 30), after))
    assert found["C5"].reason.startswith("a kink of more than 10 points per doubling")
    assert verdicts(found)["C5"] == "not testable at this scale"


def test_c5_without_a_lift_is_not_reproduced_however_open_its_kink():
    before = ((10, 20, 30), (20, 20, 20), (40, 80, 10))
    found = findings(report.scaling_findings, sizes(before, before))
    assert found["C5"].reason == ""
    assert verdicts(found)["C5"] == "not reproduced"


def test_c5_says_how_many_sizes_it_needs():
    found = findings(report.scaling_findings, sizes((10, 20), (40, 50)))
    assert found["C5"].reason == "2 sizes; the rule needs 3"


def test_a_straight_line_has_its_slope_and_no_kink():
    rows = pairing.at_last_step(sizes((0, 0, 0, 0), (12, 24, 36, 48)))
    fit = scaling.size_slopes(rows, seed=0).set_index("term")
    assert fit.loc["slope", "per_doubling"] == pytest.approx(0.1)
    assert fit.loc["kink", "per_doubling"] == pytest.approx(0, abs=1e-9)
    assert fit.loc["kink", "p_value"] > 0.05


def test_a_bent_line_has_a_kink_of_the_second_slope():
    rows = pairing.at_last_step(sizes((0, 0, 0), (12, 24, 60)))
    fit = scaling.size_slopes(rows, seed=0).set_index("term")
    assert fit.loc["kink", "per_doubling"] == pytest.approx(0.3 - 0.1)
    assert fit.loc["kink", "p_value"] < 0.05
    with pytest.raises(ValueError, match="rows: 2 sizes. Allowed: at least 3"):
        scaling.size_slopes(rows[rows["size"] < 400], seed=0)


def tuned_on(name, before, after, mode):
    return change(before, after, data_formats=name, mode=mode)


@pytest.mark.parametrize(
    ("gain", "cost", "verdict"),
    [
        ((12, 48), (48, 12), "reproduced"),
        ((48, 12), (12, 48), "opposite"),
        ((12, 48), (12, 48), "not reproduced"),
        ((12, 12), (12, 12), "not reproduced"),
    ],
)
def test_c6_needs_the_gain_and_the_cost(gain, cost, verdict):
    found = findings(
        report.format_findings,
        tuned_on("in_context", *gain, ZERO_SHOT),
        tuned_on("zero_shot", *cost, MATH),
    )
    assert found["C6"].effect == pytest.approx((gain[1] - gain[0]) / 120)
    assert verdicts(found)["C6"] == verdict


def test_c6_without_one_of_its_students_says_which():
    found = findings(report.format_findings, tuned_on("in_context", 12, 48, ZERO_SHOT))
    assert found["C6"].reason.startswith("no student tuned on zero-shot data")


def test_the_matrix_has_the_start_first_and_changes_against_it():
    table = formats.format_matrix(
        pd.concat([tuned_on("all", 12, 48, MATH), tuned_on("zero_shot", 12, 6, MATH)]),
        DATA,
        seed=0,
    )
    assert table["data_formats"].tolist() == ["start", "all", "zero_shot"]
    assert table["accuracy"].tolist() == pytest.approx([0.1, 0.4, 0.05])
    assert table["change"].tolist() == pytest.approx([0, 0.3, -0.05])
    assert table["num_seeds"].tolist() == [3, 3, 3]


def loss_rows(name, validation, test, **cell):
    """Right validation answers at steps 20, 40, 60; right test answers at the last."""
    steps = zip((20, 40, 60), validation, strict=True)
    parts = [asked(c, step, split="validation", loss=name, **cell) for step, c in steps]
    return pd.concat([*parts, asked(test, 60, loss=name, **cell)])


@pytest.mark.parametrize(
    ("distribution", "test", "verdict"),
    [
        ((30, 42, 48), 48, "reproduced"),
        ((30, 42, 48), 12, "not reproduced"),  # faster, but ends lower
        ((30, 42, 48), (48, 47, 48), "reproduced"),  # a point lower at most
        ((30, 42, 48), (44, 48, 52), "not reproduced"),  # as high, but who knows
        ((12, 24, 48), 48, "not reproduced"),  # equal
        ((0, 6, 12), 48, "opposite"),
        ((0, 6, 12), (44, 48, 52), "opposite"),  # whatever the end is
    ],
)
def test_c7_is_the_mean_over_checkpoints_and_the_end(distribution, test, verdict):
    found = findings(
        report.loss_findings,
        loss_rows("sample_matching", (12, 24, 48), 48),
        loss_rows("distribution_matching", distribution, test),
    )
    mean = (sum(distribution) - sum((12, 24, 48))) / 3 / 120
    assert found["C7"].effect == pytest.approx(mean)
    assert verdicts(found)["C7"] == verdict


def test_c7_says_why_a_faster_loss_is_not_reproduced():
    sample = loss_rows("sample_matching", (12, 24, 48), 48)
    faster = loss_rows("distribution_matching", (30, 42, 48), (44, 48, 52))
    found = findings(report.loss_findings, sample, faster)["C7"]
    assert found.ours.endswith(
        "-8.3 to +8.3 points: faster, but 3 points lower not ruled out"
    )
    slower = loss_rows("distribution_matching", (0, 6, 12), (44, 48, 52))
    found = findings(report.loss_findings, sample, slower)["C7"]
    assert found.ours.endswith("-8.3 to +8.3 points")
    assert found.reason == ""


def test_c7_opposite_is_judged_by_the_curve_alone():
    sample = loss_rows("sample_matching", (12, 24, 48), 48)
    slower = loss_rows("distribution_matching", (0, 6, 12), (44, 45, 46))
    found = findings(report.loss_findings, sample, slower)["C7"]
    assert found.p_value < 0.001


def test_c7_judges_the_variant_it_is_asked_for_and_leaves_out_the_others():
    parts = (
        loss_rows("sample_matching", (12, 24, 48), 48),
        loss_rows("distribution_matching", (30, 42, 48), 48),
        loss_rows("distribution_matching", (0, 0, 0), 0, tail="paper"),
        loss_rows("distribution_matching", (0, 0, 0), 0, alignment="dtw"),
        loss_rows("distribution_matching", (0, 0, 0), 0, cross_entropy_weight=0.5),
    )
    assert verdicts(findings(report.loss_findings, *parts))["C7"] == "reproduced"
    found = report.loss_findings(
        pd.concat(parts), DATA, seed=0, loss=profiles.LossConfig(tail="paper")
    )
    assert verdicts(found)["C7"] == "opposite"


def test_c7_refuses_other_checkpoints_and_names_a_missing_loss():
    distribution = loss_rows("distribution_matching", (30, 42, 48), 48)
    sample = loss_rows("sample_matching", (12, 24, 48), 48)
    with pytest.raises(ValueError, match="checkpoints .*20, 40.* Allowed: the same"):
        findings(report.loss_findings, distribution, sample[sample["step"] < 60])
    found = findings(report.loss_findings, distribution)
    assert found["C7"].reason == "no student was trained by sample matching"


def trajectory(validation_in, validation_out, test_out, **options):
    """Right answers at steps 20, 40, 60; the start would be every set's choice."""
    parts = []
    for split, task, counts in (
        ("validation", "gsm8k", validation_in),
        ("validation", "svamp", validation_out),
        ("test", "svamp", test_out),
    ):
        steps = zip((0, 20, 40, 60), (119, *counts), strict=True)
        where = {"split": split, "task": task} | options
        parts += [asked(count, step, **where) for step, count in steps]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(
    ("validation_out", "test_out", "verdict"),
    [
        ((50, 30, 20), (48, 30, 12), "reproduced"),
        ((50, 30, 20), (12, 30, 48), "opposite"),
        ((20, 30, 50), (48, 30, 12), "not reproduced"),  # the same choice
    ],
)
def test_c8_compares_the_two_choices_on_test_problems(
    validation_out, test_out, verdict
):
    rows = trajectory((20, 30, 50), validation_out, test_out)
    found = findings(report.tradeoff_findings, rows)
    assert verdicts(found)["C8"] == verdict


def test_c8_does_not_choose_the_start_and_takes_the_earliest_of_equals():
    rows = trajectory((20, 50, 50), (50, 50, 50), (48, 30, 12))
    chosen = tradeoff.chosen_checkpoints(rows, DATA)
    assert chosen.groupby("chosen_by")["step"].unique().map(list).to_dict() == {
        "in-distribution": [40],
        "out of distribution": [20],
    }
    assert chosen["n"].tolist() == [120] * 6


def choices_that_differ(num_different, num_seeds):
    """In the first seeds out-of-distribution validation chooses step 20, not 60."""
    one = trajectory((20, 30, 50), (20, 30, 50), (100, 30, 12), seeds=(0,))
    seeds = [one.assign(seed=seed) for seed in range(num_seeds)]
    rows = pd.concat(seeds, ignore_index=True)
    is_other = (rows["seed"] < num_different) & (rows["task"] == "svamp")
    is_other &= (rows["step"] == 20) & (rows["split"] == "validation")
    rows.loc[is_other, "is_correct"] = True
    return rows


@pytest.mark.parametrize(
    ("num_different", "num_seeds", "verdict"),
    [
        (1, 3, "not reproduced"),
        (2, 3, "not reproduced"),
        (3, 3, "reproduced"),
        (3, 5, "not reproduced"),
        (5, 6, "reproduced"),
    ],
)
def test_c8_needs_most_seeds_to_choose_differently_of_three_all(
    num_different, num_seeds, verdict
):
    rows = choices_that_differ(num_different, num_seeds)
    found = findings(report.tradeoff_findings, rows)
    share = num_different / num_seeds
    assert found["C8"].effect == pytest.approx(share * 88 / 120)
    assert verdicts(found)["C8"] == verdict
    steps = ["20"] * num_different + ["60"] * (num_seeds - num_different)
    assert f"out of distribution: steps {', '.join(steps)}" in found["C8"].ours


def test_c8_says_what_is_missing():
    rows = trajectory((20, 30, 50), (20, 30, 50), (100, 30, 12))
    is_out = (rows["split"] == "validation") & (rows["task"] == "svamp")
    found = findings(report.tradeoff_findings, rows[~is_out])
    assert found["C8"].reason == "no validation problems out of distribution"
    found = findings(report.tradeoff_findings, rows[rows["step"] <= 20])
    assert found["C8"].reason == "1 checkpoints; the rule needs 2"


def test_curves_are_means_over_seeds_with_their_range():
    curves = tradeoff.ability_curves(change(12, (12, 24, 36)), DATA)
    last = curves.iloc[-1]
    assert (last["ability"], last["split"], last["step"]) == (
        "in-distribution",
        "test",
        60,
    )
    assert [last[x] for x in ("accuracy", "low", "high")] == pytest.approx(
        [0.2, 0.1, 0.3]
    )


def test_the_abilities_of_the_choices_are_read_on_test_problems():
    rows = trajectory((20, 30, 50), (50, 30, 20), (48, 30, 12))
    table = tradeoff.abilities_of_choices(rows, DATA).set_index("chosen_by")
    column = table["out of distribution"]
    assert column["out of distribution"] == pytest.approx(0.4)
    assert column["in-distribution"] == pytest.approx(0.1)
    assert table["generic CoT"].isna().all()


FAMILIES = {
    "C4": (report.scaling_findings, lambda a, b: starts(a, b)),
    "C6": (
        report.format_findings,
        lambda a, b: pd.concat(
            [tuned_on("in_context", a, b, ZERO_SHOT), tuned_on("zero_shot", b, a, MATH)]
        ),
    ),
    "C7": (
        report.loss_findings,
        lambda a, b: pd.concat(
            [
                loss_rows("sample_matching", (a, a, a), a),
                loss_rows("distribution_matching", (b, b, b), b),
            ]
        ),
    ),
    "C8": (
        report.tradeoff_findings,
        lambda a, b: trajectory((20, 30, 50), (50, 30, 20), (b, a, a)),
    ),
}


BEFORE_AND_AFTER = {
    "C1": (report.specialization_findings, change),
    "C2": (report.specialization_findings, lambda a, b: change(a, b, task="svamp")),
    "C3": (
        report.specialization_findings,
        lambda a, b: pd.concat(
            change(b, a, task="bbh/navigate", mode=mode) for mode in (COT, ANSWER)
        ),
    ),
    "C5": (report.scaling_findings, lambda a, b: sizes((a, a, a), (b, b, b))),
}


@pytest.mark.parametrize("claim", FAMILIES | BEFORE_AND_AFTER)
def test_two_seeds_are_not_judged(claim):
    function, rows = (FAMILIES | BEFORE_AND_AFTER)[claim]
    table = rows(12, 48)
    found = findings(function, table[table["seed"] < 2])
    assert found[claim].reason == "2 seeds; the rule needs 3"


COUNTS = st.tuples(*[st.integers(0, 120)] * 3)


@pytest.mark.parametrize("claim", FAMILIES)
@given(counts=COUNTS)
@settings(max_examples=3, deadline=None)
def test_identical_systems_have_no_effect_and_reproduce_nothing(claim, counts):
    function, rows = FAMILIES[claim]
    found = findings(function, rows(counts, counts))
    assert found[claim].effect == 0
    assert verdicts(found)[claim] == "not reproduced"


@pytest.mark.parametrize("claim", FAMILIES)
@given(first=COUNTS, second=COUNTS)
@settings(max_examples=3, deadline=None)
def test_swapping_the_systems_turns_the_effect_round(claim, first, second):
    function, rows = FAMILIES[claim]
    there = findings(function, rows(first, second))[claim]
    back = findings(function, rows(second, first))[claim]
    assert there.effect == pytest.approx(-back.effect)
    assert there.ci_low == pytest.approx(-back.ci_high, abs=0.02)
    assert not (there.is_met and back.is_met)


@pytest.mark.parametrize("claim", FAMILIES)
def test_the_order_of_the_rows_does_not_matter(claim):
    function, rows = FAMILIES[claim]
    table = rows((12, 20, 30), (48, 50, 20)).reset_index(drop=True)
    shuffled = table.iloc[np.random.default_rng(0).permutation(len(table))]
    once, again = (function(t, DATA, seed=0)[claim] for t in (table, shuffled))
    assert once == again


def test_unpaired_answers_are_an_error_that_says_what_was_expected():
    table = change(12, 48)
    with pytest.raises(ValueError, match="not paired.*same problems"):
        findings(report.specialization_findings, table[table["step"] > 0])
    is_gone = (table["seed"] == 1) & (table["problem_id"] == "gsm8k/003")
    with pytest.raises(ValueError, match="seeds lack problems"):
        findings(report.specialization_findings, table[~is_gone])
    with pytest.raises(ValueError, match="several rows for 'gsm8k/000' and seed 0"):
        findings(report.specialization_findings, table, table)
    for function, _ in FAMILIES.values():
        with pytest.raises(ValueError, match="predictions: empty"):
            findings(function, table.head(0))
