"""The main table, the claims ledger and REPORT.md.

Enters: predictions of the experiments and the published numbers of ``published.csv``.
Leaves: findings, ``main_table.csv``, ``claims.csv`` and the report's text and page.
"""

from cotspec.report.claims import CLAIMS, Claim
from cotspec.report.curves import (
    loss_curves,
    loss_table,
    size_curves,
    slopes_table,
    variant_names,
)
from cotspec.report.document import report_page, report_text
from cotspec.report.formats import format_findings, format_matrix
from cotspec.report.ledger import (
    Finding,
    claims_table,
    judge,
    load_published,
    paper_effects,
)
from cotspec.report.losses import loss_findings
from cotspec.report.pairing import require_one_setting
from cotspec.report.scales import Scale, scale_of
from cotspec.report.scaling import scaling_findings, size_slopes
from cotspec.report.specialization import before_and_after, specialization_findings
from cotspec.report.tables import (
    main_table,
    published_rows,
    scorer_rows,
    students_table,
    summary_rows,
    task_groups,
)
from cotspec.report.tradeoff import (
    abilities_of_choices,
    ability_curves,
    chosen_checkpoints,
    tradeoff_findings,
)

__all__ = [
    "CLAIMS",
    "Claim",
    "Finding",
    "Scale",
    "abilities_of_choices",
    "ability_curves",
    "before_and_after",
    "chosen_checkpoints",
    "claims_table",
    "format_findings",
    "format_matrix",
    "judge",
    "load_published",
    "loss_curves",
    "loss_findings",
    "loss_table",
    "main_table",
    "paper_effects",
    "published_rows",
    "require_one_setting",
    "report_page",
    "report_text",
    "scale_of",
    "scaling_findings",
    "scorer_rows",
    "size_curves",
    "size_slopes",
    "slopes_table",
    "specialization_findings",
    "students_table",
    "summary_rows",
    "task_groups",
    "tradeoff_findings",
    "variant_names",
]
