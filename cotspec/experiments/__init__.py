"""Grids of students: each cell trained and measured once, cached and resumable.

Enters: sections of a profile and the artifacts of notebooks 00 to 04. Leaves: one frame
of predictions per grid, and a store that notebooks 07 to 10 share. `grid` says what is
trained, `keys` what a result depends on, `jobs` does the work of one cell, `workers`
spreads it over processes, `running` plans and gathers.
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
from cotspec.experiments.jobs import Inputs, Settings
from cotspec.experiments.running import (
    CELL_COLUMNS,
    COLUMNS,
    CellsFailed,
    keep,
    plan,
    run,
)

__all__ = [
    "CELL_COLUMNS",
    "COLUMNS",
    "FORMAT_SETS",
    "Cell",
    "CellsFailed",
    "Inputs",
    "Measurement",
    "Settings",
    "ability_grid",
    "base_cells",
    "format_grid",
    "keep",
    "loss_grid",
    "plan",
    "run",
    "scaling_grid",
]
