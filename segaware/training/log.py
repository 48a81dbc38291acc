"""What a training says of itself: one JSON object a line, and the words when its numbers go bad."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from segaware.errors import TrainingError

__all__ = ["Log", "not_finite"]


class Log:
    """``log.jsonl`` of a run, cut back to ``step``: what came after the checkpoint is done again.

    Raises:
        TrainingError: a file that cannot be written.
    """

    def __init__(self, file: Path, step: int) -> None:
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.exists():
                partial = file.with_suffix(".partial")
                partial.write_text("".join(_until(file, step)), encoding="utf-8")
                os.replace(partial, file)
            self._open = file.open("a", encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"{file}: cannot be written ({error.strerror}); choose another folder") from error

    def write(self, row: dict[str, Any]) -> None:
        try:
            self._open.write(json.dumps(row) + "\n")
            self._open.flush()
        except OSError as error:
            raise TrainingError(f"{self.file}: cannot be written ({error.strerror}); free space, then resume") from error

    def close(self) -> None:
        try:
            self._open.close()
        except OSError:  # what could not be flushed has been reported
            pass


def _until(file: Path, step: int) -> list[str]:
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # a line cut short by a kill
            continue
    return kept


def not_finite(what: str, step: int, terms: list[str], last: Path | None) -> TrainingError:
    """The error for a loss or gradient that is NaN or infinite at ``step`` (1 is the first, as in the log)."""
    blame = f"term {', '.join(terms)} went wrong" if terms else "no single term, but the sum or the network itself"
    kept = f"the last good state is {last.name}" if last else "nothing was saved yet"
    return TrainingError(
        f"step {step}: the {what} is not finite; {blame}. Lower learning_rate, set clip_norm, or use float32; {kept}"
    )
