import numpy as np
import pytest

from segaware.errors import EvaluationError
from segaware.evaluation.significance import (
    block_means,
    compare,
    holm,
    interval,
    iou,
    paired_t,
    pooled_t,
    replicates,
    resample,
    statistic,
    student,
    wilcoxon,
)

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(
    ("m1", "v1", "m2", "v2", "t", "p"),
    [
        (0.4035, 3.15e-6, 0.3946, 3.30e-6, 11.082, 1.798e-9),
        (0.4035, 3.15e-6, 0.4019, 3.98e-6, 1.895, 0.07429),
        (2.62, 6.00e-4, 2.87, 1.74e-4, -28.416, 2.087e-16),
        (2.60, 1.78e-4, 2.62, 6.00e-4, -2.267, 0.03591),
        (58.47, 0.02, 56.89, 0.03, 22.345, 1.410e-14),
        (58.47, 0.02, 57.82, 0.06, 7.267, 9.360e-7),
        (83.91, 0.06, 82.89, 0.02, 11.404, 1.141e-9),
        (83.91, 0.06, 83.57, 0.05, 3.242, 4.527e-3),
    ],
)
def test_the_test_of_the_paper(m1, v1, m2, v2, t, p):
    """U-SAID's Table X, from its printed means and variances: two-sided, pooled, 10 + 10 draws."""
    got = pooled_t(m1, v1, m2, v2)
    assert got[0] == pytest.approx(t, abs=6e-4) and got[1] == pytest.approx(p, rel=6e-4)


def test_pooled_t_is_scipys_with_uneven_groups():
    one, other = np.random.default_rng(0).normal(0, 1, 7), np.random.default_rng(1).normal(1, 2, 12)
    got = pooled_t(one.mean(), one.var(ddof=1), other.mean(), other.var(ddof=1), 7, 12)
    want = stats.ttest_ind(one, other)
    assert got == pytest.approx((want.statistic, want.pvalue))
    with pytest.raises(EvaluationError, match="two draws"):
        pooled_t(1, 1, 1, 1, 1, 10)


def test_resample_draws_every_image_alike_and_blocks_together():
    counts = resample(12, samples=3000)
    assert (counts.sum(1) == 12).all() and counts.mean(0) == pytest.approx(np.ones(12), abs=0.1)
    blocks = resample(12, block=4, samples=2000)
    assert (blocks.sum(1) == 12).all() and blocks.mean(0) == pytest.approx(np.ones(12), abs=0.1)
    together = np.corrcoef(blocks[:, 5], blocks[:, 6])[0, 1]
    assert together > 0.4 > np.corrcoef(counts[:, 5], counts[:, 6])[0, 1]
    assert (resample(7, seed=1) == resample(7, seed=1)).all()


@pytest.mark.parametrize("n", [8, 40])
def test_intervals_cover(n):
    """A 95 % interval of a mean misses the truth about once in twenty."""
    random = np.random.default_rng(0)
    weights = resample(n, samples=800)
    hits = 0
    for _ in range(400):
        data = random.normal(size=n)
        low, high = interval(data.mean(), replicates(data, weights), units=n)
        hits += low <= 0 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_blocks_widen_the_interval_of_a_video():
    """Neighbours alike: images as units claim ten times the data there is."""
    data = np.repeat(np.random.default_rng(0).normal(size=10), 10)
    alone = interval(data.mean(), replicates(data, resample(100)), units=100)
    blocks = interval(data.mean(), replicates(data, resample(100, block=10)), units=10)
    assert blocks[1] - blocks[0] > 2 * (alone[1] - alone[0])


def test_one_unit_has_no_interval():
    assert np.isnan(interval(1.0, np.array([1.0, 1.0]), units=1)).all()


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 200])
def test_student(freedom):
    assert student(0.95, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.02 if freedom < 4 else 0.005)


def test_set_figures_of_matrices():
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert iou(matrix)[:2] == pytest.approx([3 / 4, 4 / 5]) and np.isnan(iou(matrix)[2])
    assert statistic(matrix, "iou") == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert statistic(matrix, "accuracy") == pytest.approx(7 / 8) and statistic(matrix, "changed") == pytest.approx(1 / 8)
    assert statistic(matrix, "recall") == pytest.approx((3 / 4 + 1) / 2)


