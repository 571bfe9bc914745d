"""What a run says about each claim: one function per claim.

Enters: predictions of notebooks 07 to 10 and the losses of notebook 09's trainings.
Leaves: one `Finding` per claim, the paper's quantity in words and the conditions that
its rule asks about, each with a 95% interval over seeds and problems.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cotspec import statistics
from cotspec.grids import TRAINING
from cotspec.profiles import DataConfig
from cotspec.report import claims, pairing
from cotspec.report.claims import SMALLEST, Condition, Finding
from cotspec.report.pairing import ASKED, MATH_MODE

# The paper's smallest effects, fractions: Table 1 (C1 to C3) and Table 2 (C4).
PAPER_LIFT, PAPER_LIFT_LARGEST = 0.089, 0.028
PAPER_FALL = {"CoT": ("chain_of_thought", 0.256), "answer-only": ("answer_only", 0.211)}
PAPER_TUNED_HIGHER, PAPER_RAW_GAINS = 0.033, 0.034
PAPER_SLOPES = {"tuned": 0.023, "raw": 0.018}  # fitted to the same tables, GSM8K after
PAPER_CHOICE = 0.02, 0.013  # Table 3 (C8): in distribution, out of it
WITHIN = {"is_equivalence": True}  # must lie within the smallest of interest of 0
SMALLEST_LOSS = 0.01, "nats"  # per target token
SMALLEST_SHARE = 0.25, "share of draws"  # in which the choices differ
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
    """

    abilities: pd.DataFrame
    formats: pd.DataFrame
    losses: pd.DataFrame
    sizes: pd.DataFrame
    loss_logs: pd.DataFrame
    problems: pd.DataFrame
    data: DataConfig


def find(run: Measured) -> dict[str, Finding]:
    """Return the finding of each claim.

    Raises
    ------
    ValueError
        Predictions that are not of the same problems on both sides.
    """
    outside = run.data.out_of_distribution_tasks
    return {
        "C1": lift(run, [run.data.train_task], PAPER_LIFT, PAPER_LIFT),
        # The paper gains least at its largest size.
        "C2": lift(run, outside, 2 * SMALLEST, PAPER_LIFT_LARGEST),
        "C3": generic_price(run),
        "C4": starts(run),
        "C5": smooth_growth(run),
        "C6": what_formats_teach(run),
        "C7": what_losses_teach(run),
        "C8": two_choices(run),
    }


def lift(run: Measured, tasks: Sequence[str], paper: float, largest: float) -> Finding:
    """C1, C2: accuracy after minus before, at every size, with the paper's effects."""
    _, tuned = _raw_and_tuned(pairing.pick(run.sizes, tasks, MATH_MODE))
    groups, conditions = pairing.by_size(tuned), []
    for number, (model, group) in enumerate(groups, 1):
        known = largest if number == len(groups) else paper
        conditions.append(_change(model, group, known))
    return _finding([_in_words(*named) for named in groups], conditions)


def generic_price(run: Measured) -> Finding:
    """C3: generic CoT is lost whole, answer-only in large part."""
    words, conditions, left_out = [], [], []
    level = chance_level(run.problems, run.data)
    for name, (mode, paper) in PAPER_FALL.items():
        rows = pairing.pick(run.sizes, run.data.generic_tasks, mode)
        for model, group in pairing.by_size(_raw_and_tuned(rows)[1]):
            before, after = pairing.before_and_after(group)
            label = f"{model}, generic {name}"
            words.append(_in_words(label, group))
            base = np.full_like(before, level)
            if statistics.paired_difference(base, before).ci_low <= 0:
                left_out.append(label)
                continue
            conditions.append(condition(f"{label} falls", after, before, paper))
            if name == "CoT":
                ends = f"{label} ends below chance + 5 points", after, base + SMALLEST
                conditions.append(condition(*ends, smallest=0.0))
    words.append(f"chance {level:.1%}")
    if left_out:
        words.append(f"no better than chance at the start: {', '.join(left_out)}")
    return _finding(words, conditions, "no start above chance was measured")


def chance_level(problems: pd.DataFrame, data: DataConfig) -> float:
    """Return what always giving a generic task's most frequent answer scores.

    Parameters
    ----------
    problems : DataFrame
        ``task, split, answer``; test problems of all generic tasks are pooled.
    data : DataConfig
    """
    is_asked = problems["task"].isin(data.generic_tasks) & (problems["split"] == "test")
    rows = problems[is_asked]
    counts = rows.groupby("task")["answer"].value_counts()
    return float(counts.groupby("task").max().sum() / len(rows))


