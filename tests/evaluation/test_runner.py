import dataclasses
import errno
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from segaware.errors import EvaluationError
from segaware.evaluation.contestants import Function, Model
from segaware.evaluation.judges import default_judges
from segaware.evaluation.pictures import Pictures, folder_of
from segaware.evaluation.protocol import Noise, Protocol
from segaware.evaluation.runner import evaluate
from segaware.evaluation.sources import CAMVID_CLASSES, open_source
from segaware.evaluation.summary import summarise
from segaware.evaluation.verdict import findings, headline
from segaware.metrics import psnr
from segaware.task_metrics import confusion_matrix

RGB = ("red", "green", "blue")


class Counted(Function):
    """Halves the noise's amplitude by looking at nothing but the pixels, and counts its calls."""

    def __init__(self, name="half", fails=()):
        super().__init__(name, lambda noisy, sigma: noisy * 0.9)
        self.calls, self.fails = [], fails

    def denoise(self, noisy, cell):
        self.calls.append((cell.item.name, cell.noise.label, cell.draw))
        if cell.item.name in self.fails:
            raise RuntimeError("no memory")
        noisy.mul_(1.0)  # may write into what it is given
        return super().denoise(noisy, cell)


def rows(results):
    return [{**row, "values": {k: v for k, v in row["values"].items() if k != "seconds"}} for row in results.rows()]


def test_values_are_the_metrics_of_the_images(folder):
    source = open_source(folder)
    protocol = Protocol(noises=(Noise(sigma=25),), metrics=("psnr",), draws=2)
    results = evaluate(source, [Counted()], protocol)
    assert results.names == ["noisy", "half"]
    sample = source.load(source.items[3])
    noisy = protocol.noisy(sample.clean, Noise(sigma=25), name="im3", index=3, draw=1)
    want = psnr(noisy[None] * 0.9, sample.clean[None], clamp=True)
    assert results._values["psnr"][1, 0, 1, 3] == pytest.approx(float(want))
    raw = psnr(noisy[None], sample.clean[None])  # the noisy image itself: not clamped, as papers print it
    assert results._values["psnr"][0, 0, 1, 3] == pytest.approx(float(raw))


def test_order_subset_and_company_do_not_matter(folder, shrink, thirds):
    source = open_source(folder)
    protocol = Protocol(noises=(Noise(sigma=15), Noise("poisson", peak=40)), harm=True)
    whole = evaluate(source, [shrink(), Counted()], protocol, judges=[thirds])
    part = evaluate(source.select(["im5", "im2"]), [Counted(), shrink()], protocol, judges=[thirds])
    wanted = [row for row in rows(whole) if row["image"] in ("im2", "more/im5")]
    key = lambda row: (row["noise"], row["image"], row["contestant"])  # noqa: E731
    assert sorted(rows(part), key=key) == sorted(wanted, key=key)


def test_tiles_do_not_matter(folder, shrink):
    source = open_source(folder).select(limit=2)
    whole, tiled = (evaluate(source, [shrink()], tile=tile)._values["psnr"] for tile in ("whole", 16))
    np.testing.assert_allclose(whole, tiled, atol=1e-4)


def test_a_second_run_computes_nothing(folder, thirds, tmp_path):
    source = open_source(folder)
    protocol = Protocol(noises=(Noise(sigma=25),), harm=True, draws=2)
    first, second = Counted(), Counted()
    one = evaluate(source, [first], protocol, judges=[thirds], out=tmp_path / "out")
    two = evaluate(source, [second], protocol, judges=[thirds], out=tmp_path / "out")
    assert len(first.calls) == 6 * 3 and second.calls == []
    assert list(one.rows()) == list(two.rows())


def test_a_killed_run_goes_on_where_it_was(folder, tmp_path):
    source = open_source(folder)

    class Stop(Exception):
        pass

    def stop(done, total, what):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(source, [Counted()], out=tmp_path, progress=stop)
    again = Counted()
    results = evaluate(source, [again], out=tmp_path)
    assert [name for name, *_ in again.calls] == ["im3", "more/im4", "more/im5"]
    assert rows(results) == rows(evaluate(source, [Counted()]))


