"""One estimate against the clean image: metrics of the image, and what the judges see in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segaware.errors import SegawareError
from segaware.evaluation.judges import Judge
from segaware.evaluation.protocol import Protocol
from segaware.evaluation.results import number
from segaware.evaluation.sources import IGNORE, Sample
from segaware.metrics import convention

__all__ = ["Measures", "confusion"]


def confusion(truth: Tensor, said: Tensor, classes: int) -> Tensor:
    """Pixels by what is true (rows) and what was said (columns), ``(K, K)`` int64; void (255) is left out."""
    known = truth != IGNORE
    return torch.bincount(truth[known] * classes + said[known], minlength=classes**2).reshape(classes, classes)


class Measures:
    """All that is measured of one estimate, each part under a name of its own for the cache.

    Args:
        protocol: metrics and their convention.
        judges: segmenters.
        niqe: parameters of NIQE, where it is asked for; None = those that ship.
    """

    def __init__(self, protocol: Protocol, judges: Sequence[Judge], niqe: Any = None) -> None:
        self.judges = list(judges)
        self.convention = convention(protocol.preset)
        self.about: dict[str, str] = {}
        self._metrics: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {}
        described = self.convention.describe()
        if "psnr" in protocol.metrics:
            self._metrics["psnr"] = (f"psnr/{described}", self.convention.psnr)
        if "ssim" in protocol.metrics:
            self._metrics["ssim"] = (f"ssim/{described}", self.convention.ssim)
        if "niqe" in protocol.metrics:
            from segaware.niqe import NIQE

            model = niqe or NIQE.shipped()
            seen = f"{model.describe()} {float(model.mean.sum()):.9g} {float(model.covariance.sum()):.9g}"
            # of the clamped estimate: there is no more to a file
            self._metrics["niqe"] = (seen, lambda estimate, _: model(estimate.clamp(0, 1), data_range=1.0))
            self.about["niqe"] = model.describe()
        self.about["psnr, ssim"] = described
        self.names = [name for name, _ in self._metrics.values()] + [f"judge/{judge.key}" for judge in self.judges]
        self._clean: dict[str, Tensor] = {}
        self._of: str | None = None

    def missing(self, known: dict[str, Any]) -> list[str]:
        """Names of what a cached cell does not hold."""
        return [name for name in self.names if name not in known]

    def take(self, estimate: Tensor, sample: Sample, only: Sequence[str]) -> tuple[dict[str, Any], list[str], dict[str, Tensor]]:
        """Measure ``estimate (C, H, W)``.

        Returns:
            What could be measured by name, JSON-able; what could not, in words; the judges' class maps.
        """
        results: dict[str, Any] = {}
        errors: list[str] = []
        maps: dict[str, Tensor] = {}
        for metric, (name, function) in self._metrics.items():
            if name in only:
                try:
                    results[name] = number(float(function(estimate[None], sample.clean[None])))
                except SegawareError as error:
                    errors.append(f"{metric}: {error}")
        for judge in self.judges:
            name = f"judge/{judge.key}"
            if name not in only:
                continue
            try:
                said = judge(estimate).argmax(0)
                matrices = {"clean": confusion(self.on_clean(judge, sample), said, judge.classes).tolist()}
                if sample.labels is not None:
                    matrices["labels"] = confusion(sample.labels, said, judge.classes).tolist()
                results[name] = matrices
                maps[judge.name] = said
            except SegawareError as error:
                errors.append(str(error))
        return results, errors, maps

    def on_clean(self, judge: Judge, sample: Sample) -> Tensor:
        """The judge's class map of the clean image, found once an image."""
        if self._of != sample.item.name:
            self._of, self._clean = sample.item.name, {}
        if judge.name not in self._clean:
            self._clean[judge.name] = judge(sample.clean).argmax(0)
        return self._clean[judge.name]

    def row(self, results: dict[str, Any]) -> dict[str, Any]:
        """Results by measure name -> the ``values`` and ``judges`` of a row."""
        values = {metric: results[name] for metric, (name, _) in self._metrics.items() if results.get(name) is not None}
        if results.get("seconds") is not None:
            values["seconds"] = results["seconds"]
        judges = {j.name: results[f"judge/{j.key}"] for j in self.judges if f"judge/{j.key}" in results}
        return {"values": values, "judges": judges}
