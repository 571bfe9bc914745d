"""The series runner: ``python -m cotspec.run``, called by ``run_all.sh``.

Enters: a profile's name, ``--set`` overrides, which stages. Leaves: executed notebooks,
artifacts with success markers, an HTML page of the series and the report under
``runs/<profile>/``. A stage whose key has not changed is not run again. Before hours of
work the preflight says everything that is missing, each with its remedy.
"""

import argparse
import functools
import os
import shlex
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
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
WINDOWS = "formats.max_input_tokens", "evaluation.max_input_tokens"
# Profiles whose results are in the repository, and where.
COMMITTED = {profiles.DEFAULT_PROFILE: "figures", "smollm2": "figures/smollm2"}
MODEL_FIELDS = (
    "student.model",
    "experiments.students",
    "experiments.raw_students",
    "teacher.model",
)
PATH_FIELDS = (*MODEL_FIELDS, "teacher.path", "student.tokenizer")
BUILT_IN_MODELS = ("micro-", "smollm2")


def given_to(
    notebook: stages.Notebook, profile: str, seed: int | None, overrides: dict
) -> stages.Notebook:
    """Return a notebook with its own parameters, overridden by the command line.

    Raises
    ------
    ValueError
        The notebook, and what its parameters cell may hold.
    """
    cell = notebook.parameters["OVERRIDES"] or {}
    seed = notebook.parameters["SEED"] if seed is None else seed
    try:
        profiles.resolve(profile, cell)  # refuses what is no dict
        stages.check_seed(seed)
    except ValueError as error:  # one of twelve notebooks
        raise ValueError(f"{notebook.name}: {error}") from None
    own = {name: _located(name, cell[name], notebook.path.parent) for name in cell}
    given = {"PROFILE": profile, "SEED": seed, "OVERRIDES": own | overrides}
    return replace(notebook, parameters=given)


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
    return os.path.abspath(folder / os.path.expanduser(str(path)))


def stale_because(
    notebook: stages.Notebook, force: bool = False, remade: Collection[str] = ()
) -> list[str]:
    """Say why a stage must run; no reason: it is up to date.

    Parameters
    ----------
    notebook : Notebook
        With its parameters.
    force : bool
    remade : collection of str
        Stages that are about to run, whose artifacts may therefore change.
    """
    marker = stages.read_marker(notebook.run, notebook.name)
    if marker is None:
        return ["it has not finished yet"]
    if force:
        return ["--force"]
    if first := [name for name in remade if name in notebook.reads.values()]:
        return [f"{name} runs first" for name in first]
    return stages.explain(marker.key_parts, _key(notebook)) or [
        f"{name} is missing or changed"
        for name, entry in marker.artifacts.items()
        if not entry.sha256.startswith(artifacts.identity(notebook.run / entry.path))
    ]


def _key(notebook: stages.Notebook) -> dict[str, dict]:
    inputs = stages.find_artifacts(notebook.reads, notebook.run)
    return stages.stage_key(notebook, inputs)


def plan_series(
    series: list[stages.Notebook], chosen: frozenset[str], force: bool = False
) -> dict[str, list[str]]:
    """Return why each chosen stage, or one that it builds on, must run.

    A stage that runs counts as changing its artifacts; no reason: it is up to date.

    Raises
    ------
    ValueError
        A stage that is not chosen has not finished, whose artifacts a chosen one reads.
    """
    needed = set(chosen)
    for notebook in reversed(series):
        if notebook.name in needed:
            needed.update(notebook.reads.values())
    plans: dict[str, list[str]] = {}
    for notebook in (one for one in series if one.name in needed):
        name, stale = notebook.name, {one for one in plans if plans[one]}
        if name in chosen:
            stale &= chosen
            there = {a: w for a, w in notebook.reads.items() if w not in chosen}
            stages.find_artifacts(there, notebook.run)
        plans[name] = stale_because(notebook, force and name in chosen, stale)
    return plans


class StageFailed(RuntimeError):
    """A notebook did not reach its success marker; the message says where and why."""


