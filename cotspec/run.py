"""The series runner: ``python -m cotspec.run``, called by ``run_all.sh``.

Enters: a profile's name, ``--set`` overrides, which stages. Leaves: executed notebooks,
artifacts with success markers, an HTML page of the series and the report under
``runs/<profile>/``. A stage whose key has not changed is not run again. Before hours of
work the preflight says everything that is missing, each with its remedy.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shlex
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from cotspec import artifacts, pages, profiles, sizing, stages
from cotspec.sizing import GIB

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130
MIN_FREE = 2 * GIB
# `run_all.sh` changes the folder and says here where it was called.
STARTED_IN = "COTSPEC_STARTED_IN"
FOLDERS = ("COTSPEC_ROOT", "COTSPEC_RUNS", "COTSPEC_DATA")
BACKEND = "teacher.backend"
# Profiles whose results are in the repository, and where.
COMMITTED = {profiles.DEFAULT_PROFILE: "figures", "smollm2": "figures/smollm2"}
MODEL_FIELDS = (
    "student.model",
    "experiments.students",
    "experiments.raw_students",
    "teacher.model",
)
PATH_FIELDS = (*MODEL_FIELDS, "teacher.path", "student.tokenizer")
BUILT_IN_MODELS = ("micro-", "random:", "smollm2")


@dataclass(frozen=True)
class Request:
    """What the command line asked for, of which series."""

    series: list[stages.Notebook]
    profile: str
    seed: int | None
    overrides: Mapping[str, object]
    chosen: frozenset[str]
    force: bool = False

    @property
    def run(self) -> Path:
        """The folder of the profile's run."""
        return artifacts.run_dir(self.profile)

    def parameters(self, notebook: stages.Notebook) -> dict[str, object]:
        """The notebook's own parameters, overridden by the command line."""
        cell, seed = notebook.parameters["OVERRIDES"] or {}, self.seed
        seed = notebook.parameters["SEED"] if seed is None else seed
        try:
            profiles.resolve(self.profile, cell)  # refuses what is no dict
            stages.check_seed("SEED", seed)
        except ValueError as error:  # one of twelve notebooks
            raise ValueError(f"{notebook.name}: {error}") from None
        folder = notebook.path.parent
        overrides = {name: _located(name, cell[name], folder) for name in cell}
        overrides |= self.overrides
        return {"PROFILE": self.profile, "SEED": seed, "OVERRIDES": overrides}

    def resolved(self, notebook: stages.Notebook) -> profiles.Profile:
        """The notebook's profile with its overrides applied."""
        return profiles.resolve(self.profile, self.parameters(notebook)["OVERRIDES"])

    def key(self, notebook: stages.Notebook) -> dict[str, dict]:
        """What the stage's result depends on when it runs now."""
        inputs = stages.find_artifacts(notebook.reads, self.series, self.run)
        seed = self.parameters(notebook)["SEED"]
        return stages.stage_key(notebook, self.resolved(notebook), seed, inputs)

    def sources(self, notebook: stages.Notebook) -> list[str]:
        """The stages that write what a notebook reads."""
        by_name = stages.producers(self.series)
        return list(dict.fromkeys(by_name[name] for name in notebook.reads))


def _located(name: str, value: object, folder: Path) -> object:
    """Make a relative path of a profile's field absolute; other values stay."""
    if isinstance(value, (list, tuple)):
        return [_located(name, item, folder) for item in value]
    if not value or name not in PATH_FIELDS:
        return value
    path = _absolute(value, folder)
    is_folder = not value.startswith(BUILT_IN_MODELS) and os.path.isdir(path)
    return path if is_folder or name == "teacher.path" else value


def _absolute(path: str, folder: Path) -> str:
    return os.path.abspath(folder / os.path.expanduser(path))


