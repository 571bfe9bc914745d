"""The runner on a tiny series of real notebooks, executed by papermill."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_stages import write_notebook

from cotspec import artifacts, profiles, run, stages


def write_stage(root, name, *code, finish="stage.finish()"):
    """Write a notebook that opens its stage first and finishes it in the last cell."""
    opened = f'stage = stages.open_stage("{name}", PROFILE, SEED, OVERRIDES)'
    first = f"from cotspec import stages\n{opened}"
    return write_notebook(root, name, first, *code, finish)


@pytest.fixture
def series(tmp_path, monkeypatch):
    """Three notebooks: numbers -> doubled (uses training) -> report."""
    monkeypatch.setenv("COTSPEC_ROOT", str(tmp_path))
    monkeypatch.delenv("COTSPEC_RUNS", raising=False)
    monkeypatch.delenv(run.STARTED_IN, raising=False)  # `run_all.sh --test` sets it
    monkeypatch.delenv("COTSPEC_DATA", raising=False)
    monkeypatch.setenv(stages.RUNNER, "")  # which `main` sets
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requirements.lock").write_text("")
    write_stage(
        tmp_path,
        "00_overview",
        'stage.write("numbers", {"n": 20 + SEED})',
        "from tqdm import tqdm\nfor _ in tqdm(range(300), mininterval=0): pass",
    )
    write_stage(
        tmp_path,
        "01_double",
        'n = stage.read("numbers")["n"]\nsteps = stage.profile.training.max_steps',
        'stage.write("doubled", {"n": 2 * n, "steps": steps})',
    )
    write_stage(
        tmp_path,
        "02_report",
        'stage.write("REPORT", str(stage.read("doubled")), folder="report")',
    )
    return tmp_path


def run_lines(capsys, *arguments):
    status = run.main(["--profile", "smoke", *arguments])
    return status, capsys.readouterr().out.splitlines()


def states(lines):
    """Which stages ran, by number."""
    return [line[1] for line in lines if ": running" in line]


def ran(capsys, *arguments):
    """Run without a failure; return which stages ran, by number."""
    status, lines = run_lines(capsys, *arguments)
    assert status == 0
    return states(lines)


def test_runs_all_then_nothing_then_only_what_depends_on_a_change(series, capsys):
    assert ran(capsys) == ["1", "2", "3"]
    report = series / "runs/smoke/report/REPORT.md"
    before = report.read_bytes()
    assert run_lines(capsys)[1][-1].startswith("0 stages ran, nothing failed")
    assert report.read_bytes() == before

    assert ran(capsys, "--set", "training.max_steps=7") == ["2", "3"]
    assert "'steps': 7" in report.read_text()

    status, lines = run_lines(capsys, "--set", "teacher.temperature=0.9", "--dry-run")
    steps = profiles.resolve("smoke").training.max_steps
    assert f"training.max_steps 7 -> {steps}" in "\n".join(lines)

    other = ["--only", "02", "--dry-run", "--set"]
    first, *rest = run_lines(capsys, *other, "training.max_steps=9")[1]
    assert first.startswith("note: 01_double is not chosen, but stale: training.max")
    assert len(rest) == 1 and rest[0].startswith("02_report")
    assert "note:" not in run_lines(capsys, *other, "training.max_steps=7")[1][0]
    _, lines = run_lines(capsys, "--only", "02,01", "--force", "--dry-run")
    assert [line.split()[0] for line in lines] == ["01_double", "02_report"]
    assert all(line.endswith("stale: --force") for line in lines)

    executed = (series / "runs/smoke/notebooks/00_overview.ipynb").read_text()
    assert "300/300" in executed and "150/300" not in executed  # one line a bar

    index = (series / "runs/smoke/html/index.html").read_text()
    assert 'href="01_double.html"' in index and "not finished" not in index


def test_a_change_reaches_only_what_reads_it(series, capsys):
    # An edit upstream stops where the artifact is the same.
    ran(capsys)
    write_stage(series, "00_overview", 'stage.write("numbers", {"n": SEED + 20})')
    _, lines = run_lines(capsys, "--dry-run")
    assert "the notebook's code changed" in lines[0]
    assert "00_overview runs first" in lines[1]
    assert ran(capsys) == ["1"]

    # Overrides in a notebook's cell are that notebook's.
    path = series / "notebooks/01_double.ipynb"
    three = "OVERRIDES = {'training.max_steps': 3}"
    path.write_text(path.read_text().replace("OVERRIDES = {}", three))
    assert ran(capsys) == ["2", "3"]
    doubled = series / "runs/smoke/artifacts/01_double/doubled.json"
    assert artifacts.read_json(doubled) == {"n": 40, "steps": 3}


def test_a_failing_cell_is_named_and_the_printed_command_resumes(series, capsys):
    path = series / "notebooks/01_double.ipynb"
    good = path.read_text()
    write_stage(
        series,
        "01_double",
        "value = {'n': 1}\nvalue['missing key']",
        'stage.read("numbers"); stage.write("doubled", {})',
    )
    sets = ["--set", "experiments.seeds=[0, 1]", "--set", "training.max_steps=7"]
    status, lines = run_lines(capsys, "--only", "00,01,02", *sets, "--force")
    text = "\n".join(lines)
    assert status == run.FAILED
    assert "01_double, cell 4" in text and "KeyError: 'missing key'" in text
    assert stages.read_marker(series / "runs/smoke", "00_overview")

    command = shlex.split(text.split("To resume: ")[1].splitlines()[0])
    assert command[1:4] == ["./run_all.sh", "--profile", "smoke"]
    assert command[0] == f"COTSPEC_ROOT={series}" and "--force" not in command
    path.write_text(good)
    assert run.main(command[2:]) == 0
    assert states(capsys.readouterr().out.splitlines()) == ["2", "3"]


SAVED = """
from pathlib import Path
path, n = Path("00_overview.ipynb"), 20
path.write_text(path.read_text().replace("20", "21"))
stage = stages.open_stage("00_overview", PROFILE, SEED, OVERRIDES)
stage.write("numbers", {})"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os\nos._exit(3)", "00_overview: the kernel died"),
        (
            f"{SAVED}\nstage.finish()",
            "changed while it ran: the notebook's code changed",
        ),
        ("", "00_overview: all cells ran, but stage.finish() did not"),
    ],
)
def test_a_stage_without_its_success_marker_has_failed(series, capsys, code, words):
    write_stage(series, "00_overview", 'stage.write("numbers", {})', code, finish="")
    status, lines = run_lines(capsys)
    assert (status, states(lines)) == (run.FAILED, ["1"])
    assert words in "\n".join(lines)


