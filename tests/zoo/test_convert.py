"""Converted networks compute what the foreign ones do."""

import io
import pickle
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from segaware import from_pretrained
from segaware.errors import InputError, WeightsError
from segaware.zoo.convert import CONVERTERS, convert_file, stack_dncnn
from segaware.zoo.foreign_file import unwrap


def stack(channels=3, depth=5, width=6, *, norm=True, bias=False, eps=1e-5, out=None):
    """A plain DnCNN as others build it, with normalisation that does something."""
    layers = [nn.Conv2d(channels, width, 3, padding=1, bias=bias), nn.ReLU()]
    for _ in range(depth - 2):
        layers.append(nn.Conv2d(width, width, 3, padding=1, bias=bias))
        layers += [nn.BatchNorm2d(width, eps=eps), nn.ReLU()] if norm else [nn.ReLU()]
    layers.append(nn.Conv2d(width, out or channels, 3, padding=1, bias=bias))
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 1e-4, 2)
    return nn.Sequential(*layers).eval()


def saved(path, network, prefix="", *, counter=False, container=None, legacy=False):
    state = {f"{prefix}{k}": v for k, v in network.state_dict().items() if counter or "num_batches" not in k}
    torch.save({container: state} if container else state, path, _use_new_zipfile_serialization=not legacy)
    return path


def noisy(channels=3):
    return torch.rand(2, channels, 9, 7)


def converted(tmp_path, file, architecture="DnCNN", **options):
    _, found = convert_file(file, architecture, tmp_path / "model", **options)
    return from_pretrained(tmp_path / "model"), found


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("depth", [2, 3, 6])
def test_layout_of_usaid(tmp_path, depth, legacy):
    network = stack(depth=depth)
    model, found = converted(tmp_path, saved(tmp_path / "a.pth", network, "module.dncnn.", legacy=legacy))
    image = noisy()
    assert torch.allclose(model(image), image - network(image), atol=1e-6)
    assert found.used == sum("num_batches" not in key for key in network.state_dict())
    assert "bias" not in model.config and found.arguments == {"channels": 3, "depth": depth, "width": 6}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("norm", "eps", "option"), [(False, 1e-5, None), (True, 1e-4, None), (True, 1e-3, 1e-3)], ids=["merged", "kair", "eps"]
)
def test_layout_of_kair(tmp_path, channels, norm, eps, option):
    network = stack(channels, norm=norm, bias=True, eps=eps)
    model, found = converted(tmp_path, saved(tmp_path / "a.pth", network, "model.", counter=True), bn_eps=option)
    image = noisy(channels)
    assert torch.allclose(model(image), image - network(image), atol=1e-5)
    assert model.config["bias"] is True and found.layout.startswith("KAIR")


def test_layout_of_its_author_in_pytorch(tmp_path):
    """Zhang's DnCNN: a bias at the first convolution alone, and an epsilon of 1e-4."""
    network = stack(norm=True, eps=1e-4)
    network[0].bias = nn.Parameter(torch.randn(6))
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 1e-5, 1e-4)  # small, so that the epsilon shows
    model, found = converted(tmp_path, saved(tmp_path / "a.pth", network, "dncnn."))
    image = noisy()
    torch.testing.assert_close(model(image), image - network(image), rtol=1e-4, atol=1e-4)
    assert model.config["bias"] is True


