"""One task in one prompt mode: the unit of evaluation that is kept.

Enters: a task's problems, its demonstrations and a student. Leaves: predictions with
their scores, one row per problem, in memory and as one Parquet file.

Small cells are decoded together: a step costs little more for many rows than for few.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from datasets import Dataset, Features, List, Value

from cotspec import answers, artifacts, prompts
from cotspec.decoding import Generation, decode
from cotspec.models import Student
from cotspec.profiles import EvaluationConfig

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

GROUP_ROWS = 1024  # cells are decoded together until they have so many problems

PREDICTION_FEATURES = Features(
    {
        "problem_id": Value("string"),
        "task": Value("string"),
        "prompt_mode": Value("string"),
        "checkpoint": Value("string"),
        "completion": Value("string"),
        "predicted_answer": Value("string"),
        "is_correct": Value("bool"),
        "no_answer": Value("bool"),
        "tier": Value("string"),
        "reference_is_correct": Value("bool"),
        "lm_eval_is_correct": Value("bool"),
        "finish_reason": Value("string"),
        "num_demonstrations": Value("int32"),
        "num_dropped_demonstrations": Value("int32"),
        "is_answer_spellable": Value("bool"),
        "samples": List(Value("string")),
    }
)


@dataclass(frozen=True)
class Sampling:
    """Greedy by default; else `num_samples` per problem and a majority vote.

    Source: self-consistency, Wang et al. 2022, arXiv 2203.11171.
    """

    temperature: float = 0.0
    num_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples: {self.num_samples}. Allowed: >= 1")
        if self.temperature < 0 or (self.temperature == 0 and self.num_samples > 1):
            raise ValueError(
                f"temperature: {self.temperature} with num_samples "
                f"{self.num_samples}. Allowed: 0 with one sample (greedy), else > 0"
            )


def sampling_of(config: EvaluationConfig) -> Sampling:
    """Return how a profile samples; ValueError where its numbers make no sense."""
    return Sampling(config.temperature, config.num_samples)


@dataclass(frozen=True)
class Cell:
    """One task in one prompt mode: the unit of work that is kept."""

    task: str
    mode: str
    checkpoint: str
    problems: Dataset
    fitted: list[prompts.FittedPrompt | None]  # None: the question does not fit


def check_cell(
    task: str, mode: str, problems: Dataset, demonstrations: Mapping[str, Sequence]
) -> None:
    """Raise ValueError where this task cannot be evaluated in this mode."""
    if mode not in prompts.PROMPT_MODES:
        raise ValueError(
            f"prompt_modes: {mode!r} for task {task!r}. "
            f"Allowed: {', '.join(prompts.PROMPT_MODES)}"
        )
    if len(problems) == 0:
        raise ValueError(f"problems_by_task: task {task!r} has no problems")
    if not mode.startswith("zero_shot") and not demonstrations.get(task):
        raise ValueError(
            f"demonstrations: none for task {task!r}, which mode {mode!r} shows. "
            "Add them, or leave this mode out for this task"
        )
    for problem_id, gold in zip(
        problems["problem_id"], problems["answer"], strict=True
    ):
        try:
            _score(task, mode, "", gold)
        except ValueError as error:
            raise ValueError(f"problem {problem_id!r}: {error}") from error


def fit_prompts(
    student: Student,
    problems: Dataset,
    mode: str,
    demonstrations: Sequence[prompts.Demonstration],
    description: str,
    config: EvaluationConfig,
) -> list[prompts.FittedPrompt | None]:
    """Each problem's prompt; None where its question alone is too long."""
    if mode not in prompts.GENERIC_PROMPT_MODES:
        demonstrations = demonstrations[: config.num_demonstrations]
    items = [(question, demonstrations) for question in problems["question"]]
    options = {"max_input_tokens": config.max_input_tokens, "description": description}
    try:
        return list(prompts.fit_prompts(items, mode, student.tokenizer, **options))
    except ValueError:  # at least one is too long: find out which
        return [_fit_or_none(item, mode, student, options) for item in items]


def _fit_or_none(item, mode: str, student: Student, options: dict):
    try:
        return prompts.fit_prompts([item], mode, student.tokenizer, **options)[0]
    except ValueError as error:  # counted: finish_reason "prompt_too_long"
        logger.warning("%s: %s", mode, error)
        return None


def cell_path(
    work_dir: Path | None,
    cell: Cell,
    student: Student,
    config: EvaluationConfig,
    sampling: Sampling,
) -> Path | None:
    """Return the cell's file; its name changes with all that its rows depend on."""
    if work_dir is None:
        return None
    inputs = {
        "student": [student.name, student.start, student.size, cell.checkpoint],
        "config": dataclasses.asdict(config),
        "sampling": dataclasses.asdict(sampling),
        "problem_ids": list(cell.problems["problem_id"]),
        "answers": list(cell.problems["answer"]),
        "prompts": [prompt.text if prompt else None for prompt in cell.fitted],
    }
    digest = artifacts.digest_of(inputs)[:16]
    name = f"{cell.task.replace('/', '-')}.{cell.mode}.{digest}.parquet"
    return Path(work_dir) / name


