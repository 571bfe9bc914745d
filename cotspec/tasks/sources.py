"""Where problems come from: local files, or the Hugging Face hub at pinned revisions.

Enters: a set's file and the keys every item must have. Leaves: rows; ValueErrors name
the file and the line or item in it, or say within seconds to set ``COTSPEC_DATA`` where
the network is out of reach. With ``HF_HUB_OFFLINE=1`` nothing is fetched: only sets in
the hub's cache can be read.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import datasets
import httpx
from huggingface_hub import constants

DATA_FILES = ("data",)  # part of the keys of stages that read them
SHIPPED = Path(__file__).with_name("data")  # its README.md names the sources
# repository, revision. All are the hub's `main` as pinned by several public projects.
HUB = {
    "gsm8k": ("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866"),
    "multiarith": ("ChilleD/MultiArith", "144d44c3fb87c0b9097ac9593c789e716a282e3e"),
    "svamp": ("ChilleD/SVAMP", "5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef"),
    "asdiv": ("EleutherAI/asdiv", "8f95807222d87b4c688c3c22a6ba2801e1fa03e2"),
    "bbh": ("lukaemon/bbh", "982bb89fd79532a8ac676a61fc42eb1aeec63f99"),
}
# Published values that are no text.
_FORMS = {
    "Answer": ((int, float), "a number"),
    "lSolutions": (list, "a list with a number"),
    "examples": (list, "a list of problems"),
}
REMEDY = "set COTSPEC_DATA to a folder laid out as README.md says"  # without the hub
_TIMEOUT = 4  # seconds in which the hub must answer


def data_folder() -> Path | None:
    """Return the folder that ``COTSPEC_DATA`` names, or None for the hub."""
    chosen = os.environ.get("COTSPEC_DATA")
    if chosen and not Path(chosen).is_dir():
        said = f"COTSPEC_DATA: no folder {chosen}"
        raise ValueError(f"{said}; see README.md for its layout")
    return Path(chosen) if chosen else None


def read_rows(
    file: str, keys: Sequence[str], splits: Sequence[str], config: str | None = None
) -> list[dict]:
    """Return the rows of a published set, from its file or from the hub.

    Parameters
    ----------
    file : str
        Its path in the folder; the first part is the set's name in `HUB`.
    keys : sequence of str
        What every item of the file must have.
    splits, config
        The hub's; rows of several splits follow each other.

    Raises
    ------
    ValueError
        Missing or damaged file, or the hub does not answer or has no such rows.
    """
    folder = data_folder()
    if folder is None:
        return _from_hub(file.split("/")[0], splits, config)
    path = folder / file
    content = read_file(path)
    if not isinstance(content, list):  # BBH's has one more level
        content = _with_keys([content], ["examples"], path)[0]["examples"]
    return _with_keys(content, keys, path)


def _with_keys(rows: list[dict], keys: Sequence[str], path: Path) -> list[dict]:
    for index, row in enumerate(rows):
        for key in keys:
            form, words = _FORMS.get(key, (str, "some text"))
            value = row.get(key) if isinstance(row, dict) else None
            is_blank = value == [] or re.search(r"\A\s*\Z|[\ud800-\udfff]", str(value))
            if not isinstance(value, form) or is_blank or value is True:
                said = f"{key!r} is {str(value)[:60]!r}. Allowed: {words}"
                raise ValueError(f"{path}, item {index}: {said}")
    return rows


def read_file(path: Path) -> list | dict:
    """Return a file's content, or say that it is absent or damaged, and where."""
    try:
        text = path.read_text("utf-8-sig")  # a byte order mark is no text
        if path.suffix == ".xml":
            problems = ElementTree.fromstring(text).iter("Problem")
            return [{part.tag.lower(): part.text for part in one} for one in problems]
        if path.suffix == ".jsonl":
            # Not `splitlines`: a string may hold U+2028, which ends no line of JSON.
            lines = [line for line in text.split("\n") if line.strip()]
            text = "[" + ",\n".join(lines) + "]"
        return json.loads(text)
    except OSError as error:  # also a folder, no permission, a link to itself
        said = str(error.strerror).lower()
        raise ValueError(f"{path}: {said}; README.md has the layout") from None
    except (ValueError, RecursionError, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: damaged ({error}); fetch it again") from None


def is_reachable() -> bool:
    """Whether the hub answers, whatever it says; False in offline mode."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=_TIMEOUT)
    except (OSError, httpx.HTTPError):
        return False
    return True


def _from_hub(name: str, splits: Sequence[str], config: str | None) -> list[dict]:
    repository, revision = HUB[name]
    try:
        if not constants.HF_HUB_OFFLINE:
            # `load_dataset` itself retries for half a minute.
            httpx.head(constants.ENDPOINT, timeout=_TIMEOUT)
        tables = datasets.load_dataset(repository, config, revision=revision)
    except (OSError, httpx.HTTPError) as error:
        said = f"cannot fetch {repository}@{revision[:7]} ({type(error).__name__})"
        raise ValueError(f"data: {said}; {REMEDY}") from error
    return [row for split in splits for row in tables[split].to_list()]
