import json

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image as PILImage

from segaware import FPNSegmenter, from_pretrained
from segaware.cli.main import main
from segaware.entries import shipped_folder, write_entry
from segaware.errors import InputError, WeightsError
from segaware.zoo.card import metadata_block, model_card
from segaware.zoo.export_hub import export_hub


@pytest.fixture
def photograph(tmp_path):
    ramp = np.linspace(0, 255, 300 * 280 * 3).reshape(300, 280, 3).astype(np.uint8)
    PILImage.fromarray(ramp).save(tmp_path / "photograph.png")
    return tmp_path / "photograph.png"


def test_one_folder_a_model(shipped, tmp_path, photograph):
    write_entry(shipped / "fpn-tiny", FPNSegmenter(3, "squeezenet1_0", width=4))
    (shipped / "ffdnet" / "README.md").write_text('# ffdnet\n\nuse(noisy, "ffdnet")\n')
    (shipped / "ffdnet" / "LICENSE-data").write_text("terms")
    result = CliRunner().invoke(main, ["export-hub", str(tmp_path / "hub"), "--owner", "me", "--picture", str(photograph)])
    assert result.exit_code == 0, result.output
    names = ["ffdnet", "fpn-tiny", "segaware-blind"]
    assert result.stdout.split() == [str(tmp_path / "hub" / name) for name in names]
    for name in names:
        folder = tmp_path / "hub" / name
        found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        extra = {"LICENSE-data"} if name == "ffdnet" else set()
        assert found == {"config.json", "model.safetensors", "README.md", "images/before.png", "images/after.png"} | extra
        assert (folder / "model.safetensors").read_bytes() == (shipped / name / "model.safetensors").read_bytes()
        sizes = {PILImage.open(folder / "images" / f"{which}.png").size for which in ("before", "after")}
        assert sizes == {(256, 256)} and all(file.stat().st_size < 300_000 for file in (folder / "images").iterdir())
        card = (folder / "README.md").read_text()
        metadata = yaml.safe_load(card.removeprefix("---\n").split("\n---\n")[0])
        assert metadata["library_name"] == "segaware" and "images/before.png" in card
        assert type(from_pretrained(folder)) is type(from_pretrained(name))
    assert 'use(noisy, "me/ffdnet")' in (tmp_path / "hub" / "ffdnet" / "README.md").read_text()
    assert "from_pretrained('me/segaware-blind')" in (tmp_path / "hub" / "segaware-blind" / "README.md").read_text()
    assert "dB after" in card or "what it sees there" in card


def test_a_card_that_is_there_stays(shipped, tmp_path, photograph):
    (tmp_path / "hub" / "ffdnet").mkdir(parents=True)
    (tmp_path / "hub" / "ffdnet" / "README.md").write_text("mine")
    assert export_hub(tmp_path / "hub", ["ffdnet"], picture=photograph) == [tmp_path / "hub" / "ffdnet"]
    assert (tmp_path / "hub" / "ffdnet" / "README.md").read_text() == "mine"
    assert (tmp_path / "hub" / "ffdnet" / "config.json").exists()


def test_the_picture_of_scikit_image(shipped, tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    export_hub(tmp_path / "hub", ["segaware-blind"])
    assert "Chelsea the cat" in (tmp_path / "hub" / "segaware-blind" / "README.md").read_text()
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(InputError, match=r"segaware\[eval\]"):
        export_hub(tmp_path / "hub", ["segaware-blind"])


def test_errors(shipped, tmp_path, photograph):
    with pytest.raises(WeightsError, match="did you mean 'ffdnet'"):
        export_hub(tmp_path / "hub", ["fdnet"], picture=photograph)
    with pytest.raises(WeightsError, match="cannot be written"):
        export_hub(photograph, ["ffdnet"], picture=photograph)


@pytest.mark.parametrize("name", ["segaware-blind", "dncnn-blind", "fpn-camvid"])
def test_the_metadata_of_what_ships(name):
    """Figures are under their metric's name and say what they were measured on."""
    config = json.loads((shipped_folder(name) / "config.json").read_text())
    metadata = yaml.safe_load(metadata_block(config, name).strip("-\n"))
    assert set(metadata["metrics"]) <= {"psnr", "miou", "iou", "pixel_accuracy"}
    datasets = [result["dataset"]["name"] for result in metadata["model-index"][0]["results"]]
    assert any("CBSD68" in where or "camvid" in where for where in datasets)
    assert all(sum(words in where for words in ("CBSD68", "held-out", "CamVid val judged")) == 1 for where in datasets if "sigma=" in where)
    assert "python examples/" in model_card(config, name)
