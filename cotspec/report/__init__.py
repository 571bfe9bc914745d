"""The paper's tables, the claims ledger and REPORT.md.

Enters: predictions of the experiments and the published numbers of ``published.csv``.
Leaves: findings and verdicts (`findings`, `claims`), tables (`tables`), what the
paper's figures draw (`curves`), and the report's text and page (`document`).
"""

from cotspec.report import claims, curves, document, findings, pairing, tables