def starts(run: Measured) -> Finding:
    """C4: a tuned start ends higher, a raw one gains more; means over the sizes."""
    rows = pairing.pick(run.sizes, [run.data.train_task], MATH_MODE)
    both = {"raw", "instruction_tuned"}
    groups = [g for _, g in rows.groupby("size") if both <= set(g["start"])]
    if not groups:
        return Finding("", reason="no size was specialized from both starts")
    (raw_before, tuned_before), (raw, tuned) = (
        np.mean([pairing.pair(*_raw_and_tuned(end(g))) for g in groups], axis=0)
        for end in (pairing.at_start, pairing.at_last_step)
    )
    words = [
        f"instruction-tuned start {tuned_before.mean():.1%} → {tuned.mean():.1%}",
        f"raw start {raw_before.mean():.1%} → {raw.mean():.1%}",
        f"means of {len(groups)} sizes, n = {raw.shape[1]}",
    ]
    gains = [tuned - tuned_before, raw - raw_before]
    conditions = [
        condition("the tuned start ends higher", raw, tuned, PAPER_TUNED_HIGHER),
        condition("the raw start gains more", *gains, PAPER_RAW_GAINS),
    ]
    return _finding(words, conditions)


def smooth_growth(run: Measured) -> Finding:
    """C5: slopes in log size, the lift at every size, and no bend, up or down."""
    rows = pairing.pick(run.sizes, [run.data.train_task], MATH_MODE)
    raw, tuned = _raw_and_tuned(rows)
    sizes, needed = tuned["size"].nunique(), claims.MIN_SIZES
    if sizes < needed:
        return Finding("", reason=f"{sizes} sizes; the rule needs {needed}")
    conditions, words = [], []
    for name, group in (("tuned", tuned), ("raw", raw)):
        if group["size"].nunique() < needed:
            continue
        slope, kink = size_coefficients(pairing.at_last_step(group))
        zero = np.zeros_like(slope)
        slope = condition(f"slope, {name} start", zero, slope, PAPER_SLOPES[name])
        label = f"bend, {name} start, within 10 points"
        bend = condition(label, zero, kink, smallest=claims.MAX_KINK, **WITHIN)
        conditions += [slope, bend]
        rise = f"{100 * slope.estimate:+.1f} points per doubling"
        words.append(f"{name} start after: {rise}, bend {100 * bend.estimate:+.1f}")
    for model, group in pairing.by_size(tuned):
        conditions.append(_change(f"lift, {model}", group, PAPER_LIFT))
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
    groups = [rows[rows["size"] == size] for size in sizes]
    answers = np.stack([pairing.pair(groups[0], group)[1] for group in groups])
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
    for name, mode in itertools.product(("in_context", "zero_shot"), ASKED):
        rows = pairing.pick(run.formats, [run.data.train_task], mode)
        rows = rows[rows["data_formats"] == name]
        label = f"tuned on {name.replace('_', '-')} data, {ASKED[mode]}"
        if rows.empty:
            return Finding("", reason=f"no student was {label}")
        words.append(_in_words(label, rows))
        sides, verb = pairing.before_and_after(rows), "rises"
        if name == "zero_shot" and mode == MATH_MODE:
            sides, verb = sides[::-1], "falls"
        conditions.append(condition(f"{label}: {verb}", *sides))
    return _finding(words, conditions)


