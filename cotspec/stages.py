"""A stage is a notebook: what it reads, what it writes, and when it is stale.

Enters: a notebook file, the profile, the seed and the artifacts of earlier stages.
Leaves: artifacts with a success marker. What a stage depends on is read off its cells:
``stage.read("traces")`` and ``stage.write("examples", …)`` link the stages,
``profile.training`` says which numbers it uses, its imports say which sources. There is
no list to keep in step, and the same code runs under papermill and by hand.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from datasets import Dataset, disable_progress_bars
from filelock import FileLock, Timeout
from matplotlib.figure import Figure

from cotspec import artifacts, figures, profiles

logger = logging.getLogger(__name__)

PARAMETERS = ("PROFILE", "SEED", "OVERRIDES")
LOCK_FILE = "requirements.lock"
# Sources that change no result. Of the profiles the resolved values count; what draws,
# prints, runs the series or talks to a server computes nothing that is kept.
NOT_IN_KEYS = (
    "cotspec/profiles.py",
    "cotspec/figures/",
    "cotspec/display.py",
    "cotspec/pages.py",
    "cotspec/run.py",
    "cotspec/sizing.py",
    "cotspec/stages.py",
    "cotspec/commands.py",
    "cotspec/report/document.py",
    "cotspec/teacher/openai.py",
)
# Set by the runner: its kernels work under its lock.
RUNNER = "COTSPEC_RUNNER"
# Settings that change how fast a result comes, not which.
NOT_SETTINGS = ("experiments.num_workers", "teacher.max_in_flight")


@dataclass(frozen=True)
class Notebook:
    """A notebook of the series, as far as it matters for running it."""

    name: str
    path: Path
    title: str
    parameters: Mapping[str, object]
    code: tuple[str, ...]  # code cells but the parameters cell
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    sections: tuple[str, ...]
    modules: tuple[str, ...]  # source files, relative to the repository
    uses_tasks: bool


def load_notebook(path: Path) -> Notebook:
    """Parse a notebook of the series.

    Raises
    ------
    ValueError
        No ``parameters`` cell, a value in it that is not a literal, an unknown
        parameter, or an artifact name that is not a literal string.
    """
    cells = _read_cells(path)
    code = [c for c in cells if c["cell_type"] == "code"]
    tagged = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{path.name}: needs one cell tagged 'parameters'")
    body = tuple(_source(c) for c in code if c is not tagged[0])
    tree = _parse(path.name, body)
    closure = _source_closure(set(_imported_files(tree)))
    return Notebook(
        name=path.stem,
        path=path,
        title=_title(cells),
        parameters=_literals(path.name, _source(tagged[0])),
        code=body,
        reads=_artifact_names(path.name, tree, "read"),
        writes=_artifact_names(path.name, tree, "write"),
        sections=_sections_used(tree),
        modules=closure,
        uses_tasks=any(file.startswith("cotspec/tasks") for file in closure),
    )


def _read_cells(path: Path) -> list[dict]:
    """Return the cells; as JSON, since importing nbformat takes over a second."""
    notebook = artifacts.read_json(path)
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not cells:
        raise ValueError(f"{path.name}: not a notebook (no cells)")
    for number, cell in enumerate(cells, 1):
        if not _is_cell(cell):
            raise ValueError(f"{path.name}: cell {number} is none of Jupyter's cells")
    return cells


def _is_cell(cell: object) -> bool:
    if not isinstance(cell, dict) or not isinstance(cell.get("metadata"), dict):
        return False
    source, tags = cell.get("source"), cell["metadata"].get("tags", [])
    lines = source if isinstance(source, list) else [source]
    is_text = all(isinstance(line, str) for line in lines)
    return is_text and isinstance(tags, list) and isinstance(cell.get("cell_type"), str)


def _source(cell: dict) -> str:
    return "".join(cell["source"])


def load_series(root: Path) -> list[Notebook]:
    """Return the notebooks of ``root/notebooks`` in order, producers before readers.

    Raises
    ------
    ValueError
        A notebook reads an artifact that no earlier notebook writes.
    """
    series = [load_notebook(p) for p in sorted((root / "notebooks").glob("*.ipynb"))]
    written: dict[str, str] = {}
    for notebook in series:
        missing = [name for name in notebook.reads if name not in written]
        if missing:
            raise ValueError(
                f"{notebook.name} reads {missing[0]!r}, which no earlier notebook "
                f"writes. Written so far: {', '.join(sorted(written))}"
            )
        written |= {name: notebook.name for name in notebook.writes}
    return series


def producers(series: list[Notebook]) -> dict[str, str]:
    """Return ``{artifact name: name of the notebook that writes it}``."""
    return {name: nb.name for nb in series for name in nb.writes}


def _parse(name: str, cells: tuple[str, ...]) -> ast.Module:
    body: list[ast.stmt] = []
    for number, source in enumerate(cells):
        plain = "\n".join(
            "pass" if line.lstrip().startswith(("%", "!")) else line
            for line in source.splitlines()
        )
        try:
            body += ast.parse(plain).body
        except SyntaxError as error:
            raise ValueError(
                f"{name}: code cell {number + 1} (after the parameters are counted "
                f"out) does not parse: {error.msg}, line {error.lineno}"
            ) from error
    return ast.Module(body=body, type_ignores=[])


def _title(cells: list) -> str:
    for cell in cells:
        if cell["cell_type"] == "markdown" and _source(cell).startswith("# "):
            return _source(cell).splitlines()[0][2:].strip()
    return ""


def _literals(name: str, source: str) -> dict[str, object]:
    values: dict[str, object] = {}
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(
            f"{name}: the parameters cell does not parse: {error.msg}, line "
            f"{error.lineno}"
        ) from error
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if not isinstance(target, ast.Name) or target.id not in PARAMETERS:
            raise ValueError(
                f"{name}: the parameters cell holds only assignments to "
                f"{', '.join(PARAMETERS)}; found line {node.lineno}"
            )
        try:
            values[target.id] = ast.literal_eval(node.value)
        except ValueError as error:
            raise ValueError(
                f"{name}: {target.id} in the parameters cell is not a literal"
            ) from error
    missing = [p for p in PARAMETERS if p not in values]
    if missing:
        raise ValueError(f"{name}: the parameters cell lacks {', '.join(missing)}")
    return values


def _artifact_names(name: str, tree: ast.Module, method: str) -> tuple[str, ...]:
    found: list[str] = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = node.func.value
        if node.func.attr != method or getattr(owner, "id", None) != "stage":
            continue
        first = node.args[0] if node.args else None
        if not (isinstance(first, ast.Constant) and isinstance(first.value, str)):
            raise ValueError(f"{name}: stage.{method} needs a literal artifact name")
        found.append(first.value)
    return tuple(dict.fromkeys(found))


def _sections_used(tree: ast.Module) -> tuple[str, ...]:
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and _is_profile(node.value)
    }
    return tuple(s for s in profiles.SECTIONS if s in used)


def _is_profile(node: ast.expr) -> bool:
    """True for ``profile`` and ``stage.profile``."""
    return "profile" in (getattr(node, "id", None), getattr(node, "attr", None))


def _package_root() -> Path:
    return Path(__file__).resolve().parents[1]


def _imported_files(tree: ast.Module) -> Iterator[str]:
    """Yield the cotspec sources that a module's import statements name.

    Of ``from cotspec.teacher import filtering`` that is filtering.py alone, not what
    else the package holds: the ``__init__``s only pass names on.
    """
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [
                f"{node.module}.{alias.name}"
                if _module_file(f"{node.module}.{alias.name}")
                else node.module
                for alias in node.names
            ]
        for name in names:
            if name.split(".")[0] == "cotspec" and (file := _module_file(name)):
                yield file


def _module_file(name: str) -> str | None:
    stem = name.replace(".", "/")
    for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
        if (_package_root() / candidate).exists():
            return candidate
    return None


def _source_closure(start: set[str]) -> tuple[str, ...]:
    """Return the sources reachable from `start`, and the data files they name."""
    seen: set[str] = set()
    frontier = {file for file in start if not file.startswith(NOT_IN_KEYS)}
    while frontier:
        file = frontier.pop()
        seen.add(file)
        if file.endswith(".py"):
            found = {f for f in _references(file) if not f.startswith(NOT_IN_KEYS)}
            frontier |= found - seen
    return tuple(sorted(seen))


def sources_digest(*modules: str) -> str:
    """Return the SHA-256 of the code reachable from modules of the package.

    Parameters
    ----------
    modules : str
        Such as ``"cotspec.training"``.
    """
    start = {file for module in modules if (file := _module_file(module))}
    return artifacts.digest_of({m: _file_digest(m) for m in _source_closure(start)})


@functools.cache
def _references(file: str) -> tuple[str, ...]:
    """The sources that a source imports, and the data it names in `DATA_FILES`."""
    path = _package_root() / file
    tree = ast.parse(path.read_text("utf-8"))
    found = list(_imported_files(tree))
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if getattr(target, "id", None) == "DATA_FILES":
            found += [
                str((path.parent / name).relative_to(_package_root()))
                for name in ast.literal_eval(node.value)
            ]
    return tuple(found)


@functools.cache
def _file_digest(file: str) -> str:
    """Hash what a source does: comments, docstrings and layout do not count."""
    path = _package_root() / file
    if not file.endswith(".py"):
        return artifacts.checksum(path)[:16]
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False):
            body[0] = ast.Pass()
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


_DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class StageKey:
    """What a stage's result depends on; `digest` names it."""

    parts: Mapping[str, object]

    @property
    def digest(self) -> str:
        return artifacts.digest_of(self.parts)


