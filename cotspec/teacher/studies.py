"""What sampled solutions show: lengths, votes, temperatures, and why they fail.

Enters: sampled or filtered solutions. Leaves: small tables that notebooks 01, 02 and 04
draw. What students learn from depends on none of it.
"""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from cotspec import statistics
from cotspec.answers import parse_number

_AT_ONCE = 1024  # solutions
_LISTS = ["token_bytes", "token_logprobs", "topk_logprobs"]


def summarize_solutions(traces: Dataset) -> pd.DataFrame:
    """Count each solution's tokens and what the teacher's probabilities say of it.

    Parameters
    ----------
    traces : Dataset with the columns of `traces.FEATURES`

    Returns
    -------
    DataFrame
        In the order of `traces`: ``task, finish_reason, tokens``,
        ``probability_per_token`` (the geometric mean), ``top_five_mass`` and
        ``most_mass`` (of a token's alternatives together: the mean and the largest over
        the tokens), ``is_whole`` (the tokens' bytes join to the text). Means of a
        solution without tokens are missing.
    """
    columns = ["task", "finish_reason", "completion", *_LISTS]
    batches = traces.select_columns(columns).with_format("arrow").iter(_AT_ONCE)
    parts = [_summarize(batch.combine_chunks()) for batch in batches]
    return pd.concat(parts, ignore_index=True)


def _summarize(batch: pa.Table) -> pd.DataFrame:
    pieces, logprobs, tops = (batch[name].combine_chunks() for name in _LISTS)
    owner = pc.list_parent_indices(logprobs).to_numpy()  # of each token
    lengths = np.bincount(owner, minlength=len(batch))
    steps = tops.flatten()  # one list of alternatives per token
    named = np.exp(steps.flatten().to_numpy().astype(float))
    mass = np.bincount(pc.list_parent_indices(steps), named, len(steps))
    most = np.zeros(len(batch))
    np.maximum.at(most, owner, mass)
    tokens = np.where(lengths, lengths, np.nan)
    is_text = pc.equal(pc.binary_join(pieces, b""), batch["completion"].cast("binary"))
    columns = {name: batch[name].to_pandas() for name in ("task", "finish_reason")}
    own = logprobs.flatten().to_numpy().astype(float)
    mean, top = (np.bincount(owner, v, len(batch)) / tokens for v in (own, mass))
    columns |= {"tokens": lengths, "probability_per_token": np.exp(mean)}
    columns |= {"top_five_mass": top, "most_mass": most}
    return pd.DataFrame(columns | {"is_whole": is_text.to_numpy()})


def vote_curves(marked: Dataset) -> pd.DataFrame:
    """Return unbiased pass@k and majority@k over the questions.

    Parameters
    ----------
    marked : Dataset
        Filtered traces of math questions, all rows.

    Returns
    -------
    DataFrame
        ``series`` ("pass@k", "majority@k"), ``k, accuracy, ci_low, ci_high``; 95%
        intervals over questions. k goes up to the fewest samples of a
        question.

    Source: `statistics.pass_at_k`, `statistics.majority_at_k`.
    """
    questions = votes_by_question(marked)
    rows = []
    for k in range(1, min(len(votes) for votes, _ in questions) + 1):
        counts = [(len(votes), votes.count(gold)) for votes, gold in questions]
        passed = [statistics.pass_at_k(*count, k) for count in counts]
        won = [statistics.majority_at_k(v, gold, k) for v, gold in questions]
        for series, values in (("pass@k", passed), ("majority@k", won)):
            rows.append((series, k, *statistics.mean_interval(values)[:3]))
    return pd.DataFrame(rows, columns=["series", "k", "accuracy", "ci_low", "ci_high"])


def votes_by_question(marked: Dataset) -> list[tuple[list[str | None], str]]:
    """Return each math question's predicted answers and its gold, spelled alike.

    A sample without an answer is None.
    """
    names = ("problem_id", "answer", "predicted_answer", "is_correct")
    rows = zip(*(marked[name] for name in names), strict=True)
    questions: dict[str, tuple[list[str | None], str]] = {}
    for problem_id, answer, predicted, is_correct in rows:
        if problem_id not in questions:
            questions[problem_id] = [], str(parse_number(answer))
        votes, gold = questions[problem_id]
        votes.append(gold if is_correct else predicted)
    return list(questions.values())


