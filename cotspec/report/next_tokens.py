"""What trained students hold likely where their teacher hesitates.

Enters: the `experiments.Grid` of notebook 09, its trainings done. Leaves: probabilities
of the teacher's candidates, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pandas as pd
import torch

from cotspec import batching, models
from cotspec.experiments import Grid
from cotspec.grids import Cell

NUM_SOLUTIONS = 64
OTHERS = "(all others)"
LEVELS = ["seed", "place", "text", "token"]


def next_token_probs(
    grid: Grid, cells: Sequence[Cell], num_updates: int
) -> pd.DataFrame:
    """Ask students for the next token of solutions that their training did not reach.

    At the third of the places at which the teacher is least sure. A training that
    reached all solutions is asked about those it knows.

    Parameters
    ----------
    grid : Grid
    cells : sequence of Cell
        Finished trainings, for each seed one with the teacher's targets and others.
    num_updates : int
        How many each took.

    Returns
    -------
    DataFrame
        A column of probabilities for ``the teacher`` and each loss. A row for each of
        the teacher's candidates, the likeliest first, and last for `OTHERS` together:
        with `LEVELS`, where ``text`` is the solution so far. Empty if the students
        have no encoder, or the teacher no probabilities.
    """
    names = [cell.loss.name.replace("_", " ") for cell in cells]
    index = pd.MultiIndex.from_arrays([[]] * len(LEVELS), names=LEVELS)
    tables = [pd.DataFrame(columns=["the teacher", *dict.fromkeys(names)], index=index)]
    for cell in cells:
        if not cell.targets or models.is_causal(cell.student):
            continue
        tokenizer = models.load_student_tokenizer(cell.student)
        encoded = grid.encoded_of(cell, tokenizer)
        rows = _unreached(encoded, grid, num_updates, seed=cell.seed)
        batch = batching.collate(encoded, rows)
        places = _unsure(batch["teacher_probs"])
        if not places.any():
            continue
        p, order = batch["teacher_probs"][places].double().sort(descending=True)
        ids = batch["teacher_ids"][places].gather(-1, order)
        asked = {n: batch[n] for n in ("input_ids", "attention_mask", "labels")}
        known = {"the teacher": p}
        for name, one in zip(names, cells, strict=True):
            if one.seed == cell.seed:
                with torch.inference_mode():
                    logits = grid.trained(one).model(**asked).logits[places].double()
                known[name] = logits.softmax(-1).gather(-1, ids) * (p > 0)
        labels = [
            (cell.seed, place, tokenizer.decode(batch["labels"][row, :end]), token)
            for place, (row, end) in enumerate(places.nonzero().tolist())
            for token in [*tokenizer.convert_ids_to_tokens(ids[place]), OTHERS]
        ]
        index = pd.MultiIndex.from_tuples(labels, names=LEVELS)
        table = pd.DataFrame(
            {who: _with_rest(probs).flatten() for who, probs in known.items()}, index
        )
        tables.append(table[table["the teacher"] > 0])
    return pd.concat(tables[1:] or tables)


def _unreached(
    encoded: batching.EncodedExamples, grid: Grid, num_updates: int, *, seed: int
) -> np.ndarray:
    """Examples with targets whose solution was in no batch, in whatever format."""
    settings = grid.training
    count = num_updates * settings.gradient_accumulation_steps
    stream = batching.batch_stream(encoded.lengths(), settings.batch_tokens, seed=seed)
    came = np.concatenate([rows for _, rows in islice(stream, count)])
    has_teacher = encoded.teacher_row >= 0
    is_old = np.isin(encoded.teacher_row, encoded.teacher_row[came])
    is_new = has_teacher & ~is_old
    return np.flatnonzero(is_new if is_new.any() else has_teacher)[:NUM_SOLUTIONS]


def _unsure(probs: torch.Tensor) -> torch.Tensor:
    """Where the teacher names several tokens, the third with the lowest first."""
    is_soft = (probs > 0).sum(-1) > 1
    top = probs.max(-1).values
    return is_soft & (top <= top[is_soft].quantile(1 / 3)) if is_soft.any() else is_soft


def _with_rest(probs: torch.Tensor) -> torch.Tensor:
    """Append what all other tokens have together."""
    rest = (1 - probs.sum(-1, keepdim=True)).clamp_min(1e-9)
    return torch.cat([probs, rest], -1)
