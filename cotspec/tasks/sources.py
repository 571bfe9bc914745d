"""Where problems come from: local files, or the Hugging Face hub at pinned revisions.

Enters: paths and the keys every item must have, or the name of a set. Leaves: text and
rows; ValueErrors name the file and the line or item in it, or say within seconds to set
``COTSPEC_DATA`` where the network is out of reach. With ``HF_HUB_OFFLINE=1`` nothing is
fetched: only sets in the hub's cache can be read.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import httpx
from huggingface_hub import constants

from cotspec import answers

DATA_FILES = ("data",)  # part of the keys of stages that read them
SHIPPED = Path(__file__).with_name("data")  # its README.md names the sources


def read_text(path: Path) -> str:
    """Return a UTF-8 file, or say that it is absent or damaged."""
    try:
        return path.read_text("utf-8-sig")  # a byte order mark is no text
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; README.md has the layout") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); fetch it again") from None


def read_json(path: Path) -> list | dict:
    """Return a JSON file, or say in which line it breaks off."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: not complete JSON ({error.msg}); "
            "fetch it again"
        ) from None


def read_json_lines(path: Path, keys: tuple[str, ...]) -> list[dict]:
    """Return a file of one JSON object a line, each with the keys."""
    rows = []
    # Not `splitlines`: a string may hold U+2028, which ends no line of JSON.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not complete JSON ({error.msg}); "
                "fetch it again"
            ) from None
    return check_keys(rows, keys, path)


def check_keys(rows: list[dict], keys: tuple[str, ...], path: Path) -> list[dict]:
    """Return the rows if every one has the keys."""
    for index, row in enumerate(rows):
        absent = [key for key in keys if not isinstance(row, dict) or key not in row]
        if absent:
            raise ValueError(f"{path}, item {index}: key {absent[0]!r} is missing")
    return rows


def plain_number(published: str, where: str) -> str:
    """Return a gold as plain digits: no commas, no trailing ``.0``."""
    value = answers.parse_number(published)
    if value is None:
        raise ValueError(f"{where}: gold {published.strip()!r} is not one number")
    if value.denominator == 1:
        return str(value.numerator)
    return published.strip().replace(",", "")


# --- The hub ---

# repository, revision. All are the hub's `main` as pinned by several public projects.
HUB = {
    "gsm8k": ("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866"),
    "multiarith": ("ChilleD/MultiArith", "144d44c3fb87c0b9097ac9593c789e716a282e3e"),
    "svamp": ("ChilleD/SVAMP", "5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef"),
    "asdiv": ("EleutherAI/asdiv", "8f95807222d87b4c688c3c22a6ba2801e1fa03e2"),
    "bbh": ("lukaemon/bbh", "982bb89fd79532a8ac676a61fc42eb1aeec63f99"),
}
# Seconds.
CONNECT_TIMEOUT = 4


def ping() -> None:
    """Raise httpx.HTTPError unless the hub answers, whatever it says."""
    httpx.head(constants.ENDPOINT, timeout=CONNECT_TIMEOUT)


def is_reachable() -> bool:
    """Whether the hub answers; False in offline mode."""
    if constants.is_offline_mode():
        return False
    try:
        ping()
    except (OSError, httpx.HTTPError):
        return False
    return True


def from_hub(name: str, split: str, config: str | None = None) -> list[dict]:
    """Return the rows of one split of a set in `HUB`.

    Raises
    ------
    ValueError
        The hub does not answer within `CONNECT_TIMEOUT`, or has no such rows.
    """
    repository, revision = HUB[name]
    try:
        if not constants.HF_HUB_OFFLINE:
            ping()  # `load_dataset` itself retries for half a minute
        table = datasets.load_dataset(
            repository, config, split=split, revision=revision
        )
    except (OSError, httpx.HTTPError) as error:
        raise _unreachable(f"{repository}@{revision[:7]}", error) from error
    return table.to_list()


def _unreachable(what: str, error: Exception) -> ValueError:
    return ValueError(
        f"data: cannot fetch {what} ({type(error).__name__}); set COTSPEC_DATA to a "
        "folder with the data, laid out as README.md says"
    )
