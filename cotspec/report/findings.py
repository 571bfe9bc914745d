"""What a run says about each claim: one function per claim.

Enters: predictions of notebooks 07 to 10 and the losses of notebook 09's trainings.
Leaves: one `Finding` per claim, the paper's quantity in words and the conditions that
its rule asks about, each with a 95% interval over seeds and problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from cotspec import statistics
from cotspec.profiles import AlignmentConfig, DataConfig, LossConfig
from cotspec.report.claims import (
    MAX_KINK,
    MIN_CHECKPOINTS,
    MIN_SIZES,
    SMALLEST,
    Condition,
    Finding,
    too_few,
)
from cotspec.report.pairing import (
    MATH_MODE,
    TRAINING,
    at_last_step,
    at_start,
    by_size,
    independent,
    pair,
    pick,
    right_answers,
)

ZERO_SHOT_MODE = "zero_shot_chain_of_thought"
# The paper's smallest effects, fractions: Table 1 (C1 to C3) and Table 2 (C4).
PAPER_LIFT, PAPER_LIFT_LARGEST = 0.089, 0.028
PAPER_COT_FALL, PAPER_ANSWER_FALL = 0.256, 0.211
PAPER_TUNED_HIGHER, PAPER_RAW_GAINS = 0.033, 0.034
SMALLEST_LOSS = 0.01  # nats per target token
SMALLEST_SHARE = 0.25  # of seeds in which the choices differ
NUM_RESAMPLES = 400  # of validation problems, for where the curves peak


@dataclass(frozen=True)
class Measured:
    """What the experiments of one run left.

    Attributes
    ----------
    abilities, formats, losses, sizes : DataFrame
        Predictions of notebooks 07, 08, 09 and 10.
    loss_logs : DataFrame
        Of notebook 09: ``loss, seed, step, excess``, nats per target token.
    problems : DataFrame
        ``task, split, answer`` of all problems, for what chance would score.
    data : DataConfig
    loss : LossConfig
    alignment : AlignmentConfig
    """

    abilities: pd.DataFrame
    formats: pd.DataFrame
    losses: pd.DataFrame
    sizes: pd.DataFrame
    loss_logs: pd.DataFrame
    problems: pd.DataFrame
    data: DataConfig
    loss: LossConfig = LossConfig()
    alignment: AlignmentConfig = AlignmentConfig()


def find(run: Measured) -> dict[str, Finding]:
    """Return the finding of each claim that the run measured.

    Raises
    ------
    ValueError
        Predictions that are empty, or not of the same problems on both sides.
    """
    found = {
        "C1": lift_in_distribution(run),
        "C2": lift_out_of_distribution(run),
        "C3": generic_price(run),
        "C4": starts(run),
        "C5": smooth_growth(run),
        "C6": what_formats_teach(run),
        "C7": what_losses_teach(run),
        "C8": two_choices(run),
    }
    return {claim: finding for claim, finding in found.items() if finding}


def lift_in_distribution(run: Measured) -> Finding:
    """C1: accuracy after minus before, at every size."""
    return _lifts(run, [run.data.train_task], PAPER_LIFT, PAPER_LIFT)


def lift_out_of_distribution(run: Measured) -> Finding:
    """C2: the same on all other math sets; the paper gains least at the largest."""
    tasks = run.data.out_of_distribution_tasks
    return _lifts(run, tasks, 2 * SMALLEST, PAPER_LIFT_LARGEST)


def _lifts(
    run: Measured, tasks: Sequence[str], paper: float, paper_largest: float
) -> Finding:
    rows = _tuned(pick(run.sizes, tasks, MATH_MODE))
    groups = by_size(rows)
    conditions = []
    for number, (model, group) in enumerate(groups, 1):
        known = paper_largest if number == len(groups) else paper
        sides = pair(at_start(group), at_last_step(group))
        conditions.append(condition(model, *sides, paper=known))
    words = [_in_words(model, group) for model, group in groups]
    return _finding(words, conditions)


def generic_price(run: Measured) -> Finding | None:
    """C3: generic CoT is lost whole, answer-only in large part."""
    words, conditions, left_out = [], [], []
    level = chance(run.problems, run.data.generic_tasks)
    for mode, name, paper in (
        ("chain_of_thought", "CoT", PAPER_COT_FALL),
        ("answer_only", "answer-only", PAPER_ANSWER_FALL),
    ):
        rows = _tuned(pick(run.sizes, run.data.generic_tasks, mode))
        for model, group in by_size(rows):
            before, after = pair(at_start(group), at_last_step(group))
            label = f"{model}, generic {name}"
            words.append(_in_words(label, group))
            base = np.full_like(before, level)
            if condition("", base, before).ci_low <= 0:
                left_out.append(label)
                continue
            fall = condition(f"{label} falls", after, before, paper=paper)
            conditions.append(fall)
            if name == "CoT":
                room = base + SMALLEST
                conditions.append(
                    condition(f"{label} ends at chance", after, room, smallest=0.0)
                )
    if not words:
        return None
    words.append(f"chance {level:.1%}")
    if left_out:
        words.append(f"no better than chance at the start: {', '.join(left_out)}")
    if not conditions:
        return Finding("; ".join(words), reason="no start is better than chance")
    return _finding(words, conditions)


def chance(problems: pd.DataFrame, tasks: Sequence[str]) -> float:
    """Return what always giving a task's most frequent answer scores on test problems.

    Parameters
    ----------
    problems : DataFrame
        ``task, split, answer``.
    tasks : sequence of str
        Their problems are pooled.
    """
    rows = problems[problems["task"].isin(tasks) & (problems["split"] == "test")]
    if rows.empty:
        return 0.0
    counts = rows.groupby("task")["answer"].value_counts()
    return float(counts.groupby("task").max().sum() / len(rows))


def starts(run: Measured) -> Finding:
    """C4: a tuned start ends higher, a raw one gains more; means over the sizes."""
    rows = pick(run.sizes, [run.data.train_task], MATH_MODE)
    before, after = at_start(rows), at_last_step(rows)
    sizes = [
        size
        for size, group in rows.groupby("size")
        if {"raw", "instruction_tuned"} <= set(group["start"])
    ]
    if not sizes:
        return Finding("", reason="no size was specialized from both starts")
    sides = {}
    for name, frame in (("before", before), ("after", after)):
        pairs = [
            pair(
                frame[(frame["size"] == size) & (frame["start"] == "raw")],
                frame[(frame["size"] == size) & (frame["start"] != "raw")],
            )
            for size in sizes
        ]
        sides[name] = [np.mean(side, axis=0) for side in zip(*pairs, strict=True)]
    (raw_before, tuned_before), (raw, tuned) = sides["before"], sides["after"]
    words = [
        f"{name} start {first.mean():.1%} → {last.mean():.1%}"
        for name, first, last in (
            ("instruction-tuned", tuned_before, tuned),
            ("raw", raw_before, raw),
        )
    ]
    words.append(f"means of {len(sizes)} sizes, n = {raw.shape[1]}")
    higher = condition(
        "the tuned start ends higher", raw, tuned, paper=PAPER_TUNED_HIGHER
    )
    gains = condition(
        "the raw start gains more",
        tuned - tuned_before,
        raw - raw_before,
        paper=PAPER_RAW_GAINS,
    )
    return _finding(words, [higher, gains])


def smooth_growth(run: Measured) -> Finding:
    """C5: slopes in log size, the lift at every size, and no jump."""
    rows = pick(run.sizes, [run.data.train_task], MATH_MODE)
    tuned = _tuned(rows)
    num_sizes = tuned["size"].nunique()
    if num_sizes < MIN_SIZES:
        return Finding("", reason=f"{num_sizes} sizes; the rule needs {MIN_SIZES}")
    conditions, words = [], []
    for name, group in (("tuned", tuned), ("raw", rows[rows["start"] == "raw"])):
        if group["size"].nunique() < MIN_SIZES:
            continue
        slope, kink = size_coefficients(at_last_step(group))
        zero = np.zeros_like(slope)
        slope = condition(f"slope, {name} start", zero, slope)
        conditions.append(slope)
        bend = condition(
            f"bend, {name} start", zero, kink, smallest=MAX_KINK, is_equivalence=True
        )
        conditions.append(bend)
        words.append(
            f"{name} start after: {100 * slope.estimate:+.1f} points per doubling, "
            f"bend {100 * bend.estimate:+.1f}"
        )
    for model, group in by_size(tuned):
        sides = pair(at_start(group), at_last_step(group))
        conditions.append(condition(f"lift, {model}", *sides, paper=PAPER_LIFT))
    return _finding(words, conditions)


def size_coefficients(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Fit accuracy on log size, and a second slope above the middle size.

    Parameters
    ----------
    rows : DataFrame
        One row per size, seed and problem; the same seeds and problems at each size.

    Returns
    -------
    slope, kink : array, shape (seeds, problems)
        Per doubling of the size. Their means are the coefficients: least squares is a
        weighted sum of the sizes' answers.
    """
    sizes = sorted(rows["size"].unique())
    smallest = rows[rows["size"] == sizes[0]]
    answers = np.stack([pair(smallest, rows[rows["size"] == s])[1] for s in sizes])
    doublings = np.log2(np.asarray(sizes, dtype=float))
    above = np.maximum(0, doublings - np.median(doublings))
    line = np.stack([np.ones_like(doublings), doublings], axis=1)  # (K, 2)
    bent = np.column_stack([line, above])  # (K, 3)
    # The weights sum to 0: what all sizes share is taken off before it can round.
    shared = answers - answers[0]
    slope, kink = (
        np.tensordot(np.linalg.pinv(design)[-1], shared, axes=1)
        for design in (line, bent)
    )
    return slope, kink