@pytest.mark.parametrize(("key", "shape"), [("model.2.bias", (1,)), ("model.2.bias", (5,)), ("model.3.running_mean", (1,)), ("model.0.bias", ())])
def test_vectors_of_another_length_are_refused(tmp_path, key, shape):
    state = {f"model.{name}": value for name, value in stack(norm=True, bias=True).state_dict().items()}
    torch.save(state | {key: torch.zeros(shape)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=rf"{key} has the shape .* beside 6 channels"):
        convert_file(tmp_path / "a.pth", "DnCNN", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_epsilon_without_normalisation_is_refused(tmp_path):
    file = saved(tmp_path / "a.pth", stack(norm=False, bias=True), "model.")
    with pytest.raises(InputError, match="leave bn_eps out"):
        convert_file(file, "DnCNN", tmp_path / "model", bn_eps=0.5)


def test_small_variances_tell_one_epsilon_from_another(tmp_path):
    """The test above could not fail were the variances large."""
    network = stack(norm=True, bias=True, eps=1e-4)
    file = saved(tmp_path / "a.pth", network, "model.")
    model, _ = converted(tmp_path, file, bn_eps=1e-2)
    image = noisy()
    assert not torch.allclose(model(image), image - network(image), atol=1e-3)


def test_spandrels_dncnn(tmp_path):
    arch = pytest.importorskip("spandrel.architectures.DnCNN")
    network = arch.DnCNN(in_nc=3, out_nc=3, nc=8, nb=4, act_mode="R").eval()
    model, _ = converted(tmp_path, saved(tmp_path / "a.pth", network))
    image = noisy()
    assert torch.allclose(model(image), network(image), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_deepinvs_dncnn(tmp_path, bias):
    deepinv = pytest.importorskip("deepinv")
    network = deepinv.models.DnCNN(depth=5, nf=6, bias=bias, pretrained=None).eval()
    model, found = converted(tmp_path, saved(tmp_path / "a.pth", network))
    image = noisy()
    assert torch.allclose(model(image), network(image), atol=1e-6) and found.layout == "deepinv"


@pytest.mark.parametrize("channels", [1, 3])
def test_ffdnet(tmp_path, channels):
    network = stack(4 * channels + 1, norm=False, bias=True, out=4 * channels)
    model, found = converted(tmp_path, saved(tmp_path / "a.pth", network, "model."), "FFDNet")
    with pytest.raises(InputError, match="FFDNet has no batch normalisation"):
        convert_file(tmp_path / "a.pth", "FFDNet", tmp_path / "eps", bn_eps=0.5)
    image = torch.rand(2, channels, 8, 6)
    level = torch.full((2, 1, 4, 3), 0.1)
    folded = torch.cat([nn.functional.pixel_unshuffle(image, 2), level], dim=1)
    assert torch.allclose(model(image, 0.1), nn.functional.pixel_shuffle(network(folded), 2), atol=1e-6)
    assert found.used == len(network.state_dict())


def test_official_hrnet(tmp_path):
    pytest.importorskip("timm")
    from segaware import HRNetSegmenter

    network = HRNetSegmenter(num_classes=5, init="kaiming").eval()
    names = {"trunk.": "", "head.": "last_layer."}
    state = {}
    for key, value in network.state_dict().items():
        own = next(prefix for prefix in names if key.startswith(prefix))
        state[f"model.{names[own]}{key.removeprefix(own)}"] = value
    torch.save(state, tmp_path / "a.pth")
    model, found = converted(tmp_path, tmp_path / "a.pth", "HRNetSegmenter")
    other, _ = convert_file(tmp_path / "a.pth", "HRNetSegmenter", tmp_path / "eps", bn_eps=0.5)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.5
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(other(image), network(image), atol=1e-4) and not torch.allclose(other(image), model(image), atol=1e-2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5
    image = torch.rand(1, 3, 32, 32)
    assert torch.allclose(model(image), network(image), atol=1e-5) and found.arguments == {"num_classes": 5}


@pytest.mark.parametrize("container", ["params", "params_ema", "state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappings(container, prefix):
    content = {f"{prefix}model.0.weight": torch.zeros(1)}
    content = {"epoch": 3, container: content, "optimizer": {"state": {}}} if container else content
    assert list(unwrap(content)) == ["model.0.weight"]


def test_the_average_is_preferred():
    content = {name: {"0.weight": torch.full((1,), value)} for name, value in (("params", 1.0), ("params_ema", 2.0))}
    assert unwrap(content)["0.weight"] == 2


def test_safetensors(tmp_path):
    network = stack(norm=False)
    save_file({f"model.{key}": value for key, value in network.state_dict().items()}, tmp_path / "a.safetensors")
    model, _ = converted(tmp_path, tmp_path / "a.safetensors")
    image = noisy()
    assert torch.allclose(model(image), image - network(image), atol=1e-6)


def refusal(tmp_path, state, architecture="DnCNN"):
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as caught:
        convert_file(tmp_path / "a.pth", architecture, tmp_path / "model")
    assert not (tmp_path / "model").exists() and str(caught.value).startswith(str(tmp_path / "a.pth"))
    return str(caught.value)


def test_missing_and_unexpected_are_named(tmp_path):
    state = {f"model.{key}": value for key, value in stack(norm=False, bias=True).state_dict().items()}
    del state["model.4.weight"], state["model.2.bias"]
    state |= {"model.9.weight": state["model.8.weight"], "tail.weight": torch.zeros(2)}
    message = refusal(tmp_path, state)
    assert "unexpected" in message and "tail.weight" in message and "model.2.bias" in message and "Likely cause" in message


def test_at_most_three_of_each_are_named(tmp_path):
    message = refusal(tmp_path, {f"blocks{i}.scale": torch.zeros(2) for i in range(9)})
    assert "6 missing (model.0.bias, model.0.weight, model.2.bias, ...)" in message
    assert "9 unexpected (blocks0.scale, blocks1.scale, blocks2.scale, ...)" in message


@pytest.mark.parametrize(
    ("state", "architecture", "words"),
    [
        (stack(13, norm=False, bias=True, out=12).state_dict(), "DnCNN", "--arch FFDNet"),
        (stack(4, norm=False, bias=True, out=3).state_dict(), "DnCNN", "FDnCNN"),
        (stack(norm=False, bias=True).state_dict(), "FFDNet", "--arch DnCNN"),
        (stack(norm=True).state_dict(), "FFDNet", "batch normalisation"),
        ({"m_head.weight": torch.zeros(4, 4, 3, 3)}, "DnCNN", "DRUNet"),
        ({"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3)}, "FFDNet", "ResNet"),
        ({"0.weight": torch.zeros(4, 3, 5, 5), "2.weight": torch.zeros(3, 4, 5, 5)}, "DnCNN", "3 x 3"),
        ({"0.weight": torch.zeros(4, 3, 3, 3)}, "DnCNN", "single layer"),
        ({"0.weight": torch.zeros(4, 3, 3, 3), "9999.weight": torch.zeros(3, 4, 3, 3)}, "DnCNN", "missing"),
        ({"0.weight": torch.full((4, 3, 3, 3), torch.nan)}, "DnCNN", "NaN"),
        ({"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.int8)}, "DnCNN", "quantised"),
        ({"15": {"0.weight": torch.zeros(1)}}, "DnCNN", "no tensors by name"),
        ([torch.zeros(1)], "DnCNN", "no state dict"),
        ({"stem.weight": torch.zeros(2, 2)}, "HRNetSegmenter", "missing"),
        ({"last_layer.3.weight": torch.zeros(3, 4, 1, 1)}, "HRNetSegmenter", "missing"),
    ],
)
def test_another_network_is_refused_with_the_likely_cause(tmp_path, state, architecture, words):
    if architecture == "HRNetSegmenter":
        pytest.importorskip("timm")
    assert words in refusal(tmp_path, state, architecture)


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_the_file_is_run(tmp_path, legacy):
    mark = tmp_path / "mark"
    torch.save({"state_dict": Malicious(mark)}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="could run code"):
        convert_file(tmp_path / "a.pth", "DnCNN", tmp_path / "model")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02", pickle.dumps({"a": 1}), bytes(100)])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        convert_file(tmp_path / name, "DnCNN", tmp_path / "model")


def test_truncated_zip(tmp_path):
    saved(tmp_path / "a.pth", stack())
    whole = (tmp_path / "a.pth").read_bytes()
    assert zipfile.is_zipfile(io.BytesIO(whole))
    (tmp_path / "a.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="damaged|no checkpoint|could run code"):
        convert_file(tmp_path / "a.pth", "DnCNN", tmp_path / "model")


def test_what_is_there_is_kept(tmp_path):
    file = saved(tmp_path / "a.pth", stack())
    convert_file(file, "DnCNN", tmp_path / "model")
    with pytest.raises(InputError, match="--overwrite"):
        convert_file(file, "DnCNN", tmp_path / "model")
    convert_file(file, "DnCNN", tmp_path / "model", overwrite=True)


def test_unknown_architecture(tmp_path):
    with pytest.raises(InputError, match="did you mean 'DnCNN'"):
        convert_file(tmp_path / "a.pth", "DnCNNN", tmp_path / "model")


PARTS = ("weight", "bias", "running_mean", "running_var")
LAYERS = ("0.", "model.0.", "model.2.", "model.3.", "model.5.", "in_conv.", "conv_list.0.", "out_conv.")
KEYS = st.sampled_from([layer + part for layer in LAYERS for part in PARTS])
SHAPES = st.lists(st.integers(0, 4), max_size=5).map(torch.zeros)


@settings(max_examples=60, deadline=None)
@given(state=st.dictionaries(KEYS, SHAPES, max_size=8), architecture=st.sampled_from(["DnCNN", "FFDNet"]))
def test_any_state_dict_gives_a_conversion_or_our_error(state, architecture):
    try:
        CONVERTERS[architecture](state, None)
    except WeightsError:
        pass


def test_weights_are_shared_not_changed():
    state = stack(norm=True, bias=True).state_dict()
    before = {key: value.clone() for key, value in state.items()}
    stack_dncnn(state)
    assert all(torch.equal(state[key], before[key]) for key in state)
