"""A stage is a notebook: what it reads, what it writes, and when it is stale.

Enters: a notebook file, the profile, the seed and the artifacts of earlier stages.
Leaves: artifacts with a success marker. What a stage depends on is read off its cells:
``stage.read("traces")`` and ``stage.write("examples", …)`` link the stages,
``profile.training`` says which numbers it uses, its imports say which sources. What a
function of the package reads that a cell hands ``stage`` or ``profile`` counts as the
cell's. There is no list to keep in step, and the same code runs under papermill and by
hand.
"""

from __future__ import annotations

import ast
import importlib.metadata
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pandas as pd
from datasets import Dataset, disable_progress_bars
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from pydantic import BaseModel, Field

from cotspec import artifacts, profiles
from cotspec.figures import style

logger = logging.getLogger(__name__)

PARAMETERS = ("PROFILE", "SEED", "OVERRIDES")
MAX_SEED = 2**32 - 1
LOCK_FILE = "requirements.lock"
# Sources that change no result. Of the profiles the resolved values count; what draws,
# prints, runs the series or talks to a server computes nothing that is kept.
NOT_IN_KEYS = tuple(
    f"cotspec/{name}"
    for name in "profiles.py figures/ display.py pages.py run.py sizing.py stages.py "
    "commands.py report/document.py teacher/openai.py".split()
)
# Set by the runner: its kernels work under its lock.
RUNNER = "COTSPEC_RUNNER"
# Settings that change how fast a result comes, not which.
NOT_SETTINGS = ("experiments.num_workers", "teacher.max_in_flight")
_TAKEN = {"stage", "profile"}  # by functions that read them as cells do
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]
# What a cell times is code as any other; IPython would make one string of it.
_TIMED = re.compile(r"(?m)\A%%(?:time|timeit|capture|prun)\b.*|^( *)%time +")
_DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class _Metadata(BaseModel):
    tags: list = []


class _Cell(BaseModel):
    cell_type: str
    metadata: _Metadata
    source: str | list[str]


class _File(BaseModel):
    """A notebook's file; read as JSON, since importing nbformat takes seconds."""

    cells: Annotated[list[_Cell], Field(min_length=1)]


@dataclass(frozen=True)
class Notebook:
    """A notebook of the series, as far as it matters for running it."""

    name: str
    path: Path
    title: str
    parameters: Mapping[str, object]  # those of its cell, or what it is run with
    code: tuple[str, ...]  # code cells but the parameters cell
    code_hash: str  # of what they do: comments and layout do not count
    reads: Mapping[str, str]  # artifacts, and the stages that write them
    writes: tuple[str, ...]
    sections: tuple[str, ...]
    modules: tuple[str, ...]  # source files, relative to the repository

    @property
    def run(self) -> Path:
        """The folder of the profile's run."""
        return artifacts.run_dir(self.parameters["PROFILE"])

    @cached_property
    def profile(self) -> profiles.Profile:
        """The profile with the notebook's overrides applied."""
        given = self.parameters["PROFILE"], self.parameters["OVERRIDES"]
        return profiles.resolve(*given)


def load_notebook(path: Path) -> Notebook:
    """Parse a notebook of the series.

    Raises
    ------
    ValueError
        No ``parameters`` cell, a value in it that is not a literal, an unknown
        parameter, or an artifact name that is not a literal string.
    """
    cells = artifacts.read_as(path, _File).cells
    code = [c for c in cells if c.cell_type == "code"]
    tagged = [c for c in code if "parameters" in c.metadata.tags]
    if len(tagged) != 1:
        raise ValueError(f"{path.name}: needs one cell tagged 'parameters'")
    body = tuple("".join(c.source) for c in code if c is not tagged[0])
    parsed = [_parse(f"{path.name}: code cell {n}", c) for n, c in enumerate(body, 1)]
    tree = ast.Module(body=[one for cell in parsed for one in cell], type_ignores=[])
    done = [[ast.dump(one) for one in cell] for cell in parsed if cell]
    title = "".join(cells[0].source).partition("\n")[0].lstrip("# ")
    modules = _source_closure(_imported_files(tree))
    reads, writes, sections = _uses(path.name, [tree, *_handed(tree, modules)])
    where = f"{path.name}: the parameters cell"
    return Notebook(
        name=path.stem,
        path=path,
        title=title or path.stem,
        parameters=_literals(where, "".join(tagged[0].source)),
        code=body,
        code_hash=artifacts.digest_of(done),
        reads=reads,
        writes=tuple(writes),
        sections=tuple(s for s in profiles.SECTIONS if s in sections),
        modules=modules,
    )


