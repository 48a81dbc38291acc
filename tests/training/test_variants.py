"""What the paper's comparisons consist of, and what each is trained with."""

import pytest
import torch

from segaware import DDFN, HRNetSegmenter
from segaware.baselines import LabelCondition
from segaware.cascade import SDABN, SDB
from segaware.errors import TrainingError
from segaware.training.progressive import train_stages
from segaware.training.stage_run import StageRun, number_of
from segaware.training.stages import StageRecipe
from segaware.training.variants import VARIANTS, Entry, entry, plan, targets

RECIPE = StageRecipe(1, 2, (16, 16), "adam", 1e-3)


def names(variant, **options):
    return [e.name for e in plan(targets(variant, **options))]


def test_what_each_consists_of():
    assert names("SD") == ["S0", "S1", "D1"]
    assert names("D0") == ["DDFN1"] and names("DDFN", stages=3) == ["DDFN1", "DDFN2", "DDFN3"]
    assert names("ImgD") == ["ImgD"] and names("GtD1") == ["GtD1"]
    assert names("X+S") == ["S0", "S1", "DDFN1", "DDFN1+S"] == names("X+S", on="D0")
    assert names("X+S", on="S1D1") == ["S0", "S1", "D1", "S2"]
    assert names("X+S", on="DDFN2") == ["S0", "S1", "DDFN1", "DDFN2", "DDFN2+S"]
    assert [e.name for e in plan(targets("X+S", on="mine"), ("S0", "mine"))] == ["S1", "mine+S"]
    assert names("S1+") == ["S0+", "S1+"] and names("joint") == ["S0", "joint"] and names("DMS") == ["S0", "DMS"]
    assert names("denoise-then-segment") == ["S0", "DDFN1"]
    assert names("progressive", stages=2, closing=True) == ["S0", "S1", "D1", "S2", "D2", "S3"]
    for variant in VARIANTS:
        for e in plan(targets(variant)):
            assert entry(e.name) == e


def test_stages_that_stand_for_each_other_see_the_same():
    first = {number_of(entry(name)) for name in ("D1", "DDFN1", "ImgD", "GtD1", "DMS")}
    assert len(first) == 1
    assert number_of(entry("S2")) == number_of(entry("GtD1+S")) == number_of(entry("joint"))
    assert number_of(entry("S1")) == number_of(entry("S1+")) != number_of(entry("S0"))
    assert number_of(entry("DDFN2")) == number_of(entry("D2")) not in first


def test_unknown_names():
    with pytest.raises(TrainingError, match="no variant 'ImgDD'; did you mean 'ImgD'"):
        targets("ImgDD")
    with pytest.raises(TrainingError, match="no stage 'DMMS'; did you mean 'DMS'"):
        plan(["DMMS"])
    with pytest.raises(TrainingError, match="nobody makes a 'plain'; there are segmenter"):
        train_stages(["DDFN1"], {"segmenter": segmenter}, [], {"segmenter": RECIPE, "denoiser": RECIPE}, "nowhere")


def segmenter():
    return HRNetSegmenter(3, width=2, modules=(1, 1, 1), blocks=1, bottlenecks=1, init="kaiming")


def ddfn(classes=None):
    net = DDFN(condition_channels=classes, blocks=1)
    with torch.no_grad():
        net.reconstruct.weight.mul_(300)
    return net


@pytest.fixture
def batch():
    labels = torch.randint(0, 3, (2, 16, 16))
    labels[0, :4] = 255
    return torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), labels


def made(name, network, tmp_path, **parts):
    return StageRun(entry(name), network, RECIPE, tmp_path, torch.device("cpu"), **parts)


def cross_entropy(logits, labels):
    logits = torch.nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=255)


def distance(image, clean):
    return (image - clean)[..., 1:-1, 1:-1].square().sum() / (2 * len(clean))


def test_dms_adds_the_loss_through_the_judge(batch, tmp_path):
    noisy, clean, labels = batch
    judge, network = segmenter().eval(), ddfn()
    loss = made("DMS", network, tmp_path, judge=judge, weight=3.0)._loss(noisy, clean, labels, None)
    image = network(noisy)
    torch.testing.assert_close(loss, distance(image, clean) + 3 * cross_entropy(judge(image), labels), rtol=1e-4, atol=1e-4)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert all(p.grad is None for p in judge.parameters())


