"""What a study was started with, kept beside its results: no finished part may answer for another question."""

import json
import os
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path
from typing import Any

from segaware.errors import EvaluationError, InputError

__all__ = ["at_least_one", "same_study"]


def at_least_one(args: Namespace, *names: str) -> None:
    """Refuse numbers below 1.

    Raises:
        InputError: with the first of them.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: at least 1")


def same_study(args: Namespace, free: Collection[str]) -> dict[str, Any]:
    """Keep the options in OUT/settings.json, or compare them with those that are there.

    Args:
        args: with ``out``, a folder (made when needed).
        free: names of the options that may change from call to call: they choose parts, or change no result.

    Returns:
        The options for the study's own JSON: of files and folders the last name alone.

    Raises:
        EvaluationError: the folder holds a study with other options, or options that cannot be read.
    """
    free = {"out", "progress", *free}
    now = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items() if name not in free}
    file = args.out / "settings.json"
    args.out.mkdir(parents=True, exist_ok=True)
    begun = any(found.name != file.name for found in args.out.iterdir())  # a typo that was refused binds nobody
    if file.is_file() and begun:
        try:
            kept = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise EvaluationError(f"{file}: does not say what this study was started with ({error}); give another --out") from error
        changed = [f"--{name.replace('_', '-')} {kept.get(name)}, not {now.get(name)}" for name in {**kept, **now} if kept.get(name) != now.get(name)]
        if changed:
            raise EvaluationError(f"{args.out}: holds a study with {'; '.join(changed)}; give the same, or another --out")
    else:
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, file)
    return {name: _named(value) for name, value in now.items()}


def _named(value: Any) -> Any:
    """Without the folders of one machine."""
    if isinstance(value, list):
        return [_named(part) for part in value]
    return Path(value).name if isinstance(value, str) and os.sep in value else value
