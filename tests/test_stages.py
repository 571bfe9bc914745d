"""What a stage depends on is read off its cells."""

import json
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cotspec import artifacts, profiles, stages

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
    assert notebook.reads == ("numbers",)
    assert notebook.writes == ("result",)
    assert notebook.sections == ("loss", "training")
    assert "cotspec/losses.py" in notebook.modules
    assert "cotspec/run.py" not in notebook.modules


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('SEED = int("3")', "SEED is not a literal"),
        (
            "import os",
            "holds only assignments to PROFILE, SEED, OVERRIDES; found line 4",
        ),
        ("EXTRA = 1", "holds only assignments"),
        ("SEED = = 1", "does not parse"),
        ("SEED, PROFILE = 1, 2", "holds only assignments"),
    ],
)
def test_the_parameters_cell_holds_literals_only(root, line, words):
    path = write_notebook(root, "01_x", parameters=f"{PARAMETERS}\n{line}")
    with pytest.raises(ValueError, match=f"01_x.ipynb: the parameters cell.* {words}"):
        stages.load_notebook(path)


def test_code_that_does_not_parse_is_named_and_jupyters_own_lines_are_none(root):
    magic = "%matplotlib inline\nif True:\n    !ls\n    stage.read('numbers')"
    path = write_notebook(root, "01_x", magic)
    assert stages.load_notebook(path).reads == ("numbers",)
    path = write_notebook(root, "01_x", 'x = (\n    "%s"\n    % stage.read("a")\n)')
    assert stages.load_notebook(path).reads == ("a",)
    other = ("stage?", "%%bash\nfor i in a b; do echo $i; done", "files = !ls")
    path = write_notebook(root, "01_x", *other, 'stage.read("b")')
    assert stages.load_notebook(path).reads == ("b",)
    path = write_notebook(root, "01_x", magic, "x = (")
    with pytest.raises(ValueError, match="01_x.ipynb: code cell 2 does not parse"):
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


def test_a_folder_without_notebooks_is_no_series(tmp_path):
    with pytest.raises(ValueError, match="COTSPEC_ROOT: no notebooks in"):
        stages.load_series(tmp_path)


def key_of(root, *code, profile="smoke", overrides=None, **inputs):
    notebook = stages.load_notebook(write_notebook(root, "01_x", *code))
    return stages.stage_key(notebook, profiles.resolve(profile, overrides), 0, inputs)


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
        ([f"{CELL};"], True),
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


def test_a_stage_writes_reads_and_finishes(root):
    finish_first()
    assert open_next(root).read("numbers") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "name"),
    [("# A report", "numbers.md"), ("<!doctype html>\n<p>", "numbers.html")],
)
def test_text_is_markdown_unless_it_is_a_page(root, text, name):
    path = stages.open_stage("00_overview", "smoke", 0, {}).write("numbers", text)
    assert (path.name, path.read_text()) == (name, text)


def test_an_unfinished_input_says_what_to_run(root):
    with pytest.raises(ValueError, match="00_overview has not finished.*--only 00"):
        open_next(root)


def test_an_artifact_that_its_stage_did_not_write_yet_says_what_to_run(root):
    finish_first()
    write_notebook(
        root, "00_overview", 'stage.write("numbers", 1); stage.write("b", 2)'
    )
    with pytest.raises(ValueError, match="00_overview has not finished"):
        open_next(root, 'stage.read("b")')


def test_finishing_without_a_declared_artifact_is_an_error(root):
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    with pytest.raises(ValueError, match=r"\['numbers'\] not written"):
        stage.finish()


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


def test_writing_again_drops_the_old_success_marker(root):
    stage = finish_first()
    stage.write("numbers", {"a": 2})
    assert stages.read_marker(stage.run, "00_overview") is None


def test_finish_deletes_leftovers_and_intermediate_files(root):
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    artifacts.write_json(stage.folder / "leftover.json", {})
    artifacts.write_json(stage.work / "part.json", {})
    finish_first()
    left = sorted(p.name for p in stage.folder.iterdir())
    assert left == [artifacts.SUCCESS, "numbers.json"]
    assert not stage.work.exists()


def test_a_damaged_artifact_is_noticed(root):
    stage = finish_first()
    marker = stages.read_marker(stage.run, "00_overview")
    assert stages.verify(stage.run, marker) == []
    (stage.folder / "numbers.json").write_text("{}")
    assert stages.verify(stage.run, marker) == ["numbers"]


def test_a_section_that_the_saved_notebook_does_not_use_is_refused(root):
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    with pytest.raises(AttributeError, match="Save the notebook"):
        _ = stage.profile.training


def test_an_unknown_notebook_lists_the_known_ones(root):
    with pytest.raises(ValueError, match="unknown '99_x'.*00_overview"):
        stages.open_stage("99_x", "smoke", 0, {})


def test_the_data_folder_matters_to_real_tasks_only(root, monkeypatch):
    (root / "data").mkdir()
    monkeypatch.setenv("COTSPEC_DATA", str(root / "data"))
    for profile in ("smoke", "smollm2"):
        keys = []
        for text in ("0", "1"):
            (root / "data/file").write_text(text)
            keys.append(key_of(root, "from cotspec import tasks", profile=profile))
        assert (keys[0] == keys[1]) == (profile == "smoke")


