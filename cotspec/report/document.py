"""The report: what the run can show, its tables, the ledger, and the rules behind it.

Enters: the main table, the claims table and the profile's name. Leaves: the report as
Markdown text and as an HTML page. Same input, same text.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import pandas as pd

from cotspec.report.claims import CLAIMS, SIGNIFICANCE, VERDICTS
from cotspec.report.scales import Scale, scale_of
from cotspec.report.tables import (
    markdown_table,
    our_rows,
    percent,
    published_rows,
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
    facts: Mapping[str, object] | None = None,
) -> str:
    """Return the report as Markdown.

    Parameters
    ----------
    profile_name : str
    main, claims : DataFrame
        From `main_table` and `claims_table`.
    groups : mapping
        From `task_groups`.
    facts : mapping, optional
        Shown as a list under the title (seed, teacher, student). Leave times out where
        equal runs must give equal bytes.
    """
    scale = scale_of(profile_name)
    sections = [
        f"# Paper and reproduction: profile `{profile_name}`",
        "\n".join(f"- {name}: {value}" for name, value in (facts or {}).items()),
        f"**What this run proves:** {scale.proves}",
        f"**What it cannot prove:** {scale.cannot}",
        _claims_section(claims),
        _ours_section(main, scale, groups),
        _scorers_section(main, groups),
        _published_section(main, scale),
        _rules_section(),
        _details_section(main),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _claims_section(claims: pd.DataFrame) -> str:
    counts = claims["verdict"].value_counts()
    summary = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if v in counts)
    shown = pd.DataFrame(
        {
            "claim": claims["claim"],
            "statement": claims["statement"],
            "paper": claims["paper"],
            "ours": claims["ours"],
            "effect, points": [
                percent(row.effect, row.ci_low, row.ci_high, signed=True)
                for row in claims.itertuples()
            ],
            "verdict": "**" + claims["verdict"] + "**",
        }
    )
    return f"## The claims\n\n{summary}.\n\n{markdown_table(shown)}"


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
        "take the last number of the text. `main_table.csv` has them for every set and "
        "prompt of math."
        "\n\n" + markdown_table(scorer_rows(main, groups))
    )


def _details_section(main: pd.DataFrame) -> str:
    return (
        "## Every set and prompt\n\n"
        "Accuracies are means over the seeds with 95% Wilson intervals; changes are "
        "paired by problem and seed, with 95% intervals over both. McNemar's exact "
        "test compares before and after in each seed on the same problems; p is the "
        "smallest of the seeds times their number: where it is small, at least one "
        "seed's student changed. It is not corrected for the number of rows.\n\n"
        + markdown_table(our_rows(main))
    )


def _published_section(main: pd.DataFrame, scale: Scale) -> str:
    note = (
        "Each number has the source it was read in; an empty cell is a number that is "
        "not known here. Models without specialization stand under *before*."
    )
    if not scale.is_paper:
        note += (
            f" These are other models on other data than ours ({scale.name}): the two "
            "tables cannot be compared number by number."
        )
    return f"## Published numbers\n\n{note}\n\n{markdown_table(published_rows(main))}"


def _rules_section() -> str:
    rules = pd.DataFrame(
        {
            "claim": [claim.id for claim in CLAIMS],
            "effect": [claim.effect for claim in CLAIMS],
            "rule": [claim.rule for claim in CLAIMS],
            "from": [f"`{claim.notebook}`" for claim in CLAIMS],
        }
    )
    return (
        "## How the verdicts are decided\n\n"
        "The rules stand in `cotspec.report.claims` and were written down before the "
        "numbers. An interval covers two: the bootstrap over seeds and problems, and "
        "Student's t of the seeds' means, for a bootstrap over three seeds alone is "
        "too narrow where they differ. *Reproduced* and *opposite* also need a "
        f"bootstrap p-value below {SIGNIFICANCE} after Holm's correction for the "
        "number of claims judged. t is not corrected, as three seeds would then let "
        "only the largest effects pass: where seeds differ much, each claim alone has "
        "about 5% to be called an effect by chance.\n\n" + markdown_table(rules)
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
