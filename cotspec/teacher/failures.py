"""How a solution fails: a sum that is false, or true sums that miss the question.

Enters: filtered traces (all rows) and their problems. Leaves: the kind of each
solution, and how the kinds change with the number of steps a question takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
import pandas as pd
from datasets import Dataset

from cotspec.answers import parse_number

KINDS = (
    "right",
    "wrong arithmetic",
    "wrong plan",
    "unsupported answer",
    "no equation",
    "no answer",
    "cut off",
)
MOST_STEPS = 6  # rarer, longer questions are counted with these
_NUMBER = r"[$€£]?\d+(?:,\d{3})*(?:\.\d+)?"
_SIGN = r"[-−–+*/×÷x]"
# A result with another sign or a percent behind it is part of something longer.
_EQUATION = re.compile(
    rf"({_NUMBER}(?:\s*{_SIGN}\s*{_NUMBER})+)\s*=\s*([-−]?{_NUMBER})"
    rf"(?![\d%]|[.,]\d|\s*{_SIGN}\s*[$€£]?\d)"
)
_TERM = re.compile(rf"({_SIGN}?)\s*({_NUMBER})")
# Behind a sign, a bracket or a percent an equation would begin in its middle.
_BEFORE = re.compile(rf"(?:[\w)%] *(?<![a-z]){_SIGN}|[(%]) *$|[.,\d]$")


def false_equations(text: str) -> list[str]:
    """Return the equations of a text, such as ``3 + 4 * 2 = 10``, that do not hold.

    Products and quotients come before sums. A result with decimals may be rounded.
    What is not numbers and signs on both sides is left out: words, brackets, percents.

    Examples
    --------
    >>> false_equations("He buys 3 * 4 = 12, then 12 + 5 = 18. 10 / 3 = 3.33")
    ['12 + 5 = 18']
    """
    return [text for text, value, stated in _equations(text) if value != stated]


def num_equations(text: str) -> int:
    """Return how many equations of a text can be checked."""
    return sum(1 for _ in _equations(text))


def _equations(text: str) -> Iterator[tuple[str, Fraction, Fraction]]:
    """Yield each equation, its left side's value and its right side's."""
    for match in _EQUATION.finditer(text):
        if _BEFORE.search(text[: match.start()]):
            continue
        left, right = match.groups()
        value, stated = _value(left), parse_number(right)
        if value is None or stated is None:
            continue
        decimals = len(right.partition(".")[2])
        if decimals and abs(value - stated) <= Fraction(1, 2 * 10**decimals):
            value = stated
        yield match.group(), value, stated


def _value(expression: str) -> Fraction | None:
    """Return the value of numbers and signs, or None where it divides by zero."""
    total, product = Fraction(0), Fraction(0)
    for sign, number in _TERM.findall(expression):
        operand = parse_number(number)
        if operand is None or (sign in ("/", "÷") and operand == 0):
            return None
        if sign in ("*", "×", "x"):
            product *= operand
        elif sign in ("/", "÷"):
            product /= operand
        else:
            total += product
            product = -operand if sign in ("-", "−", "–") else operand
    return total + product


def kind_of(solution: Mapping[str, object]) -> str:
    """Return how a filtered solution ended, one of `KINDS`.

    A wrong one with a false equation is "wrong arithmetic". With true equations only,
    it is "wrong plan" if the last of them gives its answer (a step too few or too many,
    a wrong order, a number misread), else "unsupported answer".
    """
    if solution["drop_reason"] == "truncated":
        return "cut off"
    if solution["drop_reason"] == "no_answer":
        return "no answer"
    if solution["is_correct"]:
        return "right"
    equations = list(_equations(solution["completion"]))
    if not equations:
        return "no equation"
    if any(value != stated for _, value, stated in equations):
        return "wrong arithmetic"
    _, _, result = equations[-1]
    follows = str(result) == solution["predicted_answer"]
    return "wrong plan" if follows else "unsupported answer"


def classify(marked: Dataset, problems: Dataset) -> pd.DataFrame:
    """Return every solution's kind and its question's number of steps.

    Parameters
    ----------
    marked : Dataset, filtered traces, all rows
    problems : Dataset with ``problem_id, rationale``; a step is an equation there

    Returns
    -------
    DataFrame
        ``problem_id, sample_id, kind, num_steps`` (NaN without a rationale),
        ``probability``: the geometric mean over the solution's tokens.
    """
    steps = {
        problem_id: rationale.count("=") or np.nan
        for problem_id, rationale in zip(
            problems["problem_id"], problems["rationale"], strict=True
        )
    }
    columns = ["problem_id", "sample_id", "completion", "token_logprobs"]
    verdict = ["predicted_answer", "is_correct", "drop_reason"]
    rows = []
    for row in marked.select_columns(columns + verdict):
        logprobs = row["token_logprobs"]
        rows.append(
            {
                "problem_id": row["problem_id"],
                "sample_id": row["sample_id"],
                "kind": kind_of(row),
                "num_steps": steps.get(row["problem_id"], np.nan),
                "probability": np.exp(np.mean(logprobs)) if logprobs else np.nan,
            }
        )
    return pd.DataFrame(rows)


def shares_by_steps(classified: pd.DataFrame) -> pd.DataFrame:
    """Return the share of each kind among questions of so many steps.

    Returns
    -------
    DataFrame
        ``steps`` ("1" … "6+", "?" without a rationale), ``kind`` (all of `KINDS`),
        ``count``, ``share`` of the solutions with that many steps, ``num_questions``.
    """
    steps = classified["num_steps"].map(_steps_label)
    rows = []
    for label in sorted(set(steps), key=lambda text: (text == "?", text)):
        picked = classified[steps == label]
        for kind in KINDS:
            count = int((picked["kind"] == kind).sum())
            share = count / len(picked)
            rows.append((label, kind, count, share, picked["problem_id"].nunique()))
    names = ["steps", "kind", "count", "share", "num_questions"]
    return pd.DataFrame(rows, columns=names)


def _steps_label(num_steps: float) -> str:
    if np.isnan(num_steps):
        return "?"
    return f"{num_steps:.0f}" if num_steps < MOST_STEPS else f"{MOST_STEPS}+"
