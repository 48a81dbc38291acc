import importlib

import pytest
import torch
from torch import nn

from segaware.errors import InputError, ModelError
from segaware.registry import ARCHITECTURES, build, register


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_target_resolves_to_its_name(name):
    module, _, cls = ARCHITECTURES[name].partition(":")
    target = getattr(importlib.import_module(module), cls)
    assert issubclass(target, nn.Module) and target.__name__ == name


def test_build_gives_the_arguments_on():
    model = build("DnCNN", {"depth": 3, "width": 4})
    assert model.config == {"channels": 3, "depth": 3, "width": 4}
    assert build("DnCNN", {"depth": 2}) is not build("DnCNN", {"depth": 2})


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [("DnCN", {}, "did you mean 'DnCNN'"), ("Xyz", {}, "known: .*FFDNet"), ("DnCNN", {"dept": 3}, "dept")],
)
def test_build_refuses(name, arguments, said):
    with pytest.raises(ModelError, match=said):
        build(name, arguments)


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr("segaware.registry.ARCHITECTURES", dict(ARCHITECTURES))
    register("Mine", "torch.nn:Identity")
    register("Mine", "torch.nn:Identity")  # the same again does no harm
    assert torch.equal(build("Mine")(torch.ones(2)), torch.ones(2))
    for name in ("Mine", "DnCNN"):
        with pytest.raises(InputError, match="is taken by"):
            register(name, "torch.nn:ReLU")
