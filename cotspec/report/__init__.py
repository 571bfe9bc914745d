"""The main table, the claims ledger and REPORT.md.

Enters: predictions of the experiments and the published numbers of ``published.csv``.
Leaves: findings, ``main_table.csv``, ``claims.csv`` and the report's text and page.
"""

from cotspec.report.claims import CLAIMS, Claim
from cotspec.report.curves import loss_curves, size_curves, variant_names
from cotspec.report.document import report_page, report_text
from cotspec.report.formats import format_findings, format_matrix
from cotspec.report.ledger import Finding, claims_table, load_published, paper_effects
from cotspec.report.losses import loss_findings
from cotspec.report.scales import Scale, scale_of
from cotspec.report.scaling import scaling_findings, size_slopes
from cotspec.report.specialization import before_and_after, specialization_findings
from cotspec.report.tables import main_table, students_table, task_groups
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
    "load_published",
    "loss_curves",
    "loss_findings",
    "main_table",
    "paper_effects",
    "report_page",
    "report_text",
    "scale_of",
    "scaling_findings",
    "size_curves",
    "size_slopes",
    "specialization_findings",
    "students_table",
    "task_groups",
    "tradeoff_findings",
    "variant_names",
]
