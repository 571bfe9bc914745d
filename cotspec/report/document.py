"""The report: what the run can show, its tables, the ledger, and the rules behind it.

Enters: the main table, the claims table and the profile's name. Leaves: what a run of
that profile proves and what not, and the report as Markdown text and as an HTML page.
Same input, same text.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cotspec import sizing
from cotspec.artifacts import markdown_table
from cotspec.figures.style import require_columns
from cotspec.report.claims import RULES_DATE, VERDICTS, rules_table
from cotspec.report.tables import our_rows, percent, scorer_rows, summary_rows


@dataclass(frozen=True)
class Scale:
    """Attributes: `name` as tables say it, and sentences for the report.

    `withheld` says why no claim may be judged; "" where claims are judged.
    """

    name: str
    proves: str
    cannot: str
    withheld: str = ""


_SMOKE = Scale(
    name="smoke run of the micro-world",
    proves="the machinery: every stage runs and hands its artifacts on, the scorer, "
    "the filter, the alignment, both losses and the tables work together.",
    cannot="anything about the paper's claims. The models are tiny, were trained for "
    "seconds and are tested on a few dozen invented problems; a change in their "
    "accuracy is not evidence.",
    withheld="the smoke profile tests machinery only",
)
_SMOLLM2 = Scale(
    name="SmolLM2-135M on real data",
    proves="what a really pretrained student of 135M parameters learns from the "
    "training set's own rationales in this many updates, on real problems (GSM8K, "
    "MultiArith, ASDiv, SVAMP, BIG-Bench Hard).",
    cannot="the paper's claims. There is one size, one start and one seed; the student "
    "is decoder-only, writes few right answers before and after, and is at chance on "
    "BIG-Bench Hard, so there is little to lose. The words it learns from have no "
    "probabilities: both losses are the same.",
    withheld="one size, one seed, a teacher without probabilities",
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
    known = {"smoke": _SMOKE, "smollm2": _SMOLLM2, "micro": _MICRO}
    if profile_name in known:
        return known[profile_name]
    if not profile_name.startswith("flan-t5-"):
        allowed = [*known, "flan-t5-<size>"]
        raise ValueError(f"profile: {profile_name!r} has no scale. Allowed: {allowed}")
    size = profile_name.removeprefix("flan-t5-")
    return Scale(
        name=f"FlanT5-{size}",
        proves="the paper's experiment with the students, updates and problems named "
        "here. The numbers may stand beside the paper's where these are the paper's.",
        cannot="more than the sizes that notebook 10 trained; a teacher other than "
        "code-davinci-002, which is retired, is a difference from the paper.",
    )


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd;
         vertical-align: top; }
"""


def report_text(
    profile_name: str,
    main: pd.DataFrame,
    claims: pd.DataFrame,
    *,
    groups: Mapping[str, Sequence[str]],
    paper_tables: Mapping[str, pd.DataFrame],
    conditions: pd.DataFrame,
    power: pd.DataFrame,
    facts: Mapping[str, object] | None = None,
) -> str:
    """Return the report as Markdown.

    Parameters
    ----------
    profile_name : str
    main, claims : DataFrame
        From `tables.main_table` and `claims.claims_table`.
    groups : mapping
        From `task_groups`.
    paper_tables : mapping
        Title to one of the paper's tables with our rows, from `report.paper`.
    conditions, power : DataFrame
        From `conditions_table` and `power_table`.
    facts : mapping, optional
        Shown as a list under the title (seed, teacher, student). Leave times out where
        equal runs must give equal bytes.
    """
    scale = scale_of(profile_name)
    shown = [f"## {title}\n\n{markdown_table(t)}" for title, t in paper_tables.items()]
    sections = [
        f"# Paper and reproduction: profile `{profile_name}`",
        "\n".join(f"- {name}: {value}" for name, value in (facts or {}).items()),
        _was_run(main),
        f"**What this run proves:** {scale.proves}",
        f"**What it cannot prove:** {scale.cannot}",
        _claims_section(claims),
        _conditions_section(conditions, power),
        *shown,
        _ours_section(main, scale, groups),
        _scorers_section(main, groups),
        f"## The rules ({RULES_DATE})\n\n{markdown_table(rules_table())}",
        _details_section(main),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _was_run(main: pd.DataFrame) -> str:
    """Name students by what they are, not by what they are called."""
    students, others = [], []
    for model, size in (
        main[["model", "size"]].drop_duplicates().itertuples(index=False)
    ):
        students.append(f"{model} ({int(size):,} parameters)")
        published = sizing.num_parameters(model)
        if published not in (0, size):
            others.append(f"{model} ({published:,})")
    counts = main.loc[~main["task"].str.startswith("all "), "n"].astype(int)
    text = f"**What was run:** {', '.join(students)}; {counts.min():,} "
    text += f"to {counts.max():,} problems a set."
    if others:
        text += f" Not of the published size: {', '.join(others)}."
    return text


def _claims_section(claims: pd.DataFrame) -> str:
    counts = claims["verdict"].value_counts()
    summary = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if v in counts)
    shown = ledger_columns(claims)
    shown["verdict"] = "**" + shown["verdict"] + "**"
    return (
        f"## The claims\n\n{summary}.\n\n*Reproduced*: every condition of the rule "
        "lies above 0 with its whole 95% interval. *Opposite*: every one lies below. "
        "*Not reproduced*: the interval of at least one excludes the smallest effect "
        "of interest. *Undecided*: none does, and not all are shown. The last column "
        f"is what the rule before {RULES_DATE} would have said, its intervals twice as "
        "wide; empty where it asked for something that is not measured any more.\n\n"
        + markdown_table(shown)
    )