def test_the_oracle_is_told_the_labels(batch, tmp_path):
    noisy, clean, labels = batch
    network = LabelCondition(ddfn(3))
    stage = made("GtD1", network, tmp_path)
    torch.testing.assert_close(stage._loss(noisy, clean, labels, None), distance(network(noisy, labels=labels), clean))
    assert "psnr" in stage._measure([((clean[0] * 255).to(torch.uint8), labels[0].to(torch.uint8))])


def test_a_segmenter_after_the_oracle_sees_its_images(batch, tmp_path):
    noisy, clean, labels = batch
    oracle = LabelCondition(ddfn(3)).eval()
    stage = made("GtD1+S", segmenter(), tmp_path, before=[oracle])
    with torch.no_grad():
        torch.testing.assert_close(stage._seen(noisy, clean, labels)[0], oracle(noisy, labels=labels))


def test_plain_denoisers_go_on_from_each_other(batch, tmp_path):
    noisy, clean, labels = batch
    first, second = ddfn().eval(), ddfn().eval()
    image, total = made("DDFN3", ddfn(), tmp_path, before=[first, second])._seen(noisy, clean, labels)
    with torch.no_grad():
        by_hand = second(first(noisy) + noisy)
    torch.testing.assert_close(image, by_hand)
    torch.testing.assert_close(total, by_hand + noisy)


def test_joint_trains_all_on_the_last_loss(batch, tmp_path):
    noisy, clean, labels = batch
    network = SDABN([SDB(segmenter(), ddfn(3))], segmenter())
    stage = made("joint", network, tmp_path)
    loss = stage._loss(noisy, clean, labels, None)
    *_, last = network.stages(noisy)
    loss.backward()
    torch.testing.assert_close(loss, cross_entropy(last.logits, labels))
    assert all(p.grad is not None for p in network.parameters())
    network.eval()
    measured = stage._measure([((clean[0] * 255).to(torch.uint8), labels[0].to(torch.uint8))])
    assert set(measured) == {"psnr", "miou"}


def test_labels_that_are_no_class_name_the_stage(tmp_path):
    frames = [(torch.zeros(3, 16, 16, dtype=torch.uint8), torch.full((16, 16), 3, dtype=torch.uint8))]
    for name, network, parts in (("GtD1", LabelCondition(ddfn(3)), {}), ("DMS", ddfn(), {"judge": segmenter()})):
        with pytest.raises(TrainingError, match=f"stage {name}: labels of frame 0 hold 3, but there are 3 classes"):
            made(name, network, tmp_path / name, **parts).train(frames, [], False)
    made("DDFN1", ddfn(), tmp_path / "DDFN1").train(frames, [], False)  # does not look at them


def test_class_counts_that_differ_name_the_stage(tmp_path):
    with pytest.raises(TrainingError, match="stage D1: .*segmenter has 3 classes, DDFN takes a condition of 4; build it with condition_channels=3"):
        made("D1", ddfn(4), tmp_path, eyes=segmenter())


def test_a_folder_of_another_comparison_is_refused(tmp_path):
    frames = [(torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(16, 16, dtype=torch.uint8))]
    made("DDFN1", ddfn(), tmp_path, judge=None).train(frames, [], False)
    with pytest.raises(TrainingError, match="stage DMS is finished, but as stage DDFN1; put each stage into the folder of its name"):
        made("DMS", ddfn(), tmp_path, judge=segmenter(), weight=1.0).train(frames, [], False)


def test_another_weight_is_refused(tmp_path):
    frames = [(torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(16, 16, dtype=torch.uint8))]
    judge = segmenter()
    made("DMS", ddfn(), tmp_path, judge=judge, weight=1.0).train(frames, [], False)
    with pytest.raises(TrainingError, match="stage DMS is finished through another segmenter, or at another weight"):
        made("DMS", ddfn(), tmp_path, judge=judge, weight=2.0).train(frames, [], False)


def test_entries_are_plain():
    assert entry("D2") == Entry("D2", "denoiser", 2, before=("S1", "D1"), eyes="S2") and entry("D2").kind == "denoiser"