def stale_because(
    notebook: stages.Notebook, request: Request, remade: Collection[str] = ()
) -> list[str]:
    """Say why a stage must run; no reason: it is up to date.

    Parameters
    ----------
    notebook : Notebook
    request : Request
    remade : collection of str
        Stages that are about to run, whose artifacts may therefore change.
    """
    marker = stages.read_marker(request.run, notebook.name)
    if marker is None:
        return ["it has not finished yet"]
    if request.force and notebook.name in request.chosen:
        return ["--force"]
    if first := [name for name in request.sources(notebook) if name in remade]:
        return [f"{name} runs first" for name in first]
    key = request.key(notebook)
    if artifacts.digest_of(key) != marker.key:
        return stages.explain(marker.key_parts, key)
    damaged = stages.verify(request.run, marker)
    return [f"{name} is missing or changed" for name in damaged]


def plan_series(request: Request) -> dict[str, list[str]]:
    """Return why each chosen stage, or one that it builds on, must run.

    A stage that runs counts as changing its artifacts; no reason: it is up to date.

    Raises
    ------
    ValueError
        A stage that is not chosen has not finished, whose artifacts a chosen one reads.
    """
    needed, writers = set(request.chosen), stages.producers(request.series)
    for notebook in reversed(request.series):
        if notebook.name in needed:
            needed.update(request.sources(notebook))
    plans: dict[str, list[str]] = {}
    for notebook in (one for one in request.series if one.name in needed):
        stale = {name for name, reasons in plans.items() if reasons}
        if notebook.name in request.chosen:
            stale &= request.chosen
            there = [a for a in notebook.reads if writers[a] not in request.chosen]
            stages.find_artifacts(there, request.series, request.run)
        plans[notebook.name] = stale_because(notebook, request, stale)
    return plans


class StageFailed(RuntimeError):
    """A notebook did not reach its success marker; the message says where and why."""


def execute(notebook: stages.Notebook, request: Request) -> None:
    """Execute one notebook with papermill.

    Raises
    ------
    StageFailed
        A cell raised, the kernel died, or the success marker is not the expected one.
    """
    import papermill

    output = request.run / "notebooks" / f"{notebook.name}.ipynb"
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    expected = request.key(notebook)
    marker = request.run / "artifacts" / notebook.name / artifacts.SUCCESS
    marker.unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook.path),
            str(partial),
            parameters=request.parameters(notebook),
            cwd=str(notebook.path.parent),
            kernel_name="python3",
            language="python",
            extra_arguments=["--log-level=CRITICAL"],
            progress_bar={"desc": f"  {notebook.name}", "leave": False},
            coalesce_streams=True,  # of a bar in a cell the last line stays
        )
    except papermill.PapermillExecutionError as error:
        raise StageFailed(_describe(notebook, error)) from error
    except RuntimeError as error:  # DeadKernelError
        raise StageFailed(f"{notebook.name}: the kernel died ({error})") from error
    finally:
        if partial.exists():
            os.replace(partial, output)
    finished = stages.read_marker(request.run, notebook.name)
    if finished is None:
        raise StageFailed(
            f"{notebook.name}: all cells ran, but stage.finish() did not. "
            "Call it in the last cell"
        )
    if finished.key != artifacts.digest_of(expected):
        reasons = "; ".join(stages.explain(expected, finished.key_parts))
        raise StageFailed(f"{notebook.name}: changed while it ran: {reasons}")


def _describe(notebook: stages.Notebook, error) -> str:
    """Name the cell (counted from 1 in the source), and the end of the traceback."""
    number = error.cell_index  # papermill's injected cell makes up for counting from 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))  # colours
    tail = [line for line in text.splitlines() if line.strip()][-12:]
    shown = [*error.source.splitlines()[:6], "failed with:", *tail]
    return "\n    ".join([f"{notebook.name}, cell {number}:", *shown])


