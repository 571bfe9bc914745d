"""The authors' released Codex solutions.

Enters: the folder with ``codex_questions.pkl``, ``codex_answers.pkl``,
``codex_predictions.pkl`` and ``codex_per_step_probs.pkl`` (or the same as ``.json``).
Leaves: traces, and a count of every fault that was repaired. Nothing in a pickle is
executed: only containers, strings, numbers and OrderedDict are built.

Source: github.com/FranxYao/FlanT5-CoT-Specialization, as PAPER's "Released files" has
them. Probabilities are rounded to four decimals there.
"""

from __future__ import annotations

import collections
import json
import math
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from cotspec.teacher.traces import NO_ID, Completion, as_row

HALF_UNIT = 5e-5  # a sampled token rounded to probability 0 had less than this
_ALLOWED = {("collections", "OrderedDict"): collections.OrderedDict}
_NUMBERED = re.compile(r"\A(?:Question|Model output) \d+:\s*")

Step = Sequence[tuple[str, float]]  # the sampled token, then the top five


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return _ALLOWED[module, name]


def load_restricted(path: Path | str) -> object:
    """Load a pickle of lists, tuples, dicts, strings, numbers and OrderedDict.

    Raises
    ------
    ValueError
        If it holds anything else, or is damaged; nothing of it has run.
    """
    with Path(path).open("rb") as file:
        try:
            return _Unpickler(file).load()
        except Exception as error:  # damaged bytes may raise any
            raise ValueError(
                f"{path}: {str(error) or type(error).__name__}. Allowed: lists, "
                "tuples, strings, numbers, OrderedDict"
            ) from None


def import_release(folder: Path | str) -> tuple[Iterator[dict], Counter]:
    """Read the release.

    Returns
    -------
    traces : iterator of rows with the columns of `traces.FEATURES`
    repairs : Counter of repaired faults, complete once `traces` is exhausted

    Raises
    ------
    ValueError
        A missing file, a pickle with code in it, or lists that do not fit together.
    """
    folder, repairs = Path(folder), Counter()
    questions = _without_repeats(_read(folder, "codex_questions"), repairs)
    answers = [_final_answer(a) for a in _read(folder, "codex_answers")]
    per_step = _read(folder, "codex_per_step_probs")
    predictions = _read(folder, "codex_predictions")
    lengths = [len(questions), len(answers), len(predictions), len(per_step)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{folder}: {lengths} questions, answers, predictions and probabilities; "
            "they must be as many"
        )
    return _rows(questions, answers, predictions, per_step, repairs), repairs


def _rows(questions, answers, predictions, per_step, repairs) -> Iterator[dict]:
    for number, question in enumerate(questions):
        problem = {
            "problem_id": f"gsm8k/release/{number:04d}",
            "task": "gsm8k",
            "question": question,
            "answer": answers[number],
        }
        texts, seen = predictions[number], set()
        for sample_id, steps in enumerate(per_step[number]):
            completion = read_solution(steps, repairs)
            written = texts[sample_id] if sample_id < len(texts) else ""
            differs = _unnumbered(written) != completion.text.strip()
            repairs["text differs from codex_predictions"] += differs
            repairs["duplicate solutions (kept)"] += completion.text in seen
            seen.add(completion.text)
            yield as_row(problem, sample_id, completion)


def read_solution(steps: Sequence[Step], repairs: Counter) -> Completion:
    """Return one solution; count in `repairs` what was mended.

    The leading ``' step'`` and newlines belong to the prompt, the trailing newlines to
    the stop string. Of the six entries the first is the sampled token.
    """
    kept = _trimmed(steps, repairs)
    pieces = [token_bytes(step[0][0]) for step in kept]
    tops = [_alternatives(step, repairs) for step in kept]
    # Where no newline follows, the limit of new tokens cut the solution off.
    has_ended = bool(steps) and not steps[-1][0][0].strip("\n")
    return Completion(
        text=_decoded(pieces, repairs),
        token_ids=[NO_ID] * len(pieces),
        token_bytes=pieces,
        token_logprobs=[math.log(max(step[0][1], HALF_UNIT)) for step in kept],
        topk_ids=[[NO_ID] * len(top) for top in tops],
        topk_bytes=[[piece for piece, _ in top] for top in tops],
        topk_logprobs=[[math.log(p) for _, p in top] for top in tops],
        finish_reason="stop" if has_ended else "length",
    )


def _trimmed(steps: Sequence[Step], repairs: Counter) -> list[Step]:
    start, end = 0, len(steps)
    if steps and steps[0][0][0] == " step":
        repairs["leading ' step'"] += 1
        start = 1
    while start < end and not steps[start][0][0].strip():
        repairs["leading newlines"] += 1
        start += 1
    while end > start and not steps[end - 1][0][0].strip("\n"):
        repairs["trailing newlines"] += 1
        end -= 1
    return list(steps[start:end])


def _alternatives(step: Step, repairs: Counter) -> list[tuple[bytes, float]]:
    """Return the top five, the most probable first, each once and none at zero."""
    top: dict[bytes, float] = {}
    for token, probability in step[1:]:
        piece = token_bytes(token)
        if probability <= 0:
            repairs["alternatives rounded to probability 0 (left out)"] += 1
        elif piece in top:
            repairs["alternatives named twice"] += 1
        else:
            top[piece] = probability
    repairs["sampled token outside the top five"] += token_bytes(step[0][0]) not in top
    return sorted(top.items(), key=lambda item: -item[1])


def token_bytes(token: str) -> bytes:
    r"""Return a token's bytes; half a character is spelled ``bytes: \\xc3`` there."""
    if not token.startswith("bytes:"):
        return token.encode()
    return bytes.fromhex("".join(re.findall(r"\\x([0-9a-f]{2})", token)))


def _decoded(pieces: Sequence[bytes], repairs: Counter) -> str:
    joined = b"".join(pieces)
    try:
        return joined.decode()
    except UnicodeDecodeError:
        repairs["not UTF-8 (will count as unaligned)"] += 1
        return joined.decode(errors="replace")


def _without_repeats(numbered: Sequence[str], repairs: Counter) -> list[str]:
    """Return the questions; one that comes again under its number is dropped."""
    once = list(dict.fromkeys(numbered))
    repairs["question listed twice"] += len(numbered) - len(once)
    return [_unnumbered(question) for question in once]


def _read(folder: Path, name: str) -> list:
    pickled, plain = folder / f"{name}.pkl", folder / f"{name}.json"
    if pickled.exists():
        return load_restricted(pickled)
    if plain.exists():
        return json.loads(plain.read_text())
    raise ValueError(f"{pickled}: not there. Needed: the authors' released files")


def _unnumbered(text: str) -> str:
    return _NUMBERED.sub("", text).strip()


def _final_answer(text: str) -> str:
    """Return the number behind ``####``."""
    return text.rpartition("####")[2].strip()
