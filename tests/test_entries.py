import errno
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from segaware import DDFN, SDABN, SDB, DnCNN, FFDNet, HRNetSegmenter
from segaware.entries import load_entry, read_config, shipped_folder, shipped_names, write_entry
from segaware.errors import ModelError, SegawareError, WeightsError
from segaware.registry import ARCHITECTURES, register


@pytest.fixture
def entry(tmp_path) -> Path:
    torch.manual_seed(0)
    return write_entry(tmp_path / "small", DnCNN(depth=3, width=4), {"training_noise": "AWGN", "psnr": {"25": 31.2}})


def edit(entry: Path, **changes) -> None:
    config = json.loads((entry / "config.json").read_text())
    (entry / "config.json").write_text(json.dumps({**config, **changes}))


def test_what_is_written(entry):
    assert sorted(p.name for p in entry.iterdir()) == ["config.json", "model.safetensors"]
    assert read_config(entry) == {
        "architecture": "DnCNN",
        "arguments": {"channels": 3, "depth": 3, "width": 4},
        "training_noise": "AWGN",
        "psnr": {"25": 31.2},
    }


def test_statistics_of_batch_normalisation_come_back(tmp_path):
    model = DnCNN(depth=3, width=4).train()
    model(torch.rand(2, 3, 16, 16))
    loaded = load_entry(write_entry(tmp_path, model))
    assert torch.equal(loaded.body[3].running_var, model.body[3].running_var)
    noisy = torch.rand(1, 3, 8, 8)
    assert torch.equal(loaded(noisy), model.eval()(noisy))


def test_float16_halves_the_file_and_loads_as_float32(tmp_path):
    model = FFDNet(depth=4, width=32)
    full, half = (write_entry(tmp_path / n, model, dtype=d) for n, d in (("a", torch.float32), ("b", torch.float16)))
    assert (half / "model.safetensors").stat().st_size < 0.6 * (full / "model.safetensors").stat().st_size
    assert {value.dtype for value in load_entry(half).state_dict().values()} == {torch.float32}


def test_writing_again_replaces(entry):
    write_entry(entry, DnCNN(depth=2, width=4))
    assert load_entry(entry).config["depth"] == 2


def test_loading_does_not_touch_the_random_state_it_was_asked_for(entry):
    first, second = load_entry(entry), load_entry(entry)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda e: (e / "config.json").unlink(), r"no readable config\.json"),
        (lambda e: (e / "model.safetensors").unlink(), r"no model\.safetensors"),
        (lambda e: (e / "config.json").write_text("{"), "not valid JSON"),
        (lambda e: (e / "config.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
        (lambda e: (e / "config.json").write_text("[]"), 'needs "architecture"'),
        (lambda e: edit(e, architecture=3), 'needs "architecture"'),
        (lambda e: edit(e, arguments=None), 'needs "architecture"'),
        (lambda e: edit(e, architecture="DnCMM"), "did you mean 'DnCNN'"),
        (lambda e: edit(e, arguments={"colour": 3}), "does not take"),
        (lambda e: edit(e, arguments={"channels": "three"}), "does not take"),
        (lambda e: edit(e, arguments={"depth": 4, "width": 4}), r"missing .*another network or other arguments"),
        (lambda e: edit(e, arguments={"depth": 3, "width": 8}), "of another shape"),
        (lambda e: edit(e, arguments={"depth": 2, "width": 4}), "unexpected"),
        (lambda e: (e / "model.safetensors").write_bytes(b""), "damaged"),
        (lambda e: (e / "model.safetensors").write_bytes(b"x" * 500), "damaged"),
        (lambda e: (e / "model.safetensors").write_bytes((e / "model.safetensors").read_bytes()[:-40]), "damaged"),
    ],
)
def test_a_spoilt_entry_is_refused_with_one_message(entry, spoil, said):
    spoil(entry)
    with pytest.raises(ModelError, match=said):
        load_entry(entry)


