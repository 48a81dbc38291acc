"""What was measured, compactly: arrays over contestant, condition, draw and image; rows in, rows out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from segaware.errors import EvaluationError
from segaware.evaluation.protocol import Protocol

__all__ = ["TOP", "Measure", "Results", "number"]

#: k of top-k agreement, for judges of more classes.
TOP = 5

Array = Any


@dataclass(frozen=True)
class Measure:
    """One column of the tables.

    Args:
        key: "psnr", or "miou:JUDGE".
        title: for people.
        kind: how a set's figure comes from its images, see :func:`segaware.evaluation.significance.statistic`.
        better: +1 if more is better, -1 if less is.
        percent: shown times 100.
        digits: behind the point, as shown.
        major: shown in tables; the others are in JSON and CSV.
    """

    key: str
    title: str
    kind: str = "mean"
    better: int = 1
    percent: bool = False
    digits: int = 2
    major: bool = True

    @property
    def judge(self) -> str:
        """Who says so; "" for metrics of the image."""
        return self.key.partition(":")[2]

    def text(self, value: float | None, signed: bool = False) -> str:
        """The value as shown; a dash for none."""
        if value is None or math.isnan(value):
            return "-"
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        return f"{value * (100 if self.percent else 1):{'+' if signed else ''}.{self.digits}f}"


_OF_IMAGES = {
    "psnr": Measure("psnr", "PSNR (dB)"),
    "ssim": Measure("ssim", "SSIM", digits=4),
    "niqe": Measure("niqe", "NIQE, less is better", better=-1),
}


def _of_judge(judge: str, labels: bool, classes: int) -> list[Measure]:
    found = []
    if labels:
        found = [
            Measure(f"miou:{judge}", f"mIoU (%) by {judge}", "iou", percent=True),
            Measure(f"accuracy:{judge}", f"pixel accuracy (%) by {judge}", "accuracy", percent=True, major=False),
            Measure(f"recall:{judge}", f"mean class accuracy (%) by {judge}", "recall", percent=True, major=False),
        ]
    top = [Measure(f"top{TOP}:{judge}", f"class on clean among the first {TOP} (%) by {judge}", percent=True, major=False)]
    return [
        *found,
        Measure(f"consistency:{judge}", f"consistency (%) by {judge}", "iou", percent=True),
        Measure(f"changed:{judge}", f"pixels whose class changes (%) by {judge}", "changed", -1, percent=True, major=False),
        *(top if classes > TOP else []),
    ]


@dataclass
class Results:
    """Everything a report needs.

    Args:
        protocol: what was measured.
        source: name, note, classes, block of the images.
        images: their names, in order.
        contestants: name, kind and key of each.
        judges: name, key and class names of each.
        environment: versions, hardware, settings.
        failures: ``{"contestant", "noise", "draw", "image", "error"}``.
    """

    protocol: Protocol
    source: dict[str, Any]
    images: list[str]
    contestants: list[dict[str, Any]]
    judges: list[dict[str, Any]]
    environment: dict[str, Any] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    command: str = ""

    def __post_init__(self) -> None:
        self.names = [contestant["name"] for contestant in self.contestants]
        self.noises = [noise.label for noise in self.protocol.conditions]
        self.labelled = self.source.get("classes") is not None
        self._at = {
            "contestant": {name: index for index, name in enumerate(self.names)},
            "noise": {name: index for index, name in enumerate(self.noises)},
            "image": {name: index for index, name in enumerate(self.images)},
        }
        shape = (len(self.names), len(self.noises), self.protocol.draws, len(self.images))
        self._values = {metric: np.full(shape, np.nan) for metric in (*self.protocol.metrics, "seconds")}
        # unsigned 32 bits hold the pixels of any one image; the first cell is set to "missing" beside it
        self._matrices: dict[tuple[str, str], Array] = {}
        self._seen: dict[tuple[str, str], Array] = {}
        for judge in self.judges:
            k = len(judge["class_names"])
            if k > TOP:
                self._values[f"top{TOP}:{judge['name']}"] = np.full(shape, np.nan)
            for against in ("labels", "clean") if self.labelled else ("clean",):
                self._matrices[judge["name"], against] = np.zeros((*shape, k, k), dtype=np.uint32)
                self._seen[judge["name"], against] = np.zeros(shape, dtype=bool)

    @property
    def measures(self) -> list[Measure]:
        """All columns, image metrics first."""
        found = [self._of_images(metric) for metric in self.protocol.metrics]
        for judge in self.judges:
            found += _of_judge(judge["name"], self.labelled, len(judge["class_names"]))
        return found

    def _of_images(self, metric: str) -> Measure:
        """With the parameters in NIQE's title: a value under others is of another metric."""
        measure = _OF_IMAGES[metric]
        stated = str(self.environment.get("metrics", {}).get(metric, "")).partition(";")[0]
        return replace(measure, title=f"{stated}), less is better") if metric == "niqe" and stated else measure

    @property
    def block(self) -> int:
        """Images per resampled block."""
        return self.protocol.block or int(self.source.get("block", 1))

    def add(self, row: dict[str, Any]) -> None:
        """One row: see :meth:`rows`.

        Raises:
            EvaluationError: a row of another protocol.
        """
        try:
            at = tuple(self._at[part][row[part]] for part in ("contestant", "noise"))
            at = (*at, row["draw"], self._at["image"][row["image"]])
            for metric, value in row.get("values", {}).items():
                self._values[metric][at] = float(value)
            for judge, matrices in row.get("judges", {}).items():
                for against, matrix in matrices.items():
                    if against == f"top{TOP}":
                        self._values[f"{against}:{judge}"][at] = matrix
                        continue
                    self._matrices[judge, against][at] = matrix
                    self._seen[judge, against][at] = True
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EvaluationError(f"a row does not fit its report ({type(error).__name__}: {error}); evaluate again") from error
        if row.get("error"):
            self.failures.append({key: row[key] for key in ("contestant", "noise", "draw", "image", "error")})

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per contestant, condition, draw and image: ``values`` and per judge the confusion
        matrices against ``labels`` and against itself on the ``clean`` image; ``error`` if any."""
        errors = {(f["contestant"], f["noise"], f["draw"], f["image"]): f["error"] for f in self.failures}
        for n, noise in enumerate(self.protocol.conditions):
            for draw in range(self.protocol.draws_of(noise)):
                for i, image in enumerate(self.images):
                    for c, contestant in enumerate(self.names):
                        at = (c, n, draw, i)
                        row: dict[str, Any] = {"image": image, "contestant": contestant, "noise": noise.label, "draw": draw}
                        known = {k: number(v[at]) for k, v in self._values.items() if not math.isnan(v[at])}
                        row["values"] = {k: v for k, v in known.items() if ":" not in k}
                        judges: dict[str, Any] = {}
                        for key in known.keys() - row["values"].keys():
                            judges.setdefault(key.partition(":")[2], {})[f"top{TOP}"] = known[key]
                        for (judge, against), seen in self._seen.items():
                            if seen[at]:
                                judges.setdefault(judge, {})[against] = self._matrices[judge, against][at].tolist()
                        if judges:
                            row["judges"] = judges
                        error = errors.get((contestant, noise.label, draw, image))
                        if error:
                            row["error"] = error
                        if row["values"] or judges or error:
                            yield row

    def data(self, measure: Measure, contestant: int, noise: int, draw: int | None = None) -> Array:
        """Per image: ``(n,)`` values, averaged over draws, or ``(n, K, K)`` matrices, summed over draws; NaN = missing.

        An image counts when all its draws are there.
        """
        draws = slice(0, self.protocol.draws_of(self.protocol.conditions[noise])) if draw is None else slice(draw, draw + 1)
        if measure.kind == "mean":
            return self._values[measure.key][contestant, noise, draws].mean(0)
        against = "labels" if measure.key.partition(":")[0] in ("miou", "accuracy", "recall") else "clean"
        seen = self._seen[measure.judge, against][contestant, noise, draws].all(0)
        total = self._matrices[measure.judge, against][contestant, noise, draws].astype(np.float64).sum(0)
        total[~seen] = np.nan
        return total

    def seconds(self, contestant: int) -> float:
        """Median time of one denoising; NaN if all came from an older run or there is none."""
        values = self._values["seconds"][contestant]
        values = values[~np.isnan(values)]
        return float(np.median(values)) if len(values) else math.nan


def number(value: float) -> float | str | None:
    """A float for JSON, which has neither infinity nor NaN: "inf", "-inf", None."""
    value = float(value)
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")
