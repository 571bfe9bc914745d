"""What a stage depends on is read off its cells."""

import json
import shutil
from pathlib import Path

import nbformat
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


def test_the_parameters_cell_holds_literals_only(root):
    for line in ('SEED = int("3")', "import os", "EXTRA = 1"):
        path = write_notebook(root, "01_x", parameters=f"{PARAMETERS}\n{line}")
        with pytest.raises(ValueError, match="01_x.*parameters cell|not a literal"):
            stages.load_notebook(path)


def test_an_artifact_name_must_be_literal(root):
    path = write_notebook(root, "01_x", 'name = "numbers"\nstage.read(name)')
    with pytest.raises(ValueError, match="stage.read needs a literal"):
        stages.load_notebook(path)


def test_reading_what_nobody_writes_is_an_error(root):
    write_notebook(root, "01_x", 'stage.read("letters")')
    with pytest.raises(ValueError, match="01_x reads 'letters'.*numbers"):
        stages.load_series(root)


def keys(root, overrides=None, **inputs):
    path = write_notebook(root, "01_x", "stage.profile.training", 'print("a")')
    profile = profiles.resolve("smoke", overrides)
    return stages.stage_key(stages.load_notebook(path), profile, 0, inputs)


def test_a_used_setting_changes_the_key_and_an_unused_one_does_not(root):
    base = keys(root)
    used = keys(root, {"training.learning_rate": 0.5})
    unused = keys(root, {"teacher.temperature": 0.9})
    assert used.digest != base.digest
    assert unused.digest == base.digest
    rate = profiles.resolve("smoke").training.learning_rate
    assert stages.explain(base.parts, used.parts) == [
        f"training.learning_rate {rate} -> 0.5"
    ]


def test_changed_input_is_named(root):
    old, new = keys(root, traces="1").parts, keys(root, traces="2").parts
    assert stages.explain(old, new) == ["traces changed"]


def test_a_stage_writes_reads_and_finishes(root):
    write_notebook(root, "01_next", 'stage.read("numbers")')
    first = stages.open_stage("00_overview", "smoke", 0, {})
    first.write("numbers", {"a": 1})
    first.finish()
    second = stages.open_stage("01_next", "smoke", 0, {})
    assert second.read("numbers") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "name"),
    [("# A report", "numbers.md"), ("<!doctype html>\n<p>", "numbers.html")],
)
def test_text_is_markdown_unless_it_is_a_page(root, text, name):
    path = stages.open_stage("00_overview", "smoke", 0, {}).write("numbers", text)
    assert (path.name, path.read_text()) == (name, text)


def test_an_unfinished_input_says_what_to_run(root):
    write_notebook(root, "01_next", 'stage.read("numbers")')
    with pytest.raises(ValueError, match="00_overview has not finished.*--only"):
        stages.open_stage("01_next", "smoke", 0, {})


def test_finishing_without_a_declared_artifact_is_an_error(root):
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    with pytest.raises(ValueError, match=r"\['numbers'\] not written"):
        stage.finish()


def test_writing_again_drops_the_old_success_marker(root):
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    stage.write("numbers", {"a": 1})
    stage.finish()
    stage.write("numbers", {"a": 2})
    assert stages.read_marker(stage.run, "00_overview") is None


def test_finish_deletes_leftovers_and_intermediate_files(root):
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    artifacts.write_json(stage.folder / "leftover.json", {})
    artifacts.write_json(stage.work / "part.json", {})
    stage.write("numbers", {"a": 1})
    stage.finish()
    left = sorted(p.name for p in stage.folder.iterdir())
    assert left == [artifacts.SUCCESS, "numbers.json"]
    assert not stage.work.exists()


def test_a_damaged_artifact_is_noticed(root):
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    path = stage.write("numbers", {"a": 1})
    stage.finish()
    assert stages.verify(stage.run, "00_overview") == []
    path.write_text("{}")
    assert stages.verify(stage.run, "00_overview") == ["numbers"]


def test_a_section_that_the_saved_notebook_does_not_use_is_refused(root):
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    with pytest.raises(AttributeError, match="Save the notebook"):
        _ = stage.profile.training


def test_an_unknown_notebook_lists_the_known_ones(root):
    with pytest.raises(ValueError, match="unknown '99_x'.*00_overview"):
        stages.open_stage("99_x", "smoke", 0, {})


def test_the_data_folder_matters_to_real_tasks_only(root, tmp_path, monkeypatch):
    path = write_notebook(root, "01_x", "from cotspec import tasks")
    notebook = stages.load_notebook(path)
    found = []
    for number in range(2):
        folder = tmp_path / f"data{number}"
        folder.mkdir()
        (folder / "file").write_text(str(number))
        monkeypatch.setenv("COTSPEC_DATA", str(folder))
        found.append(
            [
                stages.stage_key(notebook, profiles.resolve(name), 0, {}).digest
                for name in ("smoke", "smollm2")
            ]
        )
    (smoke, real), (smoke_again, real_again) = found
    assert smoke == smoke_again
    assert real != real_again


def test_a_teacher_without_a_model_is_no_folder(root, tmp_path, monkeypatch):
    path = write_notebook(root, "01_x", "print(profile.teacher)")
    profile = profiles.resolve("smollm2")
    assert profile.teacher.model == ""
    found = []
    for number in range(2):
        folder = tmp_path / f"here{number}"
        folder.mkdir()
        (folder / "config.json").write_text(str(number))
        monkeypatch.chdir(folder)
        notebook = stages.load_notebook(path)
        found.append(stages.stage_key(notebook, profile, 0, {}).digest)
    assert found[0] == found[1]