def test_set_figures_are_those_of_the_metrics():
    import torch

    from segaware.task_metrics import mean_accuracy, mean_iou, pixel_accuracy

    matrix = torch.randint(0, 50, (5, 5, 5))
    for kind, function in (("iou", mean_iou), ("accuracy", pixel_accuracy), ("recall", mean_accuracy)):
        np.testing.assert_allclose(statistic(matrix.numpy().astype(float), kind), function(matrix).numpy())


def test_miou_is_recomputed_in_each_sample():
    random = np.random.default_rng(0)
    matrices = random.integers(0, 20, (6, 3, 3))
    weights = resample(6, samples=5)
    want = [statistic(sum(w * m for w, m in zip(row, matrices, strict=True)), "iou") for row in weights]
    np.testing.assert_allclose(replicates(matrices, weights, "iou"), want)


def test_a_constant_gain_is_seen_through_any_spread():
    random = np.random.default_rng(0)
    base = random.normal(30, 5, 20)
    gain = compare(base + 0.05 + random.normal(0, 0.01, 20), base, resample(20))
    assert gain.difference == pytest.approx(0.05, abs=0.01) and 0 < gain.low < gain.high < 0.07
    assert gain.p < 0.002 and gain.p_t < 1e-6 and gain.p_wilcoxon < 1e-4
    unpaired = interval(base.mean(), replicates(base, resample(20)), units=20)
    assert unpaired[1] - unpaired[0] > 1


def test_no_difference():
    base = np.random.default_rng(0).normal(30, 5, 20)
    same = compare(base, base, resample(20))
    assert (same.low, same.high, same.p, same.p_t, same.p_wilcoxon) == (0, 0, 1, 1, 1)


def test_missing_and_infinite_values_leave_the_pair_out():
    base = np.arange(8.0)
    other = base - 1
    other[2], base[5] = np.nan, np.inf
    found = compare(base, other, resample(8))
    assert found.n == 6 and found.difference == pytest.approx(1)
    assert compare(base, np.full(8, np.nan), resample(8)).n == 0


def test_compare_matrices():
    good = np.tile(np.array([[9.0, 1], [1, 9]]), (12, 1, 1))
    bad = np.tile(np.array([[6.0, 4], [4, 6]]), (12, 1, 1)) + np.random.default_rng(0).integers(0, 2, (12, 2, 2))
    found = compare(good, bad, resample(12), kind="iou")
    assert found.low > 0 and found.p < 0.01 and found.p_t is None


def test_tests_on_blocks():
    assert block_means(np.array([1.0, 3, 5, 7, 9]), 2) == pytest.approx([2, 6, 9])
    base = np.repeat(np.random.default_rng(3).normal(0.3, 1, 5), 10)
    alone, blocks = (compare(base, np.zeros(50), resample(50, block=b), block=b) for b in (1, 10))
    assert blocks.p_t > alone.p_t


def test_blocks_widen_the_difference_as_well():
    gains = np.repeat(np.random.default_rng(3).normal(0.3, 1, 5), 10)
    weights = resample(50, block=10)
    as_images, as_blocks = (compare(gains, np.zeros(50), weights, block=b) for b in (1, 10))
    assert as_blocks.high - as_blocks.low > 1.1 * (as_images.high - as_images.low)  # five are few, whatever they hold
    one = compare(gains[:10], np.zeros(10), resample(10, block=10), block=10)
    assert np.isnan([one.low, one.high]).all()


def test_paired_tests_are_scipys():
    gaps = np.random.default_rng(0).normal(0.5, 1, 15)
    assert wilcoxon(gaps) == pytest.approx(stats.wilcoxon(gaps).pvalue)
    assert paired_t(gaps) == pytest.approx(stats.ttest_rel(gaps, np.zeros(15)).pvalue)
    assert paired_t(np.zeros(3)) == 1 and wilcoxon(np.zeros(3)) == 1 and np.isnan(paired_t(gaps[:1]))


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, float("nan"), 0.6])[::2] == [1.0, 1.0] and holm([]) == []
