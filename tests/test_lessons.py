"""Numbers in the lessons' prose, recomputed from the committed figures and the run.

`lesson_numbers.json` holds, for each fragment of a notebook's text, the expression its
numbers come from. What needs the run's own artifacts is checked where that run is.
"""

import importlib
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

from cotspec import artifacts

ENTRIES = json.loads((REPOSITORY / "tests/lesson_numbers.json").read_text("utf-8"))
RUN = artifacts.run_dir("micro") / "artifacts"
MODULES = {"answers": "cotspec.answers", "studies": "cotspec.teacher.studies"}


def figure(name):
    return pd.read_csv(REPOSITORY / f"figures/{name}.csv")


def table(stage, name):
    (path,) = (RUN / stage).glob(f"{name}.*")
    if path.suffix == ".csv":
        return artifacts.read_frame(path)
    return artifacts.read_dataset(path).to_pandas()


def said_in(notebook):
    cells = nbformat.read(REPOSITORY / f"notebooks/{notebook}.ipynb", 4).cells
    return "\n".join(c.source for c in cells if c.cell_type == "markdown")


@pytest.mark.parametrize(
    "entry", ENTRIES, ids=lambda e: f"{e['notebook']}: {e['words']}"
)
def test_a_number_in_prose_is_the_runs(entry):
    assert said_in(entry["notebook"]).count(entry["words"]) == 1, (
        "stands not once there"
    )
    if entry["needs"] == "run" and not (RUN / "11_paper_vs_reproduction").exists():
        pytest.skip("needs a finished run of the default profile")
    names = {name: importlib.import_module(path) for name, path in MODULES.items()}
    tools = {"figure": figure, "table": table, "pd": pd, "np": np, "re": re}
    values = eval(entry["value"], tools | names)
    numbers = re.findall(r"[-−]?\d[\d,]*(?:\.\d+)?", entry["words"])
    for number, value in zip(numbers, values, strict=True):
        plain = number.replace(",", "").replace("−", "-")
        decimals = len(plain.partition(".")[2])
        assert abs(float(plain) - value) <= 0.5 * 10**-decimals + 1e-9, (number, value)