def stage_key(
    notebook: Notebook, profile: profiles.Profile, seed: int, inputs: Mapping[str, str]
) -> StageKey:
    """Compute a stage's key.

    Parameters
    ----------
    notebook : Notebook
    profile : Profile
        Only the sections that the notebook uses enter the key.
    seed : int
    inputs : dict
        ``{artifact name: SHA-256}`` of what the notebook reads.
    """
    values = profiles.as_dict(profile)
    return StageKey(
        {
            "notebook": hashlib.sha256("\0".join(notebook.code).encode()).hexdigest(),
            "seed": seed,
            "profile": {
                f"{section}.{field}": value
                for section in notebook.sections
                for field, value in values[section].items()
                if f"{section}.{field}" not in NOT_SETTINGS
            },
            "sources": {m: _file_digest(m) for m in notebook.modules},
            "inputs": dict(inputs),
            "lock": _lock_digest(),
            "data": _data_digest(profile.data) if notebook.uses_tasks else "",
            "outside": _outside(notebook, profile),
        }
    )


def _outside(notebook: Notebook, profile: profiles.Profile) -> dict[str, str]:
    """Name the contents of files and models that settings point to."""
    found: dict[str, str] = {}
    if "teacher" in notebook.sections and profile.teacher.path:
        path = Path(profile.teacher.path)
        found["teacher.path"] = artifacts.identity(path) if path.exists() else "missing"
    names = {
        "teacher": [("micro-teacher", profile.teacher.model, "")],
        "student": [("micro-", profile.student.model, profile.student.start)],
        "experiments": [
            ("micro-", model, start)
            for models, start in (
                (profile.experiments.students, "instruction_tuned"),
                (profile.experiments.raw_students, "raw"),
            )
            for model in models
        ],
    }
    for section in notebook.sections:
        for prefix, model, start in names.get(section, ()):
            if model.startswith(prefix):
                name = f"{model.removeprefix(prefix)}-{start}" if start else "teacher"
                # A student has several bases.
                own = [d for n, d in _shipped_checksums().items() if n.startswith(name)]
                found[f"{model} {start}"] = " ".join(own) or "unknown"
            elif model and Path(model).is_dir():  # "" is no folder
                found[f"{model} {start}"] = artifacts.identity(Path(model))
    return found