@pytest.mark.parametrize("change", ["weights", "noise", "seed", "image", "judge", "metric", "nothing"])
def test_what_changes_is_computed_again(change, folder, tmp_path, shrink, thirds):
    def run(share=0.5, judges=(), **options):
        source = open_source(folder).select(limit=2)
        evaluate(source, [shrink(share)], Protocol(**{"metrics": ("psnr",), **options}), judges=judges, out=tmp_path)
        return len((tmp_path / "cells.jsonl").read_text().splitlines())

    assert run() == 4  # two images, the noisy one and the denoiser
    if change == "image":
        Image.fromarray(255 - np.array(Image.open(folder / "im0.png"))).save(folder / "im0.png")
    options = {
        "weights": {"share": 0.6}, "noise": {"noises": (Noise(sigma=30),)}, "seed": {"seed": 1}, "judge": {"judges": [thirds]},
        "metric": {"preset": "liu"},
    }.get(change, {})  # fmt: skip
    assert run(**options) == {"weights": 6, "image": 6, "nothing": 4}.get(change, 8)


def test_what_was_known_is_kept_when_a_judge_is_added(folder, tmp_path, thirds):
    source = open_source(folder).select(limit=1)
    plain = rows(evaluate(source, [Counted()], out=tmp_path))
    judged = rows(evaluate(source, [Counted()], out=tmp_path, judges=[thirds]))
    assert [row["values"] for row in plain] == [row["values"] for row in judged] and "judges" in judged[1]


def test_one_failing_image_is_marked_and_the_rest_goes_on(folder, tmp_path):
    broken = Counted(fails=("im2",))
    results = evaluate(open_source(folder), [broken, "noisy"], out=tmp_path)
    assert [(f["contestant"], f["image"], f["error"]) for f in results.failures] == [("half", "im2", "RuntimeError: no memory")]
    assert np.isnan(results._values["psnr"][0, 0, 0]).sum() == 1 and not np.isnan(results._values["psnr"][1]).any()
    mended = Counted()
    assert not evaluate(open_source(folder), [mended], out=tmp_path).failures
    assert mended.calls == [("im2", "sigma 25", 0)]


def test_a_file_that_cannot_be_read_costs_its_cell_and_a_full_disk_the_run(folder, tmp_path):
    def failing(code):
        class Failing(Counted):
            def denoise(self, noisy, cell):
                if cell.item.name == "im2":
                    raise OSError(code, os.strerror(code))
                return super().denoise(noisy, cell)

        return Failing()

    source = open_source(folder)
    results = evaluate(source, [failing(errno.EACCES)])
    assert [failure["image"] for failure in results.failures] == ["im2"] and "Permission denied" in results.failures[0]["error"]
    with pytest.raises(EvaluationError, match="im2, half: OSError: .*No space left.*finished cells are kept"):
        evaluate(source, [failing(errno.ENOSPC)], out=tmp_path)
    again = Counted()
    evaluate(source, [again], out=tmp_path)
    assert [name for name, *_ in again.calls] == ["im2", "im3", "more/im4", "more/im5"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda noisy, sigma: noisy[:, 1:], "must give"),
        (lambda noisy, sigma: noisy * float("nan"), "NaN"),
        (lambda noisy, sigma: None, "NoneType"),
    ],
)
def test_answers_that_are_no_image(answer, words, folder):
    results = evaluate(open_source(folder).select(limit=1), [Function("odd", answer)])
    assert len(results.failures) == 1 and words in results.failures[0]["error"]


def test_a_damaged_image_costs_its_own_cells(folder):
    (folder / "im1.png").write_bytes(b"not a picture")
    results = evaluate(open_source(folder), [Counted()])
    assert {f["image"] for f in results.failures} == {"im1"} and len(results.failures) == 2


def test_labels_and_judges(labelled, thirds):
    source = open_source(labelled, classes=RGB)
    results = evaluate(source, [Counted()], Protocol(harm=True), judges=[thirds])
    measure = next(m for m in results.measures if m.key == "miou:Thirds")
    clean = results.data(measure, 0, 1)
    assert clean.shape == (5, 3, 3) and (clean.sum((1, 2)) == 40 * 56 - 16).all()
    changed = next(m for m in results.measures if m.key == "changed:Thirds")
    same = results.data(changed, 0, 1)
    assert (same.sum((1, 2)) == 40 * 56).all() and same.sum() == np.trace(same.sum(0))


def test_the_judges_that_nobody_names(folder, labelled):
    wanted = ["deeplab-camvid", "hrnet-camvid", "unet-camvid"]
    assert sorted(default_judges(open_source(folder))) == wanted  # those that never train a denoiser
    assert sorted(default_judges(dataclasses.replace(open_source(folder), classes=CAMVID_CLASSES))) == wanted
    assert default_judges(open_source(labelled, classes=RGB)) == []  # labels they do not know


