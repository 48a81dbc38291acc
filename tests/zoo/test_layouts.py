"""SDABN's stages and Liu's blobs: converted networks compute what those of the authors do."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

from segaware import DDFN, SDABN, LiuDenoiser, from_pretrained
from segaware.cli.main import main
from segaware.errors import InputError, WeightsError
from segaware.zoo.convert import convert_file


def state_of(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


# --- SDABN ------------------------------------------------------------------------------------

DILATION = {"conv1": 1, "conv2": 2, "conv3": 1, "conv4": 2, "feat1": 1, "feat15": 2, "feat2": 2, "feat25": 1}


def authors_ddfn(classes=None, blocks=2, seed=0):
    """A state dict under the names of the release."""
    shapes = {f"msfeat.conv{i}.0": (8, 3 if i < 3 else 8, 3, 3) for i in (1, 2, 3, 4)}
    width = 32
    for i in range(blocks):
        shapes |= {
            f"dfus_block{i}.{name}.0": shape
            for name, shape in (
                ("conv1", (32, width, 1, 1)), ("feat1", (8, 32, 3, 3)), ("feat15", (4, 8, 3, 3)),
                ("feat2", (8, 32, 3, 3)), ("feat25", (4, 8, 3, 3)), ("feat", (8, 24, 1, 1)),
            )
        }  # fmt: skip
        if classes:
            shapes |= sft(f"dfus_block{i}.input_sft", width)
        width += 8
    if classes:
        widths = (classes, 16, 32, 64, 32, 16)
        shapes |= {f"segfeat.conv.{2 * i}": (widths[i + 1], widths[i], 1, 1) for i in range(5)}
        shapes |= sft("sft", width)
    shapes = {f"{key}.weight": shape for key, shape in shapes.items()} | {f"{k}.bias": s[:1] for k, s in shapes.items()}
    return state_of({**shapes, "convr.weight": (3, width, 1, 1)}, seed)


def sft(name, width):
    return {f"{name}.{b}.{i}": ((32, 16) if i == 0 else (width, 32)) + (1, 1) for b in ("scale", "shift") for i in (0, 2)}


def run_ddfn(state, image, condition=None):
    """What the release computes, written from the description of the method."""

    def conv(name, x, dilation=1, relu=True):
        weight = state[f"{name}.weight"]
        y = F.conv2d(x, weight, state.get(f"{name}.bias"), padding=dilation * (weight.shape[-1] // 2), dilation=dilation)
        return F.relu(y) if relu else y

    def steer(name, x):
        if condition is None:
            return x
        scale, shift = (
            conv(f"{name}.{b}.2", F.leaky_relu(conv(f"{name}.{b}.0", encoded, relu=False), 0.1), relu=False)
            for b in ("scale", "shift")
        )
        return x * (1 + scale) + shift

    if condition is not None:
        encoded = condition
        for i in range(5):
            encoded = conv(f"segfeat.conv.{2 * i}", encoded, relu=False)
            encoded = F.leaky_relu(encoded, 0.1) if i < 4 else encoded
    one, two = conv("msfeat.conv1.0", image), conv("msfeat.conv2.0", image, 2)
    x = torch.cat([one, two, conv("msfeat.conv3.0", two), conv("msfeat.conv4.0", one, 2)], 1)
    for i in range(sum(key.endswith("feat.0.weight") for key in state)):
        block = f"dfus_block{i}"
        squeezed = conv(f"{block}.conv1.0", steer(f"{block}.input_sft", x))
        paths = {}
        for name, source in (("feat1", squeezed), ("feat2", squeezed), ("feat15", "feat1"), ("feat25", "feat2")):
            paths[name] = conv(f"{block}.{name}.0", paths.get(source, source) if isinstance(source, str) else source, DILATION[name])
        inner = torch.cat([paths[name] for name in ("feat1", "feat15", "feat2", "feat25")], 1)
        x = torch.cat([x, conv(f"{block}.feat.0", inner)], 1)
    return conv("convr", steer("sft", x), relu=False)


def saved(path, state):
    torch.save({"epoch": 3, "best_psnr": 30.0, "model_weights": state, "optimizer": {"state": {}}}, path)
    return path


@pytest.mark.parametrize("classes", [None, 5])
def test_the_denoiser_of_sdabn(tmp_path, classes):
    state = authors_ddfn(classes)
    model, found = convert_file(saved(tmp_path / "best.pth.tar", state), "DDFN", tmp_path / "m")
    assert found.used == len(state) and found.arguments == {"channels": 3, "condition_channels": classes, "blocks": 2}
    image, condition = torch.rand(2, 3, 9, 11), torch.randn(2, classes, 9, 11) if classes else None
    with torch.no_grad():
        expected = run_ddfn(state, image, condition)
        torch.testing.assert_close(model(image, condition=condition), expected, rtol=1e-3, atol=1e-4)
    assert isinstance(DDFN.from_pretrained(tmp_path / "m"), DDFN)


def test_the_default_form_is_recognised(tmp_path):
    _, found = convert_file(saved(tmp_path / "a.pth", authors_ddfn(19, blocks=8)), "DDFN", tmp_path / "m")
    own = DDFN(condition_channels=19).config
    assert found.arguments.items() <= own.items()


def authors_hrnet(classes, seed):
    from segaware import HRNetSegmenter

    torch.manual_seed(seed)
    network = HRNetSegmenter(classes, init="kaiming").eval()
    names = {"trunk.": "", "head.": "last_layer."}
    state = {}
    for key, value in network.state_dict().items():
        own = next(prefix for prefix in names if key.startswith(prefix))
        state[names[own] + key.removeprefix(own)] = value
    return network, state


@pytest.fixture(scope="module")
def cascade_files(tmp_path_factory):
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("stages")
    networks, paths = [], []
    for number in range(3):
        network, state = authors_hrnet(4, number) if number % 2 == 0 else (None, authors_ddfn(4, seed=number))
        networks.append((network, state))
        paths.append(saved(folder / f"stage{number + 1}.pth.tar", state))
    return networks, paths


def test_a_cascade_from_its_stages(tmp_path, cascade_files):
    networks, paths = cascade_files
    model, found = convert_file(paths, "SDABN", tmp_path / "m")
    assert found.layout == "SDABN's stages S1 D1 S2" and isinstance(model, SDABN)
    assert found.used == sum(len(state) for _, state in networks)
    noisy = torch.rand(1, 3, 24, 32)
    with torch.no_grad():
        logits = networks[0][0](noisy)
        image = run_ddfn(networks[1][1], noisy, F.interpolate(logits, size=(24, 32), mode="bilinear", align_corners=False))
        (first, closing) = from_pretrained(tmp_path / "m").stages(noisy)
        torch.testing.assert_close(first.logits, logits)
        torch.testing.assert_close(first.image, image, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(closing.logits, networks[2][0](first.image), rtol=1e-3, atol=1e-4)
    whole = {f"{name}.{key}": value for name, (_, state) in zip(("model1", "model2", "model_train"), networks, strict=True) for key, value in state.items()}
    torch.save(whole, tmp_path / "whole.pth")
    again, _ = convert_file(tmp_path / "whole.pth", "SDABN", tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_stages_in_another_order(tmp_path, cascade_files):
    paths = cascade_files[1]
    with pytest.raises(WeightsError, match=r"stage 1 should be the segmenter S1 \(order S1, D1, S2, D2, ...\)"):
        convert_file([paths[1], paths[0]], "SDABN", tmp_path / "m")
    with pytest.raises(WeightsError, match="not a SDABN: 2 missing"):
        convert_file(paths[1], "SDABN", tmp_path / "m")
    with pytest.raises(InputError, match="2 files for one DDFN"):
        convert_file(paths[:2], "DDFN", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_command_takes_several_files(tmp_path, cascade_files):
    arguments = ["convert", *map(str, cascade_files[1][:2]), "--arch", "sdabn", "-o", str(tmp_path / "m"), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["layout"] == "SDABN's stages S1 D1" and len(record["arguments"]["blocks"]) == 1
    known = json.loads((tmp_path / "m" / "config.json").read_text())["converted_from"]
    assert known["file"] == "stage1.pth.tar, stage2.pth.tar"


# --- Liu --------------------------------------------------------------------------------------


def caffe_blobs(encoder=8, decoder=16, seed=0):
    random = np.random.default_rng(seed)
    blobs = {}

    def put(name, *shape):
        blobs[name] = (0.2 * random.standard_normal(shape)).astype(np.float32)

    def norm(statistics, affine, width):
        put(f"{statistics}/0", width)
        blobs[f"{statistics}/1"] = random.uniform(500, 2000, width).astype(np.float32)
        blobs[f"{statistics}/2"] = np.array([999.0], np.float32)
        put(f"{affine}/0", width)
        put(f"{affine}/1", width)

    def conv(name, outputs, inputs, side):
        put(f"{name}/0", outputs, inputs, side, side)
        put(f"{name}/1", outputs)

    conv("conv0", 64, 3, 5)
    for number, inputs, outputs in ((1, 64, encoder), (2, encoder, encoder), (3, encoder + encoder // 4, decoder)):
        conv(f"conv{number}", outputs, inputs, 3)
        norm(f"conv{number}_bn", f"conv{number}_Scale", outputs)
        inner = outputs // 4
        for branch, shape in (("2a", (inner, outputs, 1, 1)), ("2b", (inner, inner, 3, 3)), ("2c", (outputs, inner, 1, 1))):
            put(f"residual_{number}_branch{branch}/0", *shape)
            norm(f"residual_{number}_bn_branch{branch}", f"residual_{number}_scale_branch{branch}", shape[0])
    put("upsample_r2/0", encoder, encoder // 4, 4, 4)
    put("upsample_r2/1", encoder // 4)
    put("upsample/0", decoder, decoder // 4, 4, 4)
    put("upsample/1", decoder // 4)
    conv("concat_reduction", 3, 64 + decoder // 4, 3)
    blobs["conv0/0"] /= 100  # its input is in 0 to 255
    return blobs


def run_caffe(blobs, rgb):
    """The released network on BGR, 0 to 255, less its mean, the picture framed by three pixels of mean colour."""
    blob = {key: torch.from_numpy(value) for key, value in blobs.items()}

    def norm(x, statistics, affine):
        mean, variance, count = (blob[f"{statistics}/{i}"] for i in range(3))
        x = F.batch_norm(x, mean / count, variance / count, eps=1e-5)
        return x * blob[f"{affine}/0"][:, None, None] + blob[f"{affine}/1"][:, None, None]

    def module(x, number, stride):
        x = F.conv2d(x, blob[f"conv{number}/0"], blob[f"conv{number}/1"], stride=stride, padding=1)
        x = F.relu(norm(x, f"conv{number}_bn", f"conv{number}_Scale"))
        y = x
        for branch in ("2a", "2b", "2c"):
            weight = blob[f"residual_{number}_branch{branch}/0"]
            y = F.conv2d(y, weight, padding=weight.shape[-1] // 2)
            y = norm(y, f"residual_{number}_bn_branch{branch}", f"residual_{number}_scale_branch{branch}")
            y = F.relu(y) if branch != "2c" else y
        return F.relu(x + y)

    def up(x, name):
        return F.conv_transpose2d(x, blob[f"{name}/0"], blob[f"{name}/1"], stride=2, padding=1)

    mean = torch.tensor([104.0, 117.0, 123.0]).reshape(1, 3, 1, 1)
    data = 255 * rgb.flip(1) - mean
    framed = F.pad(data, (3, 3, 3, 3))
    stem = F.conv2d(framed, blob["conv0/0"], blob["conv0/1"])
    one = module(stem, 1, 2)
    two = module(one, 2, 2)
    three = module(torch.cat([one, up(two, "upsample_r2")], 1), 3, 1)
    last = F.conv2d(torch.cat([stem, up(three, "upsample")], 1), blob["concat_reduction/0"], blob["concat_reduction/1"])
    return ((last + data + mean) / 255).flip(1)


def test_lius_blobs(tmp_path):
    blobs = caffe_blobs()
    np.savez(tmp_path / "liu.npz", **blobs)
    model, found = convert_file(tmp_path / "liu.npz", "LiuDenoiser", tmp_path / "m")
    assert found.used == len(blobs) and model.config["encoder_width"] == 8 and model.config["decoder_width"] == 16
    rgb = torch.rand(2, 3, 18, 26)  # + 6 is a multiple of 4: the sizes that network takes
    with torch.no_grad():
        expected = run_caffe(blobs, rgb)
        assert float((expected - rgb).abs().max()) > 1e-3
        torch.testing.assert_close(LiuDenoiser.from_pretrained(tmp_path / "m")(rgb), expected, rtol=1e-3, atol=1e-4)


def test_lius_network_as_released(tmp_path):
    blobs = caffe_blobs(128, 256)
    np.savez(tmp_path / "liu.npz", **blobs)
    model, _ = convert_file(tmp_path / "liu.npz", "LiuDenoiser", tmp_path / "m")
    assert sum(p.numel() for p in model.parameters()) == 1_033_443


def test_blobs_of_another_network(tmp_path):
    blobs = caffe_blobs()
    del blobs["conv2_bn/2"]
    np.savez(tmp_path / "a.npz", **blobs, **{"fc7/0": np.zeros((2, 2), np.float32)})
    with pytest.raises(WeightsError, match=r"1 missing \(conv2_bn/2\); 1 unexpected \(fc7/0\)"):
        convert_file(tmp_path / "a.npz", "LiuDenoiser", tmp_path / "m")
    np.savez(tmp_path / "b.npz", objects=np.array([{}], dtype=object))
    with pytest.raises(WeightsError, match="not arrays of numbers"):
        convert_file(tmp_path / "b.npz", "LiuDenoiser", tmp_path / "m")
    with pytest.raises(InputError, match="2 means for 3 channels"):
        LiuDenoiser(mean=(0.1, 0.2))
    assert isinstance(LiuDenoiser(encoder_width=4, decoder_width=4), nn.Module)
