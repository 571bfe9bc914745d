"""The report: what the run can show, its tables, the ledger, and the rules behind it.

Enters: the main table, the claims table and the profile's name. Leaves: the report as
Markdown text and as an HTML page. Same input, same text.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import pandas as pd

from cotspec.artifacts import markdown_table
from cotspec.report.claims import RULES_DATE, VERDICTS, rules_table
from cotspec.report.scales import Scale, scale_of
from cotspec.report.tables import (
    our_rows,
    percent,
    scorer_rows,
    summary_rows,
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


def _claims_section(claims: pd.DataFrame) -> str:
    counts = claims["verdict"].value_counts()
    summary = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if v in counts)
    shown = pd.DataFrame(
        {
            "claim": claims["claim"],
            "the paper says": claims["statement"],
            "as the paper measured it, here": claims["ours"],
            "under test: the weakest condition": [
                _effect(row) for row in claims.itertuples()
            ],
            "verdict": "**" + claims["verdict"] + "**",
        }
    )
    return (
        f"## The claims\n\n{summary}.\n\n*Reproduced*: every condition of the rule "
        "lies above 0 with its whole 95% interval. *Opposite*: every one lies below. "
        "*Not reproduced*: the interval of at least one excludes the smallest effect "
        "of interest. *Undecided*: none does, and not all are shown.\n\n"
        + markdown_table(shown)
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
            "seeds": conditions["num_seeds"],
            "status": conditions["status"],
        }
    )
    shares = power.copy()
    for name in shares.columns[2:]:
        shares[name] = shares[name].map("{:.0%}".format)
    return (
        f"## Every condition\n\n{markdown_table(shown)}\n\n"
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
