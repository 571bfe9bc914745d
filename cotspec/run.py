"""The series runner: ``python -m cotspec.run``, called by ``run_all.sh``.

Enters: a profile's name, ``--set`` overrides, which stages. Leaves: executed notebooks,
artifacts with success markers, an HTML page of the series and the report under
``runs/<profile>/``. A stage whose key has not changed is not run again. Before hours of
work the preflight says everything that is missing, each with its remedy.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import logging
import os
import re
import shlex
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cotspec import artifacts, pages, profiles, sizing, stages
from cotspec.sizing import GIB

log = logging.getLogger(__name__)

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130
MIN_FREE = 2 * GIB
MAX_SEED = 2**32 - 1
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
class Plan:
    """Whether a stage must run, and why."""

    notebook: stages.Notebook
    reasons: tuple[str, ...]  # empty: up to date

    @property
    def is_stale(self) -> bool:
        return bool(self.reasons)


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    profile: str
    seed: object
    overrides: Mapping[str, object]
    chosen: frozenset[str]
    force: bool = False
    keep_going: bool = False
    resume: str = ""  # the command that goes on after a failure

    def parameters(self, notebook: stages.Notebook) -> dict[str, object]:
        """The notebook's own parameters, overridden by the command line."""
        own, folder = notebook.parameters, notebook.path.parent
        cell = own["OVERRIDES"] or {}
        profiles.resolve(self.profile, cell)  # refuses what is no dict
        seed = own["SEED"] if self.seed is None else self.seed
        if type(seed) is not int or not 0 <= seed <= MAX_SEED:
            where = f"{notebook.name}: SEED" if self.seed is None else "--seed"
            raise ValueError(f"{where}: {seed!r}. Allowed: whole, 0 to {MAX_SEED}")
        overrides = {name: _located(name, cell[name], folder) for name in cell}
        overrides |= self.overrides
        return {"PROFILE": self.profile, "SEED": seed, "OVERRIDES": overrides}

    def resolved(self, notebook: stages.Notebook) -> profiles.Profile:
        """The notebook's profile with its overrides applied."""
        return profiles.resolve(self.profile, self.parameters(notebook)["OVERRIDES"])

    def key(self, notebook: stages.Notebook, series: list) -> stages.StageKey:
        """The key that the stage has when it runs now."""
        run = artifacts.run_dir(self.profile)
        inputs = stages.input_checksums(notebook, series, run)
        seed = self.parameters(notebook)["SEED"]
        return stages.stage_key(notebook, self.resolved(notebook), seed, inputs)


def _located(name: str, value: object, folder: Path) -> object:
    """Make a relative path of a profile's field absolute; other values stay."""
    if isinstance(value, (list, tuple)):
        return [_located(name, item, folder) for item in value]
    is_name = not isinstance(value, str) or value.startswith(BUILT_IN_MODELS)
    if name not in PATH_FIELDS or is_name:
        return value
    path = _absolute(value, folder)
    return path if name == "teacher.path" or os.path.isdir(path) else value


def _absolute(path: str, folder: Path) -> str:
    return os.path.abspath(folder / Path(path).expanduser())


def plan_stage(
    notebook: stages.Notebook, request: Request, series: list, remade: set[str]
) -> Plan:
    """Say whether a stage is stale.

    Parameters
    ----------
    notebook : Notebook
    request : Request
    series : list of Notebook
    remade : set of str
        Stages that are about to run, whose artifacts may therefore change.
    """
    run = artifacts.run_dir(request.profile)
    marker = stages.read_marker(run, notebook.name)
    if marker is None:
        return Plan(notebook, ("it has not finished yet",))
    if request.force and notebook.name in request.chosen:
        return Plan(notebook, ("--force",))
    by_name = stages.producers(series)
    first = dict.fromkeys(by_name[r] for r in notebook.reads if by_name[r] in remade)
    if first:
        return Plan(notebook, tuple(f"{name} runs first" for name in first))
    key = request.key(notebook, series)
    if key.digest != marker["key"]:
        return Plan(notebook, tuple(stages.explain(marker["key_parts"], key.parts)))
    damaged = stages.verify(run, notebook.name)
    return Plan(notebook, tuple(f"{name} is missing or changed" for name in damaged))


def plan_series(request: Request, series: list[stages.Notebook]) -> list[Plan]:
    """Plan every chosen stage, treating stale ones as if they would change."""
    plans, remade = [], set()
    for notebook in series:
        if notebook.name in request.chosen:
            plans.append(plan_stage(notebook, request, series, remade))
            remade |= {notebook.name} if plans[-1].is_stale else set()
    return plans