def run_series(request: Request, resume: str) -> int:
    """Run the stale ones of the chosen stages; return the exit status.

    Parameters
    ----------
    request : Request
    resume : str
        The command that goes on after a failure.
    """
    run, failed = request.run, 0
    chosen = [nb for nb in request.series if nb.name in request.chosen]
    started, num_run = time.monotonic(), 0
    for number, notebook in enumerate(chosen, 1):
        head = f"[{number}/{len(chosen)}] {notebook.name}"
        reasons = stale_because(notebook, request)
        if not reasons:
            _say(f"{head}: up to date")
            continue
        _say(f"{head}: running ({'; '.join(reasons[:3])})")
        num_run += 1
        begun = time.monotonic()
        try:
            execute(notebook, request)
        except StageFailed as error:
            _say(f"\n{error}\n")
            _say(f"  executed notebook: {run / 'notebooks' / notebook.name}.ipynb")
            _say(f"  finished work is kept. To resume: {resume}\n")
            failed = FAILED
            break
        _say(f"{head}: done in {time.monotonic() - begun:.0f} s")
    if num_run:
        _say(f"series page: {pages.write_pages(run, request.series)}")
    if (run / "report" / "REPORT.md").exists() and not failed:
        _say(f"report: {run / 'report' / 'REPORT.md'}")
    outcome = "1 failed" if failed else "nothing failed"
    _say(f"{num_run} stages ran, {outcome}, {time.monotonic() - started:.0f} s")
    return failed


_say = functools.partial(print, flush=True)


def preflight(stale: sizing.Stale) -> None:
    """Check, in seconds, what the stages that are about to run need.

    Parameters
    ----------
    stale : sequence of (Notebook, Profile)
        Each profile with the notebook's overrides applied.

    Raises
    ------
    ValueError
        Listing every problem found, each with its remedy.
    """
    from cotspec.tasks import sources

    is_online = functools.cache(sources.is_reachable)  # takes seconds where it is not
    used = defaultdict(set)  # values of the fields that any of the stages reads
    for notebook, profile in stale:
        for section in notebook.sections:
            for field, value in profiles.as_dict(profile)[section].items():
                values = value if isinstance(value, list) else [value]
                used[f"{section}.{field}"] |= set(values)
    name = stale[0][1].name
    problems = [
        *_disk(sizing.checkpoint_bytes(stale), artifacts.run_dir(name)),
        *_card(stale),
        *_data(used, is_online),
        *_models(used, is_online),
        *_teacher(used),
    ]
    if problems:
        said = [f"profile {name!r} cannot run yet:", *problems]
        raise ValueError("\n  - ".join(said))


def _disk(checkpoints: int, run: Path) -> Iterator[str]:
    existing = next(p for p in (run, *run.parents) if p.exists())
    begun = [p.lstat() for part in ("work", "store") for p in (run / part).rglob("*")]
    there = sum({stat.st_ino: stat.st_size for stat in begun}.values())
    room = shutil.disk_usage(existing).free + there
    needed = checkpoints + MIN_FREE
    if room < needed:
        yield (
            f"disk: {room / GIB:,.1f} GiB at {existing}, {needed / GIB:,.1f} needed, "
            f"{checkpoints / GIB:,.1f} of them for checkpoints; free some, set "
            "COTSPEC_RUNS to another disk, or choose fewer training.num_checkpoints, "
            "experiments.seeds or stages"
        )


def _card(stale: sizing.Stale) -> Iterator[str]:
    """Say what a FlanT5 needs; a problem where the machine's card is too small."""
    if needs := sizing.needs(stale):
        import torch

        said, needed = needs
        _say(f"needs: {said}")
        is_there = torch.cuda.is_available()
        room = torch.cuda.get_device_properties(0).total_memory if is_there else needed
        if needed > room:
            yield (
                f"card: {room / GIB:.0f} GiB, {needed / GIB:.0f} needed; choose a "
                "smaller training.batch_tokens (with more gradient_accumulation_steps),"
                " training.activation_checkpointing=true or optimizer=adafactor"
            )


def _data(used: Mapping[str, set], is_online: Callable[[], bool]) -> Iterator[str]:
    from huggingface_hub import constants

    from cotspec import tasks

    found = {v for field in used if field.startswith("data.") for v in used[field]}
    real = sorted(v for v in found if isinstance(v, str) and not v.startswith("micro/"))
    if real and os.environ.get("COTSPEC_DATA"):
        yield from tasks.missing(real)
    elif real and not constants.HF_HUB_OFFLINE and not is_online():
        yield (
            f"data: {', '.join(real[:4])} come from the Hugging Face hub, which "
            "cannot be reached; set COTSPEC_DATA to a folder laid out as README.md says"
        )


