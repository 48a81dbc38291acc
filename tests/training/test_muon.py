"""Muon: orthogonal updates for inner convolutions, Adam for the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segaware import DnCNN, FFDNet, LiuDenoiser
from segaware.training import muon
from segaware.training.muon import Muon, inner_matrices, orthogonalize


@pytest.mark.parametrize("lower", [True, False])
def test_orthogonalize_brings_singular_values_near_one(monkeypatch, lower):
    """In bfloat16 and in float32, as the machine has it; and the two differ, so that each was computed as told."""
    matrices = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(muon, "computes_bf16", lambda device: not lower)
    other = orthogonalize(matrices)
    monkeypatch.setattr(muon, "computes_bf16", lambda device: lower)
    assert 0 < (orthogonalize(matrices) - other).abs().max() < 0.05
    matrices = torch.randn(3, 16, 90, generator=torch.Generator().manual_seed(0))
    for batch in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalize(batch))
        assert values.min() > 0.5 and values.max() < 1.4
        # the direction is kept: U V^T of the input
        u, _, v = torch.linalg.svd(batch, full_matrices=False)
        cosine = nn.functional.cosine_similarity(orthogonalize(batch).flatten(1), (u @ v).flatten(1))
        assert cosine.min() > 0.97


def test_what_is_as_good_as_nothing_counts_as_nothing(monkeypatch):
    """Momentum that fades where no gradient comes is subnormal in the end, and the iteration then takes thirty times as long."""
    monkeypatch.setattr(muon, "computes_bf16", lambda device: False)
    matrices = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0))
    matrices[:, 3] = 0
    matrices[:, :, 11] = 0
    expected = orthogonalize(matrices)
    matrices[:, 3] = 1e-41
    matrices[:, :, 11] = 3e-30
    assert torch.equal(orthogonalize(matrices), expected)
    assert (expected[:, 3] == 0).all() and (expected[:, 0, :11] != 0).all()


def test_first_and_last_layers_are_no_matrices():
    for net, inner in ((DnCNN(depth=5), 3), (FFDNet(), 10)):
        assert len(inner_matrices(net, 3)) == inner
    liu = LiuDenoiser()
    chosen = {id(p) for p in inner_matrices(liu, 3)}
    assert id(liu.stem.weight) not in chosen and id(liu.output.weight) not in chosen
    assert len(chosen) == 14  # 3 modules of 4 convolutions, 2 transposed ones


def test_the_rest_is_adam():
    torch.manual_seed(0)
    mine, theirs = nn.Linear(3, 4), nn.Linear(3, 4)
    theirs.load_state_dict(mine.state_dict())
    one = Muon([], mine.parameters(), other_lr=0.01, betas=(0.9, 0.99))
    other = torch.optim.Adam(theirs.parameters(), lr=0.01, betas=(0.9, 0.99))
    for _ in range(5):
        x = torch.randn(7, 3)
        for net, optimizer in ((mine, one), (theirs, other)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_weight_decay_is_of_matrices_alone():
    conv, bias = nn.Conv2d(8, 8, 1, bias=False), nn.Parameter(torch.ones(3))
    before = conv.weight.detach().clone()
    optimizer = Muon([conv.weight], [bias], lr=0.1, weight_decay=0.5)
    conv.weight.grad, bias.grad = torch.zeros_like(conv.weight), torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(conv.weight.detach(), 0.95 * before)
    assert bias.tolist() == [1, 1, 1]


def test_a_step_has_the_size_adam_would_have():
    conv = nn.Conv2d(32, 48, 3, bias=False)
    before = conv.weight.detach().clone()
    optimizer = Muon([conv.weight], [], lr=0.01)
    conv(torch.randn(2, 32, 8, 8)).square().mean().backward()
    optimizer.step()
    root_mean_square = (conv.weight.detach() - before).square().mean().sqrt().item()
    assert 0.1 * 0.01 < root_mean_square < 0.3 * 0.01  # Adam's is about 0.2 to 0.4 of the rate