def test_what_a_judge_sees_by_hand(labelled, thirds):
    """Of the image that is judged, clamped, enlarged bilinearly; the noisy one's figures are not the denoised one's."""
    source = open_source(labelled, classes=RGB)
    far = Function("far", lambda noisy, sigma: 1.8 * noisy.flip(-3) - 0.4)  # colours in turn, and beyond white
    results = evaluate(source, [far], Protocol(noises=(Noise(sigma=40),)), judges=[thirds])
    labels = next(m for m in results.measures if m.key == "miou:Thirds")
    same = next(m for m in results.measures if m.key == "consistency:Thirds")

    def seen(image):
        logits = thirds(image.clamp(0, 1)[None])
        return torch.nn.functional.interpolate(logits, size=image.shape[1:], mode="bilinear", align_corners=False)[0].argmax(0)

    for index, item in enumerate(source):
        sample = source.load(item)
        noisy = Protocol().noisy(sample.clean, Noise(sigma=40), name=item.name, index=index)
        for column, image in enumerate((noisy, 1.8 * noisy.flip(-3) - 0.4)):
            wanted = confusion_matrix(seen(image)[None], sample.labels[None], 3)[0]
            assert np.array_equal(results.data(labels, column, 0)[index], wanted.numpy())
            wanted = confusion_matrix(seen(image)[None], seen(sample.clean)[None], 3)[0]
            assert np.array_equal(results.data(same, column, 0)[index], wanted.numpy())
    first, second = (results.data(labels, column, 0).sum(0) for column in (0, 1))
    assert not np.array_equal(first, second)


def test_blocks_of_a_video_are_units(folder):
    source = open_source(folder)
    for block, own, known in ((6, None, False), (1, None, True), (6, 1, True), (1, 6, False)):
        protocol = Protocol(metrics=("psnr",)) if own is None else Protocol(metrics=("psnr",), block=own)
        results = evaluate(dataclasses.replace(source, block=block), [Counted()], protocol)
        assert results.block == (block if own is None else own)
        entry = summarise(results).entry("psnr", results.noises[0], "half")
        assert np.isnan(entry.low) != known  # all of them one block: nothing to say


def test_a_judge_of_other_classes(labelled, thirds):
    with pytest.raises(EvaluationError, match="knows 3 classes, the labels of CamVid val have 11"):
        evaluate(open_source(labelled), [Counted()], judges=[thirds])
    with pytest.raises(EvaluationError, match="'red' that is 'r'"):
        evaluate(open_source(labelled, classes=("r", "green", "blue")), [Counted()], judges=[thirds])


def test_images_smaller_than_a_judges_stride(tmp_path, thirds):
    Image.fromarray(np.zeros((3, 20, 3), np.uint8)).save(tmp_path / "thin.png")
    results = evaluate(open_source(tmp_path), [Counted()], Protocol(metrics=("psnr",)), judges=[thirds])
    assert "less than its stride of 4" in results.failures[0]["error"]
    assert not np.isnan(results._values["psnr"]).any()


def test_give_back_runs_its_base_once(folder):
    half = Counted()
    from segaware.evaluation.contestants import GiveBack

    results = evaluate(open_source(folder), [half, GiveBack(half, 0.03), GiveBack(half, 0.06)])
    assert len(half.calls) == 6 and results.names == ["noisy", "half", "half+0.03", "half+0.06"]


def test_pictures_are_kept_once(folder, tmp_path, thirds):
    source = open_source(folder)
    evaluate(source, [Counted()], judges=[thirds], out=tmp_path, pictures=["more/im4"])
    place = tmp_path / "pictures" / folder_of("more/im4")
    assert {p.name for p in place.glob("*.png")} == {"clean.png", "clean.Thirds.classes.png"}
    assert {p.name for p in (place / "sigma_25").iterdir()} == {
        "half.png", "half.Thirds.classes.png", "half.key", "noisy.png", "noisy.Thirds.classes.png", "noisy.key",
    }  # fmt: skip
    again = Counted()
    evaluate(source, [again], judges=[thirds], out=tmp_path, pictures=["more/im4"])
    assert again.calls == []


def test_pictures_are_of_the_weights_of_the_figures(folder, tmp_path, shrink):
    """A model trained further in place, and back again: neither cells nor pictures are those of the other one."""
    source, shown = open_source(folder), Pictures(tmp_path).image("im1", "net", "sigma 25")

    def seen(gain):
        evaluate(source, [Model("net", shrink(gain))], out=tmp_path, pictures=["im1"])
        return Pictures.load(shown)

    first, second = seen(0.5), seen(0.9)
    assert not np.array_equal(first, second) and np.array_equal(seen(0.5), first)


