"""A screen that was begun elsewhere: its results, from the JSON that was kept of it, as if they had been found here."""

import gzip
import json
import zlib
from pathlib import Path

from segaware.errors import EvaluationError

from .entrants import every
from .runs import Run
from .setting import Setting, write_json
from .verdict import alike, runs_of

#: Without these no choice can be made of a training.
_NEEDED = ("contestant", "factor", "seed", "steps", "state")
_MEASURED = ("photographs_psnr",)  # where it was measured


def take_over(setting: Setting, file: Path, **planned) -> list[str]:
    """Put the screened trainings of ``file`` into this comparison's folder; the names of those that were not there yet.

    Of the final a JSON holds figures alone, not what was found on each image: its trainings are taken over by
    :mod:`arena.packed`. ``planned``: steps, precision and device of this call.

    Raises:
        EvaluationError: no results, of another setting (other data, start, judges, ...), with the difference, of other
            steps, or with trainings that this version does not know.
    """
    record = read_results(file)
    changed = differences(record["setting"], setting.record())
    if changed:
        raise EvaluationError(f"{file}: of another comparison ({'; '.join(changed)}); give the same arguments, or leave --known out")
    runs = record["screen"]["runs"]
    for found in runs:  # all of them first: nothing is taken of a file that does not fit
        lacks = ["all"] if not isinstance(found, dict) else [key for key in (*_NEEDED, *_MEASURED * ("held_out" in found)) if key not in found]
        if lacks:
            raise EvaluationError(f"{file}: a training without {', '.join(lacks)}; write it anew with --collect where it was made")
        if run_of("screen", found) is None:
            name, factor, seed = (found[key] for key in ("contestant", "factor", "seed"))
            raise EvaluationError(f"{file}: {str(name)[:80]!r} x{factor} s{seed} is no training of this version; leave --known out")
    new = [(run, found) for found in runs if (run := run_of("screen", found)) is not None and run.result(setting.out) is None]
    told = [{**found, "folder": f"{run.folder(setting.out).name} of {file.name}"} for run, found in new]
    alike(setting.out / "screen", runs_of(setting.out, "screen") + told, **planned)
    for run, found in new:
        write_json(run.folder(setting.out) / "result.json", {key: value for key, value in found.items() if key != "folder"})
    return [run.folder(setting.out).name for run, _ in new]


def run_of(phase: str, found: dict) -> Run | None:
    """The training that a result tells of; None if this version knows none such: a name becomes that of a folder."""
    name, factor, seed = (found.get(key) for key in ("contestant", "factor", "seed"))
    known = name in every() and isinstance(factor, (int, float)) and isinstance(seed, int)
    return Run(phase, name, factor, seed) if known else None


def read_results(file: Path) -> dict:
    """``results.json`` of a comparison, plain or as ``.json.gz``.

    Raises:
        EvaluationError: missing, damaged, or something else.
    """
    try:
        content = file.read_bytes()
        record = json.loads(gzip.decompress(content) if file.suffix == ".gz" else content)
        if isinstance(record["setting"], dict) and isinstance(record["screen"]["runs"], list):
            return record
    except OSError as error:
        raise EvaluationError(f"{file}: cannot be read ({error.strerror or error}); give the results.json of a comparison") from error
    except (EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise EvaluationError(f"{file}: holds no comparison ({type(error).__name__}: {error}); give its results.json") from error
    raise EvaluationError(f"{file}: holds no comparison; give its results.json")


def differences(then: dict, now: dict) -> list[str]:
    """What both settings tell, and tell differently. An older one may hold "auto" for a precision: its trainings each tell what that came to."""
    return [f"{key} {then[key]} -> {now[key]}" for key in now if key in then and then[key] not in (now[key], "auto" if key == "precision" else now[key])]
