"""Sample matching and distribution matching over a truncated teacher.

Enters: the student's logits ``(B, T, V)``, labels ``(B, T)`` and, for distribution
matching, the teacher's few candidates per position ``(B, T, k)``. Leaves: one scalar,
nats per target token, summed over the unmasked positions and divided by their number.

The teacher is known only by its k best candidates. With p their probabilities, q the
student's and "rest" all other tokens together, the tails are

==============  ==================================================================
``bucket``      sum_i p_i log(p_i / q_i) + p_rest log(p_rest / q_rest)
``renormalized``  sum_i p'_i log(p'_i / q_i) with p' = p / sum(p)
``paper``       sum_i p_i log(p_i / q_i), the rest ignored (Fu et al. 2023)
==============  ==================================================================

Only ``bucket`` has its minimum, 0, where the student agrees with the teacher; the other
two are best served by a student that gives the rest no probability at all.

Nothing of size ``(B, T, V)`` is made but the gradient of the logits: the student's
log-probabilities are computed for the candidates and the rest, a few rows at a time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cotspec.batching import IGNORED
from cotspec.profiles import LossConfig

# Elements of a block of logits worked on at once: 4 MiB in float32 stay in the cache.
_BLOCK_ELEMENTS = 2**20


def sample_matching(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy on the sampled solution.

    Parameters
    ----------
    logits : FloatTensor, shape (B, T, V)
    labels : LongTensor, shape (B, T), -100 ignored

    Returns
    -------
    FloatTensor, shape ()
        Nats per unmasked target token; 0 where every position is masked.

    Raises
    ------
    ValueError
        Shapes that do not fit together.

    Source: Fu et al. 2023, "sample matching".
    """
    _check_shapes(logits, labels)
    pair = _at_least_float32(logits).flatten(0, -2), labels.flatten()
    total = F.cross_entropy(*pair, ignore_index=IGNORED, reduction="sum")
    return total / _num_targets(labels)


def distribution_matching(
    logits: Tensor,
    labels: Tensor,
    teacher_ids: Tensor,
    teacher_probs: Tensor,
    *,
    tail: str = "bucket",
    divergence: str = "forward_kl",
    cross_entropy_weight: float = 0.0,
) -> Tensor:
    """Divergence between the teacher's and the student's next-token distributions.

    Parameters
    ----------
    logits : FloatTensor, shape (B, T, V)
    labels : LongTensor, shape (B, T), -100 ignored
    teacher_ids : LongTensor, shape (B, T, k)
        Candidate tokens; a slot of probability 0 is empty, whatever its id, and
        probabilities of slots with the same id add.
    teacher_probs : FloatTensor, shape (B, T, k)
        Their probabilities; what they lack to 1 is the tail.
    tail : {"bucket", "renormalized", "paper"}
        What is done with the tail, see the module's table.
    divergence : {"forward_kl", "reverse_kl", "jensen_shannon"}
        KL(teacher || student), as in the paper; or KL(student || teacher), or
        Jensen-Shannon with equal weights, both for ablations, only with
        ``tail="bucket"``. These two keep cross-entropy where the teacher is one-hot
        (answer-only examples), and a tail under float32's resolution counts as that
        resolution in the reverse direction, which is infinite at 0.
    cross_entropy_weight : float in [0, 1]
        Share of `sample_matching` mixed in.

    Returns
    -------
    FloatTensor, shape ()
        Nats per unmasked target token; 0 where every position is masked.

    Raises
    ------
    ValueError
        Unknown option or shapes that do not fit together.

    Source: Fu et al. 2023, "distribution matching"; the tail bucket as in TRL's
    ``_add_tail_bucket``; Jensen-Shannon as in Agarwal et al. 2024 (GKD), eq. 1.
    """
    _check_shapes(logits, labels, teacher_ids, teacher_probs)
    share = cross_entropy_weight
    # It checks itself.
    LossConfig(tail=tail, divergence=divergence, cross_entropy_weight=share)
    rows = (labels.flatten() != IGNORED).nonzero().squeeze(1)  # (N,)
    named = teacher_ids.masked_fill(teacher_probs <= 0, 0)  # an empty slot names none
    teacher = named, _at_least_float32(teacher_probs)
    ids, probs = _merge_duplicates(*(part.flatten(0, -2)[rows] for part in teacher))
    is_candidate = probs > 0
    asked = logits.flatten(0, -2), rows, ids, is_candidate
    log_q, log_q_rest = _CandidateLogProbs.apply(*asked)
    log_q = log_q.masked_fill(~is_candidate, 0.0)  # an empty slot weighs nothing
    if tail == "bucket":
        losses = _bucketed(probs, log_q, log_q_rest, divergence)
    else:
        # PAPER: log(p / (q + 1e-10) + 1e-10), which saturates. HERE: exact logs.
        scale = probs.sum(-1, keepdim=True) if tail == "renormalized" else 1.0
        losses = _relative_entropy(probs / scale, log_q).sum(-1)
    loss = losses.sum() / _num_targets(labels)
    if share:
        loss = (1 - share) * loss + share * sample_matching(logits, labels)
    return loss


