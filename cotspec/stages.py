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
import functools
import hashlib
import importlib.metadata
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import pandas as pd
from datasets import Dataset, disable_progress_bars
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from pydantic import BaseModel, Field

from cotspec import artifacts, figures, profiles

logger = logging.getLogger(__name__)

PARAMETERS = ("PROFILE", "SEED", "OVERRIDES")
MAX_SEED = 2**32 - 1
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
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]
_DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class _Metadata(BaseModel):
    tags: list = []


class _Cell(BaseModel):
    cell_type: str
    metadata: _Metadata
    source: str | list[str]

    @property
    def text(self) -> str:
        return "".join(self.source)


class _File(BaseModel):
    """A notebook's file; read as JSON, since importing nbformat takes seconds."""

    cells: Annotated[list[_Cell], Field(min_length=1)]


@dataclass(frozen=True)
class Notebook:
    """A notebook of the series, as far as it matters for running it."""

    name: str
    path: Path
    title: str
    parameters: Mapping[str, object]
    code: tuple[str, ...]  # code cells but the parameters cell
    code_hash: str  # of what they do: comments and layout do not count
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    sections: tuple[str, ...]
    modules: tuple[str, ...]  # source files, relative to the repository


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
    body = tuple(c.text for c in code if c is not tagged[0])
    parsed = [_parse(f"{path.name}: code cell {n}", c) for n, c in enumerate(body, 1)]
    tree = ast.Module(body=[one for cell in parsed for one in cell], type_ignores=[])
    # A cell shows its last value, unless a semicolon ends it.
    done = [
        [*map(ast.dump, cell), source.rstrip().endswith(";")]
        for cell, source in zip(parsed, body, strict=True)
        if cell
    ]
    heads = [c.text for c in cells if c.cell_type == "markdown" and c.text[:2] == "# "]
    modules = _source_closure(_imported_files(tree))
    reads, writes, sections = _uses(path.name, _reached(tree, modules))
    return Notebook(
        name=path.stem,
        path=path,
        title=heads[0].splitlines()[0][2:].strip() if heads else path.stem,
        parameters=_literals(f"{path.name}: the parameters cell", tagged[0].text),
        code=body,
        code_hash=artifacts.digest_of(done),
        reads=tuple(reads),
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
    series = [load_notebook(p) for p in sorted((root / "notebooks").glob("*.ipynb"))]
    if not series:
        raise ValueError(f"COTSPEC_ROOT: no notebooks in {root / 'notebooks'}")
    written: set[str] = set()
    for notebook in series:
        missing = [name for name in notebook.reads if name not in written]
        if missing:
            raise ValueError(
                f"{notebook.name} reads {missing[0]!r}, which no earlier notebook "
                f"writes. Written so far: {', '.join(sorted(written))}"
            )
        if twice := written.intersection(notebook.writes):
            raise ValueError(
                f"{notebook.name} writes {min(twice)!r}, as an earlier notebook does"
            )
        written |= set(notebook.writes)
    return series


def producers(series: list[Notebook]) -> dict[str, str]:
    """Return ``{artifact name: name of the notebook that writes it}``."""
    return {name: nb.name for nb in series for name in nb.writes}


def _parse(where: str, source: str) -> list[ast.stmt]:
    # Jupyter's own lines become texts, so that they count when they change.
    magic = re.sub(r"(?m)^([ \t]*)([%!].*)", lambda m: m[1] + repr(m[2]), source)
    # In plain Python, a line may begin with modulo. What is neither (`name?`, `%%bash`)
    # becomes what IPython makes of it.
    for write in (lambda: source, lambda: magic, lambda: _as_ipython(source)):
        try:
            return ast.parse(write()).body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            reason = error
    raise ValueError(f"{where} does not parse: {reason}") from reason


def _as_ipython(source: str) -> str:
    from IPython.core.inputtransformer2 import TransformerManager  # takes a second

    return TransformerManager().transform_cell(source)


def _literals(where: str, source: str) -> dict[str, object]:
    values: dict[str, object] = {}
    for node in _parse(where, source):
        match node:
            case ast.Assign([ast.Name(name)], value) if name in PARAMETERS:
                try:
                    values[name] = ast.literal_eval(value)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{where}: {name} is not a literal") from error
            case _:
                raise ValueError(
                    f"{where} holds only assignments to {', '.join(PARAMETERS)}; "
                    f"found line {node.lineno}"
                )
    if missing := [name for name in PARAMETERS if name not in values]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return values


def _uses(name: str, nodes: Iterable[ast.AST]) -> tuple[dict, dict, dict]:
    """Return artifacts read and written, and attributes of ``profile``, as keys."""
    reads, writes, attributes = {}, {}, {}
    for node in nodes:
        match node:
            case ast.Call(ast.Attribute(ast.Name("stage"), "read" | "write" as method)):
                match node.args:
                    case [ast.Constant(str(artifact)), *_]:
                        (reads if method == "read" else writes)[artifact] = None
                    case _:
                        raise ValueError(
                            f"{name}: stage.{method} needs a literal artifact name"
                        )
            case ast.Attribute(ast.Name("profile") | ast.Attribute(_, "profile"), used):
                attributes[used] = None
    return reads, writes, attributes


def _reached(tree: ast.Module, files: Iterable[str]) -> Iterator[ast.AST]:
    """Yield the nodes of cells and of the package's functions that get their stage.

    Such a function calls its parameter ``stage`` or ``profile``, as the cells do.
    """
    frontier: list[ast.AST] = [tree]
    for part in frontier:  # which grows meanwhile
        for node in ast.walk(part):
            yield node
            match node:
                case ast.Call(ast.Name(name) | ast.Attribute(_, name), given, named):
                    values = (*given, *(keyword.value for keyword in named))
                    handed = {ast.unparse(value) for value in values}
                    if handed & {"stage", "profile", "stage.profile"}:
                        called = [_examined(file)[2].get(name) for file in files]
                        frontier += [c for c in called if c and c not in frontier]


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


def sources_digest(module: str) -> str:
    """Return the SHA-256 of the code reachable from ``"cotspec.training"``, say."""
    files = _source_closure(filter(None, [_module_file(module)]))
    return artifacts.digest_of({file: _examined(file)[0] for file in files})


@functools.cache
def code_of(module: str) -> list[object]:
    """Return what computes a module's results: sources and versions of packages."""
    names = ("torch", "transformers", "accelerate")
    versions = {name: importlib.metadata.version(name) for name in names}
    return [sources_digest(module), versions]


@functools.cache
def _examined(file: str) -> tuple[str, set[str], dict[str, ast.AST]]:
    """Hash what a source does: comments, docstrings and layout do not count.

    The second value: the sources it imports, and the data it names in `DATA_FILES`; the
    third: its functions.
    """
    path = _PACKAGE_ROOT / file
    if path.suffix != ".py":
        return artifacts.checksum(path)[:16], set(), {}
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
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], found, functions


