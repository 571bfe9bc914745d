"""What each profile can prove, said before its numbers are shown.

Enters: a profile's name. Leaves: its `Scale`: what a run of it shows, what it cannot
show, and whether its numbers may decide a claim.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Attributes: `name` as tables say it, and sentences for the report.

    `withheld` says why no claim may be judged; "" where claims are judged.
    `is_paper` tells whether published numbers may stand in one table with ours.
    """

    name: str
    proves: str
    cannot: str
    withheld: str = ""
    is_paper: bool = False


_SMOKE = Scale(
    name="smoke run of the micro-world",
    proves="the machinery: every stage runs and hands its artifacts on, the scorer, "
    "the filter, the alignment, both losses and the tables work together.",
    cannot="anything about the paper's claims. The models are tiny, were trained for "
    "seconds and are tested on a few dozen invented problems; a change in their "
    "accuracy is not evidence.",
    withheld="the smoke profile tests machinery only",
)
_REHEARSAL = Scale(
    name="rehearsal on CPU",
    proves="the real path: real problems (GSM8K, MultiArith, ASDiv, SVAMP, "
    "BIG-Bench Hard), a real language model as teacher, the real T5 vocabulary, a "
    "student of FlanT5's architecture, from sampling to this report.",
    cannot="accuracy. The student starts from random weights and sees a few dozen "
    "examples: its numbers are near zero before and after and mean nothing.",
    withheld="the student starts from random weights",
)
_MICRO = Scale(
    name="micro-world",
    proves="directions and effect sizes of all eight claims in a small invented world: "
    "real T5 students of several sizes up to about a million parameters, raw and "
    "instruction-tuned, several seeds each, a teacher that errs, two tokenizers, sets "
    "in and out of distribution, generic tasks.",
    cannot="the paper's numbers. Micro-world accuracies are no GSM8K accuracies, a "
    "line through four tiny sizes says nothing about billions of parameters, and a "
    "claim reproduced here is reproduced at this scale only. The world and the recipe "
    "of its base models were tuned on validation problems after the rules were first "
    "written: the verdicts show that the effects can be had in such a world, not that "
    "they would be found in any.",
)


def scale_of(profile_name: str) -> Scale:
    """Return what a profile's run can show.

    Raises
    ------
    ValueError
        A profile no sentence was written for.
    """
    known = {"smoke": _SMOKE, "rehearsal": _REHEARSAL, "micro": _MICRO}
    if profile_name in known:
        return known[profile_name]
    if not profile_name.startswith("flan-t5-"):
        allowed = [*known, "flan-t5-<size>"]
        raise ValueError(f"profile: {profile_name!r} has no scale. Allowed: {allowed}")
    size = profile_name.removeprefix("flan-t5-")
    return Scale(
        name=f"FlanT5-{size}",
        proves=f"the paper's experiment up to google/flan-t5-{size} on its own test "
        "sets; the numbers may stand beside the paper's.",
        cannot="more than the sizes that notebook 10 trained; a teacher other than "
        "code-davinci-002, which is retired, is a difference from the paper.",
        is_paper=True,
    )