def what_formats_teach(run: Measured) -> Finding:
    """C6: two trainings, each asked in context and zero-shot, against the start."""
    words, conditions = [], []
    for name in ("in_context", "zero_shot"):
        for mode in (MATH_MODE, ZERO_SHOT_MODE):
            rows = pick(run.formats, [run.data.train_task], mode)
            rows = rows[rows["data_formats"] == name]
            asked = "in context" if mode == MATH_MODE else "zero-shot"
            label = f"tuned on {name.replace('_', '-')} data, asked {asked}"
            if rows.empty:
                return Finding("", reason=f"no student was {label}")
            words.append(_in_words(label, rows))
            before, after = pair(at_start(rows), at_last_step(rows))
            falls = name == "zero_shot" and mode == MATH_MODE
            sides = (after, before) if falls else (before, after)
            verb = "falls" if falls else "rises"
            conditions.append(condition(f"{label}: {verb}", *sides))
    return _finding(words, conditions)


def what_losses_teach(run: Measured) -> Finding:
    """C7: the training loss less its floor, and accuracy within five points."""
    rows = at_last_step(pick(run.losses, [run.data.train_task], MATH_MODE))
    rows = rows[_is_plain(rows, run.loss, run.alignment)]
    sides = [
        rows[rows["loss"] == name]
        for name in ("sample_matching", "distribution_matching")
    ]
    logs = run.loss_logs.pivot(index="step", columns=["loss", "seed"], values="excess")
    if any(side.empty for side in sides) or logs.columns.nlevels < 2:
        return Finding("", reason="students of both losses were not measured")
    try:
        gap = logs["sample_matching"] - logs["distribution_matching"]  # (steps, seeds)
    except KeyError:
        return Finding("", reason="losses of both trainings were not logged")
    last = gap.iloc[-max(1, len(gap) // 4) :]
    model = sides[0]["model"].iloc[0]
    names = ("lower loss over the training", "lower loss in its last quarter")
    conditions = [
        over_seeds(name, _per_base(part.mean(), model), SMALLEST_LOSS, unit="nats")
        for name, part in zip(names, (gap, last), strict=True)
        if gap.shape[1] > 1
    ]
    means = logs.iloc[-len(last) :].T.groupby("loss").mean().mean(axis=1)
    words = [
        f"{name.replace('_', ' ')} {means[name]:.3f} nats above its floor at the end, "
        f"{side['is_correct'].mean():.1%} right"
        for name, side in zip(means.index[::-1], sides, strict=True)
    ]
    equal = condition(
        "accuracy within 5 points",
        *pair(*sides),
        smallest=SMALLEST,
        is_equivalence=True,
    )
    if not conditions:
        return Finding("; ".join(words), reason="1 seed; the rule needs 3")
    return _finding(words, [*conditions, equal])


def _is_plain(
    rows: pd.DataFrame, loss: LossConfig, alignment: AlignmentConfig
) -> pd.Series:
    """Which rows are of the profile's own variant; sample matching has none."""
    fields = ("tail", "divergence", "cross_entropy_weight")
    own = (rows[list(fields)] == [getattr(loss, f) for f in fields]).all(axis=1)
    own &= rows["alignment"] == alignment.method
    return own | (rows["loss"] == "sample_matching")


def two_choices(run: Measured) -> Finding:
    """C8: where both validation curves peak, and what either choice gains."""
    rows = run.abilities[run.abilities["step"] > 0]
    rows = rows[rows["model"] == rows["model"].iloc[-1]] if len(rows) else rows
    data, sides = run.data, {}
    for name, tasks in (
        ("in", [data.train_task]),
        ("out", data.out_of_distribution_tasks),
    ):
        test = pick(run.abilities, tasks, MATH_MODE)
        valid = pick(run.abilities, tasks, MATH_MODE, split="validation")
        sides[name] = [f[f.index.isin(rows.index)] for f in (valid, test)]
    if any(frame.empty for frames in sides.values() for frame in frames):
        return Finding("", reason="validation and test were not measured on both sides")
    num_checkpoints = sides["in"][0]["step"].nunique()
    if num_checkpoints < MIN_CHECKPOINTS:
        reason = f"{num_checkpoints} checkpoints; the rule needs {MIN_CHECKPOINTS}"
        return Finding("", reason=reason)
    choices = {name: _choices(valid) for name, (valid, _) in sides.items()}
    conditions = []
    if len(choices["in"]) > 1:
        excess = _peaks_apart(sides["in"][0], sides["out"][0])
        conditions.append(
            over_seeds("peaks apart", excess, SMALLEST_SHARE, unit="share of draws")
        )
    words = [
        f"chosen {name.replace('out', 'out of')} distribution: "
        f"steps {', '.join(map(str, steps))}"
        for name, steps in choices.items()
    ]
    for own, other, where, paper in (
        ("in", "out", "in distribution", 0.02),
        ("out", "in", "out of distribution", 0.013),
    ):
        test = sides[own][1]
        both = [_at_chosen(test, choices[name]) for name in (other, own)]
        label = f"own choice is better {where}"
        conditions.append(condition(label, *pair(*both), paper=paper))
    return _finding(words, conditions)


def _choices(valid: pd.DataFrame) -> pd.Series:
    """The best step of each seed, the earliest of equals."""
    means = valid.pivot_table(index="step", columns="seed", values="is_correct")
    return means.idxmax()


def _at_chosen(rows: pd.DataFrame, steps: pd.Series) -> pd.DataFrame:
    return rows[rows["step"] == rows["seed"].map(steps)]


def _peaks_apart(inside: pd.DataFrame, outside: pd.DataFrame) -> np.ndarray:
    """How much more often both sets choose differently than two draws of one set do.

    Per seed: the share of bootstrap draws of the problems in which the two sets peak
    at different steps, minus that of two draws of the same set (mean of both sets).
    """
    generator = np.random.default_rng(0)

    def peaks(rows: pd.DataFrame) -> np.ndarray:
        """Chosen steps, shape (resamples,), of one seed."""
        table = rows.pivot(
            index=["task", "problem_id"], columns="step", values="is_correct"
        )
        answers = table.to_numpy(dtype=float)  # (problems, steps)
        n = len(answers)
        weights = generator.multinomial(n, np.full(n, 1 / n), size=NUM_RESAMPLES)
        return (weights @ answers).argmax(axis=1)

    found = []
    for seed, rows in inside.groupby("seed"):
        other = outside[outside["seed"] == seed]
        one, two = (peaks(rows), peaks(rows)), (peaks(other), peaks(other))
        between = np.mean([(a != b).mean() for a in one for b in two])
        within = np.mean([(a != b).mean() for a, b in (one, two)])
        found.append(between - within)
    seeds = sorted(inside["seed"].unique())
    return _per_base(pd.Series(found, index=seeds), inside["model"].iloc[0])


def _per_base(by_seed: pd.Series, model: str) -> np.ndarray:
    """Average a value per seed over the seeds that share a base."""
    return independent(by_seed.to_frame().T, model).to_numpy().ravel()


def condition(
    label: str,
    first: np.ndarray,
    second: np.ndarray,
    *,
    paper: float = float("nan"),
    smallest: float | None = None,
    is_equivalence: bool = False,
) -> Condition:
    """Return a condition on second minus first, arrays of shape (seeds, problems).

    The smallest effect of interest is 5 points, or half the paper's where smaller.
    """
    if smallest is None:
        smallest = SMALLEST if np.isnan(paper) else min(SMALLEST, paper / 2)
    change = statistics.paired_difference(first, second)
    return Condition(
        label,
        change.estimate,
        change.ci_low,
        change.ci_high,
        smallest,
        num_seeds=first.shape[0],
        num_problems=first.shape[1],
        is_equivalence=is_equivalence,
        paper=paper,
        variances=statistics.components(first, second),
    )


def over_seeds(label: str, values: np.ndarray, smallest: float, *, unit: str):
    """Return a condition on a mean over seeds, by Student's t."""
    mean, error = values.mean(), stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * error
    ends = np.round([mean, mean - half, mean + half], 12) + 0.0
    return Condition(label, *ends, smallest, num_seeds=len(values), unit=unit)


def _finding(words: Sequence[str], conditions: Sequence[Condition]) -> Finding:
    if not conditions:
        return Finding("; ".join(words), reason="nothing was measured")
    return Finding("; ".join(words), tuple(conditions), too_few(conditions))


def _tuned(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["start"] != "raw"]


def _in_words(label: str, rows: pd.DataFrame) -> str:
    before, after = right_answers(at_start(rows)), right_answers(at_last_step(rows))
    seeds = f", {after.shape[1]} seeds" if after.shape[1] > 1 else ""
    means = f"{before.mean(axis=None):.1%} → {after.mean(axis=None):.1%}"
    return f"{label} {means} (n = {len(after)}{seeds})"


def own_trainings(*frames: pd.DataFrame) -> pd.DataFrame:
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

    Raises
    ------
    ValueError
        Notebooks that give different answers for one training.
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