def load_series(root: Path) -> list[Notebook]:
    """Return the notebooks of ``root/notebooks`` in order, producers before readers.

    Raises
    ------
    ValueError
        A notebook reads an artifact that no earlier notebook writes.
    """
    series: list[Notebook] = []
    writers: dict[str, str] = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = load_notebook(path)
        name, reads = notebook.name, notebook.reads
        if missing := [one for one in reads if one not in writers]:
            said = f"{name} reads {missing[0]!r}, which no earlier notebook writes"
            raise ValueError(f"{said}. Written so far: {', '.join(sorted(writers))}")
        if twice := writers.keys() & notebook.writes:
            said = f"{name} writes {min(twice)!r}, as an earlier notebook does"
            raise ValueError(said)
        series.append(replace(notebook, reads={one: writers[one] for one in reads}))
        writers |= dict.fromkeys(notebook.writes, name)
    if not series:
        raise ValueError(f"COTSPEC_ROOT: no notebooks in {root / 'notebooks'}")
    return series


def _parse(where: str, source: str) -> list[ast.stmt]:
    try:
        try:
            return ast.parse(source).body
        except SyntaxError:  # or one of Jupyter's own lines: `!ls`, `name?`
            from IPython.core.inputtransformer2 import TransformerManager

            source = _TIMED.sub(r"\1", source)
            return ast.parse(TransformerManager().transform_cell(source)).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{where} does not parse: {error}") from error


def _literals(where: str, source: str) -> dict[str, object]:
    nodes = _parse(where, source)
    try:
        found = {node.targets[0].id: ast.literal_eval(node.value) for node in nodes}
    except (AttributeError, ValueError, TypeError):  # other statements and values
        found = {}
    if found.keys() != set(PARAMETERS):
        names = ", ".join(PARAMETERS)
        raise ValueError(f"{where} must set {names} to literals, and nothing else")
    return found


def _uses(name: str, trees: Iterable[ast.AST]) -> tuple[dict, dict, dict]:
    """Return artifacts read and written, and attributes of ``profile``, as keys."""
    found = {"read": {}, "write": {}, "profile": {}}
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.Call(
                ast.Attribute(ast.Name("stage"), "read" | "write" as method), given
            ):
                if not given or not isinstance(given[0], ast.Constant):
                    said = f"{name}: stage.{method} needs a literal artifact name"
                    raise ValueError(said)
                found[method][str(given[0].value)] = None
            case ast.Attribute(ast.Name("profile") | ast.Attribute(_, "profile"), used):
                found["profile"][used] = None
    return tuple(found.values())


def _handed(tree: ast.Module, files: Iterable[str]) -> list[ast.FunctionDef]:
    """Return the package's functions that cells call and that take their stage.

    Such a function calls its parameter ``stage`` or ``profile``, as the cells do.
    """
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {getattr(call, "attr", getattr(call, "id", "")) for call in calls}
    functions = [one for file in files for one in _examined(file)[2]]
    return [function for function in functions if function.name in names]


def _imported_files(tree: ast.Module) -> set[str]:
    """Return the cotspec sources that a module's import statements name.

    Of ``from cotspec.teacher import filtering`` that is filtering.py alone, not what
    else the package holds: the ``__init__``s only pass names on.
    """
    found: set[str | None] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(aliases):
                found |= {_module_file(alias.name) for alias in aliases}
            case ast.ImportFrom(str(module), aliases, 0):
                found |= {
                    _module_file(f"{module}.{alias.name}") or _module_file(module)
                    for alias in aliases
                }
    return {file for file in found if file}


def _module_file(name: str) -> str | None:
    stem = name.replace(".", "/")
    for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
        if stem.split("/")[0] == "cotspec" and (_PACKAGE_ROOT / candidate).exists():
            return candidate
    return None


def _source_closure(files: Iterable[str]) -> tuple[str, ...]:
    """Return the sources reachable from some, and the data files they name."""
    seen: set[str] = set()
    frontier = set(files)
    while frontier:
        file = frontier.pop()
        if not file.startswith(NOT_IN_KEYS):
            seen.add(file)
            frontier |= _examined(file)[1] - seen
    return tuple(sorted(seen))


