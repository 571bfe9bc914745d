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
