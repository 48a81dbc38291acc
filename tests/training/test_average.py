"""The running average: its formula, that it is put in and taken out, and what it copies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segaware.training.average import Average


def test_it_averages_with_a_short_memory_at_first():
    net = nn.Linear(1, 1, bias=False)
    average = Average(net, 0.9)
    expected = net.weight.item()
    for step in range(200):
        with torch.no_grad():
            net.weight.fill_(step)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert average.values["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert 180 < expected < 199


def test_inside_the_module_holds_it_even_after_an_error():
    net = nn.Linear(1, 1, bias=False)
    average = Average(net, 0.9)
    average.load({"weight": torch.full((1, 1), 5.0)})
    with torch.no_grad():
        net.weight.fill_(2.0)
    with pytest.raises(ZeroDivisionError), average.inside():
        assert net.weight.item() == 5
        raise ZeroDivisionError
    assert net.weight.item() == 2 and average.values["weight"].item() == 5


def test_buffers_are_taken_and_integers_copied():
    net = nn.BatchNorm1d(2)
    average = Average(net, 0.9)
    with torch.no_grad():
        net.weight.fill_(7), net.running_mean.fill_(7), net.num_batches_tracked.fill_(7)
    average.take_buffers()
    assert average.values["running_mean"].tolist() == [7, 7] and average.values["weight"].tolist() == [1, 1]
    average.update(1000)
    assert average.values["num_batches_tracked"] == 7


def test_without_decay_there_is_none():
    net = nn.Linear(1, 1)
    average = Average(net, 0.0)
    average.update(0)
    with average.inside():
        assert not average.values