def stage_key(
    notebook: Notebook, profile: profiles.Profile, seed: int, inputs: Mapping[str, str]
) -> dict[str, object]:
    """Return what a stage's result depends on; `artifacts.digest_of` it names it.

    Parameters
    ----------
    notebook : Notebook
    profile : Profile
        Only the sections that the notebook uses enter the key.
    seed : int
    inputs : dict
        ``{artifact name: SHA-256}`` of what the notebook reads.
    """
    values, lock = profiles.as_dict(profile), artifacts.repository_root() / LOCK_FILE
    uses_tasks = any(file.startswith("cotspec/tasks") for file in notebook.modules)
    return {
        "notebook": notebook.code_hash,
        "seed": seed,
        "profile": {
            f"{section}.{field}": value
            for section in notebook.sections
            for field, value in values[section].items()
            if f"{section}.{field}" not in NOT_SETTINGS
        },
        "sources": {file: _examined(file)[0] for file in notebook.modules},
        "inputs": dict(inputs),
        "outside": _outside(notebook.sections, profile),
        "lock": artifacts.checksum(lock)[:16] if lock.exists() else "none",
        "data": _data_digest(profile.data) if uses_tasks else "",
    }


def _data_digest(data: profiles.DataConfig) -> str:
    """Return what identifies the real data; nothing for the micro-world's own."""
    several = data.out_of_distribution_tasks + data.generic_tasks
    if all(name.startswith("micro/") for name in (data.train_task, *several)):
        return ""
    folder = os.environ.get("COTSPEC_DATA")
    return artifacts.checksum(Path(folder))[:16] if folder else "hub"


def _outside(sections: tuple[str, ...], profile: profiles.Profile) -> dict[str, str]:
    """Name the contents of files and models that settings point to."""
    found: dict[str, str] = {}
    student, grids = profile.student, profile.experiments
    models = {
        "teacher": [(profile.teacher.model, "")],
        "student": [(student.model, student.start)],
        "experiments": [(model, "instruction_tuned") for model in grids.students]
        + [(model, "raw") for model in grids.raw_students],
    }
    if "teacher" in sections and profile.teacher.path:
        path = Path(profile.teacher.path)
        found["teacher.path"] = artifacts.identity(path) if path.exists() else "missing"
    # Read here, since importing the models takes seconds.
    manifest = _PACKAGE_ROOT / "cotspec/micro/weights/manifest.json"
    shipped = artifacts.read_json(manifest) if manifest.exists() else {}
    for model, start in (m for section in sections for m in models.get(section, ())):
        if model.startswith("micro-"):
            name = f"{model}-{start}".removeprefix("micro-").strip("-")
            # A student has several bases.
            own = [d["sha256"][:16] for n, d in shipped.items() if n.startswith(name)]
            found[f"{model} {start}"] = " ".join(own) or "unknown"
        elif model and Path(model).is_dir():  # "" is no folder
            found[f"{model} {start}"] = artifacts.identity(Path(model))
    return found


