"""The cascade's training command on a small folder in CamVid's layout."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segaware import denoise, from_pretrained
from segaware.entries import write_entry
from segaware.errors import InputError, TrainingError

SCRIPT = Path(__file__).parents[2] / "examples" / "train_sdabn.py"
SEGMENTER = '{"width": 2, "modules": [1, 1, 1], "blocks": 1, "bottlenecks": 1}'


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_sdabn", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "camvid"
    for folder in ("train", "trainannot"):
        (root / folder).mkdir(parents=True)
    for stem in ("0001TP_1", "0006R0_1"):
        labels = np.kron(rng.integers(0, 12, (3, 4)), np.ones((10, 10))).astype(np.uint8)
        Image.fromarray(labels).save(root / f"trainannot/{stem}.png")
        Image.fromarray((labels[..., None] * np.array([20, 7, 13])).astype(np.uint8)).save(root / f"train/{stem}.png")
    return root


def options(data, out, *more):
    recipe = data / "recipe.json"
    recipe.write_text(json.dumps({"segmenter": {"steps": 2, "crop": [16, 16]}, "D1": {"steps": 3, "crop": [20, 20]}}))
    return [
        *("--data", str(data), "--out", str(out), "--stages", "1", "--device", "cpu", "--set", "batch_size=2"),
        *("--recipe", str(recipe), "--segmenter", SEGMENTER, "--denoiser", '{"blocks": 1}', *more),
    ]


def test_it_trains_stops_goes_on_and_denoises(example, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert example.main(options(data, out, "--sigma", "30", "--until", "S1")) is None
    assert "progressive: stopped after S1" in capsys.readouterr().out
    cascade = example.main(options(data, out, "--sigma", "30", "--closing"))
    said = capsys.readouterr().out
    assert "1 training frames, 1 held out" in said and "S1: {'miou':" in said and "D1: {'psnr':" in said
    again = from_pretrained(out / "model")
    assert again.info.training_noise == "AWGN, sigma 30" and again.class_names == example.CAMVID
    noisy = torch.rand(3, 20, 30)
    torch.testing.assert_close(denoise(noisy, again), cascade(noisy[None])[0].detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(TrainingError, match="stage S0 is finished with another recipe .*sigma 30.* -> 40"):
        example.main(options(data, out, "--sigma", "40"))


def finished(out):
    return {path.parents[1].name: path.stat().st_mtime_ns for path in out.glob("*/model/model.safetensors")}


def test_the_comparisons_share_their_stages(example, data, tmp_path, capsys):
    """Tiny, but all of them: what each trains, and that nothing is trained twice."""
    out = tmp_path / "run"
    recipe = {"segmenter": {"steps": 1, "crop": [16, 16]}, "denoiser": {"steps": 1, "crop": [16, 16]}, "GtD1+S": {"steps": 2}}

    def train(*more):
        given = options(data, out, "--larger", '{"width": 3, "bottlenecks": 2}', *more)
        (data / "recipe.json").write_text(json.dumps(recipe))
        before = finished(out)
        example.main([*given, "--poisson", "255"])
        after = finished(out)
        assert before.items() <= after.items()
        return sorted(after.keys() - before.keys())

    assert train("--variant", "SD", "GtD1") == ["D1", "GtD1", "S0", "S1"]
    assert train("--variant", "progressive") == []  # its only block is there: the cascade is put together
    assert from_pretrained(out / "model").info.training_noise == "Poisson, peak 255"
    assert train("--variant", "denoise-then-segment", "D0") == ["DDFN1"]
    assert train("--variant", "DDFN", "--stages", "2") == ["DDFN2"]
    assert len(from_pretrained(out / "model-DDFN")) == 2
    assert train("--variant", "ImgD", "DMS", "joint", "S1+") == ["DMS", "ImgD", "S0+", "S1+", "joint"]
    assert train("--variant", "X+S", "--on", "S1D1") == ["S2"]
    assert train("--variant", "X+S", "--on", "GtD1") == ["GtD1+S"]
    assert train("--variant", "X+S", "--on", "DDFN2") == ["DDFN2+S"]
    assert train("--variant", "X+S", "--on", str(out / "model-DDFN")) == ["model-DDFN+S"]
    capsys.readouterr()
    assert train("--variant", "X+S") == ["DDFN1+S"]
    said = capsys.readouterr().out
    assert "joint: {'psnr':" in said and "DMS: {'psnr':" in said and "S1+: {'miou':" in said
    widths = [from_pretrained(out / name / "model").config["width"] for name in ("S1", "S1+")]
    assert widths == [2, 3]


def test_the_larger_segmenter_has_the_stated_size(example, data, tmp_path):
    args = example.parse(["--data", str(data), "--out", str(tmp_path), "--classes", *map(str, range(19))])
    with torch.device("meta"):
        network = example.makers_of(args)["segmenter+"]()
    assert sum(p.numel() for p in network.parameters()) == 7_997_371


def test_the_larger_segmenter_starts_from_what_is_given(example, data, tmp_path):
    form = [*("--segmenter", SEGMENTER), *("--larger", '{"width": 3}')]
    args = example.parse(options(data, tmp_path, *form))
    torch.manual_seed(1)
    before = example.makers_of(args)["segmenter+"]()
    write_entry(tmp_path / "before", before)
    freeze = {"segmenter": {"steps": 1, "learning_rate": 1e-9, "crop": [16, 16]}}
    (tmp_path / "freeze.json").write_text(json.dumps(freeze))
    more = [*form, "--variant", "S1+", "--start-larger", str(tmp_path / "before"), "--recipe", str(tmp_path / "freeze.json")]
    example.main(options(data, tmp_path / "run", *more))
    assert not (tmp_path / "run" / "S0+").exists()  # not trained once more
    after = from_pretrained(tmp_path / "run" / "S1+" / "model")
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_options_become_recipes(example, data, tmp_path):
    args = example.parse(options(data, tmp_path, "--poisson", "100", "--scale", "0.5", "--preset", "cityscapes"))
    recipes = example.recipes_of(args)
    assert recipes["denoiser"].steps == 46_000 and recipes["D1"].steps == 3 and recipes["D1"].crop == (20, 20)
    assert all(r.noise == "poisson" and r.peak == 100 and r.batch_size == 2 for r in recipes.values())


def test_bad_input_is_named(example, data, tmp_path):
    with pytest.raises(TrainingError, match="unknown field 'batch'; did you mean 'batch_size'"):
        example.main(options(data, tmp_path, "--set", "batch=2"))
    with pytest.raises(TrainingError, match="give a JSON object"):
        example.main(options(data, tmp_path, "--set", "seed=x"))
    (data / "other.json").write_text('{"D": {"steps": 9}}')
    with pytest.raises(TrainingError, match="no stage 'D'; did you mean 'D1'"):
        example.main([*options(data, tmp_path), "--recipe", str(data / "other.json")])
    with pytest.raises(InputError, match="no images"):
        example.main(options(data, tmp_path, "--hold-out", "0"))
    (data / "trainannot/0001TP_1.png").unlink()
    with pytest.raises(InputError, match="no label map"):
        example.main(options(data, tmp_path))