def _shipped_checksums() -> dict[str, str]:
    # Read here, since importing the models takes seconds.
    manifest = _package_root() / "cotspec/micro/weights/manifest.json"
    entries = artifacts.read_json(manifest) if manifest.exists() else {}
    return {name: entry["sha256"][:16] for name, entry in entries.items()}


def _lock_digest() -> str:
    lock = artifacts.repository_root() / LOCK_FILE
    return artifacts.checksum(lock)[:16] if lock.exists() else "none"


def _data_digest(data: profiles.DataConfig) -> str:
    """Return what identifies the real data; nothing for the micro-world's own."""
    several = data.out_of_distribution_tasks + data.generic_tasks
    if all(name.startswith("micro/") for name in (data.train_task, *several)):
        return ""
    folder = os.environ.get("COTSPEC_DATA")
    return artifacts.checksum(Path(folder))[:16] if folder else "hub"


def explain(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Say in words why a key changed: one line per reason."""
    reasons = []
    if old.get("notebook") != new["notebook"]:
        reasons.append("the notebook's code changed")
    if old.get("seed") != new["seed"]:
        reasons.append(f"seed {old.get('seed')} -> {new['seed']}")
    parts = ("profile", ""), ("sources", "changed"), ("inputs", "changed")
    for part, verb in (*parts, ("outside", "changed")):
        before, after = dict(old.get(part, {})), dict(new[part])  # type: ignore[call-overload]
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                change = verb or f"{before.get(name)} -> {after.get(name)}"
                reasons.append(f"{name} {change}")
    reasons += [
        f"the {word} changed"
        for part, word in (("lock", "lock file"), ("data", "data folder"))
        if old.get(part) != new[part]
    ]
    return reasons


class ProfileView:
    """The sections of a profile that a notebook declares by using them."""

    def __init__(self, profile: profiles.Profile, sections: tuple[str, ...]) -> None:
        self.name = profile.name
        self.summary = profile.summary
        for section in sections:
            setattr(self, section, getattr(profile, section))

    def __getattr__(self, name: str) -> object:
        raise AttributeError(
            f"profile.{name}: not used in the saved notebook. Save the notebook and "
            f"rerun the cell that opens the stage. Sections: {profiles.SECTIONS}"
        )


class Stage:
    """One notebook's run: its profile, inputs, outputs and success marker."""

    def __init__(
        self, notebook: Notebook, profile: profiles.Profile, seed: int, run: Path
    ) -> None:
        self.notebook = notebook
        self.profile = ProfileView(profile, notebook.sections)
        self.seed = seed
        self.run = run
        self.folder = run / "artifacts" / notebook.name
        self._series = load_series(artifacts.repository_root())
        self._inputs = input_checksums(notebook, self._series, run)
        self.key = stage_key(notebook, profile, seed, self._inputs)
        self.work = run / "work" / f"{notebook.name}-{self.key.digest[:12]}"
        self.work.mkdir(parents=True, exist_ok=True)
        self.unused: dict[str, list[str]] = {}
        self._written: dict[str, Path] = {}
        self._started = time.monotonic()

    def read(self, name: str) -> Dataset | pd.DataFrame | dict | str | Path:
        """Return an earlier stage's artifact in the form it was written in."""
        if name not in self._inputs:
            raise ValueError(
                f"stage.read: {name!r} is not an input of the saved notebook "
                f"{self.notebook.name}. Known: {', '.join(self._inputs)}"
            )
        path = artifact_path(self.run, producers(self._series)[name], name)
        if artifacts.checksum(path) != self._inputs[name]:
            raise ValueError(
                f"{path}: has changed since this notebook opened its stage; another "
                "run may be at work here. Rerun the cell that opens the stage"
            )
        return _load(path)

    def write(self, name: str, value: object, *, folder: str | None = None) -> Path:
        """Write an artifact; the type decides the file.

        Parameters
        ----------
        name : str
            A literal, unique in the series.
        value : Dataset, DataFrame, dict, str or Path
            Parquet, CSV, JSON, Markdown (a page that begins with ``<!doctype html>``:
            HTML), or a finished folder that is linked in.
        folder : str, optional
            A folder of the run (``"report"``) instead of the stage's own.
        """
        (self.folder / artifacts.SUCCESS).unlink(missing_ok=True)
        target = (self.run / folder if folder else self.folder) / name
        self._written[name] = _store(target, value)
        return self._written[name]

    def store(self, name: str, *inputs: str) -> Path:
        """Return a folder that outlives the stage, for work too dear to do again.

        Unlike `work` it is kept when the notebook or a source changes: what goes in
        must carry its own keys, as sampled solutions do.

        Parameters
        ----------
        name : str
        inputs : str
            Artifacts whose contents, if they change, begin a new folder.
        """
        sums = artifacts.digest_of([self._inputs[name] for name in inputs])
        return self.run / "store" / f"{name}-{sums[:12]}"

    def figure(
        self, name: str, chart: Figure, *, data: pd.DataFrame, caption: str
    ) -> Figure:
        """Save a figure under the run's ``figures`` and return it for display.

        Parameters
        ----------
        name : str
            Stem of its files, beginning with the notebook's number.
        chart : Figure
        data : DataFrame
            What the figure draws.
        caption : str
        """
        (self.folder / artifacts.SUCCESS).unlink(missing_ok=True)
        facts = {"stage": self.notebook.name, "key": self.key.digest}
        facts |= {"profile": self.profile.name, "seed": self.seed}
        paths = figures.save_figure(
            chart,
            self.run / "figures",
            name,
            data=data,
            caption=caption,
            provenance=facts,
        )
        for kind, path in paths.items():
            self._written[f"figure:{name}.{kind}"] = path
        return chart

    def table(self, name: str, table: pd.DataFrame, *, caption: str) -> pd.DataFrame:
        """Save a table of text beside the figures, as CSV and Markdown; return it.

        Parameters
        ----------
        name : str
            Stem of its files.
        table : DataFrame
        caption : str
            The first line of the Markdown file.
        """
        (self.folder / artifacts.SUCCESS).unlink(missing_ok=True)
        folder = self.run / "figures"
        text = f"{caption}\n\n{artifacts.markdown_table(table)}\n"
        self._written[f"table:{name}.csv"] = artifacts.write_frame(
            folder / f"{name}.csv", table
        )
        self._written[f"table:{name}.md"] = artifacts.write_bytes(
            folder / f"{name}.md", text.encode()
        )
        return table

    def finish(self) -> str:
        """Write the success marker, delete leftovers, and return one line about it."""
        expected = set(self.notebook.writes)
        missing = expected - self._written.keys()
        if missing:
            raise ValueError(f"stage.finish: {sorted(missing)} not written yet")
        seconds = time.monotonic() - self._started
        files = {
            name: {
                "path": os.path.relpath(p, self.run),
                "sha256": artifacts.checksum(p),
            }
            for name, p in self._written.items()
        }
        marker = {
            "stage": self.notebook.name,
            "key": self.key.digest,
            "key_parts": self.key.parts,
            "artifacts": files,
            "seconds": round(seconds, 1),
            "provenance": artifacts.provenance(),
        }
        artifacts.write_json(self.folder / artifacts.SUCCESS, marker)
        self._delete_leftovers()
        folder = os.path.relpath(self.folder, self.run.parent.parent)
        return f"{self.notebook.name}: {seconds:.1f} s, results in {folder}"

    def _delete_leftovers(self) -> None:
        kept = set(self._written.values()) | {self.folder / artifacts.SUCCESS}
        for path in self.folder.iterdir():
            if path not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for work in (self.run / "work").glob(f"{self.notebook.name}-*"):
            shutil.rmtree(work)

    def _repr_html_(self) -> str:
        used = ", ".join(f"<code>{s}</code>" for s in self.notebook.sections) or "none"
        reads = ", ".join(f"<code>{r}</code>" for r in self.notebook.reads) or "none"
        shown = (
            f"<b>{self.notebook.name}</b> · profile <b>{self.profile.name}</b> · "
            f"seed {self.seed}<br>settings used: {used} · artifacts read: {reads}"
        )
        if self.unused:
            # Numbers are enough, and `--set` gives every notebook all overrides.
            unread = (
                f"<code>{dotted}</code> (read by {', '.join(readers) or 'none'})"
                for dotted, readers in self.unused.items()
            )
            shown += "<br><b>OVERRIDES that change nothing in this notebook:</b> "
            shown += ", ".join(unread)
        return shown


def _store(target: Path, value: object) -> Path:
    if isinstance(value, Dataset):
        return artifacts.write_dataset(target.with_suffix(".parquet"), value)
    if isinstance(value, pd.DataFrame):
        return artifacts.write_frame(target.with_suffix(".csv"), value)
    if isinstance(value, Path):
        return artifacts.write_folder(target, value)
    if isinstance(value, str):
        suffix = ".html" if value.startswith("<!doctype html>") else ".md"
        return artifacts.write_bytes(target.with_suffix(suffix), value.encode())
    if isinstance(value, dict):
        return artifacts.write_json(target.with_suffix(".json"), value)
    raise ValueError(
        f"stage.write: {target.name!r} is a {type(value).__name__}. "
        "Allowed: Dataset, DataFrame, dict, str, Path of a folder"
    )


def _load(path: Path) -> Dataset | pd.DataFrame | dict | str | Path:
    if path.is_dir():
        return path
    if path.suffix == ".parquet":
        return artifacts.read_dataset(path)
    if path.suffix == ".csv":
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    if path.suffix == ".json":
        return artifacts.read_json(path)  # type: ignore[return-value]
    return path.read_text("utf-8")


def read_marker(run: Path, stage_name: str) -> dict | None:
    """Return a stage's success marker, or None where it has not finished."""
    path = run / "artifacts" / stage_name / artifacts.SUCCESS
    if not path.exists():
        return None
    try:
        marker = artifacts.read_json(path)
    except ValueError:
        marker = None
    if _is_marker(marker):
        return marker
    logger.warning("%s is damaged: the stage counts as not finished", path)
    return None


def _is_marker(marker: object) -> bool:
    if not isinstance(marker, dict) or not isinstance(marker.get("key"), str):
        return False
    parts, entries = marker.get("key_parts"), marker.get("artifacts")
    if not isinstance(parts, dict) or not isinstance(entries, dict):
        return False
    fields = ("path", "sha256")
    return all(
        isinstance(entry, dict) and all(isinstance(entry.get(f), str) for f in fields)
        for entry in entries.values()
    )


def artifact_path(run: Path, stage_name: str, name: str) -> Path:
    """Return where a finished stage put an artifact."""
    marker = read_marker(run, stage_name)
    if marker is None:
        raise ValueError(
            f"artifact {name!r}: stage {stage_name} has not finished in {run}. "
            f"Run it first: ./run_all.sh --profile {run.name} --only {stage_name}"
        )
    return run / marker["artifacts"][name]["path"]


def input_checksums(
    notebook: Notebook, series: list[Notebook], run: Path
) -> dict[str, str]:
    """Return ``{artifact: SHA-256}`` of a notebook's inputs, from the markers."""
    by_name = producers(series)
    sums = {}
    needed = dict.fromkeys(by_name[name] for name in notebook.reads)
    missing = [stage for stage in needed if read_marker(run, stage) is None]
    if len(missing) > 1:
        numbers = ",".join(stage.split("_")[0] for stage in missing)
        raise ValueError(
            f"{notebook.name} reads what {', '.join(missing)} write; they have not "
            f"finished in {run}. Run them first: ./run_all.sh --profile {run.name} "
            f"--only {numbers}"
        )
    for name in notebook.reads:
        artifact_path(run, by_name[name], name)
        marker = read_marker(run, by_name[name])
        sums[name] = marker["artifacts"][name]["sha256"]  # type: ignore[index]
    return sums


def verify(run: Path, stage_name: str) -> list[str]:
    """Return the artifacts of a finished stage that are missing or changed."""
    marker = read_marker(run, stage_name)
    if marker is None:
        return []
    return [
        name
        for name, entry in marker["artifacts"].items()
        if not (run / entry["path"]).exists()
        or artifacts.checksum(run / entry["path"]) != entry["sha256"]
    ]


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Hold a run's folder, so that no other run changes its artifacts meanwhile.

    Raises
    ------
    ValueError
        Another process holds it; the message says which.
    """
    run.mkdir(parents=True, exist_ok=True)
    holder = run / ".holder"
    try:
        lock = FileLock(run / ".lock").acquire(timeout=0)
    except Timeout:
        who = holder.read_text("utf-8") if holder.exists() else "another process"
        raise ValueError(
            f"{run}: {who} is at work here. Wait until it has ended, or set "
            "COTSPEC_RUNS to another folder"
        ) from None
    with lock:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        artifacts.write_bytes(holder, f"process {os.getpid()} ({command})".encode())
        yield


def open_stage(name: str, profile: str, seed: int, overrides: dict) -> Stage:
    """Open the stage of a notebook; its first code line after the parameters.

    Parameters
    ----------
    name : str
        The notebook's file stem, such as ``"02_filtering"``.
    profile, seed, overrides
        The values of the parameters cell.

    Raises
    ------
    ValueError
        Unknown notebook, profile or field, an input that is not there yet, or a run
        of the series that is at work in the same folder.
    """
    root = artifacts.repository_root()
    path = root / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        names = sorted(p.stem for p in (root / "notebooks").glob("*.ipynb"))
        raise ValueError(f"notebook: unknown {name!r}. Allowed: {', '.join(names)}")
    resolved = profiles.resolve(profile, overrides)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"SEED: {seed!r}. Allowed: a whole number, 0 or more")
    disable_progress_bars()  # of small table operations; long steps have their own
    run = artifacts.run_dir(profile)
    if RUNNER not in os.environ:
        with alone_in(run):
            pass
    stage = Stage(load_notebook(path), resolved, seed, run)
    stage.unused = _unused(stage, overrides or {})
    return stage


def _unused(stage: Stage, overrides: Mapping[str, object]) -> dict[str, list[str]]:
    """Overrides that this notebook does not read, and the notebooks that do."""
    return {
        dotted: [
            notebook.name.split("_")[0]
            for notebook in stage._series
            if dotted.split(".")[0] in notebook.sections
        ]
        for dotted in overrides
        if dotted.split(".")[0] not in stage.notebook.sections
    }
