import numpy as np
import pytest

from segaware.evaluation.protocol import Noise, Protocol
from segaware.evaluation.results import Results
from segaware.evaluation.summary import summarise
from segaware.evaluation.verdict import details, finding, findings, headline

N = 12
BASE = np.random.default_rng(0).uniform(0.3, 0.5, N)
JITTER = np.random.default_rng(1).normal(0, 0.002, (9, N))


def made(shares, psnr=None, judges=("eye",), labelled=True, images=N, sigmas=(25,)):
    """``shares[judge][sigma][method]``: how much of each image the judge gets right, added to a base; or one number for all judges."""
    methods = list(next(iter(next(iter(shares.values())).values())))
    results = Results(
        Protocol(noises=tuple(Noise(sigma=s) for s in sigmas), metrics=("psnr",), harm=False), {"name": "made", "classes": ["a", "b"] if labelled else None},
        [f"i{k:02}" for k in range(images)], [{"name": name, "kind": ""} for name in methods],
        [{"name": judge, "key": judge, "class_names": ["a", "b"]} for judge in judges],
    )  # fmt: skip
    for sigma in sigmas:
        for m, method in enumerate(methods):
            for k in range(images):
                matrices = {}
                for judge in judges:
                    right = round(1000 * (BASE[k] + shares[judge][sigma][method] + JITTER[m, k]))
                    matrix = [[right, 1000 - right], [1000 - right, right]]
                    matrices[judge] = {"clean": matrix} | ({"labels": matrix} if labelled else {})
                row = {"image": f"i{k:02}", "contestant": method, "noise": f"sigma {sigma}", "draw": 0, "judges": matrices}
                results.add(row | {"values": {"psnr": 20 + 10 * BASE[k] + (psnr or {}).get(method, 0) + JITTER[m, k]}})
    return summarise(results)


def test_one_is_ahead_and_helps():
    text = headline(made({"eye": {25: {"noisy": 0, "a": 0.2, "b": 0.1}}}))
    assert text[0].startswith("Denoising helps: for the judge eye the best denoiser is ahead of the noisy image (+")
    assert text[0].endswith("] points of mIoU).")
    assert text[1] == "Take a: for the judge eye it is ahead of every other method."


def test_two_that_cannot_be_told_apart():
    text = headline(made({"eye": {25: {"noisy": 0, "a": 0.2, "b": 0.2, "c": 0.1}}}))
    assert text[1] in {
        f"Take {one}, or {other}: for the judge eye nothing is measurably better, and these cannot be told apart."
        for one, other in ("ab", "ba")
    }


def test_levels_and_judges_that_differ():
    same = {"noisy": 0, "a": 0.2, "b": 0.1}
    other = {"noisy": 0, "a": 0.1, "b": 0.2}
    both = made({"eye": {15: same, 50: other}, "lens": {15: same, 50: same}}, judges=("eye", "lens"), sigmas=(15, 50))
    text = headline(both)
    assert text[0].startswith("Denoising helps: for both judges at both noise levels the best denoiser is ahead")
    assert text[1] == "No denoiser is best throughout. Take a for eye at sigma 15 and for lens; b for eye at sigma 50."


def test_many_looks_are_counted_not_listed():
    first, second = {"noisy": 0, "a": 0.2, "b": 0.1}, {"noisy": 0, "a": 0.1, "b": 0.2}
    sigmas = (5, 15, 25, 50)
    results = made({"eye": {5: second, 15: first, 25: first, 50: first}, "lens": dict.fromkeys(sigmas, first)}, judges=("eye", "lens"), sigmas=sigmas)
    assert headline(results)[1] == (
        "No denoiser is best throughout. a is among the best, not to be told from the leader or leading,"
        " in 7 of 8 looks (judges x levels), b in 1. The tables say where."
    )


def test_harm_is_said():
    text = headline(made({"eye": {25: {"noisy": 0.2, "a": 0, "b": 0.1}}}))
    assert "Denoising does harm" in text[0] and "Leave the image as it is" in text[0]


def test_help_at_one_level_and_harm_at_another():
    help_, harm = {"noisy": 0, "a": 0.2, "b": 0.1}, {"noisy": 0.2, "a": 0.1, "b": 0}
    text = headline(made({"eye": {15: harm, 50: help_}}, sigmas=(15, 50)))
    assert text[0].startswith("Denoising helps at sigma 50 (+17.96 [") and text[0].endswith("over the noisy image); it does harm at sigma 15.")
    assert text[1] == "Where denoising helps, take a: there it is ahead of every other method."


def test_chance_is_called_chance():
    text = headline(made({"eye": {25: {"noisy": 0, "a": 0, "b": 0}}}))
    assert "makes no difference that can be told from chance" in text[0]