@cache
def code_of(module: str) -> list[object]:
    """Return what computes the results of ``"cotspec.training"``, say.

    The SHA-256 of its code and of what it imports, and versions of packages.
    """
    files = _source_closure([_module_file(module)])
    names = ("torch", "transformers", "accelerate")
    versions = {name: importlib.metadata.version(name) for name in names}
    return [artifacts.digest_of([_examined(file)[0] for file in files]), versions]


@cache
def _examined(file: str) -> tuple[str, set[str], list[ast.FunctionDef]]:
    """Hash what a source does: comments, docstrings and layout do not count.

    The second value: the sources it imports, and the data it names in `DATA_FILES`; the
    third: its functions that take a stage or a profile.
    """
    path = _PACKAGE_ROOT / file
    if path.suffix != ".py":
        return artifacts.checksum(path)[:16], set(), []
    tree = ast.parse(path.read_text("utf-8"))
    found = _imported_files(tree)
    for node in tree.body:
        match node:
            case ast.Assign([ast.Name("DATA_FILES")], names):
                folder = path.parent.relative_to(_PACKAGE_ROOT)
                found |= {str(folder / name) for name in ast.literal_eval(names)}
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False):
            node.body[0] = ast.Pass()
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    handed = [f for f in functions if _TAKEN & {one.arg for one in f.args.args}]
    return artifacts.digest_of(ast.dump(tree))[:16], found, handed


def stage_key(notebook: Notebook, inputs: Mapping[str, Entry]) -> dict[str, dict]:
    """Return what a stage's result depends on, of the notebook's parameters.

    Parameters
    ----------
    notebook : Notebook
        Only the sections that it uses enter the key.
    inputs : mapping of Entry
        What the notebook reads, from `find_artifacts`.
    """
    values = profiles.as_dict(notebook.profile)
    settings = {
        f"{section}.{field}": value
        for section in notebook.sections
        for field, value in values[section].items()
        if f"{section}.{field}" not in NOT_SETTINGS
    }
    outside = _outside(notebook.profile.data, settings.values(), notebook.path.parent)
    contents = {"the notebook's code": notebook.code_hash}
    contents |= {name: entry.sha256 for name, entry in inputs.items()}
    contents |= {file: _examined(file)[0] for file in notebook.modules}
    contents |= {name: artifacts.identity(path) for name, path in outside.items()}
    settings = {"seed": notebook.parameters["SEED"], **settings}
    return {"settings": settings, "contents": contents}


def _outside(
    data: profiles.DataConfig, settings: Iterable, folder: Path
) -> dict[str, Path]:
    """Return the lock file, the real data if used, and files that settings name."""
    found = {"the lock file": artifacts.repository_root() / LOCK_FILE}
    where = os.environ.get("COTSPEC_DATA")
    tasks = data.train_task, *data.out_of_distribution_tasks, *data.generic_tasks
    if where and not all(name.startswith("micro/") for name in tasks):
        found["the data folder"] = Path(where)
    for value in settings:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and one:
                found[one] = folder / one
    return {name: path for name, path in found.items() if os.path.exists(path)}


def explain(old: Mapping[str, dict], new: Mapping[str, dict]) -> list[str]:
    """Say in words why a key changed: one line per reason, none if it is the same."""
    reasons = []
    for part, words in (("settings", "{} {} -> {}"), ("contents", "{} changed")):
        before, after = old.get(part, {}), new[part]
        reasons += [
            words.format(name, before.get(name), after.get(name))
            for name in {**before, **after}
            if before.get(name) != after.get(name)
        ]
    return reasons


class ProfileView(SimpleNamespace):
    """The sections of a profile that a notebook declares by using them."""

    def __getattr__(self, name: str) -> object:
        remedy = "Save the notebook and rerun the cell that opens the stage"
        said = f"profile.{name}: not used in the saved notebook. {remedy}"
        raise AttributeError(f"{said}. Sections: {profiles.SECTIONS}")


