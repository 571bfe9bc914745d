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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from cotspec import artifacts, pages, profiles, sizing, stages
from cotspec.sizing import GIB

log = logging.getLogger(__name__)

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
    seed: object
    overrides: Mapping[str, object]
    chosen: frozenset[str]
    force: bool = False

    @property
    def run(self) -> Path:
        """The folder of the profile's run."""
        return artifacts.run_dir(self.profile)

    def parameters(self, notebook: stages.Notebook) -> dict[str, object]:
        """The notebook's own parameters, overridden by the command line."""
        own, folder = notebook.parameters, notebook.path.parent
        cell = own["OVERRIDES"] or {}
        try:
            profiles.resolve(self.profile, cell)  # refuses what is no dict
        except ValueError as error:  # one of twelve notebooks
            raise ValueError(f"{notebook.name}: {error}") from None
        seed = own["SEED"] if self.seed is None else self.seed
        given = f"{notebook.name}: SEED" if self.seed is None else "--seed"
        stages.check_seed(given, seed)
        overrides = {name: _located(name, cell[name], folder) for name in cell}
        overrides |= self.overrides
        return {"PROFILE": self.profile, "SEED": seed, "OVERRIDES": overrides}

    def resolved(self, notebook: stages.Notebook) -> profiles.Profile:
        """The notebook's profile with its overrides applied."""
        return profiles.resolve(self.profile, self.parameters(notebook)["OVERRIDES"])

    def key(self, notebook: stages.Notebook) -> dict[str, object]:
        """What the stage's result depends on when it runs now."""
        found = stages.find_artifacts(notebook.reads, self.series, self.run)
        inputs = {name: entry.sha256 for name, entry in found.items()}
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
    is_name = not isinstance(value, str) or value.startswith(BUILT_IN_MODELS)
    if name not in PATH_FIELDS or is_name:
        return value
    path = _absolute(value, folder)
    return path if name == "teacher.path" or os.path.isdir(path) else value


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
    """Return why each chosen stage must run, as if stale ones would change."""
    plans: dict[str, list[str]] = {}
    for notebook in request.series:
        if notebook.name in request.chosen:
            remade = [name for name, reasons in plans.items() if reasons]
            plans[notebook.name] = stale_because(notebook, request, remade)
    return plans


def stale_inputs(request: Request) -> dict[str, list[str]]:
    """Return why stages are stale that the chosen ones build on, but not chosen."""
    needed = set(request.chosen)
    for notebook in reversed(request.series):
        if notebook.name in needed:
            needed.update(request.sources(notebook))
    above = frozenset(needed - request.chosen)
    plans = plan_series(replace(request, chosen=above, force=False))
    return {name: reasons for name, reasons in plans.items() if reasons}


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
        )
    except papermill.PapermillExecutionError as error:
        raise StageFailed(_describe(notebook, error)) from error
    except RuntimeError as error:  # DeadKernelError
        raise StageFailed(f"{notebook.name}: the kernel died ({error})") from error
    finally:
        _keep_executed(partial, output)
    finished = stages.read_marker(request.run, notebook.name)
    if finished is None:
        raise StageFailed(
            f"{notebook.name}: all cells ran, but stage.finish() did not. "
            "Call it in the last cell"
        )
    if finished.key != artifacts.digest_of(expected):
        reasons = "; ".join(stages.explain(expected, finished.key_parts))
        raise StageFailed(f"{notebook.name}: changed while it ran: {reasons}")


def _keep_executed(partial: Path, output: Path) -> None:
    """Move the executed notebook into place; of a progress bar the last line stays."""
    import nbformat
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    if partial.exists():
        notebook = nbformat.read(partial, as_version=4)
        collapsed, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
        artifacts.write_bytes(output, nbformat.writes(collapsed).encode())
        partial.unlink()


def _describe(notebook: stages.Notebook, error) -> str:
    """Name the cell (counted from 1 in the source), and the end of the traceback."""
    number = error.cell_index  # papermill's injected cell makes up for counting from 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))  # colours
    tail = [line for line in text.splitlines() if line.strip()][-12:]
    shown = [*error.source.splitlines()[:6], "failed with:", *tail]
    return "\n    ".join([f"{notebook.name}, cell {number}:", *shown])


