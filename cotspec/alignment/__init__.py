"""Teacher tokens become student targets: token alignment and transfer.

Enters: `TeacherTrace`, a solution's text with the teacher's tokens (as bytes) and its
top-k alternatives per token, and any Hugging Face fast tokenizer. Leaves:
`AlignedTargets`, one sparse distribution over the student's vocabulary per student
token, ``mass + tail = 1``.

Two methods. ``"dtw"`` is the paper's (Fu et al. 2023, section 3): dynamic time warping
at minimal total edit cost; a student token that pairs one-to-one with an equal teacher
token gets the teacher's top k, every other one stays one-hot. ``"offsets"`` reads the
same correspondence off the text itself, in O(n + m), and softens every student token
that begins where a teacher token begins. Both share the transfer, which `align` states.

Three conventions carry the rest:

- *Significant text.* Whitespace that the student folds away (T5: newlines, repeated
  spaces, the space before a word) belongs to no token. Spans are compared without it,
  so ``▁In``, ``In`` after a newline and `` In`` have one span. A teacher token that
  holds nothing else is conditioned on: it is no decision of the student's.
- *Word starts.* T5 writes a word after whitespace as ``▁word``. An alternative without
  a space is therefore read with one where the student marks a word start: after
  whitespace that it has not written as a token, and at the start of the text.
- *The left context is fixed.* The student tokens before a position are written, so an
  alternative is re-tokenised from that position on, never merged with what precedes.

Modules: `matching` has the two methods, `transfer` gives probabilities, `student` asks
the student's tokenizer, `records` and `table` are what enters and leaves.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from cotspec.alignment.matching import by_offsets, by_warping
from cotspec.alignment.records import SOFT_RULES, AlignedTargets, Rule, TeacherTrace
from cotspec.alignment.student import open_student
from cotspec.alignment.transfer import targets_of

METHODS = {"offsets": by_offsets, "dtw": by_warping}
DROP_REASONS = {
    "empty": "the student reads no token in the text",
    "not_spelled": "token_bytes joined do not spell the text",
    "bad_probabilities": "log-probabilities are NaN or sum to more than 1",
    "control_token": "the student reads a control token, such as </s>, in the text",
}
MASS_TOLERANCE = 1e-2  # published probabilities are rounded to four decimals
TRACES_PER_CHUNK = 256  # what a process is given at a time


@dataclass(frozen=True)
class Alignment:
    """The targets of many traces, and what was dropped.

    ``targets[i]`` is None where trace ``i`` was dropped for ``reasons[i]`` (one of
    `DROP_REASONS`; ``""`` = kept).
    """

    targets: list[AlignedTargets | None]
    reasons: list[str]

    def drops(self) -> dict[str, int]:
        """Count the dropped traces by reason; every reason is listed."""
        counts = Counter(self.reasons)
        return {reason: counts[reason] for reason in DROP_REASONS}


def align(
    trace: TeacherTrace,
    student_tokenizer: PreTrainedTokenizerBase,
    *,
    method: str = "offsets",
) -> AlignedTargets:
    """Turn one teacher trace into targets over the student's vocabulary.

    The transfer at a student token that begins with teacher token ``j``:

    1. Each of the teacher's alternatives at ``j`` goes to the student token that its
       text begins with, read from here on (see the module's conventions).
       Alternatives that begin with the same student token add.
    2. The sampled token goes to the label, whatever its text would give alone. Where
       the student token ends with teacher token ``j`` or inside it, with its own
       probability; where it runs on, with the chain-rule product of the teacher
       tokens it touches.
    3. After a bare ``▁`` (T5 writes `` x`` as ``▁``, ``x``) only alternatives that
       begin with one are left: they go to their second token, divided by the mass
       that is left once those that begin otherwise are ruled out.
    4. The k most probable slots are kept, the label always. Everything else (text
       that the student cannot write, an alternative for which no slot is left, the
       teacher's own tail, the sampled token's mass beyond the product) is the tail.

    Parameters
    ----------
    trace : TeacherTrace
    student_tokenizer : PreTrainedTokenizerBase
        A fast tokenizer, byte-level or SentencePiece (Metaspace).
    method : {"offsets", "dtw"}

    Returns
    -------
    AlignedTargets
        T student tokens without EOS; as many slots as the trace has alternatives.

    Raises
    ------
    ValueError
        Unknown method, a tokenizer without offsets, or a trace that `align_all`
        would drop (one of `DROP_REASONS`).

    Examples
    --------
    The teacher wrote `` $``, ``12``; T5 has one token ``▁$12`` for both:

    >>> trace = TeacherTrace.from_token_strings([          # doctest: +SKIP
    ...     [("earns", 0.7), ("earns", 0.7), ("makes", 0.2)],
    ...     [(" $", 0.8), (" $", 0.8), (" 12", 0.1)],
    ...     [("12", 0.9), ("12", 0.9), ("1", 0.05)]])
    >>> targets = align(trace, t5)                          # doctest: +SKIP

    ===========  ==================  ==========================  ====
    student      rule                candidates                  tail
    ===========  ==================  ==========================  ====
    ``▁earn``    STARTS_TOGETHER     ``▁earn`` .7 ``▁makes`` .2  .10
    ``s``        INSIDE              ``s`` 1                     0
    ``▁$12``     STARTS_TOGETHER     ``▁$12`` .72 ``▁12`` .1     .18
    ===========  ==================  ==========================  ====

    ``▁$12`` gets .8 × .9; the first token has a distribution like any other.
    """
    done = align_all([trace], student_tokenizer, method=method, num_proc=1)
    reason = done.reasons[0]
    if reason:
        said = f"{DROP_REASONS[reason]} ({reason})"
        raise ValueError(f"trace: {said}; text {trace.text[:60]!r}")
    return done.targets[0]


def align_all(
    traces: Sequence[TeacherTrace] | Dataset,
    student_tokenizer: PreTrainedTokenizerBase,
    *,
    method: str = "offsets",
    num_proc: int | None = None,
) -> Alignment:
    """Align many traces; see `align` for the meaning.

    Bad traces are dropped and counted, never raised.

    Parameters
    ----------
    traces : sequence of TeacherTrace, or Dataset of traces
        A Dataset's rows are read one at a time.
    num_proc : int, optional
        Processes. Default: as many as there are cores, one for few traces.

    Raises
    ------
    ValueError
        Unknown method, or a tokenizer without offsets.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r}. Allowed: {', '.join(METHODS)}")
    _WORK[:] = traces, open_student(student_tokenizer), METHODS[method]
    if num_proc is None:
        few = 1 + len(traces) // (8 * TRACES_PER_CHUNK)
        # To fork is not safe elsewhere.
        num_proc = min(os.cpu_count() or 1, few) if sys.platform == "linux" else 1
    places = range(len(traces))
    if num_proc == 1:
        found = list(map(_align_at, places))
    else:
        with ProcessPoolExecutor(num_proc, mp_context=get_context("fork")) as pool:
            found = list(pool.map(_align_at, places, chunksize=TRACES_PER_CHUNK))
    _WORK.clear()
    return Alignment([t for _, t in found], [reason for reason, _ in found])


