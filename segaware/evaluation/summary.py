"""From rows to figures with intervals, comparisons, who is best where that can be said, and a verdict in words."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segaware.errors import EvaluationError
from segaware.evaluation.results import Measure, Results
from segaware.evaluation.significance import (
    Comparison,
    compare,
    holm,
    interval,
    iou,
    pooled_t,
    replicates,
    resample,
    statistic,
)  # fmt: skip

__all__ = ["Entry", "Summary", "summarise"]


@dataclass(frozen=True)
class Entry:
    """One figure of the tables.

    Args:
        value, low, high: over the images that this contestant has, with the bootstrap interval (NaN under two units).
        n: images that count.
        failed: images without a value.
        mark: "best" if ahead of every other method that has enough images by an interval that leaves out zero, at a
            level corrected for their number; "tied" for all that cannot be told from the leader; "first" for a leader
            that one with fewer images is ahead of on those that it has; else "".
        per_class: IoU of each class, for mIoU and consistency.
        ranked: what it is compared by to find the leader: ``value``, but where one has an infinite PSNR somewhere the mean
            over the images on which none has.
    """

    measure: str
    noise: str
    contestant: str
    value: float
    low: float
    high: float
    n: int
    failed: int
    mark: str = ""
    per_class: tuple[float, ...] = ()
    ranked: float = math.nan


@dataclass
class Summary:
    """All figures of a report."""

    results: Results
    entries: dict[tuple[str, str, str], Entry] = field(default_factory=dict)
    comparisons: dict[tuple[str, str], list[Comparison]] = field(default_factory=dict)

    def entry(self, measure: str, noise: str, contestant: str) -> Entry | None:
        """One figure, or None where nothing was measured."""
        return self.entries.get((measure, noise, contestant))

    def comparison(self, measure: str, noise: str, first: str, second: str) -> Comparison | None:
        """``first`` minus ``second``, whichever way it was computed."""
        for found in self.comparisons.get((measure, noise), ()):
            if (found.first, found.second) == (first, second):
                return found
            if (found.first, found.second) == (second, first):
                return dataclasses.replace(
                    found, first=first, second=second, difference=-found.difference, low=-found.high, high=-found.low
                )
        return None


def summarise(results: Results, *, seed: int = 0) -> Summary:
    """All figures, intervals, pairwise comparisons and marks. ``seed`` is of the bootstrap."""
    summary = Summary(results)
    n = len(results.images)
    weights = resample(n, block=results.block, seed=seed)
    for measure in results.measures:
        for k, noise in enumerate(results.noises):
            data = [results.data(measure, c, k) for c in range(len(results.names))]
            spreads = [replicates(one, weights, measure.kind) if np.isfinite(one).all() else None for one in data]
            look = _Look(measure, noise, k, data, spreads, weights, _finite_for_all(data))
            for c, name in enumerate(results.names):
                entry = _entry(results, look, name, c)
                if entry is not None:
                    summary.entries[measure.key, noise, name] = entry
            summary.comparisons[measure.key, noise] = _compare_all(results, look)
            _mark(summary, look)
    return summary


@dataclass(frozen=True)
class _Look:
    """One measure under one condition: per contestant its images' values, and their replicates if none is missing.

    ``finite``: images on which no contestant that has a finite value at all is infinite.
    """

    measure: Measure
    noise: str
    place: int
    data: list[Any]
    spreads: list[Any]
    weights: Any
    finite: Any

    def compare(self, a: int, b: int, level: float, block: int, names: tuple[str, str] = ("first", "second")) -> Comparison:
        one, other = self.spreads[a], self.spreads[b]
        known = None if one is None or other is None else (one, other)
        return compare(
            self.data[a], self.data[b], self.weights, kind=self.measure.kind, level=level, block=block, names=names, known=known
        )


def _finite_for_all(data: list[Any]) -> Any:
    """Per image, whether no contestant is infinite there, those aside that are so everywhere."""
    infinite = [np.isinf(one).any(tuple(range(1, one.ndim))) for one in data if np.isfinite(one).any()]
    return ~np.any(infinite, 0) if infinite else np.ones(len(data[0]), dtype=bool)


def _figure(data: Any, kind: str) -> float:
    return float(statistic(data.mean(0) if kind == "mean" else data.sum(0), kind))


def _entry(results: Results, look: _Look, name: str, c: int) -> Entry | None:
    measure, data, spread = look.measure, look.data[c], look.spreads[c]
    known = ~np.isnan(data).any(tuple(range(1, data.ndim)))
    if not known.any():
        return None
    here = data[known]
    value = _figure(here, measure.kind)
    low = high = math.nan
    if np.isfinite(here).all():
        units = -(-len(here) // results.block)
        if spread is None:
            spread = replicates(here, look.weights[:, known], measure.kind)
        low, high = interval(value, spread, level=results.protocol.level, units=units)
    low, high = _bounded(measure, value, low, high)
    classes = tuple(float(v) for v in iou(here.sum(0))) if measure.kind == "iou" else ()
    shared = known & look.finite
    ranked = _figure(data[shared], measure.kind) if shared.any() and not look.finite.all() else value
    return Entry(measure.key, look.noise, name, value, low, high, int(known.sum()), int((~known).sum()), per_class=classes, ranked=ranked)


def _bounded(measure: Measure, value: float, low: float, high: float) -> tuple[float, float]:
    """Shares stay in [0, 1] however wide few images make the interval."""
    return (max(0.0, low), min(1.0, high)) if measure.kind != "mean" and not math.isnan(low) else (low, high)


def _compare_all(results: Results, look: _Look) -> list[Comparison]:
    found = []
    names = results.names
    for a in range(len(names)):
        for b in range(a):
            one = look.compare(a, b, results.protocol.level, results.block, (names[a], names[b]))
            if one.n:
                found.append(dataclasses.replace(one, p_draws=_over_draws(results, look.measure, look.place, a, b)))
    return [dataclasses.replace(one, p_holm=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def _over_draws(results: Results, measure: Measure, k: int, a: int, b: int) -> float | None:
    """U-SAID's test: each draw gives one figure of the whole set a method."""
    draws = results.protocol.draws_of(results.protocol.conditions[k])
    if draws < 2:
        return None
    figures = np.array([[_figure(results.data(measure, c, k, d), measure.kind) for d in range(draws)] for c in (a, b)])
    if not np.isfinite(figures).all():
        return None
    (m1, m2), (v1, v2) = figures.mean(1), figures.var(1, ddof=1)
    try:
        return pooled_t(m1, v1, m2, v2, draws, draws)[1]
    except EvaluationError:  # no scipy
        return None