def stale_inputs(request: Request, series: list[stages.Notebook]) -> list[Plan]:
    """Plans of the stages that the chosen ones build on, stale but not chosen."""
    by_name, needed = stages.producers(series), set(request.chosen)
    for notebook in reversed(series):
        if notebook.name in needed:
            needed |= {by_name[name] for name in notebook.reads}
    above = frozenset(needed - request.chosen)
    plans = plan_series(replace(request, chosen=above, force=False), series)
    return [plan for plan in plans if plan.is_stale]


class StageFailed(RuntimeError):
    """A notebook did not reach its success marker; the message says where and why."""


def execute(notebook: stages.Notebook, request: Request, series: list) -> float:
    """Execute one notebook with papermill; return its seconds.

    Raises
    ------
    StageFailed
        A cell raised, the kernel died, or the success marker is not the expected one.
    """
    import papermill

    run = artifacts.run_dir(request.profile)
    output = run / "notebooks" / f"{notebook.name}.ipynb"
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    expected = request.key(notebook, series)
    (run / "artifacts" / notebook.name / artifacts.SUCCESS).unlink(missing_ok=True)
    started = time.monotonic()
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
        )
    except papermill.PapermillExecutionError as error:
        raise StageFailed(_describe(notebook, error)) from error
    except RuntimeError as error:  # DeadKernelError
        raise StageFailed(f"{notebook.name}: the kernel died ({error})") from error
    finally:
        _keep_executed(partial, output)
    marker = stages.read_marker(run, notebook.name)
    if marker is None:
        raise StageFailed(
            f"{notebook.name}: all cells ran, but stage.finish() did not. "
            "Call it in the last cell"
        )
    if marker["key"] != expected.digest:
        reasons = "; ".join(stages.explain(expected.parts, marker["key_parts"]))
        raise StageFailed(f"{notebook.name}: changed while it ran: {reasons}")
    return time.monotonic() - started


def _keep_executed(partial: Path, output: Path) -> None:
    """Move the executed notebook into place; of a progress bar the last line stays."""
    import nbformat
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    if not partial.exists():
        return
    notebook = nbformat.read(partial, as_version=4)
    collapsed, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    artifacts.write_bytes(output, nbformat.writes(collapsed).encode())
    partial.unlink()


def _describe(notebook: stages.Notebook, error) -> str:
    """Name the cell (counted from 1 in the source), and the end of the traceback."""
    number = error.cell_index  # papermill's injected cell makes up for counting from 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))  # colours
    tail = [line for line in text.splitlines() if line.strip()][-12:]
    return "\n".join(
        [f"{notebook.name}, cell {number}:"]
        + [f"    {line}" for line in error.source.splitlines()[:6]]
        + ["  failed with:"]
        + [f"    {line}" for line in tail]
    )


def run_series(request: Request, series: list[stages.Notebook]) -> int:
    """Run the stale ones of the chosen stages; return the exit status."""
    run, by_name = artifacts.run_dir(request.profile), stages.producers(series)
    chosen = [nb for nb in series if nb.name in request.chosen]
    failed: list[str] = []
    started, num_run = time.monotonic(), 0
    for number, notebook in enumerate(chosen, 1):
        head = f"[{number}/{len(chosen)}] {notebook.name}"
        needs = [by_name[r] for r in notebook.reads if by_name[r] in failed]
        if needs:
            _say(f"{head}: skipped, needs {needs[0]}")
            failed.append(notebook.name)
            continue
        plan = plan_stage(notebook, request, series, set())
        if not plan.is_stale:
            _say(f"{head}: up to date")
            continue
        _say(f"{head}: running ({'; '.join(plan.reasons[:3])})")
        num_run += 1
        try:
            seconds = execute(notebook, request, series)
        except StageFailed as error:
            failed.append(notebook.name)
            _say(f"\n{error}\n")
            _say(f"  executed notebook: {run / 'notebooks' / notebook.name}.ipynb")
            _say(f"  finished work is kept. To resume: {request.resume}\n")
            if not request.keep_going:
                break
        else:
            _say(f"{head}: done in {seconds:.0f} s")
    if num_run:
        _say(f"series page: {pages.write_pages(run, series)}")
    if (run / "report" / "REPORT.md").exists() and not failed:
        _say(f"report: {run / 'report' / 'REPORT.md'}")
    outcome = f"{len(failed)} failed" if failed else "nothing failed"
    _say(f"{num_run} stages ran, {outcome}, {time.monotonic() - started:.0f} s")
    return FAILED if failed else 0