def test_the_nearest_to_clean_may_be_another():
    shares = {"eye": {25: {"noisy": 0, "a": 0.2, "b": 0.1}}}
    assert len(headline(made(shares, psnr={"a": 5, "b": 3}))) == 2
    text = headline(made(shares, psnr={"a": 3, "b": 5}))
    assert text[2].startswith("The nearest to the clean image in PSNR is another: b (") and "at sigma 25" in text[2]


def test_without_labels_consistency_decides_and_without_judges_psnr():
    shares = {"eye": {25: {"noisy": 0, "a": 0.2, "b": 0.1}}}
    assert "points of consistency" in headline(made(shares, labelled=False))[0]
    text = headline(made({"": {25: {"noisy": 0, "a": 0, "b": 0}}}, psnr={"a": 5, "b": 3}, judges=()))
    assert "for PSNR the best denoiser" in text[0] and " dB)" in text[0] and text[1].startswith("Take a: for PSNR")


def test_one_image_says_nothing_of_chance():
    text = headline(made({"eye": {25: {"noisy": 0, "a": 0.2, "b": 0.1}}}, images=1))
    assert "Too few images" in text[0]
    assert text[1] == "The best figures are those of a; more images are needed to tell them from chance."
    assert [one.effect for one in findings(made({"eye": {25: {"noisy": 0, "a": 0.2}}}, images=1))] == ["", "", ""]


def test_the_only_denoiser():
    assert "only denoiser here" in headline(made({"eye": {25: {"noisy": 0, "a": 0.2}}}))[1]


def test_details_name_each_measure():
    lines = details(made({"eye": {25: {"noisy": 0, "a": 0.2, "b": 0.1}}}, psnr={"a": 5}))
    assert [line.partition(":")[0] for line in lines] == [
        "sigma 25, PSNR (dB)", "sigma 25, mIoU (%) by eye", "sigma 25, consistency (%) by eye",
    ]  # fmt: skip
    assert all("a " in line and "ahead of all others; denoising helps (+" in line for line in lines)


def test_nothing_was_measured():
    results = Results(Protocol(metrics=("psnr",)), {"name": "x"}, ["i"], [{"name": "noisy", "kind": ""}], [])
    assert headline(summarise(results)) == [] and details(summarise(results)) == []


@pytest.mark.parametrize("less", [True, False])
def test_less_is_better_for_niqe(less):
    results = Results(
        Protocol(metrics=("niqe",)), {"name": "x"}, [f"i{k}" for k in range(N)],
        [{"name": name, "kind": ""} for name in ("noisy", "a", "b")], [],
    )  # fmt: skip
    for m, method in enumerate(("noisy", "a", "b")):
        for k in range(N):
            value = 10 + BASE[k] - (m if less else -m) + JITTER[m, k]
            results.add({"image": f"i{k}", "contestant": method, "noise": "sigma 25", "draw": 0, "values": {"niqe": value}})
    text = headline(summarise(results))
    assert ("Denoising helps" in text[0] and "(-2.00 [" in text[0] and "Take b" in text[1]) if less else "does harm" in text[0]


def test_the_best_of_many_must_be_ahead_by_more(monkeypatch):
    """One of twenty is ahead by chance now and then: its own interval may leave out zero, and yet it helps nobody."""
    effects = {}
    for count in (1, 20):
        monkeypatch.setitem(globals(), "JITTER", np.random.default_rng(5).normal(0, 0.002, (count + 1, N)))
        methods = {"noisy": 0} | {f"d{k}": 0.0025 if k == 0 else -0.01 for k in range(count)}
        (found,) = (one for one in findings(made({"eye": {25: methods}})) if one.measure.key == "miou:eye")
        assert found.leader.contestant == "d0" and found.gap.low > 0 and found.gap.p == pytest.approx(0.008, abs=0.003)
        effects[count] = found.effect
    assert effects == {1: "helps", 20: "unclear"}


def of_psnr(values):
    """PSNR of 20 images: ``values[method]`` is added to that of the noisy image; None where it is missing."""
    methods = list(values)
    results = Results(
        Protocol(noises=(Noise(sigma=25),), metrics=("psnr",)), {"name": "made", "classes": None}, [f"i{k:02}" for k in range(20)],
        [{"name": name, "kind": ""} for name in ("noisy", *methods)], [],
    )  # fmt: skip
    jitter = np.random.default_rng(2).normal(0, 0.001, (9, 20))
    for k in range(20):
        base = 20 + np.random.default_rng(k).uniform()
        results.add({"image": f"i{k:02}", "contestant": "noisy", "noise": "sigma 25", "draw": 0, "judges": {}, "values": {"psnr": base}})
        for m, name in enumerate(methods):
            if (add := values[name](k)) is not None:
                results.add({"image": f"i{k:02}", "contestant": name, "noise": "sigma 25", "draw": 0, "judges": {}, "values": {"psnr": base + add + jitter[m, k]}})
    return summarise(results)


