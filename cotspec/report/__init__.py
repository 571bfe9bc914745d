"""The paper's tables, the claims ledger and REPORT.md.

Enters: predictions of the experiments and the published numbers of ``published.csv``.
Leaves: findings and verdicts (`findings`, `claims`), tables (`tables`), what the
paper's figures draw (`curves`), and the report's text and page (`document`).
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
    chosen_checkpoints,
    format_curves,
    size_curves,
    what_was_seen,
)
from cotspec.report.document import (
    ledger_columns,
    report_page,
    report_text,
    scale_of,
)
from cotspec.report.findings import Measured, chance_level, find, own_trainings
from cotspec.report.pairing import require_one_setting
from cotspec.report.tables import (
    form_rows,
    load_published,
    main_table,
    summary_rows,
    table1,
    table2,
    table3,
    task_groups,
)
