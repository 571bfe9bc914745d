"""What a stage depends on is read off its cells."""

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
                for name in ("smoke", "rehearsal")
            ]
        )
    (smoke, rehearsal), (smoke_again, rehearsal_again) = found
    assert smoke == smoke_again
    assert rehearsal != rehearsal_again


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


def test_the_digest_of_sources_follows_imports_and_nothing_else(monkeypatch):
    before = {
        m: stages.sources_digest(m) for m in ("cotspec.training", "cotspec.prompts")
    }
    real = stages._file_digest

    def edited(relative):
        return "edited" if relative == "cotspec/losses.py" else real(relative)

    monkeypatch.setattr(stages, "_file_digest", edited)
    assert stages.sources_digest("cotspec.training") != before["cotspec.training"]
    assert stages.sources_digest("cotspec.prompts") == before["cotspec.prompts"]