def _models(used: Mapping[str, set], is_online: Callable[[], bool]) -> Iterator[str]:
    """Faults of every model: all students, not only the profile's own."""
    starts = {MODEL_FIELDS[0]: used["student.start"], MODEL_FIELDS[2]: {"raw"}}
    frozen = max(used["training.num_frozen_layers"], default=0)
    for field in (*MODEL_FIELDS, "student.tokenizer"):
        is_remote = field == "teacher.model" and "huggingface" not in used[BACKEND]
        for name in () if is_remote else sorted(used[field] - {None}):
            try:
                layers = _look_for(field, name, starts.get(field, ()), is_online)
                if field in MODEL_FIELDS[:3] and frozen > layers:
                    said = f"training.num_frozen_layers: {frozen}. Allowed for {name}:"
                    yield f"{said} 0 to {layers} (0 with an encoder)"
            except ValueError as error:
                yield str(error)
    odd = (used["student.tokenizer"] | used["student.revision"]) - {None, ""}
    if odd and any(name.startswith("micro-") for name in used["student.model"]):
        said = f"student.tokenizer, student.revision: {min(odd)!r}"
        yield f"{said} is not read of a shipped student"


def _look_for(
    field: str, name: str, starts: Collection[str], is_online: Callable[[], bool]
) -> int:
    """Return a decoder's layers, 0 with an encoder; ValueError: it is not to be had."""
    from cotspec import models
    from cotspec.micro import shipped

    if field == "student.tokenizer":
        models.load_tokenizer(name)
    elif name == models.MICRO_TEACHER:
        shipped.load("teacher")
    elif name == models.SMOLLM2:
        models.smollm2_gguf()
        return models.SMOLLM2_LAYERS
    elif name.startswith(models.MICRO_PREFIX) and field != "teacher.model":
        for start in starts:
            shipped.load_student(name.removeprefix(models.MICRO_PREFIX), start)
    elif name.startswith(models.RANDOM_PREFIX) and field != "teacher.model":
        models.flan_t5_config(name.removeprefix(models.RANDOM_PREFIX))
        models.load_student_tokenizer(profiles.StudentConfig(name))
    else:
        config = models.load_config(name, field, local_files_only=not is_online())
        has_encoder = getattr(config, "is_encoder_decoder", False)
        return 0 if has_encoder else config.get_text_config().num_hidden_layers
    return 0


def _teacher(used: Mapping[str, set]) -> Iterator[str]:
    backends = used[BACKEND]
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if "openai" in backends and not (used["teacher.base_urls"] or key):
        yield (
            "teacher.backend 'openai': set OPENAI_API_KEY in the environment, "
            "or --set teacher.base_urls=http://localhost:8000/v1"
        )
    for path in used["teacher.path"] if backends & {"recorded", "release"} else ():
        is_there = os.path.isdir if "release" in backends else os.path.isfile
        if not path or not is_there(path):
            yield (
                f"teacher.path: {path!r} is not there; backend {', '.join(backends)} "
                "reads a file (release: a folder): --set teacher.path=/path"
            )


def build_parser() -> argparse.ArgumentParser:
    """The command line of the runner."""
    parser = argparse.ArgumentParser(
        prog="run_all.sh",
        description="Run the notebook series with papermill.",
        epilog="As the first word instead: --test [arguments of pytest] runs the "
        "tests, --lab opens JupyterLab on the series.",
        allow_abbrev=False,
    )
    add, known = parser.add_argument, ", ".join(profiles.PROFILES)
    switch = {"action": "store_true"}
    several = {"action": "append", "default": [], "metavar": "FIELD=VALUE"}
    text = f"one of: {known} (default: %(default)s)"
    add("--profile", help=text, default=profiles.DEFAULT_PROFILE)
    add("--only", help="only these stages: 04,05 or full names")
    add("--set", help="override a field: training.learning_rate=1e-3", **several)
    add("--seed", help="override every notebook's SEED", type=int)
    add("--force", help="run the chosen stages although up to date", **switch)
    add("--dry-run", help="say what would run, and why", **switch)
    add("--publish", help="afterwards copy figures and report to figures/", **switch)
    return parser


