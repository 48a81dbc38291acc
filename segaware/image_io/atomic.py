"""A file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["beside"]


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Any]:
    """A temporary file that takes the place of ``path`` at the end, and is gone after an error."""
    place = Path(os.path.realpath(path))  # a link keeps pointing to the new content
    partial = place.with_name(f".{place.stem[:40]}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
        if place.exists():
            os.chmod(partial, place.stat().st_mode & 0o777)
        os.replace(partial, place)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