def test_pictures_of_an_earlier_run_are_not_left_behind(folder, tmp_path, shrink):
    """The report shows them too: they are made anew with the weights that the figures are of."""
    source, shown = open_source(folder), Pictures(tmp_path).image("im1", "net", "sigma 25")
    evaluate(source, [Model("net", shrink(0.5))], out=tmp_path, pictures=["im1"])
    before = Pictures.load(shown)
    evaluate(source, [Model("net", shrink(0.9))], out=tmp_path, pictures=["im2"])
    assert not np.array_equal(Pictures.load(shown), before) and Pictures(tmp_path).image("im2", "net", "sigma 25").is_file()


def test_the_noisy_image_keeps_its_name(folder):
    with pytest.raises(EvaluationError, match="raw=noisy: the noisy image keeps its name"):
        evaluate(open_source(folder), ["raw=noisy"], Protocol(metrics=("psnr",)))


def test_images_do_not_share_a_folder_of_pictures():
    names = ["img_1", "img(1)", "a/b", "a_b", "a b"]
    assert len({folder_of(name) for name in names}) == len(names) and folder_of("img_1") == "img_1"


def test_one_folder_of_ready_images_is_of_one_level(folder, tmp_path):
    two = Protocol(noises=(Noise(sigma=15), Noise(sigma=25)), metrics=("psnr",))
    for theirs in (f"copy={folder}", f"copy={folder}+0.03"):
        with pytest.raises(EvaluationError, match=r"for 2 noise levels \(sigma 15, sigma 25\); write \{sigma\}"):
            evaluate(open_source(folder), [theirs], two)
    with pytest.raises(EvaluationError, match=r"for 5 draws of the noise; write \{draw\}"):
        evaluate(open_source(folder), [f"copy={folder}"], Protocol(metrics=("psnr",), draws=5))
    for sigma in (15, 25):
        shutil.copytree(folder, tmp_path / f"s{sigma}")
    assert not evaluate(open_source(folder), [f"copy={tmp_path}/s{{sigma}}"], two).failures


def test_who_lacks_the_hard_images_does_not_lead(folder):
    """A mean over the easy ones is no mean to compare with."""
    source = open_source(folder)
    easy = Function("easy", lambda noisy, sigma: noisy * 0.9)
    whole = Function("whole", lambda noisy, sigma: noisy * 0.95)
    values = evaluate(source, [easy, whole], Protocol(metrics=("psnr",)))._values["psnr"][1:, 0, 0]
    hard = [item.name for item, value in zip(source, values[0], strict=True) if value < np.median(values[0])]
    summary = summarise(evaluate(source, [Counted("easy", fails=hard), whole], Protocol(metrics=("psnr",))))
    (found,) = findings(summary)
    assert found.leader.contestant == "whole" and not found.alone


def test_one_with_fewer_images_may_be_better_there(folder):
    """It does not lead, and it is not said that nothing is better than the one that does."""

    def smoothed(noisy, share):
        padded = torch.nn.functional.pad(noisy[None], (1, 1, 1, 1), mode="replicate")
        return noisy + share * (torch.nn.functional.avg_pool2d(padded, 3, 1)[0] - noisy)

    class Partial(Function):
        def denoise(self, noisy, cell):
            if cell.item.index > 3:
                raise RuntimeError("no memory")
            return super().denoise(noisy, cell)

    people = [Partial("partial", lambda noisy, sigma: smoothed(noisy, 1.0)), Function("whole", lambda noisy, sigma: smoothed(noisy, 0.5))]
    summary = summarise(evaluate(open_source(folder), people, Protocol(metrics=("psnr",))))
    assert {entry.contestant: entry.mark for entry in summary.entries.values()} == {"noisy": "", "partial": "", "whole": "first"}
    assert headline(summary)[1] == "Take whole: for PSNR it leads those that were measured on every image; one that lacks some is better on those that it has."


def test_ready_images_are_not_asked_about_clean_input(folder):
    results = evaluate(open_source(folder), [f"copy={folder}"], Protocol(harm=True, metrics=("psnr",)))
    assert not results.failures and np.isinf(results._values["psnr"][1, 0]).all()
    assert np.isnan(results._values["psnr"][1, 1]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"contestants": [Function("a", torch.clone), Function("a", torch.clone)]}, "given twice"),
        ({"pictures": ["im9"], "out": "x"}, "no such image"),
        ({"pictures": ["im1"]}, "need a folder"),
    ],
)
def test_bad_calls(options, words, folder):
    with pytest.raises(EvaluationError, match=words):
        evaluate(open_source(folder), **{"contestants": [], **options})
