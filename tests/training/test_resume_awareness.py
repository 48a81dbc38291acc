"""A run that was cut resumes exactly with awareness terms that draw numbers or remember."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from segaware import DnCNN, SegAwareWrapper
from segaware.losses import LABEL_FREE, label_free
from segaware.losses.consistency import ConsistencyLoss
from segaware.losses.d2sm import D2SMLoss
from segaware.losses.judge_pool import JudgePoolLoss
from segaware.losses.sensitivity import SensitivityLoss
from segaware.training import Recipe, checkpoint, fit

RECIPE = Recipe(steps=6, batch_size=2, patch_size=16, log_every=2, checkpoint_every=3, precision="float32")


def judge(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(3, 4, 3, padding=1)


TERMS = {
    "d2sm": lambda: (100.0, D2SMLoss(judge(0), queue=8, temperature=0.5)),
    "pool": lambda: JudgePoolLoss([judge(0), judge(1)], ConsistencyLoss, scales=(0.5, 1.0)),
    "sensitivity": lambda: SensitivityLoss(judge(0), probes=1),
}


@pytest.mark.parametrize("name", TERMS)
def test_resumes_exactly(tmp_path, name):
    images = [torch.rand(3, 24, 24) for _ in range(3)]

    def run(out):
        torch.manual_seed(3)
        net = DnCNN(depth=3, width=8)
        fit(SegAwareWrapper(net, TERMS[name]()), images, RECIPE, tmp_path / out, progress=False)
        return load_file(tmp_path / out / "model/model.safetensors")

    whole, once = run("whole"), checkpoint.save

    def last_words(*args):
        once(*args)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(checkpoint, "save", last_words)
        run("cut")
    resumed = run("cut")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.mark.parametrize("name", LABEL_FREE)
def test_every_name_of_the_table_is_a_term(name):
    wrapper = SegAwareWrapper(DnCNN(depth=3, width=8), label_free(name)(judge(0)))
    output = wrapper(torch.rand(2, 3, 16, 16), clean=torch.rand(2, 3, 16, 16))
    (gradient,) = torch.autograd.grad(output.terms[name.replace("-", "_")], output.denoised)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