def rank(measure: Measure, entry: Entry) -> tuple[int, float]:
    """What a leader has most of: images first, for a mean without the hard ones is none to compare with."""
    return entry.n, measure.better * entry.ranked


def _mark(summary: Summary, look: _Look) -> None:
    """The leader is best only if it beats each other one; else all that it cannot be told from are tied with it."""
    results, measure, noise = summary.results, look.measure, look.noise
    here = [(c, summary.entries[measure.key, noise, name]) for c, name in enumerate(results.names) if (measure.key, noise, name) in summary.entries]
    # PSNR is infinite where nothing is left of the noise: compared is what is finite, if anything is
    here = [(c, entry) for c, entry in here if np.isfinite(look.data[c]).any() and not (noise == "clean" and entry.contestant == "noisy")]
    if len(here) < 2:
        return
    lead, leader = max(here, key=lambda pair: rank(measure, pair[1]))
    others = [(c, e) for c, e in here if c != lead and not math.isnan(look.compare(lead, c, results.protocol.level, results.block).low)]
    if not others:
        return  # too few images for any interval
    level = 1 - (1 - results.protocol.level) / len(others)
    tied, beaten = [], False
    for c, entry in others:
        gap = look.compare(lead, c, level, results.block)
        behind, ahead = (gap.low > 0, gap.high < 0) if measure.better > 0 else (gap.high < 0, gap.low > 0)
        beaten = beaten or ahead  # by one with fewer images, on those that it has
        if not (behind or ahead):
            tied.append(entry)
    marks = [(leader, "first")] if beaten else [(leader, "best")] if not tied else [(entry, "tied") for entry in (leader, *tied)]
    for entry, mark in marks:
        summary.entries[measure.key, noise, entry.contestant] = dataclasses.replace(entry, mark=mark)
