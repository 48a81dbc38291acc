"""Whether a difference is more than luck: paired intervals and tests on rows, images as the units.

The bootstrap needs numpy alone; Wilcoxon's and the t-tests use scipy (extra ``eval``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from segaware.errors import EvaluationError

__all__ = [
    "Comparison", "block_means", "compare", "holm", "interval", "iou", "paired_t", "pooled_t", "replicates",
    "resample", "statistic", "student", "wilcoxon",
]  # fmt: skip

Array = Any

#: Bootstrap samples; the limits of a 95 % interval then move by about a fortieth of its width.
SAMPLES = 4000

_AT_ONCE = 250  # samples worked on at a time: what is held beside their counts does not grow with the images


def resample(n: int, *, block: int = 1, samples: int = SAMPLES, seed: int = 0) -> Array:
    """How often each of ``n`` images is drawn in each bootstrap sample: ``(samples, n)`` small integers.

    Blocks of ``block`` neighbours are drawn together, from any start, round the end to the beginning,
    because neighbouring frames of a video are nearly the same image. All methods are measured with
    the same draws, which is what makes the comparison paired.

    Raises:
        EvaluationError: no image, or no block.
    """
    if n < 1 or block < 1 or samples < 1:
        raise EvaluationError(f"resample: {n} images in blocks of {block}, {samples} samples; each must be at least 1")
    block = min(block, n)
    random = np.random.default_rng(seed)
    counts = np.empty((samples, n), dtype=np.min_scalar_type(n))
    for first in range(0, samples, _AT_ONCE):
        part = counts[first : first + _AT_ONCE]
        starts = random.integers(0, n, size=(len(part), -(-n // block)))
        places = (starts[:, :, None] + np.arange(block)).reshape(len(part), -1)[:, :n] % n
        places += n * np.arange(len(part))[:, None]
        part[:] = np.bincount(places.ravel(), minlength=part.size).reshape(part.shape)
    return counts


def iou(matrix: Array) -> Array:
    """Intersection over union of each class, ``(..., K, K) -> (..., K)``; NaN for a class that is nowhere.

    Rows are what is true, columns what was said; on the diagonal both agree.
    """
    both = np.diagonal(matrix, axis1=-2, axis2=-1)
    union = matrix.sum(-1) + matrix.sum(-2) - both
    return np.where(union > 0, both / np.maximum(union, 1e-300), np.nan)


def statistic(data: Array, kind: str) -> Array:
    """The figure of a set from the sum or mean over its images, over the last axes.

    "mean": the value itself. Of a confusion matrix ``(..., K, K)``: "iou", the mean over classes that
    occur; "accuracy", the share of pixels on the diagonal; "recall", the mean over classes of the
    share of their pixels that were found; "changed", one minus accuracy.
    """
    if kind == "mean":
        return data
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind == "iou":
            return _mean(iou(data))
        both = np.diagonal(data, axis1=-2, axis2=-1)
        if kind == "recall":
            rows = data.sum(-1)
            return _mean(np.where(rows > 0, both / np.maximum(rows, 1e-300), np.nan))
        accuracy = both.sum(-1) / data.sum((-2, -1))
        return accuracy if kind == "accuracy" else 1 - accuracy


def _mean(values: Array) -> Array:
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(-1) / np.where(known.any(-1), known.sum(-1), np.nan)


def replicates(data: Array, weights: Array, kind: str = "mean") -> Array:
    """The figure of each bootstrap sample: ``data (n,)`` or ``(n, K, K)``, ``weights (samples, n)`` of :func:`resample`."""
    flat = np.asarray(data, dtype=np.float64).reshape(len(data), -1)
    found = []
    for first in range(0, len(weights), _AT_ONCE):
        part = weights[first : first + _AT_ONCE].astype(np.float64)
        total = (part @ flat).reshape(len(part), *np.shape(data)[1:])
        if kind != "mean":
            found.append(statistic(total, kind))
        else:
            weight = part.sum(1)
            found.append(np.where(weight > 0, total / np.maximum(weight, 1e-300), np.nan))
    return np.concatenate(found)


def interval(estimate: float, values: Array, *, level: float = 0.95, units: float = math.inf) -> tuple[float, float]:
    """Percentile limits of bootstrap values, widened for few units.

    A bootstrap of n units is too narrow by sqrt((n - 1) / n) and ignores that the spread itself is
    estimated; distances from the estimate are therefore stretched by t / z times sqrt(n / (n - 1))
    (Hesterberg 2015, "expanded percentile"). ``units``: images, or blocks of a video. Under two there is no interval: NaN.
    """
    values = values[np.isfinite(values)]
    if units < 2 or not math.isfinite(estimate) or not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    stretch = _stretch(level, units)
    return float(estimate + stretch * (low - estimate)), float(estimate + stretch * (high - estimate))


def _stretch(level: float, units: float) -> float:
    if math.isinf(units):
        return 1.0
    return student(level, units - 1) / NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(units / (units - 1))


def student(level: float, freedom: float) -> float:
    """Half width of the central ``level`` of Student's t (no scipy): exact at 1 and 2 degrees, else to 1 % at 95 %."""
    tail = (1 + level) / 2
    if freedom <= 1:
        return math.tan(math.pi * (tail - 0.5))
    if freedom <= 2:
        alpha = 4 * tail * (1 - tail)
        return 2 * (tail - 0.5) * math.sqrt(2 / alpha)
    z, v = NormalDist().inv_cdf(tail), freedom  # Cornish-Fisher (Abramowitz and Stegun 26.7.5)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