def refused(capsys, *arguments):
    """Return the one sentence of a user error."""
    assert run.main(["--profile", "smoke", *arguments]) == run.USER_ERROR
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "huge"], "profile: unknown name 'huge'"),
        (["--only", "9"], "--only: '9' names 0 notebooks"),
        *((["--only", odd], "' names 3") for odd in ("", " ", ",", "00,")),
        (["--only", "00,02_report"], "doubled: 01_double has not finished"),
        (["--set", "training.lr=1"], "'training.lr': unknown field"),
        (["--set", "training"], "write it as section.field=value"),
        (["--seed", "-1"], "SEED: -1. Allowed: whole"),
        (["--seed", "9" * 20], "SEED: 99999"),
        (["--publish"], "smoke. Allowed: micro, smollm2 ("),
    ],
)
def test_a_wrong_command_line_is_one_sentence(series, capsys, arguments, words):
    assert words in refused(capsys, *arguments)
    assert not (series / "runs/smoke/artifacts").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("OVERRIDES = {}", "OVERRIDES = [1]", "01_double: OVERRIDES: [1]. Allowed"),
        ("OVERRIDES = {}", "OVERRIDES = {1: 2}", "01_double: profile field 1: unknown"),
        ("SEED = 0", "SEED = -1", "01_double: SEED: -1. Allowed"),
        ("SEED = 0", "SEED = True", "01_double: SEED: True. Allowed"),
        ("", "", "Not a directory: '/dev/null/smoke'"),  # and it is right
    ],
)
def test_a_wrong_parameters_cell_or_folder_is_one_sentence(
    series, capsys, monkeypatch, old, new, words
):
    path = series / "notebooks/01_double.ipynb"
    path.write_text(path.read_text().replace(old, new))
    monkeypatch.setenv("COTSPEC_RUNS", "/dev/null")
    assert words in refused(capsys)


