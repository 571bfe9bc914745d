"""Aligned targets of a run: from kept traces to the table that training reads.

Enters: kept traces and the student's tokenizer. Leaves: one row of targets per trace,
counts by rule, and the token spans that notebook 04 draws.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from cotspec import artifacts
from cotspec.alignment import AlignedTargets, Alignment, Rule, TeacherTrace, align

_TYPES = {
    "problem_id": Value("string"),
    "sample_id": Value("int32"),
    "student_ids": List(Value("int32")),
    "topk_ids": List(List(Value("int32"))),
    "topk_probs": List(List(Value("float32"))),
    "tail_mass": List(Value("float32")),
    "rule": List(Value("int8")),
}
FEATURES = Features(_TYPES)


def targets_table(kept: Dataset, result: Alignment) -> Dataset:
    """Return the aligned targets of the traces that could be aligned.

    Parameters
    ----------
    kept : Dataset
        The kept traces, in the order in which they were aligned.
    result : Alignment
        From `alignment.align_all`.

    Returns
    -------
    Dataset
        ``problem_id, sample_id, student_ids (T), topk_ids (T, k), topk_probs (T, k),
        tail_mass (T), rule (T)``.

    Raises
    ------
    ValueError
        Nothing could be aligned; the message counts the reasons.
    """
    is_kept = np.array([target is not None for target in result.targets], bool)
    found = [target for target in result.targets if target is not None]
    if not found:
        said = f"0 of {len(kept)} solutions could be aligned"
        raise ValueError(f"{said}: {result.drops()}")
    # Arrow arrays from end to end: Python lists would take ten times the memory.
    ends = np.cumsum([0, *(len(target.student_ids) for target in found)])
    k = max(target.topk_ids.shape[1] for target in found)
    names = ("problem_id", "sample_id")
    columns = {name: np.array(kept[name][:])[is_kept] for name in names}
    for name, fill in (("topk_ids", -1), ("topk_probs", 0)):
        # Some traces have fewer alternatives: one k for the table.
        rows = np.concatenate([_padded(getattr(t, name), k, fill) for t in found])
        slots = pa.ListArray.from_arrays(np.arange(0, rows.size + 1, k), rows.ravel())
        columns[name] = pa.ListArray.from_arrays(ends, slots)
    for name in ("student_ids", "tail_mass", "rule"):
        values = np.concatenate([getattr(target, name) for target in found])
        columns[name] = pa.ListArray.from_arrays(ends, values)
    table = pa.table({name: columns[name] for name in FEATURES})
    return artifacts.dataset_of(table.cast(FEATURES.arrow_schema))


def _padded(rows: np.ndarray, k: int, fill: float) -> np.ndarray:
    missing = k - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, missing)), constant_values=fill)


def rule_shares(results: Mapping[str, Alignment]) -> pd.DataFrame:
    """Count the student tokens of each method's result by rule.

    Returns
    -------
    DataFrame
        ``method, rule`` (lower case), ``num_tokens``, ``share`` of the method's tokens.
    """
    rules = {(method,): _joined(result, "rule") for method, result in results.items()}
    return _shares(rules, ["method"])


def number_shares(
    results: Mapping[str, Alignment], tokenizer: PreTrainedTokenizerBase
) -> pd.DataFrame:
    """Count as `rule_shares` does, apart for tokens that hold a digit and the others.

    Parameters
    ----------
    results : mapping
        Alignments by method.
    tokenizer : PreTrainedTokenizerBase
        The student's.

    Returns
    -------
    DataFrame
        ``method, kind`` (numbers, other tokens), ``rule, num_tokens, share`` of the
        method's tokens of that kind.
    """
    vocabulary = tokenizer.get_vocab()
    numbers = [i for name, i in vocabulary.items() if any(map(str.isdigit, name))]
    rules = {}
    for method, result in results.items():
        is_number = np.isin(_joined(result, "student_ids"), numbers)
        rules[method, "numbers"] = _joined(result, "rule")[is_number]
        rules[method, "other tokens"] = _joined(result, "rule")[~is_number]
    return _shares(rules, ["method", "kind"])


def _joined(result: Alignment, field: str) -> np.ndarray:
    """One field of all targets, end to end."""
    found = [getattr(target, field) for target in result.targets if target is not None]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _shares(groups: Mapping[tuple, np.ndarray], names: list[str]) -> pd.DataFrame:
    """Return the count and share of every rule that occurs in each group."""
    rows = []
    for group, rules in groups.items():
        for rule, count in zip(*np.unique(rules, return_counts=True), strict=True):
            rows.append((*group, Rule(rule).name.lower(), count, count / len(rules)))
    return pd.DataFrame(rows, columns=[*names, "rule", "num_tokens", "share"])


def describe(
    targets: AlignedTargets, tokenizer: PreTrainedTokenizerBase
) -> pd.DataFrame:
    """Return one readable row per student token.

    Returns
    -------
    DataFrame
        ``token, rule, candidates`` (each with its probability, the label first),
        ``tail``.
    """

    def read(ids, probs) -> str:
        names = tokenizer.convert_ids_to_tokens([int(i) for i in ids if i >= 0])
        return ", ".join(f"{n} {p:.2f}" for n, p in zip(names, probs, strict=False))

    tokens = tokenizer.convert_ids_to_tokens(targets.student_ids.tolist())
    rules = [Rule(rule).name.lower() for rule in targets.rule]
    slots = list(map(read, targets.topk_ids, targets.topk_probs))
    columns = {"token": tokens, "rule": rules, "candidates": slots}
    return pd.DataFrame(columns | {"tail": targets.tail_mass})


def token_spans(
    trace: TeacherTrace, tokenizer: PreTrainedTokenizerBase, *, method: str
) -> pd.DataFrame:
    """Return where both sides' tokens lie in the text, for drawing.

    Returns
    -------
    DataFrame
        ``side`` (teacher, student), ``token``, ``start`` and ``end`` in characters,
        ``rule`` of student tokens ("" for the teacher's).
    """
    rows, seen, end = [], b"", 0
    for token in trace.token_bytes:
        seen, start = seen + token, end
        end = len(seen.decode(errors="ignore"))
        rows.append(("teacher", token.decode(errors="replace"), start, end, ""))
    read = describe(align(trace, tokenizer, method=method), tokenizer)
    options = {"add_special_tokens": False, "return_offsets_mapping": True}
    spans = tokenizer(trace.text, **options)["offset_mapping"]
    student = zip(read["token"], spans, read["rule"], strict=True)
    rows += [("student", token, *span, rule) for token, span, rule in student]
    return pd.DataFrame(rows, columns=["side", "token", "start", "end", "rule"])
