"""Figures that teach: palette, chart functions and `save_figure`.

Enters: tidy frames (or one trace, or examples). Leaves: a `matplotlib` figure without
pyplot's global state, and with `save_figure` its PNG, SVG, CSV and caption.
"""

from cotspec.figures.aligned_text import cost_matrix, token_alignment
from cotspec.figures.charts import funnel, length_histogram, loss_curves, rule_shares
from cotspec.figures.curves import accuracy_curves, size_curves
from cotspec.figures.formats_text import example_parts, four_formats
from cotspec.figures.ledger import VERDICT_STYLES, claim_effects
from cotspec.figures.results import accuracy_bars, pass_at_k
from cotspec.figures.sampling import (
    KIND_STYLES,
    failures_by_steps,
    temperature_study,
)
from cotspec.figures.saving import save_figure
from cotspec.figures.style import (
    FORMAT_STYLES,
    LOSS_STYLES,
    MODEL_STYLES,
    OKABE_ITO,
    PART_STYLES,
    PROMPT_STYLES,
    RULE_STYLES,
    SPLIT_STYLES,
    Chart,
    Style,
)
from cotspec.figures.teacher_text import probability_strip, top_alternatives
from cotspec.figures.tradeoff import (
    ABILITY_STYLES,
    TRAINED_ON,
    ability_curves,
    format_matrix,
)

__all__ = [
    "cost_matrix",
    "ABILITY_STYLES",
    "FORMAT_STYLES",
    "KIND_STYLES",
    "LOSS_STYLES",
    "MODEL_STYLES",
    "OKABE_ITO",
    "PART_STYLES",
    "PROMPT_STYLES",
    "RULE_STYLES",
    "SPLIT_STYLES",
    "TRAINED_ON",
    "VERDICT_STYLES",
    "Chart",
    "Style",
    "ability_curves",
    "accuracy_bars",
    "accuracy_curves",
    "claim_effects",
    "example_parts",
    "failures_by_steps",
    "format_matrix",
    "four_formats",
    "funnel",
    "length_histogram",
    "loss_curves",
    "pass_at_k",
    "probability_strip",
    "rule_shares",
    "save_figure",
    "size_curves",
    "temperature_study",
    "token_alignment",
    "top_alternatives",
]
