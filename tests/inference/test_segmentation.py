"""Image and segmentation at once, and that both are those of the cascade itself."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage

from segaware import DDFN, SDABN, SDB, DnCNN, HRNetSegmenter
from segaware.errors import InputError, ModelError
from segaware.inference.segmentation import SegmentingEngine, denoise_and_segment

NAMES = ("sky", "road", "tree", "car")
DOC = Path(__file__).parents[2] / "docs" / "segment.md"


def segmenter():
    return HRNetSegmenter(4, width=2, modules=(1, 1, 1), blocks=1, bottlenecks=1, init="kaiming", class_names=NAMES)


@pytest.fixture
def cascade():
    torch.manual_seed(0)
    net = SDABN([SDB(segmenter(), DDFN(condition_channels=4, blocks=1)) for _ in range(2)]).eval()
    with torch.no_grad():
        for block in net.blocks:
            block.denoiser.reconstruct.weight.mul_(100)
    return net


@torch.no_grad()
def expected(net, noisy):
    *_, (logits, image) = net.stages(noisy)
    return image, F.interpolate(logits, noisy.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


def test_tensors(cascade):
    noisy = torch.rand(2, 3, 30, 42)
    image, classes = expected(cascade, noisy)
    found = denoise_and_segment(noisy, cascade)
    torch.testing.assert_close(found.image, image, rtol=1e-4, atol=1e-4)
    assert classes.unique().numel() > 1 and (found.classes == classes).float().mean() > 0.999
    assert found.classes.shape == (2, 30, 42) and found.class_names == NAMES
    single = denoise_and_segment(noisy[0], cascade)
    assert single.image.shape == (3, 30, 42) and torch.equal(single.classes, found.classes[0])


def test_a_block_and_a_closing_segmenter(cascade):
    noisy = torch.rand(1, 3, 16, 20)
    for net in (cascade.blocks[0], cascade.first(1), cascade.first(1, closing=True)):
        image, classes = expected(net, noisy)
        found = denoise_and_segment(noisy, net)
        torch.testing.assert_close(found.image, image, rtol=1e-4, atol=1e-4)
        assert (found.classes == classes).float().mean() > 0.999 and found.class_names == NAMES


def test_pictures(cascade, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (18, 25, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).save(tmp_path / "a.png")
    engine = SegmentingEngine(cascade)
    array = engine.segment(pixels)
    assert isinstance(array.classes, np.ndarray) and array.classes.shape == (18, 25)
    for other in (engine.segment(PILImage.fromarray(pixels)), engine.segment(tmp_path / "a.png")):
        assert np.array_equal(other.classes, array.classes)
    assert np.array_equal(engine(pixels), array.image)  # a call denoises alone
    gray = engine.segment(pixels[:, :, 0])
    assert gray.image.shape == gray.classes.shape == (18, 25)


def test_what_does_not_segment():
    with pytest.raises(ModelError, match="DnCNN denoises but does not segment; choose a cascade"):
        denoise_and_segment(torch.rand(3, 8, 8), DnCNN(depth=2, width=4))


def test_no_tiles(cascade):
    with pytest.raises(InputError, match="tile"):
        SegmentingEngine(cascade, tile=64)
    assert len(SegmentingEngine(cascade)._tiles(3000, 3000)) == 1


def test_the_documented_snippets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    PILImage.effect_noise((40, 32), 60).convert("RGB").save("noisy.png")
    for block in re.findall(r"^```python\n(.*?)^```", DOC.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, str(DOC), "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert "40 32 (32, 40)" in said and said.count("torch.Size([1, 11, 12, 16]) torch.Size([1, 3, 48, 64])") == 3
    assert (tmp_path / "clean.png").exists()
