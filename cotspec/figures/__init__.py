"""Figures that teach: chart functions and `save_figure`.

Enters: tidy frames (or one trace, or examples). Leaves: a `matplotlib` figure without
pyplot's global state, and with `save_figure` its PNG, SVG, CSV and caption.
"""

from cotspec.figures.pipeline import (
    SERIES,
    failures_by_steps,
    length_histogram,
    loss_curves,
    pipeline_map,
    right_per_question,
    rule_shares,
    temperature_study,
)
from cotspec.figures.results import (
    ability_paths,
    before_and_after,
    claim_effects,
    curve_panels,
    pass_at_k,
)
from cotspec.figures.style import save_figure
from cotspec.figures.tokens import (
    cost_matrix,
    example_parts,
    four_formats,
    logit_pushes,
    loss_shapes,
    probability_strip,
    token_alignment,
    top_alternatives,
)