def _say(text: str) -> None:
    print(text, flush=True)


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

    _warn_of_versions(artifacts.repository_root() / stages.LOCK_FILE)
    is_online = functools.cache(sources.is_reachable)  # takes seconds where it is not
    used = defaultdict(set)  # values of the fields that any of the stages reads
    for notebook, profile in stale:
        for section in notebook.sections:
            for name, value in profiles.as_dict(profile)[section].items():
                values = value if isinstance(value, list) else [value]
                used[f"{section}.{name}"] |= set(values)
    name = stale[0][1].name
    problems = [
        *_disk(sizing.checkpoint_bytes(stale), artifacts.run_dir(name)),
        *_card(stale),
        *_data(used, is_online),
        *_models(used, is_online),
        *_teacher(used),
    ]
    if problems:
        listed = "\n  - ".join(problems)
        raise ValueError(f"profile {name!r} cannot run yet:\n  - {listed}")


def _warn_of_versions(lock: Path) -> None:
    """Warn about packages that differ from the lock file; nothing here is fatal."""
    found = importlib.metadata.distributions()
    installed = {f"{d.name}=={d.version.split('+')[0]}" for d in found}
    # Lines with a semicolon are for other systems.
    lines = [ln.strip() for ln in lock.read_text().splitlines() if ";" not in ln]
    pins = {line for line in lines if "==" in line}
    if different := sorted(pins - installed):
        log.warning(
            "%d packages differ from requirements.lock (%s …): numbers may differ",
            len(different),
            ", ".join(different[:3]),
        )


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
    needed = sizing.needs(stale)
    if needed is None:
        return
    _say(f"needs: {needed}")
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        largest = max(
            sizing.card_bytes(shape, profile.training)
            for notebook, profile in stale
            for cell in sizing.trained_cells(notebook, profile)
            if (shape := sizing.shape_of(cell.model))
        )
        if largest > total:
            yield (
                f"card: {total / GIB:.0f} GiB, {largest / GIB:.0f} needed; choose a "
                "smaller training.batch_tokens (with more gradient_accumulation_steps),"
                " training.activation_checkpointing=true or optimizer=adafactor"
            )


def _data(used: Mapping[str, set], is_online: Callable[[], bool]) -> list[str]:
    values = {v for field in used if field.startswith("data.") for v in used[field]}
    names = {value for value in values if isinstance(value, str)}
    real = sorted(name for name in names if not name.startswith("micro/"))
    if real and os.environ.get("COTSPEC_DATA"):
        from cotspec import tasks

        return tasks.missing(real)
    if not real or is_online():
        return []
    return [
        f"data: {', '.join(real[:4])} come from the Hugging Face hub, which cannot "
        "be reached; set COTSPEC_DATA to a folder laid out as README.md says"
    ]


def _models(used: Mapping[str, set], is_online: Callable[[], bool]) -> Iterator[str]:
    """Faults of every model: all students, not only the profile's own."""
    for field in MODEL_FIELDS:
        is_remote = field == "teacher.model" and "huggingface" not in used[BACKEND]
        for name in () if is_remote else sorted(used[field]):
            try:
                _check_model(field, name, is_online)
            except ValueError as error:
                yield str(error)


def _check_model(field: str, name: str, is_online: Callable[[], bool]) -> None:
    from cotspec import models
    from cotspec.micro import shipped

    if name.startswith(models.MICRO_PREFIX):
        if not (shipped.FOLDER / shipped.MANIFEST).exists():
            raise ValueError(
                f"{field}: the weights of {name!r} are not in this package. Make them "
                "with 'python -m cotspec.micro build' and 'python -m cotspec.micro "
                "pack' (96 minutes of one thread when last measured)"
            )
    elif name.startswith(models.RANDOM_PREFIX):
        models.flan_t5_config(name.removeprefix(models.RANDOM_PREFIX))
    elif name == "smollm2":
        models.smollm2_gguf()
    elif Path(name).exists():
        if not (Path(name) / "config.json").exists():
            raise ValueError(f"{field}: no config.json in {name}")
    elif not is_online():
        raise ValueError(
            f"{field}: {name!r} is no local folder and the Hugging Face hub cannot be "
            f"reached; download it and use --set {field}=/path/to/model"
        )


def _teacher(used: Mapping[str, set]) -> Iterator[str]:
    backends = used[BACKEND]
    has_server = used["teacher.base_urls"] or os.environ.get("OPENAI_API_KEY")
    if "openai" in backends and not has_server:
        yield (
            "teacher.backend 'openai': set OPENAI_API_KEY in the environment, "
            "or --set teacher.base_urls=http://localhost:8000/v1"
        )
    for path in used["teacher.path"] if backends & {"recorded", "release"} else ():
        if not path or not Path(path).exists():
            yield (
                f"teacher.path: {path!r} does not exist; backend "
                f"{', '.join(backends)} reads it: --set teacher.path=/path"
            )