def test_keys_are_compared_one_by_one(entry):
    file = entry / "model.safetensors"
    state = load_file(file)
    state["extra.weight"] = torch.zeros(1)
    save_file(state, file)
    with pytest.raises(WeightsError, match=r"1 unexpected \(extra\.weight\)"):
        load_entry(entry)


def test_a_model_without_its_arguments_is_not_written(tmp_path):
    with pytest.raises(WeightsError, match="Linear has no 'config'"):
        write_entry(tmp_path / "x", torch.nn.Linear(2, 2))
    assert not (tmp_path / "x").exists()


def test_a_file_in_the_way_is_an_error_and_stays(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(WeightsError, match="cannot be written"):
        write_entry(tmp_path / "x", DnCNN(depth=2, width=2))
    assert (tmp_path / "x").read_text() == "mine"


def test_a_full_disk_leaves_the_old_entry_and_nothing_half_written(entry, monkeypatch):
    before = {p.name: p.read_bytes() for p in entry.iterdir()}

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WeightsError, match="No space left"):
        write_entry(entry, DnCNN(depth=2, width=4))
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in entry.iterdir()} == before


def test_unknown_shipped_names_list_what_there_is():
    with pytest.raises(WeightsError, match="unknown model 'dncnn-blnd'"):
        shipped_folder("dncnn-blnd")
    assert shipped_names() == sorted(shipped_names())


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_model_loads_and_says_what_it_knows(name):
    folder = shipped_folder(name)
    config = read_config(folder)
    try:
        model = load_entry(folder)
    except SegawareError as error:
        pytest.fail(f"{name}: {error}")
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert type(model).__name__ == config["architecture"]
    assert (folder / "README.md").is_file(), "a shipped model has a card"
    assert config.get("training_data"), "a shipped model names its training data and their terms"


def test_loading_draws_no_random_numbers(tmp_path):
    write_entry(tmp_path, DnCNN(depth=2, width=4))
    state = torch.get_rng_state()
    load_entry(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_part_in_two_places_and_a_compiled_one(tmp_path):
    """A cascade that ends with the segmenter it begins with, and networks that torch.compile has wrapped."""
    segmenter = HRNetSegmenter(3, width=4, modules=(1, 1, 1), blocks=1, bottlenecks=1)
    denoiser = DDFN(condition_channels=3, blocks=1)
    for part in (segmenter, torch.compile(segmenter, backend="eager")):
        cascade = SDABN([SDB(part, denoiser)], closing_segmenter=part).eval()
        write_entry(tmp_path / "cascade", cascade)
        again = load_entry(tmp_path / "cascade")
        image = torch.rand(1, 3, 32, 32)
        assert torch.equal(again(image), cascade(image))
    plain = DnCNN(depth=3, width=4).eval()
    write_entry(tmp_path / "compiled", torch.compile(plain, backend="eager"))
    assert torch.equal(load_entry(tmp_path / "compiled")(image), plain(image))
    torch._dynamo.reset()


def test_an_architecture_keeps_the_name_it_is_registered_under(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "Mine", "x:y")
    monkeypatch.delitem(ARCHITECTURES, "Mine")
    register("Mine", "test_entries_mine:Net")
    module = types.ModuleType("test_entries_mine")
    module.Net = type("Net", (DnCNN,), {"__module__": "test_entries_mine", "__qualname__": "Net"})
    monkeypatch.setitem(sys.modules, "test_entries_mine", module)
    write_entry(tmp_path, module.Net(depth=3, width=4))
    assert read_config(tmp_path)["architecture"] == "Mine" and type(load_entry(tmp_path)) is module.Net


def test_two_writers_do_not_meet(tmp_path, monkeypatch):
    """What one writes beside the place is not what the other writes."""
    seen = []
    monkeypatch.setattr("segaware.entries.os.replace", lambda partial, place: seen.append(Path(partial).name) or Path(partial).rename(place))
    for _ in range(2):
        write_entry(tmp_path, DnCNN(depth=3, width=4))
    assert len(set(seen)) == 4
