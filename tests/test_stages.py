"""What a stage depends on is read off its cells."""

import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cotspec import artifacts, profiles, stages

ENTRY = stages.Entry(path="", sha256="")
PARAMETERS = 'PROFILE = "smoke"\nSEED = 0\nOVERRIDES = {}'


def write_notebook(root, name, *code, parameters=PARAMETERS):
    cell = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(f"# {name}"), cell, *map(new_code_cell, code)]
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("COTSPEC_ROOT", str(tmp_path))
    monkeypatch.delenv("COTSPEC_RUNS", raising=False)
    write_notebook(tmp_path, "00_overview", 'stage.write("numbers", {"a": 1})')
    return tmp_path


def test_reads_writes_and_sections_come_from_the_cells(root):
    path = write_notebook(
        root,
        "01_next",
        "from cotspec import losses",
        'numbers = stage.read("numbers")\nrate = stage.profile.training.learning_rate',
        'stage.write("result", {"rate": rate, "k": profile.loss.tail})',
    )
    notebook = stages.load_notebook(path)
    assert list(notebook.reads) == ["numbers"]
    assert notebook.writes == ("result",)
    assert notebook.sections == ("loss", "training")
    assert "cotspec/losses.py" in notebook.modules
    assert "cotspec/run.py" not in notebook.modules


LITERALS = "must set PROFILE, SEED, OVERRIDES to literals, and nothing else"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('SEED = int("3")', LITERALS),
        ("import os", LITERALS),
        ("EXTRA = 1", LITERALS),
        ("SEED, PROFILE = 1, 2", LITERALS),
        ("SEED = = 1", "does not parse"),
    ],
)
def test_the_parameters_cell_holds_literals_only(root, line, words):
    path = write_notebook(root, "01_x", parameters=f"{PARAMETERS}\n{line}")
    with pytest.raises(ValueError, match=f"01_x.ipynb: the parameters cell {words}"):
        stages.load_notebook(path)


@pytest.mark.parametrize(
    "code",
    [
        ["%matplotlib inline\nif True:\n    !ls\n    stage.read('a')"],
        ['%%time\n!ls\nstage.read("a")'],
        ['if True:\n    %time x = stage.read("a")'],
        ['x = (\n    "%s"\n    % stage.read("a")\n)'],
        ["stage?", "%%bash\nfor i in a; do ls; done", "x = !ls", 'stage.read("a")'],
    ],
)
def test_jupyters_own_lines_are_read_and_what_does_not_parse_is_named(root, code):
    path = write_notebook(root, "01_x", *code)
    assert list(stages.load_notebook(path).reads) == ["a"]
    path = write_notebook(root, "01_x", *code, "x = (")
    said = f"01_x.ipynb: code cell {len(code) + 1} does not parse"
    with pytest.raises(ValueError, match=said):
        stages.load_notebook(path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('name = "numbers"\nstage.read(name)', "stage.read needs a literal"),
        ('stage.read("letters")', "01_x reads 'letters'.*numbers"),
        ('stage.write("numbers", {})', "01_x writes 'numbers', as an earlier"),
    ],
)
def test_an_artifact_has_a_literal_name_and_one_writer(root, code, words):
    write_notebook(root, "01_x", code)
    with pytest.raises(ValueError, match=words):
        stages.load_series(root)
    with pytest.raises(ValueError, match="COTSPEC_ROOT: no notebooks in"):
        stages.load_series(root / "nowhere")


def key_under(path, inputs, profile="smoke", overrides=None):
    """Return the key of a notebook that runs under a profile."""
    given = {"PROFILE": profile, "SEED": 0, "OVERRIDES": overrides or {}}
    notebook = replace(stages.load_notebook(path), parameters=given)
    return stages.stage_key(notebook, inputs or dict.fromkeys(notebook.reads, ENTRY))


def key_of(root, *code, traces="", **given):
    inputs = {"traces": stages.Entry(path="", sha256=traces)}
    return key_under(write_notebook(root, "01_x", *code), inputs, **given)


def test_a_used_setting_and_an_input_change_the_key_and_an_unused_setting_does_not(
    root,
):
    def key(overrides=None, traces="1"):
        cell = "stage.profile.training"
        return key_of(root, cell, overrides=overrides, traces=traces)

    assert key({"teacher.temperature": 0.9}) == key()
    changed = key({"training.learning_rate": 0.5}, traces="2")
    rate = profiles.resolve("smoke").training.learning_rate
    said = [f"training.learning_rate {rate} -> 0.5", "traces changed"]
    assert stages.explain(key(), changed) == said


CELL = "%matplotlib inline\nif True:\n    !ls\nrate = 'a' * 3"


