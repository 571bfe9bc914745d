"""The paper's tables, the claims ledger and REPORT.md.

Enters: predictions of the experiments and the published numbers of ``published.csv``.
Leaves: findings and verdicts (`findings`, `claims`), tables (`paper`, `tables`), what
the paper's figures draw (`curves`), and the report's text and page (`document`).
"""

from cotspec.report.claims import (
    CLAIMS,
    RULES_DATE,
    claims_table,
    conditions_table,
    power_table,
    rules_table,
)
from cotspec.report.curves import (
    abilities_of_choices,
    ability_curves,
    chance_level,
    chosen_checkpoints,
    format_curves,
    loss_curves,
    size_curves,
    what_was_seen,
)
from cotspec.report.document import (
    Scale,
    ledger_columns,
    report_page,
    report_text,
    scale_of,
)
from cotspec.report.findings import Measured, find, own_trainings
from cotspec.report.pairing import require_one_setting
from cotspec.report.paper import load_published, table1, table2, table3
from cotspec.report.tables import (
    form_rows,
    main_table,
    scorer_rows,
    summary_rows,
    task_groups,
)

__all__ = [
    "CLAIMS",
    "RULES_DATE",
    "Measured",
    "Scale",
    "abilities_of_choices",
    "ability_curves",
    "chance_level",
    "chosen_checkpoints",
    "claims_table",
    "conditions_table",
    "find",
    "form_rows",
    "format_curves",
    "ledger_columns",
    "load_published",
    "loss_curves",
    "main_table",
    "own_trainings",
    "power_table",
    "report_page",
    "report_text",
    "require_one_setting",
    "rules_table",
    "scale_of",
    "scorer_rows",
    "size_curves",
    "summary_rows",
    "table1",
    "table2",
    "table3",
    "task_groups",
    "what_was_seen",
]
