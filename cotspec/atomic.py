"""Writing a file whole or not at all; every other write in the package uses it.

Enters: a path and bytes. Leaves: the file, as it was or as it shall be.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file so that a reader sees the old bytes or the new ones, never a part.

    Parameters
    ----------
    path : Path
        Parents are made as needed.
    content : bytes
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