# What `explain` says of parts of a key; of others, which of their names changed.
_CHANGES = {
    "notebook": "the notebook's code changed",
    "seed": "seed {old} -> {new}",
    "profile": "{name} {old} -> {new}",
    "lock": "the lock file changed",
    "data": "the data folder changed",
}


def explain(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Say in words why a key changed: one line per reason."""
    reasons = []
    for part in new:
        before, after = (
            value if isinstance(value, dict) else {part: value}
            for value in (old.get(part), new[part])
        )
        words = _CHANGES.get(part, "{name} changed")
        reasons += [
            words.format(name=name, old=before.get(name), new=after.get(name))
            for name in sorted(before.keys() | after.keys())
            if before.get(name) != after.get(name)
        ]
    return reasons


class ProfileView(SimpleNamespace):
    """The sections of a profile that a notebook declares by using them."""

    def __getattr__(self, name: str) -> object:
        raise AttributeError(
            f"profile.{name}: not used in the saved notebook. Save the notebook and "
            f"rerun the cell that opens the stage. Sections: {profiles.SECTIONS}"
        )


class Stage:
    """One notebook's run: its profile, inputs, outputs and success marker."""

    def __init__(
        self,
        notebook: Notebook,
        profile: profiles.Profile,
        seed: int,
        run: Path,
        overrides: Iterable[str] = (),
    ) -> None:
        series = load_series(artifacts.repository_root())
        self.notebook, self.seed, self.run = notebook, seed, run
        shown = ("name", "summary", *notebook.sections)
        self.profile = ProfileView(**{name: getattr(profile, name) for name in shown})
        self.folder = run / "artifacts" / notebook.name
        self._inputs = find_artifacts(notebook.reads, series, run)
        inputs = {name: entry.sha256 for name, entry in self._inputs.items()}
        self._key_parts = stage_key(notebook, profile, seed, inputs)
        self._key = artifacts.digest_of(self._key_parts)
        self.work = run / "work" / f"{notebook.name}-{self._key[:12]}"
        self.work.mkdir(parents=True, exist_ok=True)
        # Overrides that this notebook does not read, and the notebooks that do.
        self._unused = {
            dotted: [nb.name.split("_")[0] for nb in series if section in nb.sections]
            for dotted in overrides
            if (section := dotted.split(".")[0]) not in notebook.sections
        }
        self._written: dict[str, Path] = {}
        self._started = time.monotonic()

    def read(self, name: str) -> Dataset | pd.DataFrame | dict | str | Path:
        """Return an earlier stage's artifact in the form it was written in."""
        if name not in self._inputs:
            raise ValueError(
                f"stage.read: {name!r} is not an input of the saved notebook "
                f"{self.notebook.name}. Known: {', '.join(self._inputs)}"
            )
        path = self.run / self._inputs[name].path
        if artifacts.checksum(path) != self._inputs[name].sha256:
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
        target = self.run / _plain(folder) if folder else self.folder
        self._written[name] = _store(target / _plain(name), value)
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
        (self.folder / artifacts.SUCCESS).unlink(missing_ok=True)
        facts = {
            "stage": self.notebook.name,
            "key": self._key,
            "profile": self.profile.name,
            "seed": self.seed,
        }
        options = {"data": data, "caption": caption, "provenance": facts}
        made = figures.save_figure(chart, self.run / "figures", _plain(name), **options)
        self._written |= {f"figure:{name}.{kind}": p for kind, p in made.items()}
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
        path = self.run / "figures" / f"{_plain(name)}.csv"
        text = f"{caption}\n\n{artifacts.markdown_table(table)}\n".encode()
        self._written |= {
            f"table:{name}.csv": artifacts.write_frame(path, table),
            f"table:{name}.md": artifacts.write_bytes(path.with_suffix(".md"), text),
        }
        return table

    def finish(self) -> str:
        """Write the success marker, delete leftovers, and return one line about it."""
        missing = set(self.notebook.writes) - self._written.keys()
        if missing:
            raise ValueError(f"stage.finish: {sorted(missing)} not written yet")
        seconds = time.monotonic() - self._started
        marker = self.folder / artifacts.SUCCESS
        content = {
            "stage": self.notebook.name,
            "key": self._key,
            "key_parts": self._key_parts,
            "artifacts": {
                name: {
                    "path": os.path.relpath(path, self.run),
                    "sha256": artifacts.checksum(path),
                }
                for name, path in self._written.items()
            },
            "seconds": round(seconds, 1),
            "provenance": artifacts.provenance(),
        }
        artifacts.write_json(marker, content)
        kept = {*self._written.values(), marker}
        works = (self.run / "work").glob(f"{self.notebook.name}-*")
        for path in (*self.folder.iterdir(), *works):
            if path not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder = os.path.relpath(self.folder, self.run.parent.parent)
        return f"{self.notebook.name}: {seconds:.1f} s, results in {folder}"

    def _repr_html_(self) -> str:
        used = ", ".join(f"<code>{s}</code>" for s in self.notebook.sections) or "none"
        reads = ", ".join(f"<code>{r}</code>" for r in self.notebook.reads) or "none"
        shown = (
            f"<b>{self.notebook.name}</b> · profile <b>{self.profile.name}</b> · "
            f"seed {self.seed}<br>settings used: {used} · artifacts read: {reads}"
        )
        if self._unused:
            # Numbers are enough, and `--set` gives every notebook all overrides.
            unread = (
                f"<code>{dotted}</code> (read by {', '.join(readers) or 'none'})"
                for dotted, readers in self._unused.items()
            )
            shown += "<br><b>OVERRIDES that change nothing in this notebook:</b> "
            shown += ", ".join(unread)
        return shown


def _plain(name: str) -> str:
    """Refuse a name that leads out of its folder, or is that of the marker."""
    if not re.fullmatch(r"(?!SUCCESS)\w[\w.-]*", name):
        raise ValueError(f"stage: name {name!r}. Allowed: letters, digits and _.-")
    return name


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


class Entry(BaseModel):
    """Where an artifact lies, counted from the run's folder, and its checksum."""

    path: str
    sha256: str


class Marker(BaseModel):
    """What a finished stage leaves, as far as it is read again."""

    key: str
    key_parts: dict
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


def find_artifacts(
    names: Iterable[str], series: list[Notebook], run: Path
) -> dict[str, Entry]:
    """Return where finished stages put artifacts, by name.

    Raises
    ------
    ValueError
        The stages that have not finished, or not since they write such an artifact.
    """
    found: dict[str, Entry] = {}
    missing: dict[str, str] = {}
    for name in names:
        stage = producers(series)[name]
        marker = read_marker(run, stage)
        if marker and name in marker.artifacts:
            found[name] = marker.artifacts[name]
        else:
            missing[name] = stage
    if missing:
        unfinished = dict.fromkeys(missing.values())
        numbers = ",".join(stage.split("_")[0] for stage in unfinished)
        raise ValueError(
            f"{', '.join(missing)}: {', '.join(unfinished)} has not finished in {run}. "
            f"Run it first: ./run_all.sh --profile {run.name} --only {numbers}"
        )
    return found


def verify(run: Path, marker: Marker) -> list[str]:
    """Return the artifacts of a finished stage that are missing or changed."""
    return [
        name
        for name, entry in marker.artifacts.items()
        if not (run / entry.path).exists()
        or artifacts.checksum(run / entry.path) != entry.sha256
    ]


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Hold a run's folder, so that no other run changes its artifacts meanwhile.

    Raises
    ------
    ValueError
        Another process holds it, which the message names, or it cannot be written.
    """
    holder = run / ".holder"
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run / ".lock").acquire(timeout=0)
    except Timeout:
        who = holder.read_text("utf-8") if holder.exists() else "another process"
        raise ValueError(
            f"{run}: {who} is at work here. Wait until it has ended, or set "
            "COTSPEC_RUNS to another folder"
        ) from None
    except OSError as error:
        said = f"{run}: cannot be written ({error.strerror})"
        raise ValueError(f"{said}; set COTSPEC_RUNS to another folder") from None
    with lock:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        artifacts.write_bytes(holder, f"process {os.getpid()} ({command})".encode())
        yield


def check_seed(where: str, seed: object) -> None:
    """Raise ValueError unless it is a whole number that all libraries take."""
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:  # True is an int, too
        raise ValueError(f"{where}: {seed!r}. Allowed: whole, 0 to {MAX_SEED}")


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
    folder = artifacts.repository_root() / "notebooks"
    path = folder / f"{name}.ipynb"
    if not path.exists():
        names = sorted(p.stem for p in folder.glob("*.ipynb"))
        raise ValueError(f"notebook: unknown {name!r}. Allowed: {', '.join(names)}")
    resolved = profiles.resolve(profile, overrides)
    check_seed("SEED", seed)
    disable_progress_bars()  # of small table operations; long steps have their own
    run = artifacts.run_dir(profile)
    if RUNNER not in os.environ:
        with alone_in(run):
            pass
    return Stage(load_notebook(path), resolved, seed, run, overrides or ())