# Traces, student, method. Forked processes inherit them, so that only results are sent:
# to pickle a trace takes half as long as to align it.
_WORK: list = []


def _align_at(place: int) -> tuple[str, AlignedTargets | None]:
    """Return a drop reason and None, or "" and the targets."""
    traces, student, match = _WORK
    trace = traces[place]
    if isinstance(trace, dict):
        trace = TeacherTrace.from_row(trace)
    spelled = trace.text.encode(errors="backslashreplace")  # of lone surrogates
    if b"".join(trace.token_bytes) != spelled and spelled.strip():
        return "not_spelled", None
    tokens = student.tokens(trace.text) if spelled.strip() else []
    if not tokens:
        return "empty", None
    if any(token.id in student.control_ids for token in tokens):
        return "control_token", None  # it would end the target in its middle
    if not _most_mass(trace) <= 1 + MASS_TOLERANCE:  # NaN is bad
        return "bad_probabilities", None
    return "", targets_of(tokens, match(tokens, trace, student), trace, student)


def _most_mass(trace: TeacherTrace) -> float:
    """The largest sum over one step's alternatives, the sampled token among them."""
    mass = np.exp(trace.topk_logprobs).sum(1)
    own = np.exp(trace.token_logprobs)
    named = zip(trace.token_bytes, trace.topk_bytes, strict=True)
    is_named = [sampled in alternatives for sampled, alternatives in named]
    return float(np.max(np.maximum(own, mass + np.where(is_named, 0, own))))
