"""Decode, score and aggregate with intervals.

Enters: a student, problems by task and the prompt modes to test. Leaves: predictions,
one row per (problem, prompt mode) with the raw completion, and from them the tidy table
of accuracies. Prompts come from `prompts`, scores from `answers`.

Texts are decoded together, longest first, whatever their task: a step costs little more
for many rows than for few. The same inputs give the same bytes however many processes
share them.
"""

import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from accelerate import Accelerator
from datasets import Dataset, Features, List, Value, concatenate_datasets

from cotspec import answers, artifacts, prompts, stages, statistics
from cotspec.decoding import FINISH_REASONS, Generation, decode, prompt_ids
from cotspec.models import Student, in_precision
from cotspec.profiles import EvaluationConfig
from cotspec.prompts import TaskPrompts

logger = logging.getLogger(__name__)

# Fields that say what is tested, not how it is decoded.
_NOT_DECODING = ("math_prompt_modes", "generic_prompt_modes", "confidence")
ROWS_AT_ONCE = 4096  # decoded together: what a kill loses, up to the end of a task
BROKEN = FINISH_REASONS[2:]  # what was written before it broke does not count
TIDY_COLUMNS = (
    "student start size step seed task prompt_mode n accuracy ci_low ci_high"
).split()
_TEXT, _FLAG, _COUNT = Value("string"), Value("bool"), Value("int32")
_SCORES = {"predicted_answer": _TEXT, "is_correct": _FLAG, "no_answer": _FLAG}
_SCORES |= {"tier": _TEXT, "reference_is_correct": _FLAG, "lm_eval_is_correct": _FLAG}
PREDICTION_FEATURES = Features(
    dict.fromkeys("problem_id task prompt_mode checkpoint completion".split(), _TEXT)
    | _SCORES
    | {"finish_reason": _TEXT, "num_demonstrations": _COUNT}
    | {"num_dropped_demonstrations": _COUNT, "is_answer_spellable": _FLAG}
    | {"samples": List(_TEXT)}
)


class _Question(NamedTuple):
    """One problem in one prompt mode; without a prompt where it does not fit."""

    task: str
    mode: str
    problem: Mapping[str, str]
    prompt: prompts.FittedPrompt | None
    token_ids: Sequence[int]
    seed: int


# What a process asked before, by file name and tokenizer: a grid asks every checkpoint
# and every size the same, and to fit and tokenise prompts is a tenth of the time.
_ASKED: dict[tuple[str, str, bool], list[_Question]] = {}


