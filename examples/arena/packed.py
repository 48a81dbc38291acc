"""A training of the final in one file of some 100 kB, so that its seeds can be pooled with those of another machine.

A final pools what was found on each image, not figures. Of a confusion matrix its figures need the diagonal and the
union of each class alone: mIoU, consistency and the share of changed pixels follow from these. They are kept; what
:func:`unpack` puts in the place of a matrix has the same ones, its pixels off the diagonal are not those measured.
"""

import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from segaware.entries import shipped_names
from segaware.errors import EvaluationError

from .known import differences, run_of
from .setting import FOLDER_NAME, REPORTED, write_bytes, write_json
from .verdict import JUDGES_COMPARED, alike, one_factor, runs_of

PACKED = "packed.json.xz"
_SCHEMA = 1
_ABOUT = ("schema", "protocol", "source", "images", "contestants", "judges", "environment")
_REPAIR = f"give the {PACKED} of a training of a final"
_FIGURES = "matrices: of the measured IoU and accuracy of each image; off the diagonal not as measured"


def pack_finished(out: Path, setting: dict) -> None:
    """Pack each finished training of the final, and each denoiser beside it, that is not packed yet."""
    for phase in ("final", "beside"):
        for run in runs_of(out, phase):
            folder = out / phase / run["folder"]
            if not (folder / PACKED).is_file():
                pack(folder, setting)


def pack(folder: Path, setting: dict) -> Path:
    """Write ``folder/packed.json.xz`` of a finished training of the final, or of a denoiser beside it."""
    record: dict = {"schema": _SCHEMA, "phase": folder.parent.name, "setting": setting, "tests": {}}
    record["result"] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for which in REPORTED:
        test = folder / f"test-{which}"
        if (test / "report.json").is_file():
            report = json.loads((test / "report.json").read_text(encoding="utf-8"))
            rows = [_judged(row, _counts) for row in report["rows"] if row["contestant"] != "noisy" or row["noise"] == "clean"]
            looks = test / "classes.jsonl"
            record["tests"][which] = {key: report[key] for key in _ABOUT} | {
                "rows": rows, "classes": looks.read_text(encoding="utf-8") if looks.is_file() else None,
            }  # fmt: skip
    write_bytes(folder / PACKED, lzma.compress(json.dumps(record, separators=(",", ":")).encode(), preset=9 | lzma.PRESET_EXTREME))
    return folder / PACKED