def run_series(request: Request, resume: str, *, keep_going: bool) -> int:
    """Run the stale ones of the chosen stages; return the exit status.

    Parameters
    ----------
    request : Request
    resume : str
        The command that goes on after a failure.
    keep_going : bool
        Go on with what does not need a failed stage.
    """
    run = request.run
    chosen = [nb for nb in request.series if nb.name in request.chosen]
    failed: list[str] = []
    started, num_run = time.monotonic(), 0
    for number, notebook in enumerate(chosen, 1):
        head = f"[{number}/{len(chosen)}] {notebook.name}"
        needs = [name for name in request.sources(notebook) if name in failed]
        if needs:
            _say(f"{head}: skipped, needs {needs[0]}")
            failed.append(notebook.name)
            continue
        reasons = stale_because(notebook, request)
        if not reasons:
            _say(f"{head}: up to date")
            continue
        _say(f"{head}: running ({'; '.join(reasons[:3])})")
        num_run += 1
        begun = time.monotonic()
        try:
            execute(notebook, request)
            _say(f"{head}: done in {time.monotonic() - begun:.0f} s")
        except StageFailed as error:
            failed.append(notebook.name)
            _say(f"\n{error}\n")
            _say(f"  executed notebook: {run / 'notebooks' / notebook.name}.ipynb")
            _say(f"  finished work is kept. To resume: {resume}\n")
            if not keep_going:
                break
    if num_run:
        _say(f"series page: {pages.write_pages(run, request.series)}")
    if (run / "report" / "REPORT.md").exists() and not failed:
        _say(f"report: {run / 'report' / 'REPORT.md'}")
    outcome = f"{len(failed)} failed" if failed else "nothing failed"
    _say(f"{num_run} stages ran, {outcome}, {time.monotonic() - started:.0f} s")
    return FAILED if failed else 0


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

    _warn_of_versions(artifacts.repository_root() / stages.LOCK_FILE)
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
        raise ValueError(
            "\n  - ".join([f"profile {name!r} cannot run yet:", *problems])
        )


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
    values = {v for field in used if field.startswith("data.") for v in used[field]}
    names = {value for value in values if isinstance(value, str)}
    real = sorted(name for name in names if not name.startswith("micro/"))
    if real and os.environ.get("COTSPEC_DATA"):
        from cotspec import tasks

        yield from tasks.missing(real)
    elif real and not is_online() and (lacking := [n for n in real if not _kept(n)]):
        yield (
            f"data: {', '.join(lacking[:4])} come from the Hugging Face hub, which "
            "cannot be reached; set COTSPEC_DATA to a folder laid out as README.md says"
        )


def _kept(task: str) -> bool:
    """Whether the hub's cache has a set, and offline mode says to read it there."""
    from huggingface_hub import constants

    from cotspec.tasks import sources

    repository, revision = sources.HUB[task.split("/")[0]]
    name = f"datasets--{repository.replace('/', '--')}/snapshots/{revision}"
    return constants.HF_HUB_OFFLINE and (Path(constants.HF_HUB_CACHE) / name).is_dir()


def _models(used: Mapping[str, set], is_online: Callable[[], bool]) -> Iterator[str]:
    """Faults of every model: all students, not only the profile's own."""
    frozen = max(used["training.num_frozen_layers"], default=0)
    starts = {MODEL_FIELDS[0]: used["student.start"], MODEL_FIELDS[2]: {"raw"}}
    for field in MODEL_FIELDS:
        is_remote = field == "teacher.model" and "huggingface" not in used[BACKEND]
        for name in () if is_remote else sorted(used[field]):
            try:
                _check_model(field, name, starts.get(field, ()), is_online)
                is_student = frozen and field != "teacher.model"
                if is_student and frozen > (most := _num_frozen(name)):
                    said = f"training.num_frozen_layers: {frozen}. Allowed for {name!r}"
                    yield f"{said}: 0 to {most}, the layers of a decoder-only model"
            except ValueError as error:
                yield str(error)
    for field in ("student.tokenizer", "student.revision"):
        odd = used[field] - {None, ""}
        if odd and any(name.startswith("micro-") for name in used["student.model"]):
            yield f"{field}: {min(odd)!r} is not read of a shipped student"
    data = os.environ.get("COTSPEC_DATA", "")
    for name in {f"{data}/t5", *used["student.tokenizer"], *used["student.model"]}:
        file = Path(name or "", "spiece.model")
        if file.exists() and not file.stat().st_size:  # it would be read
            yield f"student.tokenizer: {file} is empty; fetch it again"


def _num_frozen(name: str) -> int:
    """Return how many layers of a student may be frozen: none beside an encoder."""
    from cotspec import models

    if name == models.SMOLLM2:
        return 30
    if not models.is_causal(profiles.StudentConfig(name)):
        return 0
    return models.AutoConfig.from_pretrained(name).get_text_config().num_hidden_layers


def _check_model(
    field: str, name: str, starts: Collection[str], is_online: Callable[[], bool]
) -> None:
    from cotspec import models
    from cotspec.micro import shipped

    if name.startswith(models.MICRO_PREFIX):
        size = name.removeprefix(models.MICRO_PREFIX)
        if field == "teacher.model":
            shipped.load(size)
        for start in starts:
            shipped.load_student(size, start)
    elif name.startswith(models.RANDOM_PREFIX):
        models.flan_t5_config(name.removeprefix(models.RANDOM_PREFIX))
    elif name == "smollm2":
        models.smollm2_gguf()
    elif Path(name).exists():
        if not (Path(name) / "config.json").exists():
            raise ValueError(f"{field}: no config.json in {name}")
    elif why := _not_on_hub(name, is_online):
        raise ValueError(
            f"{field}: {name!r} is no local folder and {why}; download it and use "
            f"--set {field}=/path/to/model"
        )


