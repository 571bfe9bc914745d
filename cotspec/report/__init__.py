"""The main table, the claims ledger and REPORT.md.

Enters: predictions and tidy results of the evaluation, and the published numbers of
``published.csv``. Leaves: ``main_table.csv``, ``claims.csv`` and ``REPORT.md``.
"""

from cotspec.report.claims import CLAIMS, Claim
from cotspec.report.document import report_text, write_report
from cotspec.report.findings import paired_changes, specialization_findings
from cotspec.report.ledger import Finding, claims_table, load_published, paper_effects
from cotspec.report.scales import Scale, scale_of
from cotspec.report.tables import main_table, task_groups

__all__ = [
    "CLAIMS",
    "Claim",
    "Finding",
    "Scale",
    "claims_table",
    "load_published",
    "main_table",
    "paired_changes",
    "paper_effects",
    "report_text",
    "scale_of",
    "specialization_findings",
    "task_groups",
    "write_report",
]
