"""One estimate against the clean image: metrics of the image, and what the judges see in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from segaware.errors import SegawareError
from segaware.evaluation.judges import Judge
from segaware.evaluation.protocol import Protocol
from segaware.evaluation.results import TOP, number
from segaware.evaluation.sources import Sample
from segaware.metrics import convention
from segaware.task_metrics import confusion_matrix, topk_hits

__all__ = ["Measures"]


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
        # the papers print the noisy image's own figures unclipped, unless they round everything to a file's levels
        self._raw = self.convention if self.convention.round_8bit else replace(self.convention, clamp=False)
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
        clipped = "" if self._raw == self.convention else "; the noisy image itself is not clamped"
        self.about["psnr, ssim"] = described + clipped
        self.names = [name for name, _ in self._metrics.values()] + [f"judge/{judge.key}" for judge in self.judges]
        self._clean: dict[str, Tensor] = {}
        self._of: str | None = None

    def missing(self, known: dict[str, Any]) -> list[str]:
        """Names of what a cached cell does not hold."""
        return [name for name in self.names if name not in known]

    def take(
        self, estimate: Tensor, sample: Sample, only: Sequence[str], *, raw: bool = False
    ) -> tuple[dict[str, Any], list[str], dict[str, Tensor]]:
        """Measure ``estimate (C, H, W)``; ``raw``: it is the noisy image itself.

        Returns:
            What could be measured by name, JSON-able; what could not, in words; the judges' class maps.
        """
        results: dict[str, Any] = {}
        errors: list[str] = []
        maps: dict[str, Tensor] = {}
        for metric, (name, function) in self._metrics.items():
            if name in only:
                if raw and metric in ("psnr", "ssim"):
                    function = getattr(self._raw, metric)
                try:
                    results[name] = number(float(function(estimate[None], sample.clean[None])))
                except SegawareError as error:
                    errors.append(f"{metric}: {error}")
        for judge in self.judges:
            name = f"judge/{judge.key}"
            if name not in only:
                continue
            try:
                scores = judge(estimate)
                said, was = scores.argmax(0), self.on_clean(judge, sample)
                seen: dict[str, Any] = {"clean": confusion_matrix(said[None], was[None], judge.classes, ignore=None)[0].tolist()}
                if judge.classes > TOP:
                    seen[f"top{TOP}"] = float(topk_hits(scores[None], was[None], TOP, ignore=None))
                if sample.labels is not None:
                    seen["labels"] = confusion_matrix(said[None], sample.labels[None], judge.classes)[0].tolist()
                results[name] = seen
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
