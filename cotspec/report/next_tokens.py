"""What trained students hold likely where their teacher hesitates.

Enters: the `experiments.Grid` of notebook 09, its trainings done. Leaves: probabilities
of the teacher's candidates, side by side.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cotspec import batching, models
from cotspec.experiments import Grid
from cotspec.grids import Cell

NUM_SOLUTIONS = 64
OTHERS = "(all others)"
LEVELS = ["seed", "place", "text", "token"]


def next_token_probs(grid: Grid, cells: list[Cell], num_updates: int) -> pd.DataFrame:
    """Ask students for the next token of solutions that their training did not reach.

    At all places at which the teacher names several tokens. A training that reached
    all solutions is asked about those it knows.

    Parameters
    ----------
    grid : Grid
    cells : list of Cell
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
    columns = list(dict.fromkeys(["the teacher", *names]))
    table = []
    for cell in cells:
        if not cell.targets or models.is_causal(cell.student):
            continue
        tokenizer = models.load_student_tokenizer(cell.student)
        encoded = grid.encoded_of(cell, tokenizer)
        came = np.concatenate([*grid.updates(encoded, cell.seed, num_updates)])
        rows = _unreached(encoded, came)
        if not len(rows):
            continue
        batch = batching.collate(encoded, rows)
        places = (batch["teacher_probs"] > 0).sum(-1) > 1
        p, order = batch["teacher_probs"][places].double().sort(descending=True)
        ids = batch["teacher_ids"][places].gather(-1, order)
        known = {"the teacher": p}
        for name, one in zip(names, cells, strict=True):
            if one.seed == cell.seed:
                q = next_probs(grid.trained(one), batch, places)
                known[name] = q.gather(-1, ids) * (p > 0)
        named = torch.stack([known[name] for name in columns], -1)
        rest = (1 - named.sum(1, keepdim=True)).clamp_min(1e-9)
        probs = torch.cat([named, rest], 1).tolist()  # (places, candidates, columns)
        for place, (row, end) in enumerate(places.nonzero().tolist()):
            at = cell.seed, place, tokenizer.decode(batch["labels"][row, :end])
            tokens = [*tokenizer.convert_ids_to_tokens(ids[place]), OTHERS]
            candidates = zip(tokens, probs[place], strict=True)
            table += [(*at, token, *each) for token, each in candidates if each[0] > 0]
    table = pd.DataFrame(table, columns=[*LEVELS, *columns]).set_index(LEVELS)
    return table.astype(float)


@torch.inference_mode()
def next_probs(
    student: models.Student, batch: Mapping[str, Tensor], places: Tensor
) -> Tensor:
    """Return a student's probability of every next token at N places, (N, V).

    `places` (B, T) marks them; before each the student reads the true tokens.
    """
    model = student.model.to(models.device())
    names = ("input_ids", "attention_mask", "labels")
    asked = {name: batch[name].to(model.device) for name in names}
    return model(**asked).logits.cpu()[places].double().softmax(-1)


def _unreached(encoded: batching.EncodedExamples, came: np.ndarray) -> np.ndarray:
    """Examples with targets whose solution was in no batch, in whatever format."""
    has_teacher = encoded.teacher_row >= 0
    is_new = has_teacher & ~np.isin(encoded.teacher_row, encoded.teacher_row[came])
    return np.flatnonzero(is_new if is_new.any() else has_teacher)[:NUM_SOLUTIONS]
