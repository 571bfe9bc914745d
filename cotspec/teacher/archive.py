"""Servers' replies as they came, beside the samples that were read from them.

Enters: the bodies of replies, cleaned of the key. Leaves: one file per run, a gzip
member per reply, never rewritten. Should our reading of them ever prove wrong, no
server need be asked again.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

ARCHIVES = "replies-*.jsonl.gz"
_LEVEL = 1  # of compression: 0.04 ms a reply, less than half its size
_GZIP = 31  # zlib's name for the format
_MEMORY = 5  # of 9: half the time of the default, 8, at the same size


class ReplyArchive:
    """The replies of one run.

    Parameters
    ----------
    folder : Path, the store's; a run begins a file of its own in it
    """

    def __init__(self, folder: Path):
        number = len(list(folder.glob(ARCHIVES)))
        path = folder / f"replies-{number:05d}.jsonl.gz"
        self._file = path.open("xb", buffering=0)

    def __enter__(self) -> ReplyArchive:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(
        self, problem_id: str, sample_ids: Sequence[int], content: bytes
    ) -> None:
        """Add a reply: whose it is, and its body, byte by byte as Latin-1 text."""
        record = {
            "problem_id": problem_id,
            "sample_ids": list(sample_ids),
            "reply": content.decode("latin-1"),
        }
        line = json.dumps(record).encode() + b"\n"
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP, _MEMORY)
        self._file.write(packer.compress(line) + packer.flush())


def read_archive(folder: Path | str) -> Iterator[dict[str, object]]:
    """Yield all runs' ``problem_id, sample_ids, reply`` (bytes), the oldest first.

    What a kill tore at the end of a run's file is left out.
    """
    for path in sorted(Path(folder).glob(ARCHIVES)):
        with gzip.open(path) as file:
            try:
                for line in file:
                    record = json.loads(line)
                    yield record | {"reply": record["reply"].encode("latin-1")}
            except (EOFError, gzip.BadGzipFile, zlib.error):
                continue