def what_losses_teach(run: Measured) -> Finding:
    """C7: the training loss less its floor, and accuracy within five points."""
    rows = pairing.pick(run.losses, [run.data.train_task], MATH_MODE)
    rows = pairing.at_last_step(rows)
    losses = ["sample_matching", "distribution_matching"]
    sampled, matched = (rows[rows["loss"] == loss] for loss in losses)
    logs = run.loss_logs.pivot(index="step", columns=["loss", "seed"], values="excess")
    gap = logs[losses[0]] - logs[losses[1]]  # (steps, seeds)
    quarter = max(1, len(gap) // 4)
    means = logs.iloc[-quarter:].T.groupby("loss").mean().mean(axis=1)
    words = [
        f"{name.replace('_', ' ')} {means[name]:.3f} nats above its floor in the last "
        f"quarter, {side['is_correct'].mean():.1%} right"
        for name, side in zip(losses, (sampled, matched), strict=True)
    ]
    if gap.shape[1] == 1:
        return _finding(words, [], "1 seed; the rule needs 3")
    model = sampled["model"].iloc[0]
    parts = {"over the training": gap, "in its last quarter": gap.iloc[-quarter:]}
    conditions = [
        over_seeds(f"lower loss {when}", part.mean(), model, *SMALLEST_LOSS)
        for when, part in parts.items()
    ]
    sides = pairing.pair(sampled, matched)
    equal = condition("accuracy within 5 points", *sides, **WITHIN)
    return _finding(words, [*conditions, equal])


def two_choices(run: Measured) -> Finding:
    """C8: where both validation curves peak, and what either choice gains."""
    rows, data = run.abilities, run.data
    model = rows["model"].iloc[-1]
    rows = rows[(rows["model"] == model) & (rows["step"] > 0)]
    tasks = {
        "in distribution": [data.train_task],
        "out of distribution": data.out_of_distribution_tasks,
    }
    test, valid = (
        {w: pairing.pick(rows, t, MATH_MODE, split=split) for w, t in tasks.items()}
        for split in ("test", "validation")
    )
    sides = (*test.values(), *valid.values())
    steps, needed = min(s["step"].nunique() for s in sides), claims.MIN_CHECKPOINTS
    if steps < needed:
        return Finding("", reason=f"{steps} checkpoints; the rule needs {needed}")
    choices = {where: pairing.best_steps(side) for where, side in valid.items()}
    words = [
        f"chosen {where}: steps {', '.join(map(str, steps))}"
        for where, steps in choices.items()
    ]
    conditions, excess = [], _peaks_apart(*valid.values())
    if len(excess) > 1:
        conditions.append(over_seeds("peaks apart", excess, model, *SMALLEST_SHARE))
    for own, other, paper in zip(tasks, reversed(tasks), PAPER_CHOICE, strict=True):
        sides = [pairing.at_chosen(test[own], choices[where]) for where in (other, own)]
        label = f"own choice is better {own}"
        conditions.append(condition(label, *pairing.pair(*sides), paper))
    return _finding(words, conditions)


def _peaks_apart(inside: pd.DataFrame, outside: pd.DataFrame) -> pd.Series:
    """How much more often both sets choose differently than two draws of one set do.

    Per seed: the share of bootstrap draws of the problems in which the two sets peak
    at different steps, minus that of two draws of the same set (mean of both sets).
    """
    generator = np.random.default_rng(0)

    def peaks(rows: pd.DataFrame) -> np.ndarray:
        """Chosen steps, shape (resamples,), of one seed."""
        problem = ["task", "problem_id"]
        table = rows.pivot(index=problem, columns="step", values="is_correct")
        answers = table.to_numpy(dtype=float)  # (problems, steps)
        n = len(answers)
        weights = generator.multinomial(n, np.full(n, 1 / n), size=NUM_RESAMPLES)
        return (weights @ answers).argmax(axis=1)

    excess = {}
    for seed, rows in inside.groupby("seed"):
        other = outside[outside["seed"] == seed]
        one, two = (peaks(rows), peaks(rows)), (peaks(other), peaks(other))
        between = np.mean([(a != b).mean() for a in one for b in two])
        within = np.mean([(a != b).mean() for a, b in (one, two)])
        excess[seed] = between - within
    return pd.Series(excess)


def condition(
    label: str, first: np.ndarray, second: np.ndarray, paper: float = np.nan, **known
) -> Condition:
    """Return a condition on second minus first, arrays of shape (seeds, problems).

    The smallest effect of interest is 5 points, or half the paper's where smaller.
    `known` as `Condition` takes it.
    """
    change = statistics.paired_difference(first, second)
    smallest = known.pop("smallest", float(np.nanmin([SMALLEST, paper / 2])))
    known |= {"paper": paper, "squares": change.squares}
    return Condition(label, *change[:3], smallest, *first.shape, **known)


def _change(label: str, rows: pd.DataFrame, paper: float) -> Condition:
    return condition(label, *pairing.before_and_after(rows), paper)


def over_seeds(
    label: str, by_seed: pd.Series, model: str, smallest: float, unit: str
) -> Condition:
    """Return a condition on a mean over seeds, or their bases, by Student's t."""
    values = pairing.independent(by_seed.to_frame().T, model).to_numpy().ravel()
    change = values.mean(), np.nan, np.nan, None  # all that one base for all tells
    if len(values) > 1:
        change = statistics.paired_difference(np.zeros_like(values), values)
    known = {"num_seeds": len(values), "squares": change[3], "unit": unit}
    return Condition(label, *change[:3], smallest, **known)


def _finding(words: list[str], conditions: list[Condition], missing="") -> Finding:
    """What was measured; `missing` is the reason where there is no condition."""
    missing = missing or "nothing was measured"
    reason = claims.too_few(conditions) if conditions else missing
    return Finding("; ".join(words), tuple(conditions), reason)


def _raw_and_tuned(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    is_raw = rows["start"] == "raw"
    return rows[is_raw], rows[~is_raw]


def _in_words(label: str, rows: pd.DataFrame) -> str:
    before, after = map(pairing.right_answers, pairing.both_ends(rows))
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
    rows = rows.drop_duplicates([*key, "is_correct"])
    if rows.duplicated(key).any():
        said = f"answers differ between notebooks. {pairing.ONE_SETTING}"
        raise ValueError(f"predictions: {said}")
    return pd.concat(pairing.both_ends(rows), ignore_index=True)
