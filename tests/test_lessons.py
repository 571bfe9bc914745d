"""Numbers in the lessons' prose, recomputed from the committed figures and the run.

`lesson_numbers.json` holds, for each fragment of a notebook's text, the expression its
numbers come from. What needs the run's own artifacts is checked where that run is.
"""

import functools
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

from cotspec import artifacts
from cotspec.report import pairing
from cotspec.teacher import studies

ENTRIES = json.loads((REPOSITORY / "tests/lesson_numbers.json").read_text("utf-8"))
FIGURES, RUN = REPOSITORY / "figures", artifacts.run_dir("micro") / "artifacts"
SPELLED = "zero one two three four five six seven eight nine ten".split()
NUMBER = rf"[-−]?\d[\d,]*(?:\.\d+)?|\b(?:{'|'.join(SPELLED[2:])})\b"


def figure(name):
    return pd.read_csv(FIGURES / f"{name}.csv")


@functools.cache
def table(stage, name):
    (path,) = (RUN / stage).glob(f"{name}.*")
    if path.suffix == ".csv":
        return artifacts.read_frame(path)
    return artifacts.read_dataset(path).to_pandas()


@functools.cache
def is_published():  # a run with --seed or --set lies in the same folder
    path, ours = RUN.parent / "report/main_table.csv", FIGURES / "main_table.csv"
    return path.exists() and path.read_bytes() == ours.read_bytes()


# What an expression may name.
NAMES = dict(figure=figure, table=table, pairing=pairing, studies=studies, np=np)


@functools.cache
def said_in(notebook):
    cells = nbformat.read(REPOSITORY / f"notebooks/{notebook}.ipynb", 4).cells
    return "\n".join(c.source for c in cells if c.cell_type == "markdown")


@pytest.mark.parametrize(
    "entry", ENTRIES, ids=lambda e: f"{e['notebook']}: {e['words']}"
)
def test_a_number_in_prose_is_the_runs(entry):
    assert said_in(entry["notebook"]).count(entry["words"]) == 1
    if entry["needs"] == "run" and not is_published():
        pytest.skip("needs the run of the committed figures, in runs/micro")
    values = eval(entry["value"], NAMES)
    numbers = re.findall(NUMBER, entry["words"])
    for number, value in zip(numbers, values, strict=True):
        number = str(SPELLED.index(number)) if number in SPELLED else number
        plain = number.replace(",", "").replace("−", "-")
        decimals = len(plain.partition(".")[2])
        assert abs(float(plain) - value) <= 0.5 * 10**-decimals + 1e-9, (number, value)