def test_a_store_outlives_the_stage_and_follows_its_inputs(root):
    write_notebook(root, "01_next", 'stage.read("numbers")')
    folders = []
    for value in (1, 1, 2):
        first = stages.open_stage("00_overview", "smoke", 0, {})
        first.write("numbers", {"a": value})
        first.finish()
        second = stages.open_stage("01_next", "smoke", 0, {})
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
    monkeypatch.setattr(stages, "_package_root", lambda: copied)
    monkeypatch.delenv("COTSPEC_DATA", raising=False)
    forget()
    yield copied / "cotspec"
    forget()


def forget():
    stages._file_digest.cache_clear()
    stages._references.cache_clear()


def state(profile="smoke", overrides=None):
    """The key of each notebook, and of what a grid trains and decodes."""
    forget()
    resolved = profiles.resolve(profile, overrides)
    found = {}
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        notebook = stages.load_notebook(path)
        inputs = dict.fromkeys(notebook.reads, "")
        key = stages.stage_key(notebook, resolved, 0, inputs)
        found[notebook.name[:2]] = key.digest
    for module in ("training", "evaluation"):
        found[module] = stages.sources_digest(f"cotspec.{module}")
    return found


def stale(before, after):
    return {name for name in before if before[name] != after[name]}


def append(path, text):
    path.write_text(path.read_text("utf-8") + text, "utf-8")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("losses.py", "\n# a comment\n"),
        ("training.py", "\n\n\n"),
        ("figures/style.py", "\nBLACK = '#111111'\n"),
        ("display.py", "\nWIDTH = 3\n"),
        ("run.py", "\nX = 1\n"),
        ("pages.py", "\nX = 1\n"),
        ("teacher/openai.py", "\nMAX_DELAY = 3\n"),
    ],
)
def test_what_changes_no_result_makes_nothing_stale(package, file, text):
    before = state()
    append(package / file, text)
    assert stale(before, state()) == set()


def test_a_docstring_makes_nothing_stale(package):
    before = state()
    path = package / "batching.py"
    text = path.read_text("utf-8")
    path.write_text(
        text.replace('"""Tokenise examples,', '"""Cut examples,', 1), "utf-8"
    )
    assert text != path.read_text("utf-8")
    assert stale(before, state()) == set()


LATER = {"05", "07", "08", "09", "10"}


@pytest.mark.parametrize(
    ("file", "reached", "not_reached"),
    [
        (
            "losses.py",
            LATER | {"training"},
            {"00", "01", "02", "03", "04", "evaluation"},
        ),
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
    path = package / file
    if path.exists():
        append(path, "\nEDITED = 1\n")
    changed = stale(before, state())
    assert reached <= changed, reached - changed
    assert not not_reached & changed, not_reached & changed


def test_a_changed_number_reaches_the_notebooks_that_use_its_section(package):
    before = state()
    assert stale(before, state(overrides={"training.learning_rate": 1e-3})) == LATER
    assert stale(before, state(overrides={"experiments.num_workers": 7})) == set()


def test_what_comes_from_outside_is_known_by_its_contents(package, tmp_path):
    traces = tmp_path / "traces.jsonl"
    traces.write_text("a")
    student = tmp_path / "student"
    student.mkdir()
    (student / "model.safetensors").write_text("weights")
    overrides = {
        "teacher.backend": "recorded",
        "teacher.path": str(traces),
        "student.model": str(student),
    }
    before = state(overrides=overrides)
    traces.write_text("other")
    reads_teacher = stale(before, state(overrides=overrides))
    assert "01" in reads_teacher and "05" not in reads_teacher
    traces.write_text("a")
    (student / "model.safetensors").write_text("other weights")
    changed = stale(state(overrides=overrides), before)
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
    stage = stages.open_stage("00_overview", "smoke", 0, {})
    stage.write("numbers", {"a": 1})
    stage.finish()
    for damaged in ("{}", '{"key": ', "[]"):
        (stage.folder / artifacts.SUCCESS).write_text(damaged)
        assert stages.read_marker(stage.run, "00_overview") is None
        assert "is damaged" in caplog.text


def test_a_parameters_cell_that_does_not_parse_is_named(root):
    path = write_notebook(root, "01_x", parameters=f"{PARAMETERS}\nSEED = = 1")
    with pytest.raises(ValueError, match="01_x.ipynb: the parameters cell does not"):
        stages.load_notebook(path)


@pytest.mark.parametrize("seed", [-1, "0", 1.5, True, None])
def test_a_seed_is_a_whole_number(root, seed):
    with pytest.raises(ValueError, match="SEED: .*a whole number, 0 or more"):
        stages.open_stage("00_overview", "smoke", seed, {})


def test_all_missing_stages_are_named_at_once(root):
    write_notebook(root, "01_next", 'stage.write("letters", {})')
    write_notebook(root, "02_last", 'stage.read("numbers")\nstage.read("letters")')
    with pytest.raises(ValueError, match="--only 00,01"):
        stages.open_stage("02_last", "smoke", 0, {})


def test_what_another_run_has_changed_is_not_read(root):
    write_notebook(root, "01_next", 'stage.read("numbers")')
    first = stages.open_stage("00_overview", "smoke", 0, {})
    first.write("numbers", {"a": 1})
    first.finish()
    second = stages.open_stage("01_next", "smoke", 0, {})
    first.write("numbers", {"a": 2})
    first.finish()
    with pytest.raises(ValueError, match="has changed since this notebook opened"):
        second.read("numbers")


def test_an_override_that_changes_nothing_here_says_so(root):
    write_notebook(root, "01_next", "stage.profile.training")
    stage = stages.open_stage("00_overview", "smoke", 0, {"training.max_steps": 3})
    shown = stage._repr_html_()
    assert "<code>training.max_steps</code> (read by 01)" in shown