def ledger_columns(claims: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger as report and notebook 11 show it.

    Parameters
    ----------
    claims : DataFrame
        From `claims.claims_table`; effects are fractions, shown in points.

    Raises
    ------
    ValueError
        A column is missing, or there is no claim.
    """
    needed = "claim statement ours condition effect verdict former_verdict"
    require_columns(claims, needed, "ledger_columns")
    return pd.DataFrame(
        {
            "claim": claims["claim"],
            "the paper says": claims["statement"],
            "as the paper measured it, here": claims["ours"],
            "under test: the weakest condition": [
                _effect(row) for row in claims.itertuples()
            ],
            "verdict": claims["verdict"],
            "by the former rule": claims["former_verdict"],
        }
    )


def _effect(row) -> str:
    if pd.isna(row.effect):
        return ""
    if row.unit == "points":
        interval = percent(row.effect, row.ci_low, row.ci_high, signed=True)
    else:
        interval = f"{row.effect:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]"
    return f"{row.condition}: {interval} {row.unit}"


def _conditions_section(conditions: pd.DataFrame, power: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "claim": conditions["claim"],
            "condition": [_effect(row) for row in conditions.itertuples()],
            "n": conditions["n"],
            "repeats": conditions["num_seeds"],
            "status": conditions["status"],
        }
    )
    shares = power.copy()
    for name in shares.columns[2:]:
        shares[name] = shares[name].map("{:.0%}".format)
    return (
        f"## Every condition\n\nA repeat is a seed; in the micro-world the mean of the "
        "seeds that share a base model, since they are not independent.\n\n"
        f"{markdown_table(shown)}\n\n"
        "## What the rules can tell\n\nHow often each rule says each verdict in runs "
        "simulated with this run's own variances, if there is no effect, the smallest "
        "of interest, or the paper's (10 points where it is not known).\n\n"
        + markdown_table(shares)
    )


def _ours_section(
    main: pd.DataFrame, scale: Scale, groups: Mapping[str, Sequence[str]]
) -> str:
    return (
        f"## Our students ({scale.name})\n\n"
        "Accuracy in percent before → after specialization (the change in points with "
        "its 95% interval), the mean over the seeds. Math is asked in context with "
        "chain of thought, out of distribution and generic sets are pooled; an empty "
        "cell was not measured.\n\n" + markdown_table(summary_rows(main, groups))
    )


def _scorers_section(main: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> str:
    return (
        "## The same answers, three scorers\n\n"
        "Math in context with chain of thought, percent before → after. *Ours* decides "
        "everywhere else in this report. Beside it, on the same outputs: the reference "
        "repository's regular expression and lm-eval's flexible extraction, which both "
        "take the last number of the text."
        "\n\n" + markdown_table(scorer_rows(main, groups))
    )


def _details_section(main: pd.DataFrame) -> str:
    return (
        "## Every set and prompt\n\n"
        "Accuracies are means over the seeds with 95% Wilson intervals; changes are "
        "paired by problem and seed, with 95% intervals over both.\n\n"
        + markdown_table(our_rows(main))
    )


def report_page(text: str, *, title: str) -> str:
    """Return the report as an HTML page that needs nothing beside it.

    Parameters
    ----------
    text : str
        From `report_text`.
    title : str
    """
    from nbconvert.filters import markdown2html

    body = markdown2html(text).replace("<table>", '<div class="wide"><table>')
    body = body.replace("</table>", "</table></div>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>{body}</html>\n"
    )
