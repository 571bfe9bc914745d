"""What enters and leaves the alignment: traces, rules, targets.

Enters: rows of the traces table, or a teacher's token strings. Leaves: `TeacherTrace`,
what `align` reads, and `AlignedTargets`, what it returns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Rule(IntEnum):
    """How a student token corresponds to the teacher's tokens.

    IDENTICAL: one teacher token has the same span and the same bytes. SAME_SPAN: the
    same span, spelled otherwise (``▁If`` for ``If`` at the start, normalised Unicode).
    STARTS_TOGETHER: a teacher token begins here but ends elsewhere; also the token
    after a bare ``▁`` with which the teacher token began. INSIDE: no teacher token
    begins here; one-hot. NOT_ONE_TO_ONE: of ``dtw`` only; one-hot.
    """

    IDENTICAL = 0
    SAME_SPAN = 1
    STARTS_TOGETHER = 2
    INSIDE = 3
    NOT_ONE_TO_ONE = 4


SOFT_RULES = (Rule.IDENTICAL, Rule.SAME_SPAN, Rule.STARTS_TOGETHER)


@dataclass(frozen=True, eq=False)
class TeacherTrace:
    """One sampled solution as the teacher saw it.

    Parameters
    ----------
    text : str
        The solution; the tokens' bytes joined are its UTF-8.
    token_bytes : tuple of bytes, length T'
    token_logprobs : float array, shape (T',)
        Nats, temperature 1.
    topk_bytes : tuple of tuples of bytes, T' rows of k
        Alternatives in any order; the sampled token need not be among them.
    topk_logprobs : float array, shape (T', k)
        ``-inf`` in empty slots.

    Raises
    ------
    ValueError
        Fields of different lengths.
    """

    text: str
    token_bytes: tuple[bytes, ...]
    token_logprobs: np.ndarray
    topk_bytes: tuple[tuple[bytes, ...], ...]
    topk_logprobs: np.ndarray

    def __post_init__(self) -> None:
        steps, k = len(self.token_bytes), self.k
        shapes = np.shape(self.token_logprobs), np.shape(self.topk_logprobs)
        names = [len(row) for row in self.topk_bytes]
        if shapes != ((steps,), (steps, k)) or names != [k] * steps:
            said = f"token_logprobs {shapes[0]}, topk_logprobs {shapes[1]}"
            raise ValueError(f"{steps} token_bytes, {said}, topk_bytes {names}")

    @property
    def k(self) -> int:
        """Number of alternatives per token."""
        return np.shape(self.topk_logprobs)[-1]

    @classmethod
    def from_row(cls, row: Mapping) -> TeacherTrace:
        """Read a row of the traces table; short rows of alternatives are padded.

        A last token that was cut behind the answer, ``.\\n\\n`` to ``.``, is still
        whole among its alternatives; it is cut there, too.
        """
        names, logprobs = list(row["topk_bytes"]), row["topk_logprobs"]
        if names:
            last, own = row["token_bytes"][-1], row["token_logprobs"][-1]
            pairs = zip(names[-1], logprobs[-1], strict=True)
            cut = [last if p == own and n.startswith(last) else n for n, p in pairs]
            names[-1] = cut
        k = max(map(len, names), default=0)
        names = [(*step, *[b""] * (k - len(step))) for step in names]
        logprobs = [[*step, *[-np.inf] * (k - len(step))] for step in logprobs]
        return cls(
            text=row["completion"],
            token_bytes=tuple(row["token_bytes"]),
            token_logprobs=np.asarray(row["token_logprobs"], np.float64),
            topk_bytes=tuple(names),
            topk_logprobs=np.asarray(logprobs, np.float64).reshape(len(names), k),
        )

    @classmethod
    def from_token_strings(
        cls, steps: Sequence[Sequence[tuple[str, float]]]
    ) -> TeacherTrace:
        """Read a teacher known by token strings: per step, the sampled one, then k.

        Parameters
        ----------
        steps : sequence of [(token, probability), ...]
            Layout of the authors' ``codex_per_step_probs``. The OpenAI API's
            ``bytes:\\xc3`` spelling of partial characters is understood.
        """
        names = [[token_bytes(token) for token, _ in step] for step in steps]
        probs = [[math.log(p) if p else -math.inf for _, p in step] for step in steps]
        tokens = [step[0] for step in names]
        text = b"".join(tokens).decode(errors="surrogateescape")
        row = {"completion": text, "token_bytes": tokens}
        row |= {"token_logprobs": [step[0] for step in probs]}
        row |= {"topk_bytes": [step[1:] for step in names]}
        return cls.from_row(row | {"topk_logprobs": [step[1:] for step in probs]})


def token_bytes(token: str) -> bytes:
    r"""Return the bytes of a token's text; split ones are spelled ``bytes:\xNN``.

    A space before the first ``\x`` belongs to the token.

    Examples
    --------
    >>> token_bytes(" é"), token_bytes("bytes: \\xc3")
    (b' \xc3\xa9', b' \xc3')
    """
    if not token.startswith("bytes:") or "\\x" not in token:
        return token.encode("utf-8", "surrogatepass")
    spelled = token.removeprefix("bytes:").replace("\\\\", "\\").encode()
    return _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), spelled)


_ESCAPED = re.compile(rb"\\x([0-9a-fA-F]{2})")


@dataclass(frozen=True, eq=False)
class AlignedTargets:
    """What the student learns from one solution; T student tokens, k slots each.

    Parameters
    ----------
    student_ids : int32 array, shape (T,)
        The solution in the student's tokens, without EOS.
    topk_ids : int32 array, shape (T, k)
        Slot 0 holds the label (``student_ids``); the others follow by falling
        probability; -1 where a slot is empty.
    topk_probs : float32 array, shape (T, k)
        0 in empty slots.
    tail_mass : float32 array, shape (T,)
        What the slots do not hold; ``topk_probs.sum(1) + tail_mass = 1``.
    rule : int8 array, shape (T,)
        Values of `Rule`.
    """

    student_ids: np.ndarray
    topk_ids: np.ndarray
    topk_probs: np.ndarray
    tail_mass: np.ndarray
    rule: np.ndarray