@dataclass(frozen=True)
class Comparison:
    """``first`` minus ``second`` on the same images.

    Args:
        difference, low, high: with the paired bootstrap interval.
        p: two-sided, of the same bootstrap.
        p_wilcoxon, p_t: paired tests on images (on means of blocks of a video); None for mIoU and its
            like, which have no value per image, and where scipy is missing.
        p_draws: the two-sided pooled t-test over noise draws, as in U-SAID's Table X. It says nothing of
            other images or trainings. None with one draw.
        p_holm: ``p`` corrected for all comparisons of its family.
        n: images that both have.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    n: int
    p_wilcoxon: float | None = None
    p_t: float | None = None
    p_draws: float | None = None
    p_holm: float | None = None


def compare(
    first: Array, second: Array, weights: Array, *, kind: str = "mean", level: float = 0.95, block: int = 1,
    names: tuple[str, str] = ("first", "second"), known: tuple[Array, Array] | None = None,
) -> Comparison:
    """Compare two methods on images that both have.

    Args:
        first, second: ``(n,)`` values or ``(n, K, K)`` matrices, in the order of the images; NaN = missing.
        weights: of :func:`resample`, over the same n.
        known: :func:`replicates` of both over all images, to be used where both have all; None = computed here.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    axes = tuple(range(1, first.ndim))
    both = np.isfinite(first).all(axes) & np.isfinite(second).all(axes)
    n = int(both.sum())
    nothing = Comparison(*names, math.nan, math.nan, math.nan, math.nan, n)
    if n == 0:
        return nothing
    if n < len(both):
        first, second, weights, known = first[both], second[both], weights[:, both], None

    def figure(data: Array) -> float:
        return float(statistic(data.mean(0) if kind == "mean" else data.sum(0), kind))

    difference = figure(first) - figure(second)
    units = -(-n // block)
    if units < 2 or not math.isfinite(difference):
        return Comparison(*names, difference, math.nan, math.nan, math.nan, n)
    one, other = known or (replicates(first, weights, kind), replicates(second, weights, kind))
    spread = one - other
    low, high = interval(difference, spread, level=level, units=units)
    stretched = difference + _stretch(level, units) * (spread[np.isfinite(spread)] - difference)
    side = min((stretched <= 0).sum(), (stretched >= 0).sum())
    p = min(1.0, 2 * (float(side) + 1) / (len(stretched) + 1))
    p_wilcoxon = p_t = None
    if kind == "mean":
        gaps = block_means(first - second, block)
        p_wilcoxon, p_t = _if_scipy(wilcoxon, gaps), _if_scipy(paired_t, gaps)
    return Comparison(*names, difference, low, high, p, n, p_wilcoxon, p_t)


def block_means(values: Array, block: int) -> Array:
    """Means of successive blocks, so that tests on them do not count a frame's neighbours as news."""
    return np.array([values[start : start + block].mean() for start in range(0, len(values), block)])


def wilcoxon(differences: Array) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 if all are zero, NaN for fewer than two."""
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2:
        return math.nan
    return float(_stats().wilcoxon(differences).pvalue) if differences.any() else 1.0


def paired_t(differences: Array) -> float:
    """Two-sided p of the paired t-test; NaN for fewer than two."""
    differences = np.asarray(differences, dtype=np.float64)
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) == 0:
        return 1.0 if differences[0] == 0 else 0.0
    # by hand: scipy's warns of differences that are nearly one number, which a constant gain gives
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(len(differences)))
    return float(2 * _stats().t.sf(abs(t), len(differences) - 1))


def pooled_t(mean1: float, variance1: float, mean2: float, variance2: float, n1: int = 10, n2: int = 10) -> tuple[float, float]:
    """U-SAID's test (its Table X): two-sided two-sample t with pooled variance; t and p.

    Args:
        mean1, variance1, mean2, variance2: over ``n1`` and ``n2`` noise draws; sample variances (n - 1).

    Raises:
        EvaluationError: fewer than two draws, or a negative variance.
    """
    if min(n1, n2) < 2 or min(variance1, variance2) < 0:
        raise EvaluationError(f"pooled_t: {n1} and {n2} draws, variances {variance1:g} and {variance2:g}; need two draws each")
    freedom = n1 + n2 - 2
    pooled = ((n1 - 1) * variance1 + (n2 - 1) * variance2) / freedom
    gap = mean1 - mean2
    if pooled == 0:
        return (0.0, 1.0) if gap == 0 else (math.copysign(math.inf, gap), 0.0)
    t = gap / math.sqrt(pooled * (1 / n1 + 1 / n2))
    return t, float(2 * _stats().t.sf(abs(t), freedom))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of a family of p-values, in the given order; NaN stays and does not count."""
    result = [math.nan] * len(p)
    known = sorted((value, index) for index, value in enumerate(p) if not math.isnan(value))
    highest = 0.0
    for rank, (value, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        result[index] = highest
    return result


def _stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise EvaluationError("Wilcoxon's and the t-tests need scipy; pip install 'segaware[eval]'") from error
    return stats


def _if_scipy(test: Any, values: Array) -> float | None:
    try:
        return test(values)
    except EvaluationError:
        return None