def evaluate(
    student: Student,
    prompts_by_task: Mapping[str, TaskPrompts],
    prompt_modes: Mapping[str, Sequence[str]],
    config: EvaluationConfig,
    *,
    checkpoint: str,
    work_dir: Path | None = None,
    accelerator: Accelerator | None = None,
) -> Dataset:
    """Test a student on every task in every prompt mode.

    Parameters
    ----------
    student : Student
    prompts_by_task : mapping of task to TaskPrompts
        From `selection.prompts_by_task`; of the problems the columns ``problem_id,
        question, answer``. Math modes show the first ``config.num_demonstrations``,
        generic modes all.
    prompt_modes : mapping of task to sequence of str
        Modes of `profiles.DATA_FORMATS` are scored as math, those of
        `prompts.GENERIC_PROMPT_MODES` as BigBench-Hard.
    config : EvaluationConfig
        With more samples than one, the answer of their majority counts:
        self-consistency, Wang et al. 2022, arXiv 2203.11171.
    checkpoint : str
        Name of these weights in the predictions.
    work_dir : Path, optional
        Of these weights alone: keeps a file per task and prompt mode. A later call
        with the same inputs and sources takes them from there.
    accelerator : Accelerator, optional
        Shares the batches among its processes; every process returns all predictions.

    Returns
    -------
    Dataset
        Columns of `PREDICTION_FEATURES`, ordered by task, mode and problem.

    Raises
    ------
    ValueError
        Unknown mode, no problems, or a task without demonstrations in a mode that shows
        them; all before anything is decoded.
    """
    tokenizer = artifacts.digest_of(student.tokenizer.backend_tokenizer.to_str())
    asked: dict[int, list[_Question]] = defaultdict(list)
    count = 0
    paths: dict[tuple[str, str], Path | None] = {}
    for task, parts in prompts_by_task.items():
        for mode in prompt_modes[task]:
            name = file_name(task, mode, config, parts)
            path = paths[task, mode] = work_dir and Path(work_dir) / checkpoint / name
            if path and path.exists():
                continue
            key = name, tokenizer, student.model.config.is_encoder_decoder
            if key not in _ASKED:
                _ASKED[key] = _questions(task, mode, student, config, parts)
            asked[count // ROWS_AT_ONCE] += _ASKED[key]
            count += len(parts.problems)
    done: dict[tuple[str, str], Dataset] = {}
    for questions in asked.values():
        rows = defaultdict(list)
        for row in _answered(questions, student, config, checkpoint, accelerator):
            rows[row["task"], row["prompt_mode"]].append(row)
        for place in rows:
            # `Dataset.from_list` looks at every value of every row first.
            schema = PREDICTION_FEATURES.arrow_schema
            table = pa.Table.from_pylist(rows[place], schema=schema)
            done[place] = artifacts.dataset_of(table)
            if paths[place] and (accelerator is None or accelerator.is_main_process):
                artifacts.write_dataset(paths[place], done[place])
    kept = (done.get(place) or artifacts.read_dataset(paths[place]) for place in paths)
    return concatenate_datasets([*kept])


def _questions(
    task: str, mode: str, student: Student, config: EvaluationConfig, parts: TaskPrompts
) -> list[_Question]:
    """Return a task's questions as one mode asks them; ValueError if it cannot."""
    problems, shown, description = parts
    _check(task, mode, problems, shown)
    is_generic = mode in prompts.GENERIC_PROMPT_MODES
    own = shown if is_generic else shown[: config.num_demonstrations]
    items = [(question, own) for question in problems["question"]]
    limits = {"max_input_tokens": config.max_input_tokens, "description": description}
    fitted = prompts.fit_prompts(items, mode, student.tokenizer, **limits)
    texts = [prompt.text for prompt in fitted if prompt]
    # They stay in memory: a list takes nine times as much.
    encoded = (np.array(ids, np.int32) for ids in prompt_ids(student, texts))
    # Seeds by the place in the task: samples do not depend on other tasks.
    return [
        _Question(task, mode, problem, prompt, next(encoded) if prompt else (), seed)
        for seed, (problem, prompt) in enumerate(zip(problems, fitted, strict=True))
    ]


def _answered(
    questions: Sequence[_Question],
    student: Student,
    config: EvaluationConfig,
    checkpoint: str,
    accelerator: Accelerator | None,
) -> list[dict]:
    """Decode all questions together; return their rows in order."""
    k = config.num_samples
    fitting = [question for question in questions if question.prompt]
    encoded = [question.token_ids for question in fitting for _ in range(k)]
    seeds = [question.seed * k + i for question in fitting for i in range(k)]
    options = {"seeds": seeds, "accelerator": accelerator}
    written = iter(decode(student, encoded, config, **options) if encoded else ())
    rows = []
    for question in questions:
        candidates = list(itertools.islice(written, k if question.prompt else 0))
        candidates = candidates or [Generation("", 0, "prompt_too_long")]
        rows.append(_prediction(question, candidates, student, checkpoint))
    reasons = Counter(row["finish_reason"] for row in rows)
    for reason in reasons.keys() & BROKEN:
        said = "%d of %d counted as without answer: %s"
        logger.warning(said, reasons[reason], len(rows), reason)
    return rows


def file_name(
    task: str, mode: str, config: EvaluationConfig, parts: TaskPrompts
) -> str:
    """Return a name that changes with all that predictions depend on but weights."""
    facts = {
        "problems": parts.problems.to_list(),
        "demonstrations": [
            vars(demonstration) for demonstration in parts.demonstrations
        ],
        "description": parts.description,
        "settings": decoding_settings(config),
        "code": stages.code_of("cotspec.evaluation"),
    }
    digest = artifacts.digest_of(facts)[:16]
    return f"{task.replace('/', '-')}.{mode}.{digest}.parquet"


def decoding_settings(config: EvaluationConfig) -> dict[str, object]:
    """Return the fields that say how a text is decoded, not which are."""
    fields = vars(in_precision(config))
    return {name: fields[name] for name in fields if name not in _NOT_DECODING}


def _check(task: str, mode: str, problems: Dataset, shown: Sequence) -> None:
    """Raise ValueError where this task cannot be evaluated in this mode."""
    if len(problems) == 0:
        raise ValueError(f"prompts_by_task: task {task!r} has no problems")
    if not mode.startswith("zero_shot") and not shown:
        raise ValueError(f"demonstrations: none for {task!r}, which {mode!r} shows")
    for problem in problems:
        try:
            _score(task, mode, "", problem["answer"])
        except ValueError as error:
            raise ValueError(f"problem {problem['problem_id']!r}: {error}") from error


def _prediction(
    question: _Question, candidates: list[Generation], student: Student, checkpoint: str
) -> dict[str, object]:
    """Score a problem's generations, and take the one of the majority."""
    problem, prompt = question.problem, question.prompt
    counted = ["" if g.finish_reason in BROKEN else g.completion for g in candidates]
    asked, gold = (question.task, question.mode), problem["answer"]
    scores = [_score(*asked, text, gold) for text in counted]
    chosen = majority([score["predicted_answer"] for score in scores])
    return {
        "problem_id": problem["problem_id"],
        "task": question.task,
        "prompt_mode": question.mode,
        "checkpoint": checkpoint,
        "completion": candidates[chosen].completion,
        **scores[chosen],
        "finish_reason": candidates[chosen].finish_reason,
        "num_demonstrations": prompt.num_demonstrations if prompt else 0,
        "num_dropped_demonstrations": prompt.num_dropped if prompt else 0,
        "is_answer_spellable": prompts.spellable(gold, student.tokenizer),
        "samples": [g.completion for g in candidates] if len(candidates) > 1 else [],
    }


def majority(predicted: Sequence[str | None]) -> int:
    """Return the index of the first sample with the most frequent answer.

    A sample without an answer does not vote; of tied answers the first given wins.
    """
    votes = Counter(answer for answer in predicted if answer is not None)
    return predicted.index(votes.most_common(1)[0][0]) if votes else 0


def _score(task: str, mode: str, completion: str, gold: str) -> dict[str, object]:
    """The scores of one completion; math carries two comparison scores beside ours."""
    if mode in prompts.GENERIC_PROMPT_MODES:
        stem = task.rsplit("/", 1)[-1]
        score = answers.score_bbh(stem, completion, gold, prompt_mode=mode)
        others = None, None, None
    else:
        score = answers.score_math(completion, gold)
        comparisons = answers.reference_score, answers.lm_eval_flexible_score
        others = score.tier, *(other(completion, gold) for other in comparisons)
    predicted = None if score.predicted is None else str(score.predicted)
    values = predicted, score.is_correct, score.no_answer, *others
    return dict(zip(_SCORES, values, strict=True))


def aggregate(
    predictions: Dataset, student: Student, *, step: int, seed: int, confidence: float
) -> pd.DataFrame:
    """Return accuracies with Wilson intervals, one row per task and prompt mode.

    Parameters
    ----------
    predictions : Dataset
        Columns ``task, prompt_mode, is_correct``.
    student, step, seed
        The checkpoint; described in every row.
    confidence : float
        Coverage of the interval.

    Returns
    -------
    DataFrame
        Columns `TIDY_COLUMNS`; fractions 0 to 1.
    """
    rows = []
    groups = predictions.to_pandas().groupby(["task", "prompt_mode"], sort=False)
    for (task, mode), group in groups:
        n, num_correct = len(group), int(group["is_correct"].sum())
        interval = statistics.wilson_interval(num_correct, n, confidence=confidence)
        facts = student.name, student.start, student.size, step, seed, task, mode, n
        rows.append((*facts, num_correct / n, *interval))
    return pd.DataFrame(rows, columns=TIDY_COLUMNS)


def outcomes(predictions: Dataset) -> pd.DataFrame:
    """Return what was lost and why: counts, one row per task and prompt mode.

    Columns: ``n``; ``no_answer``; one per finish reason other than ``stop``;
    ``shortened_prompts`` (at least one demonstration dropped); and
    ``unspellable_answers`` (the gold cannot be written in the student's vocabulary).
    """
    frame = predictions.to_pandas()
    counts = {"n": True, "no_answer": frame["no_answer"]}
    counts |= {name: frame["finish_reason"] == name for name in FINISH_REASONS[1:]}
    counts["shortened_prompts"] = frame["num_dropped_demonstrations"] > 0
    counts["unspellable_answers"] = ~frame["is_answer_spellable"]
    groups = frame.assign(**counts).groupby(["task", "prompt_mode"], sort=False)
    return groups[[*counts]].sum().reset_index()


def form_and_reasoning(predictions: Dataset) -> pd.DataFrame:
    """Tell apart what a student gains in form and in arithmetic, on math problems.

    A text that says "the answer is" has the form of the training data. A student may
    score better only because more of its texts have it, and the scorer finds in them
    what it wrote all along.

    Returns
    -------
    DataFrame
        One row per checkpoint and prompt mode: ``n``, ``with_form`` (the share of
        texts that state an answer), ``right`` (of all), ``right_with_form`` and
        ``right_without`` (of those with and without; NaN where there are none).
    """
    frame = predictions.to_pandas()
    frame = frame[frame["tier"].notna()]
    has_form = frame["tier"] == answers.TIERS[0]
    right = frame["is_correct"].astype(float)
    shares = {"with_form": has_form, "right": right}
    shares |= {"right_with_form": right[has_form], "right_without": right[~has_form]}
    groups = frame.assign(**shares).groupby(["checkpoint", "prompt_mode"], sort=False)
    table = groups[[*shares]].mean().reset_index()
    table.insert(2, "n", groups.size().to_numpy())
    return table