def _not_on_hub(name: str, is_online: Callable[[], bool]) -> str:
    """Say why a model is not to be had; nothing if it is on the hub or in its cache."""
    import httpx
    import huggingface_hub

    try:
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):  # or a sign that there is none
            return ""
        if not is_online():
            return "the Hugging Face hub cannot be reached"
        if huggingface_hub.file_exists(name, "config.json"):
            return ""
    except (ValueError, OSError, httpx.HTTPError) as error:  # no name, or no access
        # A timeout may have no words.
        said = str(error).partition("\n")[0] or type(error).__name__
        return f"the Hugging Face hub does not give it ({said})"
    return "there is no such model on the Hugging Face hub"


def _teacher(used: Mapping[str, set]) -> Iterator[str]:
    backends = used[BACKEND]
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if "openai" in backends and not key.isascii():  # no header can hold it
        yield "OPENAI_API_KEY: has a character that no key has; copy it again"
    if "openai" in backends and not (used["teacher.base_urls"] or key):
        yield (
            "teacher.backend 'openai': set OPENAI_API_KEY in the environment, "
            "or --set teacher.base_urls=http://localhost:8000/v1"
        )
    gone = used["teacher.model"] & {"", "code-davinci-002", "micro-teacher", "smollm2"}
    if "openai" in backends and gone and not used["teacher.base_urls"]:
        yield f"teacher.model: OpenAI has no {min(gone)!r}; --set teacher.model=NAME"
    for path in used["teacher.path"] if backends & {"recorded", "release"} else ():
        is_there = os.path.isdir if "release" in backends else os.path.isfile
        if not path or not is_there(path):
            kind = "folder" if "release" in backends else "file"
            yield (
                f"teacher.path: {path!r} does not exist as a {kind}; backend "
                f"{', '.join(backends)} reads it: --set teacher.path=/path"
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
    add("--from", help="this stage and all after it", dest="from_stage")
    add("--set", help="override a field: training.learning_rate=1e-3", **several)
    add("--seed", help="override every notebook's SEED")
    add("--force", help="run the chosen stages although up to date", **switch)
    add("--keep-going", help="go on with what does not need a failed stage", **switch)
    add("--dry-run", help="say what would run, and why", **switch)
    add("--list", help="list stages and their state", **switch)
    add("--publish", help="afterwards copy figures and report to figures/", **switch)
    return parser


def choose(series: list, only: str | None, from_stage: str | None) -> frozenset[str]:
    """Return the names of the chosen stages; numbers and prefixes are enough."""
    names = [nb.name for nb in series]
    chosen = names[0 if from_stage is None else _position(names, from_stage) :]
    if only is not None:
        wanted = {names[_position(names, part)] for part in only.split(",")}
        chosen = [name for name in chosen if name in wanted]
    if not chosen:
        raise ValueError(f"--only {only!r}, --from {from_stage!r}: no stage is in both")
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
    if arguments.publish and (arguments.set or arguments.seed is not None):
        raise ValueError("--publish: with --set or --seed. Allowed: neither")
    request = _request(arguments, here)
    resolved = {nb.name: request.resolved(nb) for nb in request.series}
    expected = profiles.DEFAULT_PROFILE, request.profile
    for notebook in request.series:
        if (own := notebook.parameters["PROFILE"]) not in expected:
            _say(f"note: {notebook.name} says PROFILE = {own!r}; --profile decides")
    for name, reasons in stale_inputs(request).items():
        _say(f"note: {name} is not chosen, but stale: {'; '.join(reasons[:3])}")
    plans = plan_series(request)
    chosen = [notebook for notebook in request.series if notebook.name in plans]
    if arguments.list or arguments.dry_run:
        for notebook in chosen:
            reasons = "; ".join(plans[notebook.name])
            state = f"stale: {reasons}" if reasons else "up to date"
            _say(f"{notebook.name:<28} {state}")
            if arguments.list:
                _say(f"{'':<28} {notebook.title}")
        return 0
    if stale := [(nb, resolved[nb.name]) for nb in chosen if plans[nb.name]]:
        by_name = stages.producers(request.series)
        reads = dict.fromkeys(name for notebook, _ in stale for name in notebook.reads)
        there = [name for name in reads if by_name[name] not in plans]
        stages.find_artifacts(there, request.series, request.run)  # or says what to run
        preflight(stale)
    with stages.alone_in(request.run):
        os.environ[stages.RUNNER] = "1"
        try:
            resume = _resume_command(given, here)
            status = run_series(request, resume, keep_going=arguments.keep_going)
        finally:
            del os.environ[stages.RUNNER]
    if arguments.publish and not status:
        publish(request.series, arguments.profile)
    return status


def _request(arguments: argparse.Namespace, here: Path) -> Request:
    series = stages.load_series(artifacts.repository_root())
    seed = arguments.seed
    return Request(
        series,
        arguments.profile,
        seed=int(seed) if seed and seed.isdecimal() else seed,
        overrides=overrides_of(arguments.profile, arguments.set, here),
        chosen=choose(series, arguments.only, arguments.from_stage),
        force=arguments.force,
    )


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