class Stage:
    """One notebook's run: its profile, inputs, outputs and success marker."""

    def __init__(self, notebook: Notebook, notes: Iterable[str]) -> None:
        self.notebook, self.run = notebook, notebook.run
        profile, self.seed = notebook.profile, notebook.parameters["SEED"]
        shown = ("name", "summary", *notebook.sections)
        self.profile = ProfileView(**{name: getattr(profile, name) for name in shown})
        self.folder = self.run / "artifacts" / notebook.name
        self._inputs = find_artifacts(notebook.reads, self.run)
        self._key_parts = stage_key(notebook, self._inputs)
        self._key = artifacts.digest_of(self._key_parts)
        self.work = self.run / "work" / f"{notebook.name}-{self._key[:12]}"
        self.work.mkdir(parents=True, exist_ok=True)
        self._notes = notes
        self._written: dict[str, dict[str, str]] = {}
        self._started = time.monotonic()

    def read(self, name: str) -> Dataset | pd.DataFrame | dict | str | Path:
        """Return an earlier stage's artifact in the form it was written in."""
        if name not in self._inputs:
            said = f"not an input of the saved notebook {self.notebook.name}"
            known = ", ".join(self._inputs)
            raise ValueError(f"stage.read: {name!r} is {said}. Known: {known}")
        path = self.run / self._inputs[name].path
        if artifacts.checksum(path) != self._inputs[name].sha256:
            said = f"{path}: has changed since this notebook opened its stage"
            remedy = "Rerun the cell that opens the stage"
            raise ValueError(f"{said}; another run may be at work here. {remedy}")
        return next(form[3] for form in FORMS if form[1] == path.suffix)(path)

    def write(self, name: str, value: object, *, folder: str | None = None) -> Path:
        """Write an artifact; the type decides the file.

        Parameters
        ----------
        name : str
            A literal, unique in the series.
        value : Dataset, DataFrame, dict, str or Path
            Parquet, CSV, JSON, Markdown (unless the name says what it is), or a
            finished folder that is linked in.
        folder : str, optional
            A folder of the run (``"report"``) instead of the stage's own.
        """
        home = self.folder if folder is None else self.run / _plain(folder)
        target = home / _plain(name)
        for kind, suffix, write, _ in FORMS:
            if isinstance(value, kind):
                is_told = target.suffix in (".csv", ".md", ".html")
                path = target if is_told else target.with_name(name + suffix)
                return self._keep(name, write(path, value))
        said = f"stage.write: {name!r} is a {type(value).__name__}"
        allowed = "Dataset, DataFrame, dict, str, Path of a folder"
        raise ValueError(f"{said}. Allowed: {allowed}")

    def _keep(self, name: str, path: Path) -> Path:
        """Note what was written; what the stage wrote before counts no more."""
        (self.folder / artifacts.SUCCESS).unlink(missing_ok=True)
        where, digest = os.path.relpath(path, self.run), artifacts.checksum(path)
        self._written[name] = {"path": where, "sha256": digest}
        return path

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
        sums = artifacts.digest_of([self._inputs[name].sha256 for name in inputs])
        return self.run / "store" / f"{_plain(name)}-{sums[:12]}"

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
        facts = {"stage": self.notebook.name, "key": self._key, "seed": self.seed}
        facts["profile"] = self.profile.name
        options = {"data": data, "caption": caption, "provenance": facts}
        made = style.save_figure(chart, self.run / "figures", _plain(name), **options)
        for path in made.values():
            self._keep(f"figure {path.name}", path)
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
        text = f"{caption}\n\n{artifacts.markdown_table(table)}\n"
        for suffix, value in ((".csv", table), (".md", text)):
            self.write(f"{name}{suffix}", value, folder="figures")
        return table

    def finish(self) -> str:
        """Write the success marker, delete leftovers, and return one line about it."""
        missing = set(self.notebook.writes) - self._written.keys()
        if missing:
            raise ValueError(f"stage.finish: {sorted(missing)} not written yet")
        seconds = time.monotonic() - self._started
        marker = self.folder / artifacts.SUCCESS
        content = {
            "key_parts": self._key_parts,
            "artifacts": self._written,
            "seconds": round(seconds, 1),
            "provenance": artifacts.provenance(),
        }
        artifacts.write_json(marker, content)
        kept = {marker, *(self.run / one["path"] for one in self._written.values())}
        for path in (*self.folder.iterdir(), self.work):
            if path not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder = os.path.relpath(self.folder, self.run.parent.parent)
        return f"{self.notebook.name}: {seconds:.1f} s, results in {folder}"

    def _repr_html_(self) -> str:
        notebook = self.notebook
        both = notebook.sections, notebook.reads
        used, read = (", ".join(names) or "none" for names in both)
        of = f"profile <b>{self.profile.name}</b> · seed {self.seed}"
        lines = [f"<b>{notebook.name}</b> · {of}", f"settings used: {used}"]
        lines[1] += f" · artifacts read: {read}"
        return "<br>".join([*lines, *self._notes])


def _plain(name: str) -> str:
    """Refuse a name that leads out of its folder, or is that of the marker."""
    if not re.fullmatch(r"(?!SUCCESS)\w[\w.-]*", name):
        raise ValueError(f"stage: name {name!r}. Allowed: letters, digits and _.-")
    return name


