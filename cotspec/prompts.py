"""Everything a model reads: the four data formats and the evaluation prompts.

Enters: questions, demonstrations and kept solutions. Leaves: `inputs` and `targets` as
text. No other module holds template text. Newlines separate the parts; T5 reads them
as spaces, which loses nothing because no part relies on them.

Source: Fu et al. 2023, data formats; wording as in the reference repository's prompts
(github.com/FranxYao/FlanT5-CoT-Specialization).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from datasets import Dataset

from cotspec import artifacts
from cotspec.profiles import DATA_FORMATS, GENERIC_PROMPT_MODES, FormatsConfig

if TYPE_CHECKING:  # the preflight imports this module and must take seconds
    from transformers import PreTrainedTokenizerBase

QUESTION_PREFIX = "Q: "
COMPLETION_PREFIX = "A:"
COT_TRIGGER = "Let's think step by step."
ANSWER_PREFIX = "The answer is"
STOP_STRINGS = ("\n\nQ:", "\nQ:")
PROMPT_MODES = (*DATA_FORMATS, *GENERIC_PROMPT_MODES)
_ENDS_IN_ANSWER = re.compile(r"\banswer is:?\s+\S[^\n]*\Z", re.IGNORECASE)
_SPARES = 3  # drawn in case the question itself, or a twin of it, is drawn
_TOKENIZER_BATCH = 1_000  # prompts; bounds memory


@dataclass(frozen=True)
class Demonstration:
    """A worked problem shown before the question.

    Attributes
    ----------
    question : str
    rationale : str
        The solution, with or without its final answer sentence.
    answer : str
    """

    question: str
    rationale: str
    answer: str


class TaskPrompts(NamedTuple):
    """What a task's prompts are made of; `description` begins a generic one."""

    problems: Dataset
    demonstrations: Sequence[Demonstration] = ()
    description: str = ""


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt within the model's window, and what it took to fit.

    Attributes
    ----------
    text : str
    num_demonstrations, num_dropped : int
        Demonstrations kept, and left out whole.
    """

    text: str
    num_demonstrations: int
    num_dropped: int


def answer_sentence(answer: str) -> str:
    """Return ``The answer is <answer>.``, the whole target of answer-only formats."""
    return f"{ANSWER_PREFIX} {answer}."


def solution(rationale: str, answer: str) -> str:
    """Return a rationale that ends in its answer sentence, added where it lacks one.

    Examples
    --------
    >>> solution("2 + 2 = 4", "4")
    '2 + 2 = 4. The answer is 4.'
    >>> solution("Both are true. So the answer is True.", "True")
    'Both are true. So the answer is True.'
    """
    text = rationale.strip()
    if _ENDS_IN_ANSWER.search(text):
        return text
    stop = "" if text.rstrip("\"')")[-1:] in (".", "!", "?", "") else "."
    return f"{text}{stop} {answer_sentence(answer)}".strip()


def question_block(question: str, *, chain_of_thought: bool) -> str:
    """Return the unanswered block: ``Q: …``, ``A:`` and, for CoT, the trigger."""
    block = f"{QUESTION_PREFIX}{question.strip()}\n{COMPLETION_PREFIX}"
    return f"{block} {COT_TRIGGER}" if chain_of_thought else block


@lru_cache(maxsize=1024)  # a teacher shows the same few before every question
def demonstration_block(demonstration: Demonstration, *, chain_of_thought: bool) -> str:
    """Return a question with its answer; answer-only leaves the rationale out."""
    opened = question_block(demonstration.question, chain_of_thought=chain_of_thought)
    if chain_of_thought:
        return f"{opened}\n{solution(demonstration.rationale, demonstration.answer)}"
    return f"{opened} {answer_sentence(demonstration.answer)}"


def build_inputs(
    question: str,
    mode: str,
    demonstrations: Sequence[Demonstration] = (),
    *,
    description: str = "",
) -> str:
    """Return the text a student reads, in training and in evaluation.

    Parameters
    ----------
    question : str
    mode : str
        One of `PROMPT_MODES`. ``zero_shot_*`` ignores the demonstrations.
    demonstrations : sequence of Demonstration
        Shown in this order; one that asks this very question is left out.
    description : str
        The task in a sentence (BBH); the prompt begins with it.

    Raises
    ------
    ValueError
        Unknown mode.
    """
    if mode not in PROMPT_MODES:
        raise ValueError(f"prompt mode: {mode!r}. Allowed: {', '.join(PROMPT_MODES)}")
    how = {"chain_of_thought": mode.endswith("chain_of_thought")}
    shown = [] if mode.startswith("zero_shot") else _others(question, demonstrations)
    blocks = [description.strip()] if description else []
    blocks += [demonstration_block(one, **how) for one in shown]
    return "\n\n".join([*blocks, question_block(question, **how)])


def teacher_prompt(question: str, demonstrations: Sequence[Demonstration]) -> str:
    """Return the few-shot CoT prompt a teacher continues with a solution.

    It is the in-context CoT prompt and a newline, so the solution starts a line. A
    demonstration that asks this very question is left out.
    """
    return build_inputs(question, "in_context_chain_of_thought", demonstrations) + "\n"


def build_target(mode: str, *, completion: str, answer: str) -> str:
    """Return what the student shall write.

    CoT: the teacher's completion, whose tokens are aligned as they are. Answer-only:
    the answer sentence.
    """
    if mode.endswith("chain_of_thought"):
        return completion
    return answer_sentence(answer)


def separate(inputs: str, targets: str = "") -> tuple[str, str]:
    """Put between input and target what stands there in `demonstration_block`.

    For decoder-only students, which read both as one text: a solution begins a line, a
    bare answer follows ``A:`` after a space, which belongs to the answer's token.
    """
    if inputs.endswith(COT_TRIGGER):
        return inputs + "\n", targets
    return inputs, " " + targets


def fit_prompts(
    items: Sequence[tuple[str, Sequence[Demonstration]]],
    mode: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_input_tokens: int,
    description: str = "",
) -> list[FittedPrompt | None]:
    """Drop whole demonstrations, the last first, until each prompt fits.

    Parameters
    ----------
    items : sequence of (question, demonstrations)
    mode, description
        As in `build_inputs`.
    max_input_tokens : int
        Tokens the encoder may read, the end-of-sequence token included.

    Returns
    -------
    list of FittedPrompt
        One per item, in order; None for a question that does not fit even without
        demonstrations.
    """
    shown = [() if mode.startswith("zero_shot") else _others(*item) for item in items]
    fitted: list[FittedPrompt | None] = [None] * len(items)
    pending = list(enumerate(shown))  # and what is left of each to be shown
    about = {"description": description}
    while pending:
        batch, pending = pending[:_TOKENIZER_BATCH], pending[_TOKENIZER_BATCH:]
        texts = [build_inputs(items[i][0], mode, left, **about) for i, left in batch]
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        for (i, left), text, length in zip(batch, texts, lengths, strict=True):
            if length <= max_input_tokens:
                fitted[i] = FittedPrompt(text, len(left), len(shown[i]) - len(left))
            elif left:
                pending.append((i, left[:-1]))
    return fitted


def build_examples(
    kept: Dataset,
    problems: Dataset,
    config: FormatsConfig,
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Dataset:
    """Turn kept solutions into training examples of every configured format.

    CoT formats have one example per kept solution, answer-only formats one per question
    that has a kept solution (Fu et al. 2023). In-context demonstrations are other
    training questions with one of their kept solutions.

    Parameters
    ----------
    kept : Dataset
        Filtered traces; rows with a non-empty ``drop_reason`` are passed over.
    problems : Dataset
        The training problems. A solution of any other problem is an error.
    config : FormatsConfig
    seed : int
        The demonstrations of example i are drawn with ``seed + i``.
    tokenizer : PreTrainedTokenizerBase
        The student's; demonstrations are dropped to fit ``config.max_input_tokens``.

    Returns
    -------
    Dataset
        ``example_id, problem_id, sample_id, data_format, inputs, targets,
        num_demonstrations``; ``sample_id`` is -1 for answer-only.

    Raises
    ------
    ValueError
        Nothing kept, a solution of an unknown problem, too few questions to show, or
        one that does not fit the window.
    """
    columns = "problem_id sample_id question answer completion drop_reason".split()
    rows = [row for row in kept.select_columns(columns) if not row["drop_reason"]]
    by_question: dict[str, list[dict]] = {}
    for row in rows:
        by_question.setdefault(row["problem_id"], []).append(row)
    groups = list(by_question.values())
    if not rows:
        said = f"0 of {len(kept)} solutions were kept, nothing to train on: sample more"
        raise ValueError(f"{said}, use a stronger teacher, or loosen the filter")
    if unknown := sorted(by_question.keys() - set(problems["problem_id"][:])):
        said = f"problem_id: {unknown[0]!r} has a kept solution"
        raise ValueError(f"{said}. Allowed: the training problems")
    if len(groups) < 2 and any("in_context" in f for f in config.data_formats):
        said = "formats.data_formats: in-context examples show other questions, but "
        raise ValueError(f"{said}only 1 has a kept solution. Sample more")
    tables = []
    for data_format in config.data_formats:
        chosen = rows
        if data_format.endswith("answer_only"):  # of no sample
            chosen = [solutions[0] | {"sample_id": -1} for solutions in groups]
        for start in range(0, len(chosen), _TOKENIZER_BATCH):  # texts take memory
            some = chosen[start : start + _TOKENIZER_BATCH]
            items = [
                (row["question"], _drawn(row["question"], groups, config, seed + index))
                for index, row in enumerate(some, start)
            ]
            room = config.max_input_tokens
            fitted = fit_prompts(items, data_format, tokenizer, max_input_tokens=room)
            pairs = zip(some, fitted, strict=True)
            examples = [_example(*pair, data_format, room) for pair in pairs]
            tables.append(pa.Table.from_pylist(examples))
    return artifacts.dataset_of(pa.concat_tables(tables))


def _drawn(
    question: str, groups: list[list[dict]], config: FormatsConfig, seed: int
) -> list[Demonstration]:
    """Draw other questions, each with one of its solutions."""
    rng, num_shown = Random(seed), config.num_demonstrations
    drawn = rng.sample(groups, min(len(groups), num_shown + _SPARES))
    shown = [
        Demonstration(one["question"], one["completion"], one["answer"])
        for one in map(rng.choice, drawn)
    ]
    # Under another id too the question itself is none of them.
    return _others(question, shown)[:num_shown]


def _example(
    row: Mapping, prompt: FittedPrompt | None, data_format: str, room: int
) -> dict[str, object]:
    problem, sample = row["problem_id"], row["sample_id"]
    if prompt is None:
        said = f"formats.max_input_tokens: {room}. The question of {problem!r}"
        raise ValueError(f"{said} needs more: raise it or leave it out")
    solved = {"completion": row["completion"], "answer": row["answer"]}
    return {
        "example_id": f"{problem}/{sample}/{data_format}",
        "problem_id": problem,
        "sample_id": sample,
        "data_format": data_format,
        "inputs": prompt.text,
        "targets": build_target(data_format, **solved),
        "num_demonstrations": prompt.num_demonstrations,
    }


@lru_cache(maxsize=4096)  # few answers, asked for at every checkpoint
def spellable(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer can write `text`; folded white space is not a loss.

    T5's vocabulary has no braces, backslash, caret or tilde, for instance: they become
    the unknown token (github.com/huggingface/transformers/issues/21836).
    """
    ids = tokenizer(folded(text), add_special_tokens=False, verbose=False)["input_ids"]
    return tokenizer.unk_token_id not in ids


