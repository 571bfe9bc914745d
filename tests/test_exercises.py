"""What the notebooks ask a reader to try: every printed override works."""

import ast
import json
import re
import shutil

import pytest
from conftest import REPOSITORY

from cotspec import grids, profiles, run, stages

SERIES = stages.load_series(REPOSITORY)
# Notebooks after which an exercise of another one is looked at.
THROUGH = {"04": "04,05", "05": "05,06"}


def printed(pattern):
    """Each (notebook, literal) that the markdown of the series prints."""
    found = []
    for notebook in SERIES:
        cells = json.loads(notebook.path.read_text())["cells"]
        for cell in cells:
            if cell["cell_type"] == "markdown":
                text = "".join(cell["source"])
                found += [(notebook, one) for one in re.findall(pattern, text)]
    return found


OVERRIDES = printed(r"`OVERRIDES = (\{.+?\})`")
assert len(OVERRIDES) >= 12


each_override = pytest.mark.parametrize(
    ("notebook", "text"), OVERRIDES, ids=lambda value: getattr(value, "name", None)
)


@each_override
def test_a_printed_override_resolves_and_is_read_by_its_notebook(notebook, text):
    overrides = ast.literal_eval(text)
    profiles.resolve("micro", overrides)
    sections = {dotted.split(".")[0] for dotted in overrides}
    assert sections <= set(notebook.sections), f"{notebook.name} reads {text} not"


def test_printed_grids_are_grids():
    base = grids.base_cells(profiles.PROFILES["micro"], range(5))
    extras = printed(r"`extra = (\[.+?\])`")
    assert len(extras) >= 4
    for _, text in extras:
        added = grids.loss_grid(base, extra=ast.literal_eval(text))
        assert len(added) > len(grids.loss_grid(base)), text
    ((_, parts),) = printed(r"`parts = (\[.+?\])`")
    assert len(grids.format_grid(base, ast.literal_eval(parts))) > len(base) * 3


def test_no_cell_hides_an_override_that_does_nothing_there():
    for notebook in SERIES:
        assert not any(re.search(r"^# *OVERRIDES", c, re.M) for c in notebook.code)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A smoke run of the whole series."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTSPEC_RUNS", str(runs))
        assert run.main(["--profile", "smoke"]) == 0
    return runs


@pytest.mark.slow
@each_override
def test_a_printed_override_runs_through_what_it_affects(
    finished, tmp_path, monkeypatch, notebook, text
):
    overrides = ast.literal_eval(text)
    if overrides.get("experiments.seeds"):  # smoke has one seed; two are a change
        overrides["experiments.seeds"] = [0, 1]
    if "data.num_train" in overrides:
        overrides["data.num_train"] = 16
    shutil.copytree(finished, tmp_path / "runs")
    monkeypatch.setenv("COTSPEC_RUNS", str(tmp_path / "runs"))
    number = notebook.name.split("_")[0]
    sets = [f"--set={name}={value}" for name, value in overrides.items()]
    only = THROUGH.get(number, number)
    assert run.main(["--profile", "smoke", "--only", only, *sets]) == 0