@pytest.mark.parametrize(
    ("edited", "counts"),
    [
        ([f"# why\n\n{CELL}  # a rate"], False),
        ([CELL.replace("'a' * 3", '(\n    "a"\n    * 3\n)')], False),
        (["# a cell of its own", CELL], False),
        ([CELL.replace("3", "4")], True),
        ([CELL.replace("inline", "agg")], True),
        ([CELL.replace("!ls", "!pwd")], True),
        ([CELL, "rate"], True),
        (CELL.rsplit("\n", 1), True),  # the first part shows its value
    ],
)
def test_of_a_cell_counts_what_it_does(root, edited, counts):
    before, after = (key_of(root, *code) for code in ([CELL], edited))
    said = ["the notebook's code changed"] if counts else []
    assert stages.explain(before, after) == said


def test_the_code_of_a_module_is_that_of_its_packages_too(monkeypatch):
    code_of = stages.code_of.__wrapped__  # without what it remembers
    before = code_of("cotspec.evaluation")
    monkeypatch.setattr(stages.importlib.metadata, "version", lambda name: "9")
    assert code_of("cotspec.evaluation") != before


def finish_first(numbers=1):
    """Run notebook 00; return its stage."""
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    stage.write("numbers", {"a": numbers})
    stage.finish()
    return stage


def open_next(root, *code):
    """Open the stage of a notebook 01 that reads notebook 00's artifact."""
    write_notebook(root, "01_next", 'stage.read("numbers")', *code)
    return stages.open_stage("01_next", "smoke", 0, {})


def test_a_stage_finishes_once_all_is_written_and_then_only_that_is_left(root):
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    artifacts.write_json(stage.folder / "leftover.json", {})
    artifacts.write_json(stage.work / "part.json", {})
    other = stage.work.with_name("00_overview-0123456789ab")
    other.mkdir()
    with pytest.raises(ValueError, match=r"\['numbers'\] not written"):
        stage.finish()
    finish_first()
    left = sorted(p.name for p in stage.folder.iterdir())
    assert left == [artifacts.SUCCESS, "numbers.json"]
    assert not stage.work.exists() and other.exists()  # hours, under another key
    assert open_next(root).read("numbers") == {"a": 1}
    # Text is Markdown, unless its name says what it is.
    for name, file in (("numbers", "numbers.md"), ("page.html", "page.html")):
        path = stage.write(name, "<p>")
        assert (path.name, path.read_text()) == (file, "<p>")
    assert stages.read_marker(stage.run, "00_overview") is None


def test_all_inputs_that_are_missing_are_named_with_what_to_run(root):
    finish_first()
    both = 'stage.write("numbers", 1); stage.write("b", 2)'  # as it was not when it ran
    write_notebook(root, "00_overview", both)
    write_notebook(root, "01_next", 'stage.write("letters", {})')
    reads = (f'stage.read("{name}")' for name in ("numbers", "b", "letters"))
    write_notebook(root, "02_last", *reads)
    said = "b, letters: 00_overview, 01_next has not finished.*--only 00,01$"
    with pytest.raises(ValueError, match=said):
        stages.open_stage("02_last", "smoke", 0, {})


def test_the_data_folder_matters_to_real_tasks_only(root, monkeypatch):
    (root / "data").mkdir()
    monkeypatch.setenv("COTSPEC_DATA", str(root / "data"))
    for profile in ("smoke", "smollm2"):
        keys = []
        for text in ("0", "1"):
            (root / "data/file").write_text(text)
            keys.append(key_of(root, "from cotspec import tasks", profile=profile))
        assert (keys[0] == keys[1]) == (profile == "smoke")


def test_a_store_outlives_the_stage_and_follows_its_inputs(root):
    folders = []
    for value in (1, 1, 2):
        finish_first(value)
        second = open_next(root)
        folders.append(second.store("samples", "numbers"))
        artifacts.write_json(folders[-1] / "x.json", {})
        finish_first(3)  # another run, meanwhile
        with pytest.raises(ValueError, match="has changed since this notebook opened"):
            second.read("numbers")
        second.finish()
    assert folders[0] == folders[1] != folders[2]
    assert (folders[0] / "x.json").exists()