def finished(path: Path | None, cell: Cell) -> Dataset | None:
    """The cell's predictions if a whole file of them is there."""
    if path is None or not path.exists():
        return None
    try:
        kept = artifacts.read_dataset(path).cast(PREDICTION_FEATURES)
        if list(kept["problem_id"]) == list(cell.problems["problem_id"]):
            return kept
        reason = f"{len(kept)} rows for {len(cell.problems)} problems"
    except ValueError as error:
        reason = str(error)
    logger.warning("decoding again, %s is not usable: %s", path, reason)
    return None


def grouped(
    items: Iterable[Item], num_rows: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Yield items in their order, so many at a time as make `GROUP_ROWS` rows."""
    group: list[Item] = []
    for item in items:
        group.append(item)
        if sum(map(num_rows, group)) >= GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group


def run_cells(
    cells: Sequence[Cell],
    student: Student,
    config: EvaluationConfig,
    sampling: Sampling,
    accelerator: Accelerator | None,
) -> list[Dataset]:
    """Decode the prompts of several cells together, and score each cell."""
    prompts_by_cell = [[p.text for p in cell.fitted if p] for cell in cells]
    k = sampling.num_samples
    generations = iter(
        decode(
            student,
            [text for texts in prompts_by_cell for text in texts for _ in range(k)],
            config,
            temperature=sampling.temperature,
            # By the place in its cell: samples do not depend on the other cells.
            seeds=[
                sampling.seed + i
                for texts in prompts_by_cell
                for i in range(len(texts) * k)
            ],
            accelerator=accelerator,
        )
    )
    return [_predictions(cell, student, generations, k) for cell in cells]


def _predictions(
    cell: Cell, student: Student, generations: Iterator[Generation], k: int
) -> Dataset:
    """Score the next `k` generations of each problem."""
    rows = []
    for problem, prompt in zip(cell.problems, cell.fitted, strict=True):
        candidates = [Generation("", 0, "prompt_too_long")]
        if prompt:
            candidates = [next(generations) for _ in range(k)]
        row = _prediction(cell, problem, prompt, candidates)
        row["is_answer_spellable"] = prompts.spellable(
            problem["answer"], student.tokenizer
        )
        rows.append(row)
    predictions = Dataset.from_list(rows, features=PREDICTION_FEATURES)
    # In the order of a cell read back: a resumed evaluation ends with the same bytes.
    predictions = predictions.select_columns(list(PREDICTION_FEATURES))
    _warn_of_losses(cell, predictions)
    return predictions


def _prediction(
    cell: Cell,
    problem: Mapping[str, str],
    prompt: prompts.FittedPrompt | None,
    candidates: Sequence[Generation],
) -> dict[str, object]:
    scores = [
        _score(cell.task, cell.mode, _counted_text(g), problem["answer"])
        for g in candidates
    ]
    chosen = majority([score["predicted_answer"] for score in scores])
    return {
        "problem_id": problem["problem_id"],
        "task": cell.task,
        "prompt_mode": cell.mode,
        "checkpoint": cell.checkpoint,
        "completion": candidates[chosen].completion,
        "finish_reason": candidates[chosen].finish_reason,
        "num_demonstrations": prompt.num_demonstrations if prompt else 0,
        "num_dropped_demonstrations": prompt.num_dropped if prompt else 0,
        "samples": [g.completion for g in candidates] if len(candidates) > 1 else [],
        **scores[chosen],
    }


def _counted_text(generation: Generation) -> str:
    """What came before a breakdown is kept, but does not count."""
    broke = generation.finish_reason in ("not_finite", "prompt_too_long")
    return "" if broke else generation.completion


def majority(predicted: Sequence[str | None]) -> int:
    """Return the index of the first sample with the most frequent answer.

    A sample without an answer does not vote; of tied answers the first given wins.
    """
    votes = Counter(answer for answer in predicted if answer is not None)
    if not votes:
        return 0
    return predicted.index(max(votes, key=lambda answer: votes[answer]))


def _score(task: str, mode: str, completion: str, gold: str) -> dict[str, object]:
    """The scores of one completion; math carries two comparison scores beside ours."""
    if mode in prompts.GENERIC_PROMPT_MODES:
        stem = task.rsplit("/", 1)[-1]
        score = answers.score_bbh(stem, completion, gold, prompt_mode=mode)
        predicted = score.predicted
        others = dict.fromkeys(("tier", "reference_is_correct", "lm_eval_is_correct"))
    else:
        score = answers.score_math(completion, gold)
        predicted = None if score.predicted is None else str(score.predicted)
        others = {
            "tier": score.tier,
            "reference_is_correct": answers.reference_score(completion, gold),
            "lm_eval_is_correct": answers.lm_eval_flexible_score(completion, gold),
        }
    return {
        "predicted_answer": predicted,
        "is_correct": score.is_correct,
        "no_answer": score.no_answer,
        **others,
    }


def _warn_of_losses(cell: Cell, predictions: Dataset) -> None:
    reasons = Counter(predictions["finish_reason"])
    for reason in ("not_finite", "prompt_too_long"):
        if reasons[reason]:
            logger.warning(
                "%s, %s: %d of %d counted as without answer: %s",
                cell.task,
                cell.mode,
                reasons[reason],
                len(predictions),
                reason,
            )
