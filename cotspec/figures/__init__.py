"""Figures that teach: palette, chart functions and `save_figure`.

Enters: tidy frames (or one trace, or examples). Leaves: a `matplotlib` figure without
pyplot's global state, and with `save_figure` its PNG, SVG, CSV and caption.
"""

from cotspec.figures.aligned_text import cost_matrix, token_alignment
from cotspec.figures.charts import funnel, length_histogram, loss_curves, rule_shares
from cotspec.figures.curves import (
    CURVE_STYLES,
    STATUS_STYLES,
    claim_effects,
    curve_panels,
)
from cotspec.figures.formats_text import example_parts, four_formats
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

__all__ = [
    "CURVE_STYLES",
    "FORMAT_STYLES",
    "KIND_STYLES",
    "LOSS_STYLES",
    "MODEL_STYLES",
    "OKABE_ITO",
    "PART_STYLES",
    "PROMPT_STYLES",
    "RULE_STYLES",
    "SPLIT_STYLES",
    "STATUS_STYLES",
    "Chart",
    "Style",
    "accuracy_bars",
    "claim_effects",
    "cost_matrix",
    "curve_panels",
    "example_parts",
    "failures_by_steps",
    "four_formats",
    "funnel",
    "length_histogram",
    "loss_curves",
    "pass_at_k",
    "probability_strip",
    "rule_shares",
    "save_figure",
    "temperature_study",
    "token_alignment",
    "top_alternatives",
]