# --- the real series: what an edit makes stale ----------------------------------------

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, to be edited."""
    copied = tmp_path / "package"
    shutil.copytree(REPOSITORY / "cotspec", copied / "cotspec")
    monkeypatch.setattr(stages, "_PACKAGE_ROOT", copied)
    monkeypatch.delenv("COTSPEC_DATA", raising=False)
    yield copied / "cotspec"
    stages._examined.cache_clear()


def state(**given):
    """The key of each notebook, and of what a grid trains and decodes."""
    stages._examined.cache_clear()
    found = {}
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        found[path.stem[:2]] = key_under(path, {}, **given)
    for module in ("training", "evaluation"):
        found[module] = stages.code_of.__wrapped__(f"cotspec.{module}")
    return found


def stale(before, after):
    return {name for name in before if before[name] != after[name]}


def edit(path, text, old=""):
    """Put text in the place of the first `old`, or at the end."""
    content = path.read_text("utf-8")
    assert old in content
    content = content.replace(old, text, 1) if old else content + text
    path.write_text(content, "utf-8")


def test_what_changes_no_result_makes_nothing_stale(package):
    before = state()
    edit(package / "losses.py", "\n# a comment\n\n\n")
    edit(package / "batching.py", '"""Cut examples,', '"""Tokenise examples,')
    apart = "figures/style.py display.py run.py pages.py teacher/openai.py"
    for file in apart.split():
        edit(package / file, "\nEDITED = 1\n")
    assert stale(before, state()) == set()


LATER = {"05", "07", "08", "09", "10"}


def test_what_a_function_reads_that_is_handed_the_stage_is_the_notebooks(package, root):
    (package / "helpers.py").write_text(
        "def opened(stage, more):\n"
        "    stage.read('numbers')\n"
        "    return stage.profile.formats, more\n"
        "def apart(stage):\n"
        "    return stage.read('letters'), stage.profile.teacher\n"
    )
    for cell in (
        "from cotspec import helpers as h\nh.opened(stage, print)",
        "from cotspec.helpers import opened\nx = [opened(more=print, stage=stage)]",
    ):
        notebook = stages.load_notebook(write_notebook(root, "01_x", cell))
        assert list(notebook.reads) == ["numbers"]
        assert notebook.sections == ("formats",)


@pytest.mark.parametrize(
    ("file", "reached", "not_reached"),
    [
        ("losses.py", LATER | {"training"}, {"00", "03", "04", "evaluation"}),
        ("answers.py", {"02", "06", "evaluation"}, {"03", "training"}),
        ("alignment/matching.py", {"04", "09"}, {"06", "training", "evaluation"}),
        ("decoding.py", {"01", "06", "evaluation"}, {"03", "04", "training"}),
        ("micro/world.py", {"00"}, {"training", "evaluation"}),
        ("micro/tokenizers/student.json", {"03", "05", "training"}, {"02"}),
        ("micro/weights/manifest.json", LATER | {"03", "training"}, {"02"}),
        ("report/published.csv", {"02", "11"}, {"03", "05", "training"}),
    ],
)
def test_an_edit_reaches_what_reads_it(package, file, reached, not_reached):
    before = state()
    edit(package / file, "\nEDITED = 1\n")
    changed = stale(before, state())
    assert reached <= changed, reached - changed
    assert not not_reached & changed, not_reached & changed


def test_a_changed_number_reaches_the_notebooks_that_use_its_section(package):
    before = state()
    assert stale(before, state(overrides={"training.learning_rate": 1e-3})) == LATER
    assert stale(before, state(overrides={"experiments.num_workers": 7})) == set()


def test_what_comes_from_outside_is_known_by_its_contents(package, tmp_path):
    traces, student = tmp_path / "traces.jsonl", tmp_path / "student"
    student.mkdir()
    overrides = {
        "teacher.backend": "recorded",
        "teacher.path": str(traces),
        "student.model": str(student),
    }
    traces.write_text("a")
    before = state(overrides=overrides)
    traces.write_text("other")
    reads_teacher = stale(before, state(overrides=overrides))
    assert "01" in reads_teacher and "05" not in reads_teacher
    traces.write_text("a")
    (student / "model.safetensors").write_text("weights")
    changed = stale(before, state(overrides=overrides))
    assert {"03", "05", "06", "07"} <= changed and "02" not in changed


# --- what users get wrong -------------------------------------------------------------


def test_a_damaged_marker_counts_as_not_finished(root, caplog):
    stage = finish_first()
    for damaged in ("{}", '{"key": ', "[]"):
        (stage.folder / artifacts.SUCCESS).write_text(damaged)
        assert stages.read_marker(stage.run, "00_overview") is None
        assert "is damaged" in caplog.text


@pytest.mark.parametrize("seed", [-1, "0", 1.5, True, None])
def test_a_seed_is_a_whole_number(root, seed):
    with pytest.raises(ValueError, match="SEED: .*Allowed: whole, 0 to"):
        stages.open_stage("00_overview", "smoke", seed, {})


def test_an_override_that_changes_nothing_here_says_so(root):
    write_notebook(root, "01_next", "stage.profile.training")
    with pytest.raises(ValueError, match="'05_typo'. Allowed: 00_overview, "):
        stages.open_stage("05_typo", "smoke", 0, {})
    stage = stages.open_stage("00_overview", "smoke", 0, {"training.max_steps": 3})
    with pytest.raises(AttributeError, match="Save the notebook"):
        _ = stage.profile.training
    shown = stage._repr_html_()
    said = "<code>training.max_steps</code> changes nothing in this notebook"
    assert f"{said} (read by 01)" in shown


@pytest.mark.parametrize("name", ["../../../x", "a/b", "/x", "", "..", ".x", "SUCCESS"])
def test_a_name_that_leads_out_of_its_folder_is_refused(root, name):
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    for write in (
        lambda: stage.write(name, {}),
        lambda: stage.write("x", {}, folder=name or ".."),
        lambda: stage.table(name, pd.DataFrame(), caption=""),
        lambda: stage.store(name),
    ):
        with pytest.raises(ValueError, match=r"stage: name .*Allowed: letters"):
            write()
