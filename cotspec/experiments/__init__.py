"""Grids of trainings: which, and what is measured on them; run, kept, gathered.

Enters: sections of a profile and the artifacts of earlier notebooks. Leaves: a table of
predictions. `grid` says what there is by name, `running` does it.
"""

from cotspec.experiments.grid import (
    FORMAT_SETS,
    Cell,
    Measurement,
    ability_grid,
    base_cells,
    format_grid,
    loss_grid,
    scaling_grid,
)
from cotspec.experiments.running import CELL_COLUMNS, COLUMNS, CellsFailed, Grid

__all__ = [
    "CELL_COLUMNS",
    "COLUMNS",
    "FORMAT_SETS",
    "Cell",
    "CellsFailed",
    "Grid",
    "Measurement",
    "ability_grid",
    "base_cells",
    "format_grid",
    "loss_grid",
    "scaling_grid",
]