def test_relative_folders_and_paths_count_from_where_the_command_was_given(
    series, capsys, monkeypatch
):
    (series / "here/model").mkdir(parents=True)
    monkeypatch.setenv(run.STARTED_IN, str(series / "here"))
    monkeypatch.setenv("COTSPEC_RUNS", "{out}")
    sets = ["--set", "teacher.path=micro-x", "--set", "experiments.students=model,a/b"]
    assert ran(capsys, *sets, "--only", "00") == ["1"]
    assert stages.read_marker(series / "here/{out}/smoke", "00_overview")
    executed = (series / "here/{out}/smoke/notebooks/00_overview.ipynb").read_text()
    for path in (series / "here/micro-x", series / "here/model", '\\"a/b\\"'):
        assert str(path) in executed


def test_publish_needs_the_profiles_own_results_whole_and_deletes_only_its_own(
    series, capsys, monkeypatch
):
    monkeypatch.setattr(run, "COMMITTED", {"smoke": "figures"})
    target, report = series / "figures", series / "runs/smoke/report/REPORT.md"
    for name in ("old.png", "mine.png"):
        artifacts.write_text(target / name, "")
    artifacts.write_text(target / "PUBLISHED.txt", "old.png\n../requirements.lock\n")
    # Drawn by a notebook as it was before.
    artifacts.write_text(series / "runs/smoke/figures/gone.png", "")
    before = artifacts.checksum(target)
    assert "no --set and --seed" in refused(capsys, "--publish", "--seed", "0")
    said = refused(capsys, "--only", "00", "--publish")
    assert "01_double, 02_report are not fresh" in said
    assert artifacts.checksum(target) == before
    ran(capsys, "--publish")
    names = {path.name for path in target.iterdir()}
    assert names == {"mine.png", "REPORT.md", "PUBLISHED.txt"}
    assert (series / "requirements.lock").exists()
    assert (target / "PUBLISHED.txt").read_text() == "REPORT.md\n"
    assert (target / "REPORT.md").read_bytes() == report.read_bytes()

    def publish():
        given = "smoke", None, {}
        run.publish([run.given_to(nb, *given) for nb in stages.load_series(series)])

    report.write_text("changed by hand")
    with pytest.raises(ValueError, match=": 02_report are not fresh"):
        publish()
    report.write_bytes((target / "REPORT.md").read_bytes())
    path = series / "notebooks/01_double.ipynb"
    own = '{\\"training.max_steps\\": 36}'  # the same, but not the profile's own
    path.write_text(path.read_text().replace("OVERRIDES = {}", f"OVERRIDES = {own}"))
    with pytest.raises(ValueError, match=": 01_double are not fresh"):
        publish()


def test_killed_while_running_it_resumes_to_the_same_bytes(series, capsys):
    process = subprocess.Popen(
        [sys.executable, "-m", "cotspec.run", "--profile", "smoke"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "COTSPEC_ROOT": str(series)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    marker = series / "runs/smoke/artifacts/00_overview" / artifacts.SUCCESS
    deadline = time.monotonic() + 600  # of a busy machine
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert ran(capsys) == ["2", "3"]
    killed = artifacts.checksum(series / "runs/smoke/report")
    assert ran(capsys, "--force") == ["1", "2", "3"]
    assert artifacts.checksum(series / "runs/smoke/report") == killed


def test_a_second_run_or_a_notebook_by_hand_is_told_who_is_at_work(series, capsys):
    with stages.alone_in(series / "runs/smoke"):
        assert f"process {os.getpid()} (" in refused(capsys)
        with pytest.raises(ValueError, match=f"process {os.getpid()} .* is at work"):
            stages.open_stage("00_overview", "smoke", 0, {})
        assert ran(capsys, "--dry-run") == []
    assert ran(capsys) == ["1", "2", "3"]
    stages.open_stage("00_overview", "smoke", 0, {})


def test_run_by_hand_gives_the_artifacts_of_papermill(series, capsys):
    ran(capsys)
    out = series / "runs/smoke/artifacts/01_double/doubled.json"
    by_papermill = out.read_bytes()
    out.unlink()
    _, lines = run_lines(capsys, "--dry-run")
    assert lines[1].endswith("stale: doubled is missing or changed")
    path = series / "notebooks/01_double.ipynb"
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", resources=where).execute()
    assert out.read_bytes() == by_papermill
    assert ran(capsys) == []