def test_a_teacher_without_a_model_is_no_folder(root, monkeypatch):
    assert profiles.resolve("smollm2").teacher.model == ""
    monkeypatch.chdir(root)
    before = key_of(root, "print(profile.teacher)", profile="smollm2")
    (root / "config.json").touch()
    assert key_of(root, "print(profile.teacher)", profile="smollm2") == before


def test_a_store_outlives_the_stage_and_follows_its_inputs(root):
    folders = []
    for value in (1, 1, 2):
        finish_first(value)
        second = open_next(root)
        folders.append(second.store("samples", "numbers"))
        artifacts.write_json(folders[-1] / "x.json", {})
        second.finish()
    assert folders[0] == folders[1] != folders[2]
    assert (folders[0] / "x.json").exists()


# --- the real series: what an edit makes stale ----------------------------------------

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, to be edited."""
    copied = tmp_path / "package"
    shutil.copytree(
        REPOSITORY / "cotspec",
        copied / "cotspec",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    monkeypatch.setattr(stages, "_PACKAGE_ROOT", copied)
    monkeypatch.delenv("COTSPEC_DATA", raising=False)
    yield copied / "cotspec"
    stages._examined.cache_clear()


def state(profile="smoke", overrides=None):
    """The key of each notebook, and of what a grid trains and decodes."""
    stages._examined.cache_clear()
    resolved = profiles.resolve(profile, overrides)
    found = {}
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        notebook = stages.load_notebook(path)
        inputs = dict.fromkeys(notebook.reads, "")
        key = stages.stage_key(notebook, resolved, 0, inputs)
        found[notebook.name[:2]] = artifacts.digest_of(key)
    for module in ("training", "evaluation"):
        found[module] = stages.sources_digest(f"cotspec.{module}")
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
    for file, *edited in (
        ("losses.py", "\n# a comment\n"),
        ("training.py", "\n\n\n"),
        ("batching.py", '"""Cut examples,', '"""Tokenise examples,'),
        ("figures/style.py", "\nBLACK = '#111111'\n"),
        ("display.py", "\nWIDTH = 3\n"),
        ("run.py", "\nX = 1\n"),
        ("pages.py", "\nX = 1\n"),
        ("teacher/openai.py", "\nMAX_DELAY = 3\n"),
    ):
        edit(package / file, *edited)
    assert stale(before, state()) == set()


LATER = {"05", "07", "08", "09", "10"}


def test_what_a_function_reads_that_is_handed_the_stage_is_the_notebooks(package, root):
    (package / "helpers.py").write_text(
        "from cotspec.inner import rate_of\n"
        "def opened(stage, more):\n"
        "    stage.read('numbers')\n"
        "    return stage.profile.formats, rate_of(profile=stage.profile), more\n"
        "def apart(stage):\n"
        "    return stage.read('letters'), stage.profile.teacher\n"
    )
    (package / "inner.py").write_text(
        "def rate_of(profile):\n    return profile.training.learning_rate\n"
    )
    for cell in (
        "from cotspec import helpers as h\nh.opened(stage, print)",
        "from cotspec.helpers import opened\nx = [opened(more=print, stage=stage)]",
    ):
        notebook = stages.load_notebook(write_notebook(root, "01_x", cell))
        assert notebook.reads == ("numbers",)
        assert notebook.sections == ("formats", "training")


def test_the_grids_settings_are_read_only_in_the_function_that_opens_it(package):
    before = state()
    edit(package / "experiments.py", "", "        profile.training,\n")
    without = state()
    changed = state(overrides={"training.learning_rate": 1e-3})
    assert {"07", "10"} & stale(before, changed) == {"07", "10"}
    assert not {"07", "10"} & stale(without, changed)


@pytest.mark.parametrize(
    ("file", "reached", "not_reached"),
    [
        ("losses.py", LATER | {"training"}, {"00", "03", "04", "evaluation"}),
        ("answers.py", {"02", "06", "evaluation"}, {"03", "training"}),
        ("alignment/matching.py", {"04", "09"}, {"06", "training", "evaluation"}),
        ("decoding.py", {"01", "06", "evaluation"}, {"03", "04", "training"}),
        ("micro/world.py", {"00"}, {"training", "evaluation"}),
        ("micro/tokenizers/student.json", {"03", "05", "training"}, {"02"}),
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


def test_shipped_weights_reach_who_uses_that_student(package):
    before = state()
    manifest = package / "micro/weights/manifest.json"
    known = json.loads(manifest.read_text())
    known["base-raw-1"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(known))
    changed = stale(before, state())  # of the grid of sizes only
    assert "10" in changed and "05" not in changed


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


def test_all_missing_stages_are_named_at_once(root):
    write_notebook(root, "01_next", 'stage.write("letters", {})')
    write_notebook(root, "02_last", 'stage.read("numbers")\nstage.read("letters")')
    with pytest.raises(ValueError, match="--only 00,01"):
        stages.open_stage("02_last", "smoke", 0, {})


def test_what_another_run_has_changed_is_not_read(root):
    finish_first()
    second = open_next(root)
    finish_first(2)
    with pytest.raises(ValueError, match="has changed since this notebook opened"):
        second.read("numbers")


def test_an_override_that_changes_nothing_here_says_so(root):
    write_notebook(root, "01_next", "stage.profile.training")
    stage = stages.open_stage("00_overview", "smoke", 0, {"training.max_steps": 3})
    shown = stage._repr_html_()
    assert "<code>training.max_steps</code> (read by 01)" in shown