def test_one_that_helps_on_fewer_images_is_told_of():
    text = headline(of_psnr({"a": lambda k: -1.0, "b": lambda k: 3.0 if k else None}))
    assert "harm" not in text[0] and "by one that was measured on fewer images" in text[0]
    assert text[1] == "Of the denoisers a: for PSNR it leads those that were measured on every image; one that lacks some is better on those that it has."
    assert "one that was measured on fewer images helps on these" in details(of_psnr({"a": lambda k: -1.0, "b": lambda k: 3.0 if k else None}))[0]


def test_one_that_helps_a_little_on_all_images_has_no_fewer():
    """The best mean varies, and cannot be told from the noisy image; a smaller one that does not vary can."""
    wide = np.random.default_rng(7).normal(0, 1.0, 20)
    text = headline(of_psnr({"a": lambda k: wide[k] - wide.mean() + 0.3, "b": lambda k: 0.2}))
    assert "fewer images" not in " ".join(text)


def test_who_is_level_with_the_noisy_image_is_not_level_with_each_other():
    """All three cannot be told from it by the marks; a and c can from each other."""
    wide = np.random.default_rng(5).normal(0, 0.3, 20)
    (found,) = findings(of_psnr({"a": lambda k: wide[k] - wide.mean() - 0.02, "c": lambda k: wide[k] - wide.mean() - 0.05}))
    assert found.leader.contestant == "a" and found.leader.mark == "tied" and found.tied == ()
    (found,) = findings(of_psnr({"a": lambda k: -1.0, "c": lambda k: -1.0}))  # noisy is best: no marks
    assert found.leader.mark == "" and len(found.tied) == 1


def test_one_with_a_single_image_takes_no_marks_away():
    summary = of_psnr({"a": lambda k: 2.0, "d": lambda k: 1.0, "x": lambda k: None if k else 1.5})
    assert summary.entry("psnr", "sigma 25", "a").mark == "best"
    assert headline(summary)[1] == "Take a: for PSNR it is ahead of every other method."


def test_fewer_images_are_not_told_of_where_one_with_all_helps():
    values = {"a": lambda k: 9.0 if k % 2 else -7.0, "b": lambda k: 3.0 if k else None, "c": lambda k: 0.5}
    one = finding(summary := of_psnr(values), summary.results.measures[0], "sigma 25")
    assert one.leader.contestant == "a" and one.effect == "unclear"
    assert "by none that has all" not in headline(summary)[0]
    values.pop("c")
    assert "by none that has all" in headline(of_psnr(values))[0]


def test_an_image_without_any_error_left():
    """PSNR is infinite there: what is compared is the others."""
    summary = of_psnr({"a": lambda k: 2.0 if k else np.inf, "d": lambda k: 1.0})
    assert np.isinf(summary.entry("psnr", "sigma 25", "a").value) and summary.entry("psnr", "sigma 25", "a").mark == "best"
    assert headline(summary)[1].startswith("Take a:")
    worse = of_psnr({"a": lambda k: 1.0 if k else np.inf, "d": lambda k: 2.0})  # one black frame makes no leader
    assert worse.entry("psnr", "sigma 25", "d").mark == "best" and not worse.entry("psnr", "sigma 25", "a").mark
    assert headline(worse)[1].startswith("Take d: for PSNR it is ahead of every other method")
    nothing_left = of_psnr({"a": lambda k: np.inf, "d": lambda k: 1.0})
    assert headline(nothing_left)[1].startswith("Take d:")


def test_a_noisy_image_without_noise():
    summary = of_psnr({"a": lambda k: 1.0})
    summary.entries.pop(("psnr", "sigma 25", "noisy"))
    summary.comparisons.clear()
    assert headline(summary)[0] == "Whether denoising helps was not measured: of the noisy image there is no figure to compare with."


def test_psnr_is_held_against_who_is_named():
    """Eye cannot tell a from b, lens takes a, so a is named; PSNR would choose b."""
    shares = {"eye": {25: {"noisy": 0, "a": 0.2, "b": 0.2}}, "lens": {25: {"noisy": 0, "a": 0.2, "b": 0.1}}}
    text = headline(made(shares, psnr={"a": 1, "b": 3}, judges=("eye", "lens")))
    assert text[1].startswith("Take a:") and text[2].startswith("The nearest to the clean image in PSNR is another: b (")