def count_unspellable(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many texts the tokenizer cannot write (`spellable`)."""
    return sum(not spellable(text, tokenizer) for text in texts)


def folded(text: str) -> str:
    """Return a text without regard to the kind and length of its white space."""
    return " ".join(text.split())


def _others(question: str, shown: Sequence[Demonstration]) -> list[Demonstration]:
    """Leave out demonstrations that would give this question's answer away."""
    asked = folded(question).casefold()
    return [one for one in shown if folded(one.question).casefold() != asked]


# The sentence has said something before it ends: a colon may put its answer on the next
# line, "what the answer is." answers nothing, "approx." and "U.S." are no end. "3." may
# go on as "3.50": only white space behind the period, or the end of the line, decides.
_ANSWER_SENTENCE = re.compile(
    rf"{re.escape(ANSWER_PREFIX)}(?::\s*|[ \t]+)[^\w\n]*[\w\x80-\xff][^\n]*?"
    r"(?:(?<!\bapprox)(?<!\bca)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\.[a-z])"
    r"\.(?=\s)|(?=\n))".encode(),
    re.IGNORECASE,
)
_STOP_STRING = re.compile("|".join(map(re.escape, STOP_STRINGS)).encode())


def find_end(text: bytes) -> int | None:
    r"""Return the length, in bytes, at which a completion ends, or None if it goes on.

    Examples
    --------
    >>> find_end(b"2 + 1 = 3. The answer is 3."), find_end(b"The answer is 3.\n")
    (None, 16)
    """
    answer = _ANSWER_SENTENCE.search(text)
    stop = _STOP_STRING.search(text)
    ends = [answer.end()] if answer else []
    ends += [stop.start()] if stop else []
    return min(ends, default=None)
