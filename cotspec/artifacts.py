"""Every path, read and write of a run: atomic, checksummed, with provenance.

Enters: values a stage computed (Dataset, DataFrame, dict, text, folder). Leaves: files
under ``runs/<profile>/`` that are either whole or absent, and their SHA-256.

Layout of a run::

    runs/<profile>/artifacts/<stage>/   data, checkpoints, SUCCESS.json
    runs/<profile>/work/<stage>-<key>/  resumable intermediate files
    runs/<profile>/store/               samples, kept when a notebook changes
    runs/<profile>/figures/  report/  notebooks/  html/
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import InMemoryTable
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)

SUCCESS = "SUCCESS.json"
ROWS_AT_ONCE = 10_000  # in memory, while a Dataset is written
MOST_IN_MEMORY = 10 << 20  # bytes of a Parquet file; a larger one is mapped
PROVENANCE_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "papermill")


def repository_root() -> Path:
    """Return the folder that holds ``notebooks/``.

    ``COTSPEC_ROOT`` if set, else the nearest parent of the working folder, or that of
    the package, that has ``notebooks/00_overview.ipynb``.
    """
    if configured := os.environ.get("COTSPEC_ROOT"):
        return Path(configured).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if (folder / "notebooks" / "00_overview.ipynb").exists():
            return folder
    raise ValueError("COTSPEC_ROOT: not set. Allowed: the folder that holds notebooks/")


def run_dir(profile_name: str) -> Path:
    """Return ``runs/<profile>``; ``COTSPEC_RUNS`` moves ``runs`` elsewhere."""
    runs = os.environ.get("COTSPEC_RUNS") or repository_root() / "runs"
    return Path(runs).resolve() / profile_name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` when the block ends without error.

    A reader sees the old file or the new one, never a part.

    Parameters
    ----------
    path : Path
        Parents are made as needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write text in UTF-8 as `replacing` does."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> Path:
    """Write JSON with sorted keys and a final newline."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    return write_text(path, text + "\n")


def read_json(path: Path) -> object:
    """Read a JSON file; a broken one is a ValueError that names it."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def read_as(path: Path, model: type[Model]) -> Model:
    """Read a JSON file of a known form; another is a ValueError that says where."""
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(f"{path}: {place} {fault['msg']}".strip()) from error


def write_dataset(path: Path, dataset: Dataset) -> Path:
    """Write a Dataset as one Parquet file, by and by; same rows, same bytes."""
    schema = dataset.features.arrow_schema.remove_metadata()
    with (
        replacing(path) as part,
        pq.ParquetWriter(part, schema, compression="zstd") as writer,
    ):
        for table in dataset.with_format("arrow").iter(ROWS_AT_ONCE):
            writer.write_table(table.replace_schema_metadata(None))
    return path


def read_dataset(path: Path) -> Dataset:
    """Read a Parquet file written by `write_dataset`; a large one is not held whole."""
    try:
        if path.stat().st_size <= MOST_IN_MEMORY:
            return dataset_of(pq.read_table(path))
        # Unpacked beside it. Once mapped, the file needs no name: it goes with the
        # last process that reads it. (NFS keeps one until then.)
        where = {"dir": path.parent, "ignore_cleanup_errors": True}
        with TemporaryDirectory(**where) as folder:
            source, unpacked = pq.ParquetFile(path), Path(folder) / "rows.arrow"
            with pa.ipc.new_file(unpacked, source.schema_arrow) as writer:
                for batch in source.iter_batches(ROWS_AT_ONCE):
                    writer.write_batch(batch)
            return dataset_of(map_table(unpacked))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error})") from error


def map_table(path: Path) -> pa.Table:
    """Return an Arrow file's table; its pages are the file's and take no memory."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def dataset_of(table: pa.Table) -> Dataset:
    """Return a table, in memory or mapped, as a Dataset.

    It counts as in memory either way: what `filter` makes of a Dataset that knows its
    file settles beside that file.

    Its fingerprint is drawn: `datasets` would pickle the table's description to make
    one, which takes longer than to read a small file, and nothing here asks for it.
    """
    return Dataset(InMemoryTable(table), fingerprint=uuid.uuid4().hex[:16])


def write_frame(path: Path, frame: pd.DataFrame) -> Path:
    """Write a table as CSV without its index; floats keep 6 significant digits."""
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return write_text(path, text)


def read_frame(path: Path) -> pd.DataFrame:
    """Read a table written by `write_frame`; "NA" and the like are text."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def write_folder(path: Path, source: Path) -> Path:
    """Publish a finished folder: hard links (copies across disks), then one rename."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, temporary, copy_function=link_or_copy)
    if path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    return path


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Link a file, or copy it where links are not to be had (other disks, Drive)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's relative names and contents."""
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    else:
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{child.relative_to(path)}\0{checksum(child)}\n".encode())
    return digest.hexdigest()


def identity(path: Path) -> str:
    """Return the checksum of a file or folder from outside, kept while it is untouched.

    Such files may be large; size and time of change tell that they are the same.
    """
    files = [p for p in (path, *path.rglob("*")) if p.is_file()]
    states = {(p, p.stat().st_size, p.stat().st_mtime_ns) for p in files}
    return _checksum_of(path, frozenset(states))[:16]


@functools.cache
def _checksum_of(path: Path, states: frozenset) -> str:
    return checksum(path)


def digest_of(value: object) -> str:
    """Return the SHA-256 of a JSON-ready value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def provenance() -> dict[str, object]:
    """Return who made an artifact: versions, commit, hardware and time (UTC)."""
    return {
        "cotspec": importlib.metadata.version("cotspec"),
        "python": platform.python_version(),
        "packages": {n: importlib.metadata.version(n) for n in PROVENANCE_PACKAGES},
        "commit": _commit(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    """Return the checkout's commit, marked when the tree has changes; or unknown."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    options = {"capture_output": True, "text": True, "timeout": 10}
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, **options)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def markdown_table(table: pd.DataFrame) -> str:
    """Return a Markdown table; text as it is, missing cells empty."""
    lines = [list(table.columns), ["---"] * len(table.columns)]
    texts = table.map(lambda cell: "" if pd.isna(cell) else str(cell))
    lines += texts.to_numpy().tolist()
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
