"""C1 to C3: every student before and after its specialization.

Enters: predictions of the profile's own specialization, at the start and at the last
step. Leaves: the findings that the ledger judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from cotspec.profiles import DataConfig
from cotspec.report.claims import MAX_GENERIC_KEPT, MIN_GENERIC_ACCURACY
from cotspec.report.ledger import Finding, measured
from cotspec.report.pairing import (
    GENERIC_MODES,
    MATH_MODE,
    TRAINING,
    Comparison,
    at_last_step,
    at_start,
    compare,
    falls,
    pick,
    rises,
    too_few,
)


def before_and_after(*frames: pd.DataFrame) -> pd.DataFrame:
    """Return what several notebooks measured of the profile's own specialization.

    Parameters
    ----------
    frames : DataFrame
        Predictions of notebooks 07, 08 and 10. One training may be in several of them;
        trained on other formats than are in all of them, it is left out.

    Returns
    -------
    DataFrame
        Test rows of each training's start and last step, every answer once.
    """
    rows = pd.concat(frames, ignore_index=True)
    shared = set.intersection(*(set(frame["data_formats"]) for frame in frames))
    rows = rows[(rows["split"] == "test") & rows["data_formats"].isin(shared)]
    key = [*TRAINING, "step", "task", "prompt_mode", "problem_id"]
    several = rows[rows.duplicated(key, keep=False)]
    disagree = several.groupby(key, dropna=False)["is_correct"].nunique() > 1
    if disagree.any():
        raise ValueError(
            f"predictions: {disagree.sum()} answers differ between notebooks, first "
            f"of {disagree.idxmax()}. Run notebooks 07 to 10 with the same OVERRIDES"
        )
    rows = rows.drop_duplicates(key)
    return pd.concat([at_start(rows), at_last_step(rows)], ignore_index=True)


def specialization_findings(
    predictions: pd.DataFrame, data: DataConfig, *, seed: int
) -> dict[str, Finding]:
    """Return the findings of C1, C2 and C3 over all sizes and seeds.

    Raw starts are left out: the claims are about the tuned ones. A claim whose tasks
    or prompt modes were not tested is left out too.

    Parameters
    ----------
    predictions : DataFrame
        Of trainings on all formats, one a size and seed, at step 0 and later.
    data : DataConfig
        Which tasks are in-distribution, out of distribution and generic.
    seed : int
        Of the bootstrap.

    Raises
    ------
    ValueError
        No predictions, or problems that were answered on one side only.
    """
    tuned = predictions[predictions["start"] != "raw"]
    lifts = {
        "C1": changes_by_size(tuned, [data.train_task], MATH_MODE, seed=seed),
        "C2": changes_by_size(
            tuned, data.out_of_distribution_tasks, MATH_MODE, seed=seed
        ),
    }
    generic = [
        changes_by_size(tuned, data.generic_tasks, mode, seed=seed)
        for mode in GENERIC_MODES
    ]
    found = {claim: _lift(changes) for claim, changes in lifts.items() if changes}
    return found | ({"C3": _price(*generic)} if all(generic) else {})


def changes_by_size(
    predictions: pd.DataFrame, tasks: Sequence[str], mode: str, *, seed: int
) -> list[Comparison]:
    """Compare the last step with the start at each size, smallest first."""
    return [
        compare(at_start(rows), at_last_step(rows), seed=seed, label=model)
        for model, rows in by_size(pick(predictions, tasks, mode))
    ]


def by_size(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each model's name and rows, smallest first."""
    for (_, model), group in rows.groupby(["size", "model"]):
        yield model, group


def in_words(comparisons: Sequence[Comparison]) -> str:
    """Say several comparisons in a row."""
    return ", ".join(map(str, comparisons))


def joint_p_value(
    comparisons: Sequence[Comparison], is_opposite: Callable[[Comparison], bool]
) -> float:
    """Return the p-value of "at every size", or of "opposite at one" where one is.

    The first needs all to be significant: the largest. The second is a search among
    several: the smallest of the opposite ones times their number (Bonferroni).
    """
    against = [one.change.p_value for one in comparisons if is_opposite(one)]
    if against:
        return min(1.0, len(comparisons) * min(against))
    return max(one.change.p_value for one in comparisons)


def _lift(changes: list[Comparison]) -> Finding:
    """C1 and C2: the change at the size where it is smallest."""
    return measured(
        min(changes, key=_estimate).change,
        in_words(changes),
        p_value=joint_p_value(changes, falls),
        is_met=all(map(rises, changes)),
        is_opposite=any(map(falls, changes)),
        reason=too_few(changes),
    )


def _price(
    chain_of_thought: list[Comparison], answer_only: list[Comparison]
) -> Finding:
    """C3: the fall of generic CoT, with generic answer-only beside it."""
    both = chain_of_thought + answer_only
    start = min(one.first for one in chain_of_thought)
    has_little = start < MIN_GENERIC_ACCURACY and (
        f"the start solves {start:.1%} of the generic problems with CoT; the rule "
        f"needs {MIN_GENERIC_ACCURACY:.0%}"
    )
    kept = [one.second <= MAX_GENERIC_KEPT * one.first for one in chain_of_thought]
    return measured(
        max(chain_of_thought, key=_estimate).change,
        f"CoT {in_words(chain_of_thought)}; answer-only {in_words(answer_only)}",
        p_value=joint_p_value(both, rises),
        is_met=all(kept) and all(map(falls, both)),
        is_opposite=any(map(rises, both)),
        reason=too_few(both) or has_little or "",
    )


def _estimate(one: Comparison) -> float:
    return one.change.estimate
