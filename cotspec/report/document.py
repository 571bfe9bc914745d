"""The report: what the run can show, its tables, the ledger, and the rules behind it.

Enters: the main table, the claims table and the profile's name. Leaves: what a run of
that profile proves and what not, and the report as Markdown text and as an HTML page.
Same input, same text.
"""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from cotspec import sizing
from cotspec.artifacts import markdown_table, read_json
from cotspec.report.claims import RULES_DATE, VERDICTS, rules_table
from cotspec.report.tables import our_rows, percent, scorer_rows, summary_rows

_FOLDER = Path(__file__).parent


def scale_of(profile_name: str) -> SimpleNamespace:
    """Return what a profile's run can show: the texts of ``scales.json``.

    Returns
    -------
    SimpleNamespace
        ``name`` as tables say it, ``proves`` and ``cannot`` (sentences), and
        ``withheld``: why no claim may be judged; "" where claims are judged.
    """
    known = read_json(_FOLDER / "scales.json")
    return SimpleNamespace(**known.get(profile_name, known["flan-t5"]))


def report_text(
    profile_name: str,
    main: pd.DataFrame,
    claims: pd.DataFrame,
    *,
    groups: Mapping[str, list[str]],
    paper_tables: Mapping[str, pd.DataFrame],
    conditions: pd.DataFrame,
    power: pd.DataFrame,
    facts: Mapping[str, object],
) -> str:
    """Return the report as Markdown: ``report.md`` with this run's tables.

    Parameters
    ----------
    profile_name : str
    main, claims : DataFrame
        From `tables.main_table` and `claims.claims_table`.
    groups : mapping
        From `task_groups`.
    paper_tables : mapping
        Title to one of the paper's tables with our rows.
    conditions, power : DataFrame
        From `conditions_table` and `power_table`.
    facts : mapping
        Shown as a list under the title (seed, teacher, student). Leave times out where
        equal runs must give equal bytes.
    """
    counts = claims["verdict"].value_counts()
    ledger = ledger_columns(claims)
    ledger["verdict"] = "**" + ledger["verdict"] + "**"
    shown = conditions.rename(columns={"num_seeds": "repeats"})
    shown["condition"] = [_effect(row) for row in conditions.itertuples()]
    shares = power.set_index(["claim", "world"]).map("{:.0%}".format)
    tables = {
        "ledger": ledger,
        "conditions": shown[["claim", "condition", "n", "repeats", "status"]],
        "power": shares.reset_index(),
        "students": summary_rows(main, groups),
        "scorers": scorer_rows(main, groups),
        "rules": rules_table(),
        "details": our_rows(main),
    }
    titled = [f"## {title}\n\n{markdown_table(t)}" for title, t in paper_tables.items()]
    template = (_FOLDER / "report.md").read_text("utf-8")
    return template.format(
        profile=profile_name,
        facts="\n".join(f"- {name}: {value}" for name, value in facts.items()),
        was_run=_was_run(main),
        scale=scale_of(profile_name),
        counts=", ".join(f"{counts[v]} {v}" for v in VERDICTS if v in counts),
        rules_date=RULES_DATE,
        paper_tables="\n\n".join(titled),
        **{name: markdown_table(table) for name, table in tables.items()},
    )


def _was_run(main: pd.DataFrame) -> str:
    """Name students by what they are, not by what they are called."""
    students, others = [], []
    for model, size in main[["model", "size"]].drop_duplicates().to_numpy():
        students.append(f"{model} ({size:,} parameters)")
        published = sizing.num_parameters(model)
        if published not in (0, size):
            others.append(f"{model} ({published:,})")
    counts = main.loc[~main["task"].str.startswith("all "), "n"]
    sizes = dict.fromkeys(f"{count:,.0f}" for count in (counts.min(), counts.max()))
    problems = f"{' to '.join(sizes)} problems a set."
    text = f"**What was run:** {', '.join(students)}; {problems}"
    if others:
        text += f" Not of the published size: {', '.join(others)}."
    return text


def ledger_columns(claims: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger as report and notebook 11 show it.

    Parameters
    ----------
    claims : DataFrame
        From `claims.claims_table`; effects are fractions, shown in points.
    """
    names = {
        "statement": "the paper says",
        "ours": "as the paper measured it, here",
        "condition": "under test: the weakest condition",
        "former_verdict": "by the former rule",
    }
    shown = claims.assign(condition=[_effect(row) for row in claims.itertuples()])
    return shown[["claim", "verdict", *names]].rename(columns=names)


def _effect(row) -> str:
    if pd.isna(row.effect):
        return ""
    # In the claim's direction a fall is positive, and nothing is not -0.0.
    label = re.sub(":? falls$", " should fall", row.condition)
    sign = 1 if label == row.condition else -1
    numbers = sign * row.effect + 0, *sorted([sign * row.ci_low, sign * row.ci_high])
    if row.unit == "points":
        return f"{label}: {percent(*numbers, signed=True)} points"
    return "{}: {:+.3f} [{:+.3f}, {:+.3f}] {}".format(label, *numbers, row.unit)


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
    style = (_FOLDER / "report.css").read_text("utf-8")
    head = f"<title>{html.escape(title)}</title><style>\n{style}</style>"
    page = f'<!doctype html><html lang="en"><meta charset="utf-8">{head}{body}</html>'
    return page + "\n"
