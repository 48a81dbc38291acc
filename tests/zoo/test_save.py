import copy
import json

import pytest
import torch
import yaml
from torch import nn

import segaware
from segaware import DDFN, SDABN, SDB, DnCNN, FFDNet, FPNSegmenter, SegAwareWrapper, from_pretrained
from segaware.entries import write_entry
from segaware.errors import InputError, WeightsError
from segaware.registry import ARCHITECTURES
from segaware.zoo.save import save_pretrained

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Foreign(nn.Module):
    """A network of somebody else: in [-1, 1], sides of multiples of 4, the noise level by argument."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 4, stride=4)

    def forward(self, x, noise_level):
        assert x.shape[-1] % 4 == 0
        return nn.functional.interpolate(self.inner(x), scale_factor=4) * noise_level


def cascade():
    return SDABN(
        [SDB(FPNSegmenter(num_classes=2, backbone="squeezenet1_0", width=8), DDFN(condition_channels=2)) for _ in range(1)]
    )


def same(a, b):
    with torch.no_grad():
        return torch.equal(a.eval()(IMAGE), b.eval()(IMAGE))


@pytest.mark.parametrize("make", [lambda: DnCNN(depth=3, width=4), cascade], ids=["DnCNN", "SDABN"])
def test_there_and_back(make, tmp_path):
    model = make()
    assert model.save_pretrained(tmp_path / "m") == tmp_path / "m"
    for loaded in (type(model).from_pretrained(tmp_path / "m"), from_pretrained(tmp_path / "m")):
        assert type(loaded) is type(model) and not loaded.training and same(model, loaded)


def test_every_architecture_has_the_methods():
    import importlib

    for target in ARCHITECTURES.values():
        module, _, name = target.partition(":")
        cls = getattr(importlib.import_module(module), name)
        assert all(callable(getattr(cls, method)) for method in ("from_pretrained", "save_pretrained", "push_to_hub"))


def test_the_class_is_checked(tmp_path):
    save_pretrained(FFDNet(depth=3, width=4), tmp_path / "m")
    with pytest.raises(WeightsError, match=r"holds FFDNet, not DnCNN; use FFDNet.from_pretrained"):
        DnCNN.from_pretrained(tmp_path / "m")
    assert FFDNet.from_pretrained(tmp_path / "m", dtype=torch.bfloat16).config["depth"] == 3


def test_a_wrapper_that_adds_nothing_is_saved_as_its_denoiser(tmp_path):
    model = DnCNN(depth=3, width=4)
    SegAwareWrapper(model, ()).save_pretrained(tmp_path / "m")
    assert type(from_pretrained(tmp_path / "m")) is DnCNN
    wrapper = SegAwareWrapper.from_pretrained(tmp_path / "m")
    assert type(wrapper) is SegAwareWrapper and same(wrapper, model)


def test_a_wrapper_around_a_foreign_denoiser(tmp_path):
    wrapper = SegAwareWrapper(Foreign(), (), value_range=(-1, 1), predicts="noise", size_multiple=4)
    wrapper.save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="pass it as denoiser=network"):
        from_pretrained(tmp_path / "m")
    noisy = torch.rand(1, 3, 10, 7)
    for load in (from_pretrained, SegAwareWrapper.from_pretrained):
        loaded = load(tmp_path / "m", denoiser=Foreign())
        assert loaded.adapter == wrapper.adapter
        assert torch.equal(loaded(noisy, 0.1), wrapper(noisy, 0.1))
    with pytest.raises(WeightsError, match="missing"):
        from_pretrained(tmp_path / "m", denoiser=DnCNN(depth=3, width=4))


def test_a_wrapper_that_changes_its_denoiser_of_ours(tmp_path):
    wrapper = SegAwareWrapper(DnCNN(depth=3, width=4), (), value_range=(0, 255))
    wrapper.save_pretrained(tmp_path / "m")
    assert same(from_pretrained(tmp_path / "m"), wrapper)


def test_a_denoiser_that_is_of_no_use(tmp_path):
    DnCNN(depth=3, width=4).save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="leave denoiser= out"):
        from_pretrained(tmp_path / "m", denoiser=Foreign())
    with pytest.raises(InputError, match="for repositories of the Hub; this is a folder"):
        from_pretrained(tmp_path / "m", revision="main")
    with pytest.raises(InputError, match="this is shipped"):
        from_pretrained("fpn-camvid", revision="main")


@pytest.mark.parametrize("arguments", [{"value_range": 3}, {"colour": True}, {"predicts": "weather"}, {"size_multiple": -1}])
def test_a_wrapper_config_that_makes_no_sense(tmp_path, arguments):
    SegAwareWrapper(Foreign(), (), size_multiple=4).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "arguments": arguments}))
    with pytest.raises(WeightsError, match="does not describe a wrapper"):
        from_pretrained(tmp_path, denoiser=Foreign())


def test_the_card(tmp_path):
    config = {
        "training_noise": "AWGN, sigma 0-55",
        "training_data": {"name": "BSDS500 train", "terms": "research use"},
        "measured": {"psnr": {"25": 31.25}, "camvid val": {"miou": 60.0}, "command": "python score.py"},
        "license": "weights for research: see below\n---\nevil: true",
    }
    DnCNN(depth=3, width=4).save_pretrained(tmp_path / "dncnn-x", config=config)
    card = (tmp_path / "dncnn-x" / "README.md").read_text()
    block, body = card.removeprefix("---\n").split("\n---\n", 1)
    metadata = yaml.safe_load(block)
    assert metadata["license"] == "other" and metadata["library_name"] == "segaware" and "evil" not in metadata
    assert metadata["pipeline_tag"] == "image-to-image" and metadata["metrics"] == ["miou", "psnr"]
    first = metadata["model-index"][0]["results"][0]
    assert first["dataset"]["name"] == "sigma=25" and first["metrics"][0] == {"type": "psnr", "value": 31.25, "name": "PSNR (dB)"}
    for words in ("# dncnn-x", "AWGN, sigma 0-55", "research use", "31.25", "python score.py", "from_pretrained('dncnn-x')", "**Limits.**"):
        assert words in body
    from huggingface_hub import ModelCard

    data = ModelCard(card).data
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [("psnr", 31.25), ("miou", 60.0)]


def test_a_card_without_facts_says_so(tmp_path):
    FFDNet(depth=3, width=4).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert 'license: "unknown"' in card and "Not stated" in card and "model-index" not in card


def test_an_existing_card_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    DnCNN(depth=3, width=4).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_terms_go_along_and_figures_do_not(tmp_path):
    known = {"training_data": "CamVid, research use", "license": "cc-by-nc-4.0", "measured": {"psnr": 30.0}}
    DnCNN(depth=3, width=4).save_pretrained(tmp_path / "a", config=known)
    SegAwareWrapper.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["license"] == "cc-by-nc-4.0" and config["training_data"] == "CamVid, research use" and "measured" not in config


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(WeightsError, match="config.json cannot hold"):
        DnCNN(depth=3, width=4).save_pretrained(tmp_path / "a", config={"recipe": object()})
    with pytest.raises(WeightsError, match="no 'config'"):
        save_pretrained(Foreign(), tmp_path / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be written"):
        DnCNN(depth=3, width=4).save_pretrained(tmp_path / "file" / "m")


def test_shipped_models_by_class():
    assert isinstance(segaware.FPNSegmenter.from_pretrained("fpn-camvid"), FPNSegmenter)
    with pytest.raises(WeightsError, match="a segmenter"):
        SegAwareWrapper.from_pretrained("fpn-camvid")


def test_a_wrapper_remembers_what_its_weights_know(tmp_path):
    """Of a network of another house too, which has no info of its own."""
    shares = {"training_noise": "AWGN, sigma 0-55", "keep": {"25": 0.03}}
    for net in (DnCNN(depth=3, width=4), nn.Conv2d(3, 3, 3, padding=1)):
        SegAwareWrapper(net, (), value_range=(0, 255)).save_pretrained(tmp_path / type(net).__name__, config=shares)
        again = from_pretrained(tmp_path / type(net).__name__, denoiser=None if isinstance(net, DnCNN) else copy.deepcopy(net))
        assert again.info.training_noise == "AWGN, sigma 0-55" and again.info.keep == ((25.0, 0.03),)
        segaware.denoise(torch.rand(3, 16, 16), again, keep="machine")


def test_a_wrapper_that_would_pad_without_end(tmp_path):
    SegAwareWrapper(DnCNN(depth=3, width=4), (), value_range=(0, 255)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["arguments"]["size_multiple"] = 20000
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="multiples of 20000"):
        from_pretrained(tmp_path)
    with pytest.raises(InputError, match="whole number"):
        SegAwareWrapper(DnCNN(depth=3, width=4), (), size_multiple=8.5)


def test_weights_that_float16_has_no_room_for(tmp_path):
    net = DnCNN(depth=3, width=4)
    write_entry(tmp_path, net)
    assert next(from_pretrained(tmp_path, dtype=torch.float16).parameters()).dtype == torch.float16
    next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)).running_var.fill_(105128.0)
    write_entry(tmp_path, net, dtype=torch.float16)
    with pytest.raises(InputError, match="running_var holds values beyond 65,504.*bfloat16"):
        from_pretrained(tmp_path, dtype=torch.float16)
    assert all(v.isfinite().all() for v in from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict().values())