def build_parser() -> argparse.ArgumentParser:
    """The command line of the runner."""
    parser = argparse.ArgumentParser(
        prog="run_all.sh",
        description="Run the notebook series with papermill.",
        allow_abbrev=False,
    )

    def add(name: str, text: str, **options: object) -> None:
        parser.add_argument(name, help=text, **options)  # type: ignore[arg-type]

    known = ", ".join(profiles.PROFILES)
    switch = {"action": "store_true"}
    several = {"action": "append", "default": [], "metavar": "FIELD=VALUE"}
    text = f"one of: {known} (default: %(default)s)"
    add("--profile", text, default=profiles.DEFAULT_PROFILE)
    add("--only", "only these stages: 04,05 or full names", default="")
    add("--from", "this stage and all after it", dest="from_stage", default="")
    add("--set", "override a field: training.learning_rate=1e-3", **several)
    add("--seed", "override every notebook's SEED")
    add("--force", "run the chosen stages although up to date", **switch)
    add("--keep-going", "go on with what does not need a failed stage", **switch)
    add("--dry-run", "say what would run, and why", **switch)
    add("--list", "list stages and their state", **switch)
    add("--publish", "afterwards copy figures and report to figures/", **switch)
    return parser


def choose(series: list[stages.Notebook], only: str, from_stage: str) -> frozenset[str]:
    """Return the names of the chosen stages; numbers and prefixes are enough."""
    names = [nb.name for nb in series]
    chosen = names[_position(names, from_stage) :] if from_stage else names
    if only:
        wanted = {names[_position(names, part)] for part in only.split(",") if part}
        chosen = [name for name in chosen if name in wanted]
    return frozenset(chosen)


def _position(names: list[str], prefix: str) -> int:
    found = [i for i, name in enumerate(names) if name.startswith(prefix.strip())]
    if len(found) != 1:
        raise ValueError(
            f"stage: {prefix!r} names {len(found)} notebooks. "
            f"Allowed: {', '.join(names)} (or their numbers)"
        )
    return found[0]


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
    series = stages.load_series(artifacts.repository_root())
    request = _request(arguments, series, here, _resume_command(given, here))
    resolved = {nb.name: request.resolved(nb) for nb in series}
    for plan in stale_inputs(request, series):
        reasons = "; ".join(plan.reasons[:3])
        _say(f"note: {plan.notebook.name} is not chosen, but stale: {reasons}")
    plans = plan_series(request, series)
    if arguments.list or arguments.dry_run:
        return _show(plans, with_titles=arguments.list)
    stale = [(p.notebook, resolved[p.notebook.name]) for p in plans if p.is_stale]
    if stale:
        preflight(stale)
    with stages.alone_in(artifacts.run_dir(request.profile)):
        os.environ[stages.RUNNER] = "1"
        try:
            status = run_series(request, series)
        finally:
            del os.environ[stages.RUNNER]
    if arguments.publish and not status:
        publish(series, arguments.profile)
    return status


def _request(
    arguments: argparse.Namespace, series: list, here: Path, resume: str
) -> Request:
    sets = profiles.parse_sets(arguments.set)
    values = profiles.as_dict(profiles.resolve(arguments.profile, sets))
    typed = {name: values[name.split(".")[0]][name.split(".")[1]] for name in sets}
    seed = arguments.seed
    return Request(
        profile=arguments.profile,
        seed=int(seed) if seed and seed.isdecimal() else seed,
        overrides={name: _located(name, typed[name], here) for name in typed},
        chosen=choose(series, arguments.only, arguments.from_stage),
        force=arguments.force,
        keep_going=arguments.keep_going,
        resume=resume,
    )


def _resume_command(given: list[str], here: Path) -> str:
    """The command as it was given; --force would run finished stages again."""
    script = os.path.relpath(artifacts.repository_root() / "run_all.sh", here)
    folders = [f"{n}={shlex.quote(os.environ[n])} " for n in FOLDERS if n in os.environ]
    kept = [word for word in given if word != "--force"]
    return "".join(folders) + shlex.join([f"./{script}", *kept])


def _show(plans: list[Plan], *, with_titles: bool) -> int:
    for plan in plans:
        state = "stale: " + "; ".join(plan.reasons) if plan.is_stale else "up to date"
        _say(f"{plan.notebook.name:<28} {state}")
        if with_titles:
            _say(f"{'':<28} {plan.notebook.title}")
    return 0


def publish(series: list[stages.Notebook], profile: str) -> None:
    """Copy the results to their folder, if they are the profile's own and whole."""
    everything = frozenset(nb.name for nb in series)
    request = Request(profile, None, {}, everything)
    stale = [p.notebook.name for p in plan_series(request, series) if p.is_stale]
    if stale:
        raise ValueError(
            f"--publish: {', '.join(stale)} are not fresh under the profile's own "
            "settings. Run all stages first, without --set and --seed"
        )
    target = artifacts.repository_root() / COMMITTED[profile]
    count = pages.publish(artifacts.run_dir(request.profile), target)
    _say(f"published {count} files to {target}")


if __name__ == "__main__":
    sys.exit(main())