def compare_temperatures(study: Dataset) -> pd.DataFrame:
    """Return accuracy and diversity at each temperature.

    Parameters
    ----------
    study : Dataset, from `teacher.sample_study`

    Returns
    -------
    DataFrame
        ``temperature, group, measure, value, ci_low, ci_high``: fractions, with 95%
        intervals over questions. Of n samples a question, group "accuracy"
        has ``one sample``, ``majority of n``, ``any of n``; group "diversity" the
        share of ``different texts`` and of ``different answers`` among the n.
    """
    temperatures = np.array(study["temperature"])
    rows = []
    for temperature in sorted(set(temperatures)):
        picked = study.select(np.flatnonzero(temperatures == temperature))
        questions = votes_by_question(picked)
        n = min(len(votes) for votes, _ in questions)
        texts = picked.to_pandas().groupby("problem_id", sort=False)["completion"]
        folded = [[" ".join(text.split()) for text in group] for _, group in texts]
        answers = [votes for votes, _ in questions]
        one = [votes.count(gold) / len(votes) for votes, gold in questions]
        most = [statistics.majority_at_k(v, gold, len(v)) for v, gold in questions]
        measures = {
            ("accuracy", f"any of {n}"): [gold in votes for votes, gold in questions],
            ("accuracy", f"majority of {n}"): most,
            ("accuracy", "one sample"): one,
            ("diversity", "different texts"): [len(set(x)) / len(x) for x in folded],
            ("diversity", "different answers"): [len(set(x)) / len(x) for x in answers],
        }
        for name, values in measures.items():
            ends = statistics.mean_interval(values)[:3]
            rows.append((float(temperature), *name, *ends))
    names = ["temperature", "group", "measure", "value", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=names)


KINDS = ("right", "wrong arithmetic", "other operations", "another number")
KINDS += ("no equation", "no answer", "cut off")
MOST_STEPS = 6  # rarer, longer questions are counted with these
_NUMBER = r"[$€£]?\d+(?:,\d{3})*(?:\.\d+)?"
_SIGN = r"[-−–+*/×÷x]"
# A result with another sign, a percent or an unknown ("5A") behind it is part of
# something longer; a letter that is a unit ("5m") is none.
_EQUATION = re.compile(
    rf"({_NUMBER}(?:\s*{_SIGN}\s*{_NUMBER})+)\s*=\s*([-−]?{_NUMBER})"
    rf"(?![\d%]|[.,]\d|[^\W\d_ghlms](?![^\W\d_])|\s*{_SIGN}\s*[$€£]?\d)"
)
_SIGNS = re.compile("[-+*/]").findall
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
    return [found for found, value, stated in equations(text) if value != stated]


def equations(text: str) -> Iterator[tuple[str, Fraction, Fraction]]:
    """Yield each equation that can be checked, its left side's value, its right's."""
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


def plan(text: str) -> list[list[str]]:
    """Return the signs of each equation's left side: what is done, in order.

    Examples
    --------
    >>> plan("Ann has 3 * 4 = 12 pens, and 12 + 5 - 1 = 16 in all.")
    [['*'], ['+', '-']]
    """
    return [_SIGNS(equation.split("=")[0]) for equation, *_ in equations(text)]


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


def kind_of(solution: Mapping[str, object], rationale: str) -> str:
    """Return how a filtered solution ended, one of `KINDS`.

    A wrong one with a false equation is "wrong arithmetic". With true equations only,
    it is "another number" if it has the plan of the published `rationale`, the same
    signs in the same order, else "other operations".
    """
    if solution["drop_reason"] == "truncated":
        return "cut off"
    if solution["drop_reason"] == "no_answer":
        return "no answer"
    if solution["is_correct"]:
        return "right"
    found = list(equations(solution["completion"]))
    if not found:
        return "no equation"
    if any(value != stated for _, value, stated in found):
        return "wrong arithmetic"
    is_same = plan(solution["completion"]) == plan(rationale)
    return "another number" if is_same else "other operations"


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
    written = dict(zip(problems["problem_id"], problems["rationale"], strict=True))
    columns = ["problem_id", "sample_id", "completion", "token_logprobs"]
    verdict = ["predicted_answer", "is_correct", "drop_reason"]
    rows = []
    for row in marked.select_columns(columns + verdict):
        problem_id, logprobs = row["problem_id"], row["token_logprobs"]
        rationale = written.get(problem_id, "")
        num_steps = rationale.count("=") or np.nan
        probability = np.exp(np.mean(logprobs)) if logprobs else np.nan
        name = (problem_id, row["sample_id"])
        rows.append((*name, kind_of(row, rationale), num_steps, probability))
    names = ["problem_id", "sample_id", "kind", "num_steps", "probability"]
    return pd.DataFrame(rows, columns=names)


def shares_by_steps(classified: pd.DataFrame) -> pd.DataFrame:
    """Return the share of each kind among questions of so many steps.

    Returns
    -------
    DataFrame
        ``steps`` ("1" … "6+", "?" without a rationale), ``kind`` (all of `KINDS`),
        ``count``, ``share`` of the solutions with that many steps, ``num_questions``.
    """
    names = {"nan": "?", str(MOST_STEPS): f"{MOST_STEPS}+"}
    steps = classified["num_steps"].clip(upper=MOST_STEPS)
    steps = steps.map("{:.0f}".format).replace(names)
    rows = []
    for label, picked in classified.groupby(steps):
        num_questions = picked["problem_id"].nunique()
        for kind in KINDS:
            count = int((picked["kind"] == kind).sum())
            rows.append((label, kind, count, count / len(picked), num_questions))
    names = ["steps", "kind", "count", "share", "num_questions"]
    return pd.DataFrame(rows, columns=names)