def choose(series: list[stages.Notebook], only: str | None) -> frozenset[str]:
    """Return the names of the chosen stages; numbers and prefixes are enough."""
    names, chosen = [notebook.name for notebook in series], set()
    for prefix in names if only is None else only.split(","):
        found = [name for name in names if name.startswith(prefix.strip())]
        if len(found) != 1:
            raise ValueError(
                f"--only: {prefix!r} names {len(found)} notebooks. "
                f"Allowed: {', '.join(names)} (or their numbers)"
            )
        chosen.update(found)
    return frozenset(chosen)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status (0, 1 a stage failed, 2 user error)."""
    given = sys.argv[1:] if argv is None else argv
    arguments = build_parser().parse_args(given)
    try:
        return _main(arguments, given)
    except (ValueError, OSError) as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("\ninterrupted; finished work is kept, run again to resume")
        return INTERRUPTED


def _main(arguments: argparse.Namespace, given: list[str]) -> int:
    here = Path(os.environ.get(STARTED_IN, "."))
    for name in FOLDERS:  # kernels run in notebooks/
        if os.environ.get(name):
            os.environ[name] = _absolute(os.environ[name], here)
    os.environ.pop("JUPYTER_PATH", None)  # its python3 kernel would be taken instead
    if arguments.publish and arguments.profile not in COMMITTED:
        raise ValueError(
            f"--publish: profile {arguments.profile!r}. Allowed: "
            f"{', '.join(COMMITTED)}, whose results are committed"
        )
    if arguments.publish and (arguments.set or arguments.seed is not None):
        raise ValueError("--publish: with --set or --seed. Allowed: neither of them")
    series = stages.load_series(artifacts.repository_root())
    overrides = overrides_of(arguments.profile, arguments.set, here)
    chosen = choose(series, arguments.only)
    asked = arguments.profile, arguments.seed, overrides, chosen, arguments.force
    request = Request(series, *asked)
    resolved = {nb.name: request.resolved(nb) for nb in series if nb.name in chosen}
    plans = plan_series(request)
    for name, reasons in plans.items():
        said = "; ".join(reasons[:3])
        if name not in chosen and reasons:
            _say(f"note: {name} is not chosen, but stale: {said}")
        elif name in chosen and arguments.dry_run:
            _say(f"{name:<28} {f'stale: {said}' if reasons else 'up to date'}")
    if arguments.dry_run:
        return 0
    stale = [nb for nb in series if nb.name in chosen and plans[nb.name]]
    if stale:
        preflight([(notebook, resolved[notebook.name]) for notebook in stale])
    with stages.alone_in(request.run):
        os.environ[stages.RUNNER] = "1"  # for the kernels
        status = run_series(request, _resume_command(given, here))
    if arguments.publish and not status:
        publish(series, arguments.profile)
    return status


def overrides_of(profile: str, sets: Sequence[str], here: Path) -> dict[str, object]:
    """Return the fields given by ``--set``, checked; paths are relative to `here`."""
    given = profiles.parse_sets(sets)
    checked = profiles.resolve(profile, given)
    return {name: _located(name, attrgetter(name)(checked), here) for name in given}


def _resume_command(given: list[str], here: Path) -> str:
    """The command as it was given; --force would run finished stages again."""
    script = os.path.relpath(artifacts.repository_root() / "run_all.sh", here)
    folders = [f"{n}={shlex.quote(os.environ[n])} " for n in FOLDERS if n in os.environ]
    kept = [word for word in given if word != "--force"]
    return "".join(folders) + shlex.join([f"./{script}", *kept])


def publish(series: list[stages.Notebook], profile: str) -> None:
    """Copy the results to their folder, if they are the profile's own and whole."""
    request = Request(series, profile, None, {}, frozenset(nb.name for nb in series))
    plans = plan_series(request)
    own = {nb.name for nb in series if request.parameters(nb)["OVERRIDES"]}
    if odd := [name for name, reasons in plans.items() if reasons or name in own]:
        raise ValueError(
            f"--publish: {', '.join(odd)} are not fresh under the profile's own "
            "settings. Run all stages first, without --set, --seed and OVERRIDES"
        )
    target = artifacts.repository_root() / COMMITTED[profile]
    _say(f"published {pages.publish(request.run, target)} files to {target}")


if __name__ == "__main__":
    sys.exit(main())