def unpack(file: Path, out: Path, setting: dict, **planned) -> Path | None:
    """Put the training that ``file`` holds into the comparison's folder ``out``, unless it is there; its folder.

    Args:
        planned: steps, precision and device of this call.

    Raises:
        EvaluationError: no such file, of another comparison, steps or weight, or unknown to this version.
    """
    record = _read(file)
    changed = differences(record["setting"], setting)
    if changed:
        raise EvaluationError(f"{file}: of another comparison ({'; '.join(changed)}); give the same arguments, or leave it out of --known")
    folder = _place(file, record, out)
    if (folder / "result.json").is_file():
        return None
    if folder.exists():
        raise EvaluationError(f"{folder}: a training that is not finished is in the place of {file}; finish it, or delete that folder")
    try:
        reports = {which: _report(test, _compared(record["setting"])) for which, test in record["tests"].items()}
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise EvaluationError(f"{file}: damaged ({type(error).__name__}: {error}); {_REPAIR}") from error
    if folder.parent.name == "final":
        runs = [*runs_of(out, "final"), {**record["result"], "folder": f"{folder.name} of {file.name}"}]
        alike(out / "final", runs, **planned)
        one_factor(out / "final", runs)
    partial = out / f".{folder.name}.{os.getpid()}.partial"  # beside the phases: what is half there counts in none of them
    try:
        for which, (report, classes) in reports.items():
            write_json(partial / f"test-{which}" / "report.json", report)
            if classes is not None:
                write_bytes(partial / f"test-{which}" / "classes.jsonl", classes)
        write_bytes(partial / PACKED, file.read_bytes())
        write_json(partial / "result.json", record["result"])
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, folder)
    except OSError as error:
        if (folder / "result.json").is_file():  # by another process, in the meantime
            return None
        raise EvaluationError(f"{folder}: cannot be written ({error.strerror or error}); free space, or give another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _compared(setting: dict) -> bool:
    """Whether the comparison of settings has told that the judges are the same: by what they hold, or as they ship."""
    return "judge_contents" in setting or {*setting.get("judge", ["?"])} <= {*shipped_names()}


def _report(test: dict, compared: bool) -> tuple[dict, bytes | None]:
    """The report, and the classifier's looks beside it."""
    about = {key: test[key] for key in _ABOUT}
    rows = [_judged(row, matrix_of) for row in test["rows"]]
    classes = test["classes"]
    told = {"kept": _FIGURES} | ({JUDGES_COMPARED: "with the setting"} if compared else {})
    return about | {"environment": about["environment"] | told, "rows": rows}, None if classes is None else classes.encode()


def _read(file: Path) -> dict:
    try:
        record = json.loads(lzma.decompress(file.read_bytes()))
    except OSError as error:
        raise EvaluationError(f"{file}: cannot be read ({error.strerror or error}); {_REPAIR}") from error
    except (EOFError, ValueError, lzma.LZMAError) as error:
        raise EvaluationError(f"{file}: no packed training ({type(error).__name__}: {error}); {_REPAIR}") from error
    whole = {"setting": dict, "result": dict, "tests": dict, "phase": str}
    if not isinstance(record, dict) or record.get("schema") != _SCHEMA or any(not isinstance(record.get(key), kind) for key, kind in whole.items()):
        raise EvaluationError(f"{file}: no packed training of this version; {_REPAIR}")
    tests = record["tests"]
    if not {*tests} <= {*REPORTED} or any(not isinstance(test, dict) or not {*_ABOUT, "rows", "classes"} <= {*test} for test in tests.values()):
        raise EvaluationError(f"{file}: not whole; {_REPAIR}")
    return record


def _place(file: Path, record: dict, out: Path) -> Path:
    """Where it belongs: a name becomes that of a folder, so none is taken that could be a path."""
    found, phase = record["result"], record["phase"]
    name = found.get("contestant")
    if phase == "beside" and isinstance(name, str) and FOLDER_NAME.fullmatch(name) and isinstance(found.get("spec"), str):
        return out / "beside" / name
    run = run_of("final", found) if phase == "final" and "steps" in found else None
    if run is None:
        raise EvaluationError(f"{file}: {phase[:80]} {str(name)[:80]!r} is no training of this version; leave it out of --known")
    return run.folder(out)


def _judged(row: dict, change: Callable[[list], list]) -> dict:
    """The row with each of its matrices changed; what else a judge said is a number."""
    if not row.get("judges"):
        return row
    return {**row, "judges": {judge: {key: change(v) if isinstance(v, list) else v for key, v in found.items()} for judge, found in row["judges"].items()}}


def _counts(matrix: list) -> list[int]:
    """Diagonal, then what each class's union has beside it."""
    whole = np.asarray(matrix, dtype=np.int64)
    both = np.diagonal(whole)
    return [*both.tolist(), *(whole.sum(0) + whole.sum(1) - 2 * both).tolist()]


def matrix_of(counts: list[int]) -> list[list[int]]:
    """A confusion matrix of this diagonal and these unions.

    A pixel off the diagonal stands in the union of two classes. All these places, in order of their classes, are
    paired first half with second half; no class has more than half of them, so none meets itself.
    """
    classes = len(counts) // 2
    both, beside = np.array(counts[:classes]), np.array(counts[classes:])
    ends = np.cumsum(beside)
    half = int(ends[-1]) // 2
    starts = ends - beside
    first = np.stack([np.minimum(starts, half), np.minimum(ends, half)])
    second = np.stack([np.maximum(starts, half), np.maximum(ends, half)]) - half
    matrix = np.minimum(first[1][:, None], second[1]) - np.maximum(first[0][:, None], second[0])
    matrix = np.maximum(matrix, 0)
    np.fill_diagonal(matrix, both)
    return matrix.tolist()
