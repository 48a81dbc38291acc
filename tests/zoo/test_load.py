import json

import pytest
import torch

import segaware
from segaware import DnCNN, FFDNet, from_pretrained, list_models
from segaware.errors import InputError, ModelError, WeightsError
from segaware.zoo.load import DEFAULT_MODEL


def test_by_name_and_by_folder(shipped):
    for source in ("segaware-blind", shipped / "segaware-blind", str(shipped / "segaware-blind")):
        model = from_pretrained(source)
        assert isinstance(model, DnCNN) and not model.training
        assert model.config == {"channels": 3, "depth": 3, "width": 4}
        assert model.info.training_noise == "AWGN, sigma 0-55"
        assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert isinstance(from_pretrained("ffdnet"), FFDNet)


def test_the_default(shipped):
    assert DEFAULT_MODEL == "segaware-blind" and isinstance(from_pretrained(), DnCNN)
    assert segaware.denoise(torch.rand(3, 8, 8)).shape == (3, 8, 8)


def test_device_and_dtype(shipped):
    model = from_pretrained("ffdnet", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    with pytest.raises(InputError, match="bfloat16"):
        from_pretrained("ffdnet", dtype=torch.int8)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("segaware-blnd", "did you mean 'segaware-blind'"),
        ("xyz", "known: ffdnet, segaware-blind"),
        ("./someone/their-model", "no such folder"),
    ],
)
def test_unknown(shipped, source, words):
    with pytest.raises(WeightsError, match=words):
        from_pretrained(source)


def test_damaged_entries(shipped):
    folder = shipped / "ffdnet"
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(WeightsError, match="give the model's folder"):
        from_pretrained(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({**config, "arguments": {"depth": 4}}))
    with pytest.raises(WeightsError, match="another network or other arguments"):
        from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "FFDnet"}))
    with pytest.raises(ModelError, match="did you mean 'FFDNet'"):
        from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(WeightsError, match="damaged"):
        from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="a model folder holds"):
        from_pretrained(folder)


def test_list_models(shipped):
    (shipped / "ffdnet" / "model.safetensors").write_bytes(b"never read")
    told, blind = list_models()
    assert (blind.name, blind.architecture, blind.kind, blind.takes_sigma) == (
        "segaware-blind",
        "DnCNN",
        "denoiser",
        False,
    )
    assert blind.parameters == sum(p.numel() for p in DnCNN(depth=3, width=4).parameters())
    assert blind.training_noise == "AWGN, sigma 0-55" and blind.training_data == "BSDS500 train"
    assert blind.measured["psnr"]["25"] == 31.0
    assert told.takes_sigma and told.size == 10 and told.training_data == "BSDS500 train" and told.measured == {}


def test_no_models(tmp_path, monkeypatch):
    monkeypatch.setattr("segaware.entries._SHIPPED", tmp_path / "none")
    assert list_models() == []
    with pytest.raises(WeightsError, match="known: none"):
        from_pretrained("segaware-blind")
