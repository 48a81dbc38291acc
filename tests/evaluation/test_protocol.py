import json

import pytest
import torch

from segaware.errors import EvaluationError
from segaware.evaluation.protocol import Noise, Protocol, parse_noise

CLEAN = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(5))


def noisy(protocol, sigma=25.0, name="a", index=0, draw=0):
    return protocol.noisy(CLEAN, Noise("gaussian", sigma), name=name, index=index, draw=draw)


def test_by_index_is_the_published_convention():
    """A fresh generator seeded seed + i, float32 in C x H x W."""
    unit = torch.randn(3, 9, 11, generator=torch.Generator().manual_seed(3 + 7))
    got = noisy(Protocol(seed=3, seed_by="index"), name="whatever", index=7)
    torch.testing.assert_close(got, CLEAN + 25 / 255 * unit)


def test_by_name_the_place_does_not_matter_but_name_seed_and_draw_do():
    one = noisy(Protocol())
    assert torch.equal(one, noisy(Protocol(), index=5))
    others = [noisy(Protocol(), name="b"), noisy(Protocol(seed=1)), noisy(Protocol(), draw=1)]
    assert all(not torch.equal(one, other) for other in others)


def test_noise_of_a_name_stays_the_same_for_good():
    """A golden value: a change here makes all earlier reports incomparable."""
    got = Protocol().noisy(torch.zeros(1, 1, 2), Noise("gaussian", 255), name="kodim01", index=0)
    torch.testing.assert_close(got.flatten(), torch.tensor(GOLDEN), atol=1e-5, rtol=0)


GOLDEN = [-0.506742, -0.392662]


def test_levels_share_one_draw():
    gaps = [(noisy(Protocol(), sigma) - CLEAN) / sigma for sigma in (15.0, 50.0)]
    torch.testing.assert_close(gaps[0], gaps[1], atol=1e-6, rtol=0)


def test_noise_is_not_clipped():
    got = noisy(Protocol(), 100.0)
    assert got.min() < 0 and got.max() > 1


@pytest.mark.parametrize(
    ("text", "noise"),
    [
        ("25", Noise("gaussian", 25)),
        ("sigma 25", Noise("gaussian", 25)),
        ("peak 30", Noise("poisson", peak=30)),
        ("peak 30 + sigma 10", Noise("poisson-gaussian", 10, 30)),
        ("clean", Noise("none")),
    ],
)
def test_noise_in_words(text, noise):
    assert parse_noise(text) == noise and parse_noise(noise.label) == noise


@pytest.mark.parametrize("text", ["", "loud", "peak", "peak x", "sigma 3 sigma", "sigma 25 sigma 30", "peak 0", "300", "0.1"])
def test_noise_words_that_mean_nothing(text):
    with pytest.raises(EvaluationError):
        parse_noise(text)


@pytest.mark.parametrize("kind", ["poisson", "none"])
def test_a_sigma_that_nothing_uses_is_refused(kind):
    """It would stand in the key of the cells, and in no noise."""
    with pytest.raises(EvaluationError, match="has no sigma"):
        Noise(kind, sigma=25)


def test_level_that_is_told():
    assert Noise("gaussian", 51).level(CLEAN) == pytest.approx(0.2)
    assert Noise("poisson", peak=30).level(CLEAN) == pytest.approx(float(CLEAN.mean() / 30) ** 0.5)
    assert Noise("none").level(CLEAN) == 0
    measured = Noise("poisson-gaussian", 10, 30).add(CLEAN.repeat(1, 40, 40), torch.Generator().manual_seed(0))
    spread = float((measured - CLEAN.repeat(1, 40, 40)).std())
    assert spread == pytest.approx(Noise("poisson-gaussian", 10, 30).level(CLEAN), rel=0.02)


def test_round_trip_through_json():
    protocol = Protocol(noises=(Noise(sigma=15), Noise("poisson", peak=9)), draws=3, harm=True, block=4)
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol
    assert [noise.label for noise in protocol.conditions] == ["sigma 15", "peak 9", "clean"]
    assert [protocol.draws_of(noise) for noise in protocol.conditions] == [3, 3, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noises": ()}, "no noise"),
        ({"noises": (Noise(sigma=25), Noise(sigma=25.0))}, "given twice"),
        ({"metrics": ("lpips",)}, "unknown; use psnr"),
        ({"preset": "mine"}, "use usaid"),
        ({"seed_by": "luck"}, "'name' or 'index'"),
        ({"draws": 0}, "at least 1"),
        ({"level": 95}, "0.95"),
    ],
)
def test_bad_protocols(options, words):
    with pytest.raises(EvaluationError, match=words):
        Protocol(**options)