def _bucketed(
    probs: Tensor, log_q: Tensor, log_q_rest: Tensor, divergence: str
) -> Tensor:
    """Divergence over k candidates and the rest as one more outcome, shape (N,)."""
    log_q_rest = log_q_rest.unsqueeze(-1)
    rest = (1 - probs.sum(-1, keepdim=True)).clamp_min(0.0)
    # With k = V nothing is left over, whatever rounding makes of the sum.
    rest = rest.masked_fill(log_q_rest == -torch.inf, 0.0)
    p = torch.cat([probs, rest], -1)  # (N, k + 1)
    log_q = torch.cat([log_q, log_q_rest], -1)
    forward = _relative_entropy(p, log_q).sum(-1)
    if divergence == "forward_kl":
        return forward
    is_possible = F.pad(probs > 0, (0, 1), value=True) & (log_q > -torch.inf)
    log_q = log_q.masked_fill(~is_possible, 0.0)
    q = torch.where(is_possible, log_q.exp(), 0.0)
    if divergence == "reverse_kl":
        floored = torch.cat([probs, rest.clamp_min(torch.finfo(torch.float32).eps)], -1)
        other = (q * (log_q - _log(floored))).sum(-1)
    else:
        log_mixture = _log((p + q) / 2)
        of_student = q * (log_q - log_mixture)
        other = (_relative_entropy(p, log_mixture) + of_student).sum(-1) / 2
    is_one_hot = (probs >= 1).any(-1)
    return torch.where(is_one_hot, forward, other)


def _relative_entropy(p: Tensor, log_q: Tensor) -> Tensor:
    """p log(p / q) per outcome, 0 where p is 0."""
    return torch.where(p > 0, p * (_log(p) - log_q), 0.0)


def _log(p: Tensor) -> Tensor:
    """log p, and 0 instead of -inf at 0, so that 0 * log 0 and its gradient are 0."""
    return p.masked_fill(p <= 0, 1.0).log()


class _CandidateLogProbs(torch.autograd.Function):
    """Student log-probabilities of k candidates, and of all other tokens together.

    ``(logits (M, V), rows (N,), ids (N, k), is_candidate (N, k))`` to ``(N, k)`` and
    ``(N,)``. The rest is summed over its own tokens, not taken as one minus the
    candidates, so that it keeps its precision when the student is almost certain.
    """

    @staticmethod
    def forward(ctx, logits, rows, ids, is_candidate):
        chosen, rest = [], []
        for block in _blocks(rows, logits):
            scores = _at_least_float32(logits[rows[block]])
            chosen.append(scores.gather(-1, ids[block]))
            rest.append(_hide(scores, ids[block], is_candidate[block]).logsumexp(-1))
        chosen, rest = torch.cat(chosen), torch.cat(rest)
        of_candidates = chosen.masked_fill(~is_candidate, -torch.inf).logsumexp(-1)
        total = torch.logaddexp(rest, of_candidates)
        log_q, log_q_rest = chosen - total.unsqueeze(-1), rest - total
        ctx.save_for_backward(logits, rows, ids, is_candidate, log_q, log_q_rest)
        return log_q, log_q_rest

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_rest):
        logits, rows, ids, is_candidate, log_q, log_q_rest = ctx.saved_tensors
        grad_q = grad_q.masked_fill(~is_candidate, 0.0)
        total = grad_q.sum(-1) + grad_rest
        grad_q = grad_q - total.unsqueeze(-1) * log_q.exp()
        grad_q = grad_q.masked_fill(~is_candidate, 0.0)
        # d/dz_j of a token in the rest: softmax within the rest times this factor.
        factor = (grad_rest - total * log_q_rest.exp()).unsqueeze(-1)
        is_empty = log_q_rest == -torch.inf  # k = V: no rest to take a softmax of
        grad = torch.zeros_like(logits)
        for block in _blocks(rows, logits):
            scores = _at_least_float32(logits[rows[block]])
            scores = _hide(scores, ids[block], is_candidate[block]).softmax(-1)
            scores[is_empty[block]] = 0.0
            scores.mul_(factor[block]).scatter_add_(-1, ids[block], grad_q[block])
            grad[rows[block]] = scores.to(grad.dtype)
        return grad, None, None, None


def _blocks(rows: Tensor, logits: Tensor) -> list[slice]:
    size = max(1, _BLOCK_ELEMENTS // logits.shape[-1])
    return [slice(start, start + size) for start in range(0, max(1, len(rows)), size)]


def _hide(scores: Tensor, ids: Tensor, is_candidate: Tensor) -> Tensor:
    """Set the candidates' scores to -inf in place; empty slots change nothing."""
    limits = torch.full_like(ids, torch.inf, dtype=scores.dtype)
    limits.masked_fill_(is_candidate, -torch.inf)
    return scores.scatter_reduce_(-1, ids, limits, "amin")


def _merge_duplicates(ids: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Add up the probabilities of slots with the same id, shapes (N, k)."""
    ids, order = ids.sort(-1)
    is_first = F.pad(ids[..., 1:] != ids[..., :-1], (1, 0), value=True)
    slot = is_first.cumsum(-1) - 1
    merged_ids = torch.zeros_like(ids).scatter(-1, slot, ids)
    merged = torch.zeros_like(probs).scatter_add(-1, slot, probs.gather(-1, order))
    return merged_ids, merged


def _num_targets(labels: Tensor) -> Tensor:
    return (labels != IGNORED).sum().clamp_min(1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _check_shapes(logits: Tensor, labels: Tensor, *candidates: Tensor) -> None:
    is_right = logits.ndim == 3 and labels.shape == logits.shape[:2]
    for tensor in candidates:
        is_right &= tensor.shape == (*labels.shape, candidates[0].shape[-1])
    if not is_right:
        shapes = [tuple(tensor.shape) for tensor in (logits, labels, *candidates)]
        said = f"logits, labels, teacher_ids, teacher_probs: shapes {shapes}"
        raise ValueError(f"{said}. Allowed: (B, T, V), (B, T), (B, T, k), (B, T, k)")
