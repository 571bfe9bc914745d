"""Figures that teach: chart functions and `save_figure`.

Enters: tidy frames (or one trace, or examples). Leaves: a `matplotlib` figure without
pyplot's global state, and with `save_figure` its PNG, SVG, CSV and caption.
"""

from cotspec.figures import pipeline, results, style, tokens