# The kinds of artifacts: type, file, how it is written and read.
FORMS = (
    (Dataset, ".parquet", artifacts.write_dataset, artifacts.read_dataset),
    (pd.DataFrame, ".csv", artifacts.write_frame, artifacts.read_frame),
    (dict, ".json", artifacts.write_json, artifacts.read_json),
    (str, ".md", artifacts.write_text, partial(Path.read_text, encoding="utf-8")),
    (Path, "", artifacts.write_folder, Path),
)


class Entry(BaseModel):
    """Where an artifact lies, counted from the run's folder, and its checksum."""

    path: str
    sha256: str


class Marker(BaseModel):
    """What a finished stage leaves, as far as it is read again."""

    key_parts: dict[str, dict]
    artifacts: dict[str, Entry]


def read_marker(run: Path, stage_name: str) -> Marker | None:
    """Return a stage's success marker, or None where it has not finished."""
    path = run / "artifacts" / stage_name / artifacts.SUCCESS
    if not path.exists():
        return None
    try:
        return artifacts.read_as(path, Marker)
    except ValueError:
        logger.warning("%s is damaged: the stage counts as not finished", path)
        return None


def find_artifacts(reads: Mapping[str, str], run: Path) -> dict[str, Entry]:
    """Return where finished stages put artifacts, by name.

    Parameters
    ----------
    reads : mapping
        Artifacts to the stages that write them, as `Notebook.reads`.
    run : Path

    Raises
    ------
    ValueError
        The stages that have not finished, or not since they write such an artifact.
    """
    found = {}
    for name, writer in reads.items():
        marker = read_marker(run, writer)
        if marker and name in marker.artifacts:
            found[name] = marker.artifacts[name]
    if missing := [name for name in reads if name not in found]:
        unfinished = dict.fromkeys(reads[name] for name in missing)
        said = f"{', '.join(unfinished)} has not finished in {run}. Run it first:"
        command = f"./run_all.sh --profile {run.name} --only "
        command += ",".join(stage.split("_")[0] for stage in unfinished)
        raise ValueError(f"{', '.join(missing)}: {said} {command}")
    return found


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Hold a run's folder, so that no other run changes its artifacts meanwhile.

    Raises
    ------
    ValueError
        Another process holds it; the message names it.
    """
    holder = run / ".holder"
    run.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run / ".lock", timeout=0):
            command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
            artifacts.write_text(holder, f"process {os.getpid()} ({command})")
            yield
    except Timeout:
        who = holder.read_text("utf-8") if holder.exists() else "another process"
        remedy = "Wait until it has ended, or set COTSPEC_RUNS to another folder"
        raise ValueError(f"{run}: {who} is at work here. {remedy}") from None


def check_seed(seed: object) -> None:
    """Raise ValueError unless it is a whole number that all libraries take."""
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:  # True is an int, too
        raise ValueError(f"SEED: {seed!r}. Allowed: whole, 0 to {MAX_SEED}")


def open_stage(name: str, profile: str, seed: int, overrides: dict) -> Stage:
    """Open the stage of a notebook; its first code line after the parameters.

    Parameters
    ----------
    name : str
        The notebook's file stem, such as ``"02_filtering"``.
    profile, seed, overrides
        The values of the parameters cell, or of the command line.

    Raises
    ------
    ValueError
        Unknown profile or field, an input that is not there yet, or a run of the
        series that is at work in the same folder.
    """
    profiles.resolve(profile, overrides)
    check_seed(seed)
    given = {"PROFILE": profile, "SEED": seed, "OVERRIDES": overrides or {}}
    series = {nb.name: nb for nb in load_series(artifacts.repository_root())}
    if name not in series:
        raise ValueError(f"stage: {name!r}. Allowed: {', '.join(series)}")
    notebook = replace(series[name], parameters=given)
    # Names are enough, and `--set` gives every notebook all overrides.
    notes = []
    for dotted in given["OVERRIDES"]:
        section = dotted.split(".")[0]
        readers = [n[:2] for n, nb in series.items() if section in nb.sections]
        if section not in notebook.sections:
            said = f"<code>{dotted}</code> changes nothing in this notebook (read by "
            notes.append(f"<b>OVERRIDES:</b> {said}{', '.join(readers) or 'none'})")
    disable_progress_bars()  # of small table operations; long steps have their own
    if not os.environ.get(RUNNER):
        with alone_in(notebook.run):
            pass
    return Stage(notebook, notes)
