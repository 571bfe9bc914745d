"""The tables behind the curves of C5 and C7, on answers that can be counted."""

import numpy as np
import pandas as pd
import pytest

from cotspec import report
from cotspec.profiles import AlignmentConfig, DataConfig, LossConfig

DATA = DataConfig("math", ("other",), ())
PROFILE = {"loss": LossConfig(), "alignment": AlignmentConfig()}
ROW = {
    "model": "m",
    "start": "instruction_tuned",
    "size": 100,
    "seed": 0,
    "data_formats": "all",
    "loss": "distribution_matching",
    "tail": "bucket",
    "divergence": "forward_kl",
    "cross_entropy_weight": 0.0,
    "alignment": "offsets",
    "step": 0,
    "split": "test",
    "task": "math",
    "prompt_mode": "in_context_chain_of_thought",
}


def rows(num_right, n=10, **fields):
    """`n` problems, the first `num_right` of them right."""
    named = [{"problem_id": f"p{i:02d}", "is_correct": i < num_right} for i in range(n)]
    return pd.DataFrame([ROW | fields | one for one in named])


def test_a_loss_curve_is_the_mean_over_seeds_with_their_range():
    predictions = pd.concat(
        rows(right, seed=seed, step=step, split="validation")
        for step, by_seed in ((0, (1, 1)), (20, (4, 6)))
        for seed, right in enumerate(by_seed)
    )
    curves = report.loss_curves(predictions, DATA, **PROFILE)
    values = curves.set_index("step")
    assert values.loc[20, ["accuracy", "low", "high"]].tolist() == [0.5, 0.4, 0.6]
    assert values.loc[0, ["accuracy", "low", "high"]].tolist() == [0.1] * 3
    assert (values["n"].tolist(), values["num_seeds"].tolist()) == ([10, 10], [2, 2])


@pytest.mark.parametrize(
    ("fields", "name"),
    (
        ({}, "distribution_matching"),
        ({"loss": "sample_matching"}, "sample_matching"),
        ({"tail": "paper"}, "tail paper"),
        ({"alignment": "dtw"}, "alignment dtw"),
        (
            {"tail": "paper", "cross_entropy_weight": 0.5},
            "tail paper, cross entropy weight 0.5",
        ),
    ),
)
def test_a_variant_is_named_by_what_differs(fields, name):
    assert report.variant_names(rows(1, 1, **fields), **PROFILE).tolist() == [name]


def sized(right_by_size, **fields):
    both = [
        rows(right, n=20, size=size, model=str(size), task=task, step=step, **fields)
        for size, right in right_by_size.items()
        for task in ("math", "other")
        for step in (0, 40)
    ]
    return pd.concat(both)


def test_accuracies_on_a_line_are_the_fit_itself():
    predictions = sized({100: 4, 200: 8, 400: 12})
    curves = report.size_curves(predictions, DATA, seed=0)
    assert len(curves) == 2 * 2 * 3  # panels, before and after, sizes
    np.testing.assert_allclose(curves["fit"], curves["accuracy"])
    assert curves["accuracy"].tolist()[:3] == [0.2, 0.4, 0.6]
    assert (curves["fit_low"] < curves["fit"]).all()
    assert (curves["fit_high"] > curves["fit"]).all()


def test_the_fit_is_least_squares_on_log_size():
    predictions = sized({100: 4, 200: 4, 800: 13})
    curves = report.size_curves(predictions, DATA, seed=0).head(3)
    x = np.log(curves["size"].astype(float))
    expected = np.polyval(np.polyfit(x, curves["accuracy"], 1), x)
    np.testing.assert_allclose(curves["fit"], expected)


def test_two_sizes_have_no_fit():
    curves = report.size_curves(sized({100: 4, 200: 8}), DATA, seed=0)
    assert curves[["fit", "fit_low", "fit_high"]].isna().all(axis=None)
    assert curves["accuracy"].notna().all()


def test_the_loss_table_says_how_fast_and_how_far():
    validation = [
        rows(right, step=step, split="validation", loss=loss)
        for loss, rights in (
            ("distribution_matching", (0, 5, 8)),
            ("sample_matching", (0, 2, 6)),
        )
        for step, right in zip((0, 20, 40), rights, strict=True)
    ]
    tests = [
        rows(right, step=40, loss=loss)
        for loss, right in (("distribution_matching", 7), ("sample_matching", 3))
    ]
    table = report.loss_table(
        pd.concat(validation + tests), DATA, seed=0, **PROFILE
    ).set_index("series")
    matching, sample = table.loc["distribution_matching"], table.loc["sample_matching"]
    assert matching[:3].tolist() == pytest.approx([0.65, 20, 0.8])
    assert sample[:3].tolist() == pytest.approx([0.4, 40, 0.6])
    assert (matching["test"], sample["test"]) == (0.7, 0.3)
    assert matching["test_low"] < 0.7 < matching["test_high"]


def test_a_loss_that_never_gets_half_way_says_nan():
    predictions = pd.concat(
        rows(right, step=step, split=split, loss=loss)
        for loss, last in (("distribution_matching", 8), ("sample_matching", 1))
        for split, step, right in (
            ("validation", 0, 0),
            ("validation", 20, last),
            ("test", 20, last),
        )
    )
    table = report.loss_table(predictions, DATA, seed=0, **PROFILE)
    assert table["half_way"].fillna(-1).tolist() == [20, -1]


def test_the_slopes_of_every_start_stand_before_and_after():
    tuned = sized({100: 4, 200: 8, 400: 12})
    raw = sized({100: 2, 200: 4}, start="raw")
    slopes = report.slopes_table(pd.concat([tuned, raw]), DATA, seed=0)
    assert slopes[["start", "stage", "term"]].to_numpy().tolist() == [
        ["instruction_tuned", stage, term]
        for stage in ("before", "after")
        for term in ("slope", "kink")
    ]
    np.testing.assert_allclose(slopes["per_doubling"], [0.2, 0, 0.2, 0], atol=1e-9)


def test_too_few_sizes_leave_an_empty_table_of_slopes():
    slopes = report.slopes_table(sized({100: 4, 200: 8}), DATA, seed=0)
    assert slopes.empty
    assert "per_doubling" in slopes