def execute(notebook: stages.Notebook) -> None:
    """Execute one notebook with papermill.

    Raises
    ------
    StageFailed
        A cell raised, the kernel died, or the success marker is not the expected one.
    """
    import papermill

    output = notebook.run / "notebooks" / notebook.path.name
    partial = output.with_name(f".{output.stem}.partial.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    expected = _key(notebook)
    marker = notebook.run / "artifacts" / notebook.name / artifacts.SUCCESS
    marker.unlink(missing_ok=True)
    doubled = {ord("{"): "{{", ord("}"): "}}"}  # of a path: papermill fills in {name}
    try:
        papermill.execute_notebook(
            *(str(path).translate(doubled) for path in (notebook.path, partial)),
            parameters=dict(notebook.parameters),
            cwd=str(notebook.path.parent),
            kernel_name="python3",
            language="python",
            extra_arguments=["--log-level=CRITICAL"],
            progress_bar={"desc": f"  {notebook.name}", "leave": False},
            coalesce_streams=True,  # of a bar in a cell the last line stays
            shutdown_kernel="immediate",  # all is written; to end politely takes 2 s
        )
    except papermill.PapermillExecutionError as error:
        # papermill's injected cell makes up for counting from 0
        said = f"{notebook.name}, cell {error.cell_index}:{error}"
        raise StageFailed(said) from error
    except RuntimeError as error:  # DeadKernelError
        raise StageFailed(f"{notebook.name}: the kernel died ({error})") from error
    finally:
        if partial.exists():
            os.replace(partial, output)
    finished = stages.read_marker(notebook.run, notebook.name)
    if finished is None:
        said = "all cells ran, but stage.finish() did not. Call it in the last cell"
        raise StageFailed(f"{notebook.name}: {said}")
    # Else a notebook saved while its kernel started would count as what ran.
    if reasons := stages.explain(expected, finished.key_parts):
        said = f"changed while it ran: {'; '.join(reasons)}"
        raise StageFailed(f"{notebook.name}: {said}")


def run_series(
    series: list[stages.Notebook], chosen: frozenset[str], force: bool, resume: str
) -> int:
    """Run the stale ones of the chosen stages; return the exit status.

    Parameters
    ----------
    series : list of Notebook
        All of them, with their parameters.
    chosen : frozenset of str
    force : bool
    resume : str
        The command that goes on after a failure.
    """
    run, failed, num_run = series[0].run, 0, 0
    asked, started = [nb for nb in series if nb.name in chosen], time.monotonic()
    for number, notebook in enumerate(asked, 1):
        head = f"[{number}/{len(asked)}] {notebook.name}"
        reasons = stale_because(notebook, force)
        if not reasons:
            _say(f"{head}: up to date")
            continue
        _say(f"{head}: running ({'; '.join(reasons[:3])})")
        num_run += 1
        begun = time.monotonic()
        try:
            execute(notebook)
        except StageFailed as error:
            _say(f"\n{error}\n")
            _say(f"  executed notebook: {run / 'notebooks' / notebook.path.name}")
            _say(f"  finished work is kept. To resume: {resume}\n")
            failed = FAILED
            break
        _say(f"{head}: done in {time.monotonic() - begun:.0f} s")
    if num_run:
        _say(f"series page: {pages.write_pages(run, series)}")
    if (run / "report" / "REPORT.md").exists() and not failed:
        _say(f"report: {run / 'report' / 'REPORT.md'}")
    outcome = "1 failed" if failed else "nothing failed"
    _say(f"{num_run} stages ran, {outcome}, {time.monotonic() - started:.0f} s")
    return failed


_say = functools.partial(print, flush=True)


def preflight(stale: Sequence[stages.Notebook]) -> None:
    """Check, in seconds, what the stages that are about to run need.

    Parameters
    ----------
    stale : sequence of Notebook
        With their parameters.

    Raises
    ------
    ValueError
        Listing every problem found, each with its remedy.
    """
    from cotspec.tasks import sources

    is_online = functools.cache(sources.is_reachable)  # takes seconds where it is not
    used = defaultdict(set)  # values of the fields that any of the stages reads
    for notebook in stale:
        for section in notebook.sections:
            for field, value in profiles.as_dict(notebook.profile)[section].items():
                values = value if isinstance(value, list) else [value]
                used[f"{section}.{field}"] |= set(values)
    problems = [
        *_room(sizing.needs(stale), stale[0]),
        *_data(used, is_online),
        *_models(used, is_online),
        *_teacher(used),
        *_formats(stale, used),
    ]
    if problems:
        said = [f"profile {stale[0].profile.name!r} cannot run yet:", *problems]
        raise ValueError("\n  - ".join(said))


def _room(needs: sizing.Needs, notebook: stages.Notebook) -> Iterator[str]:
    """Faults of the disk; say what a FlanT5 needs; faults of the machine's card."""
    run = notebook.run
    place = next(p for p in (run, *run.parents) if p.exists())
    begun = [p.lstat() for part in ("work", "store") for p in (run / part).rglob("*")]
    there = sum({stat.st_ino: stat.st_size for stat in begun}.values())
    room = shutil.disk_usage(place).free + there
    needed = needs.disk + MIN_FREE
    if room < needed:
        said = f"disk: {room / GIB:,.1f} GiB at {place}. Allowed: {needed / GIB:,.1f}"
        remedy = "set COTSPEC_RUNS, fewer training.num_checkpoints or experiments.seeds"
        yield f"{said}, {needs.disk / GIB:,.1f} of them for checkpoints; {remedy}"
    if needs.card:
        import torch

        card = sizing.card_of(notebook.profile).name
        said = f"largest student {needs.student}, {needs.card / GIB:.0f} GiB of a card"
        said += f", {needs.disk / GIB:.0f} GiB of disk, about {needs.hours:.1f} h on a"
        _say(f"needs: {said} card of {card} (computed; without the teacher's sampling)")
        is_there = torch.cuda.is_available()
        card = torch.cuda.get_device_properties(0).total_memory if is_there else 2**60
        if needs.card > card:
            said = f"card: {card / GIB:.0f} GiB. Allowed: {needs.card / GIB:.0f}; set a"
            remedy = "smaller training.batch_tokens (more gradient_accumulation_steps),"
            remedy += " training.activation_checkpointing=true or optimizer=adafactor"
            yield f"{said} {remedy}"


def _data(used: Mapping[str, set], is_online: Callable[[], bool]) -> Iterator[str]:
    from huggingface_hub import constants

    from cotspec.tasks import missing, sources

    named = set().union(*(used[field] for field in used if field.startswith("data.")))
    real = sorted(v for v in named if isinstance(v, str) and not v.startswith("micro/"))
    if real and os.environ.get("COTSPEC_DATA"):
        yield from missing(real)
    elif real and not constants.HF_HUB_OFFLINE and not is_online():
        said = f"data: {', '.join(real[:4])} come from the Hugging Face hub"
        yield f"{said}, which cannot be reached; {sources.REMEDY}"


def _models(used: Mapping[str, set], is_online: Callable[[], bool]) -> Iterator[str]:
    """Faults of every model: all students, not only the profile's own."""
    starts = {MODEL_FIELDS[0]: used["student.start"], MODEL_FIELDS[2]: {"raw"}}
    for field in (*MODEL_FIELDS, "student.tokenizer"):
        is_remote = field == "teacher.model" and "huggingface" not in used[BACKEND]
        for name in () if is_remote else sorted(used[field] - {None}):
            try:
                layers, most = _look_for(field, name, starts.get(field, ()), is_online)
                # A decoder alone writes behind its input.
                most -= bool(layers) * max(used["evaluation.max_new_tokens"], default=0)
                limits = [("training.num_frozen_layers", layers)]
                limits += [(window, most) for window in WINDOWS]
                for limit, allowed in limits if field in MODEL_FIELDS[:3] else ():
                    if (given := max(used[limit], default=0)) > allowed:
                        yield f"{limit}: {given}. Allowed for {name}: 0 to {allowed}"
            except ValueError as error:
                yield str(error)
    odd = (used["student.tokenizer"] | used["student.revision"]) - {None, ""}
    if odd and any(name.startswith("micro-") for name in used["student.model"]):
        said = f"student.tokenizer, student.revision: {min(odd)!r}"
        yield f"{said} is not read of a shipped student"


def _look_for(
    field: str, name: str, starts: Collection[str], is_online: Callable[[], bool]
) -> tuple[int, int]:
    """Return a decoder's layers, 0 with an encoder, and its places for tokens.

    ValueError: it is not to be had.
    """
    from cotspec import models
    from cotspec.micro import shipped

    if field == "student.tokenizer":
        models.load_tokenizer(name)
    elif name == models.MICRO_TEACHER:
        shipped.load("teacher")
    elif name == models.SMOLLM2:
        models.smollm2_gguf()
        return models.SMOLLM2_LAYERS, sys.maxsize
    elif name.startswith(shipped.MICRO_PREFIX) and field != "teacher.model":
        for start in starts:
            shipped.load_student(name, start)
    else:
        config = models.load_config(name, field, local_files_only=not is_online())
        text, has_encoder = config.get_text_config(), config.is_encoder_decoder
        most = getattr(text, "max_position_embeddings", None) or sys.maxsize
        return 0 if has_encoder else text.num_hidden_layers, most
    return 0, sys.maxsize


def _teacher(used: Mapping[str, set]) -> Iterator[str]:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if "openai" in used[BACKEND] and not (used["teacher.base_urls"] or key):
        remedy = "or --set teacher.base_urls=http://localhost:8000/v1"
        yield f"{BACKEND} 'openai': set OPENAI_API_KEY in the environment, {remedy}"
    kinds = {"recorded": ("file", os.path.isfile), "release": ("folder", os.path.isdir)}
    for backend in used[BACKEND] & kinds.keys():
        kind, is_there = kinds[backend]
        for path in used["teacher.path"]:
            if not path or not is_there(path):
                said = f"teacher.path: {path!r} is not there. Allowed with {backend}"
                yield f"{said}: a {kind}, --set teacher.path=/path"


def _formats(stale: Sequence[stages.Notebook], used: Mapping) -> Iterator[str]:
    """Faults of notebook 03: nothing to show, or a format that a grid learns from."""
    if not any("examples" in notebook.writes for notebook in stale):
        return
    made = used["formats.data_formats"]
    if 1 in used["data.num_train"] and any("in_context" in name for name in made):
        yield "data.num_train: 1. Allowed: from 2, as in-context formats show another"
    learned = {name for _, cell in sizing.trained(stale) for name in cell.data_formats}
    if learned - made:
        lacking = ", ".join(sorted(learned - made))
        said = f"formats.data_formats: {', '.join(sorted(made))}. Allowed: {lacking}"
        yield f"{said}, too, which notebook 08 learns from; or --only without 08"


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
            said = f"--only: {prefix!r} names {len(found)} notebooks. Allowed:"
            raise ValueError(f"{said} {', '.join(names)} (or their numbers)")
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
            with suppress(FileNotFoundError):  # a loop of links, a file on the way
                os.stat(os.environ[name])
    os.environ.pop("JUPYTER_PATH", None)  # its python3 kernel would be taken instead
    is_own = not arguments.set and arguments.seed is None
    if arguments.publish and not (is_own and arguments.profile in COMMITTED):
        known = f"{', '.join(COMMITTED)} (their results are committed)"
        said = f"--publish: --profile {arguments.profile}. Allowed: {known}"
        raise ValueError(f"{said}, no --set and --seed")
    overrides = overrides_of(arguments.profile, arguments.set, here)
    asked = arguments.profile, arguments.seed, overrides
    series = stages.load_series(artifacts.repository_root())
    series = [given_to(notebook, *asked) for notebook in series]
    chosen = choose(series, arguments.only)
    plans = plan_series(series, chosen, arguments.force)
    for name, reasons in plans.items():
        said = "; ".join(reasons[:3])
        if name not in chosen and reasons:
            _say(f"note: {name} is not chosen, but stale: {said}")
        elif name in chosen and arguments.dry_run:
            _say(f"{name:<28} {f'stale: {said}' if reasons else 'up to date'}")
    if arguments.dry_run:
        return 0
    if stale := [nb for nb in series if nb.name in chosen and plans[nb.name]]:
        preflight(stale)
    with stages.alone_in(series[0].run):
        os.environ[stages.RUNNER] = "1"  # for the kernels
        resume = _resume_command(given, here)
        status = run_series(series, chosen, arguments.force, resume)
    if arguments.publish and not status:
        publish(series)
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


def publish(series: list[stages.Notebook]) -> None:
    """Replace the committed results with a run's figures and report.

    Only files that an earlier call wrote are deleted; ``PUBLISHED.txt`` lists them.

    Raises
    ------
    ValueError
        Results that are not whole, or not the profile's own.
    """
    plans = plan_series(series, frozenset(notebook.name for notebook in series))
    own = {nb.name for nb in series if nb.parameters["OVERRIDES"]}
    if odd := [name for name, reasons in plans.items() if reasons or name in own]:
        said = f"{', '.join(odd)} are not fresh under the profile's own settings"
        remedy = "Run all stages first, without --set, --seed and OVERRIDES"
        raise ValueError(f"--publish: {said}. {remedy}")
    run = series[0].run
    target = artifacts.repository_root() / COMMITTED[run.name]
    listing = target / "PUBLISHED.txt"
    for old in listing.read_text().splitlines() if listing.exists() else ():
        (target / Path(old).name).unlink(missing_ok=True)
    # Not whatever lies there: a notebook may have drawn more before it changed.
    markers = [stages.read_marker(run, notebook.name) for notebook in series]
    paths = {run / one.path for marker in markers for one in marker.artifacts.values()}
    shown = sorted(p for p in paths if p.parent.name in ("figures", "report"))
    for path in shown:
        artifacts.write_bytes(target / path.name, path.read_bytes())
    artifacts.write_text(listing, "".join(f"{path.name}\n" for path in shown))
    _say(f"published {len(shown)} files to {target}")


if __name__ == "__main__":
    sys.exit(main())
