"""Solutions in numbers, counted without holding their tokens.

Enters: traces, of any number. Leaves: a table with a row per solution. Tokens are read
a thousand solutions at a time and stay in arrays.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

_AT_ONCE = 1024  # solutions
_LISTS = ["token_bytes", "token_logprobs", "topk_ids", "topk_logprobs"]


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
        the tokens), ``is_whole`` (the tokens' bytes join to the text, and each has its
        list of alternatives). Means of a solution without tokens are missing.
    """
    columns = ["task", "finish_reason", "completion", *_LISTS]
    batches = traces.select_columns(columns).with_format("arrow").iter(_AT_ONCE)
    parts = [_summarize(batch.combine_chunks()) for batch in batches]
    return pd.concat(parts, ignore_index=True)


def _summarize(batch: pa.Table) -> pd.DataFrame:
    logprobs, tops = (_array(batch, n) for n in ("token_logprobs", "topk_logprobs"))
    owner, lengths = _owners(logprobs)
    mass = _sums(np.exp(_values(tops.flatten())), *_owners(tops.flatten()))
    most = np.zeros(len(batch))
    np.maximum.at(most, owner, mass)
    tokens = np.where(lengths, lengths, np.nan)
    return pd.DataFrame(
        {
            "task": batch["task"].to_pandas(),
            "finish_reason": batch["finish_reason"].to_pandas(),
            "tokens": lengths,
            "probability_per_token": np.exp(
                _sums(_values(logprobs), owner, lengths) / tokens
            ),
            "top_five_mass": _sums(mass, owner, lengths) / tokens,
            "most_mass": most,
            "is_whole": _is_whole(batch, lengths),
        }
    )


def _is_whole(batch: pa.Table, lengths: np.ndarray) -> np.ndarray:
    joined = pc.binary_join(_array(batch, "token_bytes"), b"")
    is_text = pc.equal(joined, batch["completion"].cast(pa.binary()))
    _, num_steps = _owners(_array(batch, "topk_ids"))
    return is_text.to_numpy() & (num_steps == lengths)


def _array(batch: pa.Table, name: str) -> pa.ListArray:
    return batch[name].combine_chunks()


def _values(lists: pa.ListArray) -> np.ndarray:
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)


def _owners(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the list that each value belongs to, and the lists' lengths."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(lengths)), lengths), lengths


def _sums(values: np.ndarray, owner: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sum the values of each list; an empty one sums to zero."""
    return np.bincount(owner, values, len(lengths))
