import pytest
import torch
import torch.nn.functional as F
from denoisers.tester import DenoiserTester, stir
from torch import nn

from segaware import FFDNet


class TestFFDNet(DenoiserTester):
    cls = FFDNet
    small = {"depth": 3, "width": 8}
    variants = [{"channels": 1}, {"depth": 2}, {"width": 1, "channels": 5}]
    reach = [{"depth": 2, "width": 2}, {"depth": 4, "width": 2}, {"depth": 12, "width": 2}]
    counts = [({}, 852_108), ({"channels": 1, "depth": 15, "width": 64}, 485_316)]  # colour, and the paper's gray form
    refused = [{"channels": 0}, {"depth": 1}, {"width": 0}]


def test_odd_sides_are_padded_by_their_last_row_and_column():
    model = FFDNet(depth=3, width=8).eval()
    noisy = torch.rand(1, 3, 9, 7)
    padded = F.pad(noisy, (0, 1, 0, 1), mode="replicate")
    assert torch.equal(model(noisy, 0.1), model(padded, 0.1)[:, :, :9, :7])


def test_a_map_acts_where_it_is():
    model = stir(FFDNet(depth=2, width=8)).eval()
    noisy = torch.rand(1, 3, 32, 32)
    level = torch.full((1, 1, 32, 32), 0.1)
    changed = level.clone()
    changed[..., 16:] = 0.4
    difference = (model(noisy, changed) - model(noisy, level)).detach().abs().sum((0, 1, 2))
    field = model.info.receptive_field
    assert not difference[: 16 - field // 2].any() and (difference[16:] > 0).all()


@pytest.mark.parametrize("options", [{}, {"channels": 1, "depth": 15, "width": 64}])
def test_it_starts_near_the_identity(options):
    """A plain stack first has to learn to pass the image on; ours can at the start, noise beyond [0, 1] included."""
    model = FFDNet(**options)
    clean = torch.rand(1, model.info.channels, 16, 16)
    noisy = clean + 50 / 255 * torch.randn_like(clean)
    change = (model(noisy, 50 / 255) - noisy).detach()
    assert 0 < float(change.abs().mean()) < 0.1


def test_gradient_reaches_a_sigma_map():
    model = stir(FFDNet(depth=2, width=4))
    level = torch.full((1, 1, 6, 6), 0.1, requires_grad=True)
    model(torch.rand(1, 3, 6, 6), level).sum().backward()
    assert level.grad.abs().sum() > 0


def test_no_batch_normalisation():
    assert not [m for m in FFDNet().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert FFDNet().info.takes_sigma and FFDNet().info.receptive_field == pytest.approx(50)


def test_held_identity_stays_and_the_rest_learns():
    torch.manual_seed(0)
    model = FFDNet(depth=4, width=24)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    model.hold_identity()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    noisy = torch.rand(2, 3, 12, 12)
    for _ in range(3):
        optimizer.zero_grad()
        model(noisy, sigma=0.1).square().mean().backward()
        optimizer.step()
    for key, value in model.named_parameters():
        moved = value.detach() != before[key]
        last = key.startswith("body.6")
        held = moved[:, :12] if last and value.ndim == 4 else moved[:12] if not last else moved[:0]
        free = moved[:, 12:] if last and value.ndim == 4 else moved[12:] if not last else moved
        assert not held.any() and free.any(), key
    # the carried pixels still pass: without the other channels the network is the identity
    with torch.no_grad():
        model.body[-1].weight[:, 12:] = 0
        model.body[-1].bias[:] = -1
    torch.testing.assert_close(model(noisy, sigma=0.1), noisy, rtol=0, atol=1e-5)
