import numpy as np
import pytest
import torch
from PIL import Image

from segaware import DnCNN, FFDNet, denoise
from segaware.entries import write_entry
from segaware.errors import EvaluationError, ModelError, WeightsError
from segaware.evaluation import contestants
from segaware.evaluation.contestants import Cell, Function, GiveBack, Model, Noisy, Ready, hash_module, open_contestant
from segaware.evaluation.protocol import Noise
from segaware.evaluation.sources import Item
from segaware.segmenters.adapters import SegmenterAdapter

NOISY = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2


def cell(tmp_path, sigma=25.0, name="a"):
    return Cell(Item(name, tmp_path / f"{name}.png", 0), Noise("gaussian", sigma), 0, sigma / 255)


def test_noisy(tmp_path):
    assert open_contestant("noisy").denoise(NOISY, cell(tmp_path)) is NOISY


def test_model_from_a_folder(tmp_path):
    model = DnCNN(depth=3, width=4).eval()
    write_entry(tmp_path / "mine", model)
    entrant = open_contestant(tmp_path / "mine")
    assert entrant.name == "mine" and entrant.kind == "DnCNN, blind"
    torch.testing.assert_close(entrant.denoise(NOISY, cell(tmp_path)), model(NOISY[None])[0].detach(), atol=1e-5, rtol=0)
    assert open_contestant(f"other={tmp_path / 'mine'}").name == "other"


def test_gray_through_a_colour_model(tmp_path):
    entrant = Model("m", DnCNN(depth=2, width=4))
    assert entrant.denoise(NOISY[:1], cell(tmp_path)).shape == (1, 20, 24)


def test_a_model_that_is_told(tmp_path, shrink):
    net = shrink(takes_sigma=True)
    entrant = Model("m", net)
    entrant.denoise(NOISY, cell(tmp_path, 51.0))
    assert entrant.engine._module.told == [pytest.approx(0.2)]
    assert entrant.key(cell(tmp_path, 51.0)) != entrant.key(cell(tmp_path, 25.0))


def test_checkpoint_with_other_prefixes(tmp_path):
    model = DnCNN()
    state = {"module.dncnn." + key.removeprefix("body."): value for key, value in model.state_dict().items()}
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "theirs.pth")
    entrant = open_contestant(f"DnCNN:{tmp_path / 'theirs.pth'}")
    assert entrant.name == "theirs"
    same = Model("m", model)
    assert torch.equal(entrant.denoise(NOISY[:, :8, :8], cell(tmp_path)), same.denoise(NOISY[:, :8, :8], cell(tmp_path)))
    assert entrant.key(cell(tmp_path)) == same.key(cell(tmp_path))


def test_bad_checkpoints(tmp_path):
    torch.save(torch.nn.Conv2d(3, 3, 3).state_dict(), tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="not a DnCNN in its default form"):
        open_contestant(f"DnCNN:{tmp_path / 'c.pth'}")
    (tmp_path / "d.pth").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        open_contestant(f"DnCNN:{tmp_path / 'd.pth'}")
    with pytest.raises(EvaluationError, match="say what it holds: spandrel:"):
        open_contestant(tmp_path / "c.pth")


def test_ready_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    (tmp_path / "s25").mkdir()
    Image.fromarray(pixels).save(tmp_path / "s25/a.png")
    entrant = open_contestant(str(tmp_path / "s{sigma}"))
    assert isinstance(entrant, Ready) and entrant.name == tmp_path.name
    got = entrant.denoise(NOISY, cell(tmp_path))
    torch.testing.assert_close(got, torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    key = entrant.key(cell(tmp_path))
    Image.fromarray(255 - pixels).save(tmp_path / "s25/a.png")
    assert entrant.key(cell(tmp_path)) != key
    with pytest.raises(EvaluationError, match="no ready image of a at sigma 50"):
        entrant.denoise(NOISY, cell(tmp_path, 50.0))
    with pytest.raises(EvaluationError, match="must agree"):
        entrant.denoise(NOISY[:, 1:], cell(tmp_path))


def test_give_back(tmp_path):
    half = Function("half", lambda noisy, sigma: noisy / 2)
    entrant = GiveBack(half, 0.1)
    assert entrant.name == "half+0.1" and entrant.key(cell(tmp_path)) != half.key(cell(tmp_path))
    torch.testing.assert_close(entrant.denoise(NOISY, cell(tmp_path)), NOISY * 0.55)
    spec = open_contestant("tv+0.03")
    assert isinstance(spec, GiveBack) and spec.share == 0.03 and spec.name == "tv+0.03"
    with pytest.raises(EvaluationError, match="between 0 and 1"):
        open_contestant("noisy+1.5")
    assert isinstance(open_contestant("noisy+0.5").base, Noisy)


@pytest.mark.parametrize("net", [DnCNN(depth=3, width=4), FFDNet(depth=3, width=4)], ids=["blind", "told"])
def test_give_back_by_the_model_s_own_table(tmp_path, net):
    folder = write_entry(tmp_path / "net", net.eval(), {"keep": {"1.5": 0.95, "2.5": 0.0, "50": 0.06}})
    entrant = open_contestant(f"own={folder}+machine")
    assert entrant.name == "own" and "its own share" in entrant.kind and open_contestant(f"{folder}+machine").name == "net+machine"
    assert entrant.key(cell(tmp_path)) not in (entrant.base.key(cell(tmp_path)), open_contestant(f"{folder}+0.06").key(cell(tmp_path)))
    ramp = torch.linspace(0.2, 0.8, 64).expand(3, 64, 64)
    for sigma in (0.0, 50.0):
        noisy = ramp + sigma / 255 * torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0))
        wanted = denoise(noisy, folder, sigma=sigma / 255 if net.info.takes_sigma else None, keep="machine")
        got = entrant.denoise(noisy, Cell(cell(tmp_path).item, cell(tmp_path).noise, told=sigma / 255))
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
        plain = entrant.base.denoise(noisy, Cell(cell(tmp_path).item, cell(tmp_path).noise, told=sigma / 255))
        assert not torch.equal(got, plain)
    with pytest.raises(ModelError, match="states no shares"):
        open_contestant(f"{write_entry(tmp_path / 'without', net)}+machine")
    with pytest.raises(EvaluationError, match="only models state shares"):
        open_contestant("tv+machine")


@pytest.mark.parametrize("name", ["nlm", "tv", "wavelet"])
def test_classical_methods_denoise(name, tmp_path):
    pytest.importorskip("skimage")
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing="ij")
    clean = torch.stack([rows, columns, (rows + columns) / 2])
    noisy = clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    entrant = open_contestant(name)
    for these in (slice(None), slice(1)):
        denoised = entrant.denoise(noisy[these], cell(tmp_path))
        assert denoised.shape == clean[these].shape and denoised.dtype == torch.float32
        assert (denoised - clean[these]).square().mean() < 0.3 * (noisy - clean)[these].square().mean()
    assert torch.equal(entrant.denoise(clean, cell(tmp_path, 0.0)), clean)


@pytest.mark.parametrize("inputs", [3, 4])
def test_spandrel_file(inputs, tmp_path):
    """KAIR's DnCNN and, with a noise map as fourth channel, FDnCNN."""
    spandrel = pytest.importorskip("spandrel")
    state = {}
    for index in range(0, 16, 2):
        state[f"model.{index}.weight"] = 0.1 * torch.randn(3 if index == 14 else 8, inputs if index == 0 else 8, 3, 3)
        state[f"model.{index}.bias"] = torch.zeros(3 if index == 14 else 8)
    torch.save(state, tmp_path / "d.pth")
    net = spandrel.ModelLoader().load_from_state_dict(state).model
    entrant = open_contestant(f"spandrel:{tmp_path / 'd.pth'}")
    level = torch.full((1, 1, 20, 24), 51 / 255)
    with torch.no_grad():
        want = net(NOISY[None] if inputs == 3 else torch.cat([NOISY[None], level], dim=1))[0]
    torch.testing.assert_close(entrant.denoise(NOISY, cell(tmp_path, 51.0)), want, atol=1e-5, rtol=0)
    assert ("told" in entrant.kind) == (inputs == 4)


def test_a_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(EvaluationError, match="pip install bm3d"):
        open_contestant("bm3d")


def test_unknown_names():
    with pytest.raises(EvaluationError, match="did you mean 'nlm'"):
        open_contestant("nlmm")


def test_the_hash_sees_weights_and_options(shrink):
    assert hash_module(shrink(0.5)) == hash_module(shrink(0.5))
    assert hash_module(shrink(0.5)) != hash_module(shrink(0.6))
    one, other = shrink(), shrink()
    other.gain = 2.0
    assert hash_module(one) != hash_module(other)
    assert hash_module(one.eval()) == hash_module(shrink().train())
    for value in ([1, 2], {"scale": 2}, torch.ones(2), torch.float16, torch.relu, lambda x: 2 * x):
        other = shrink()
        other.gains = value
        assert hash_module(shrink()) != hash_module(other), value


def test_the_hash_sees_code():
    """A mended ``forward`` over the same weights is another network; where it is defined says nothing."""

    def net(factor, power=1):
        class Net(torch.nn.Module):
            def forward(self, images):
                return factor * (images**2 if power == 2 else images)

        class Other(torch.nn.Module):
            def forward(self, images):
                return images + factor

        return (Net, Other)[power - 1]()

    assert hash_module(net(2)) == hash_module(net(2)) != hash_module(net(3))
    other = net(2, 2)
    type(other).__qualname__ = type(net(2)).__qualname__
    type(other).__name__ = "Net"
    assert hash_module(net(2)) != hash_module(other)


def test_methods_have_cells_of_their_own(tmp_path):
    """Whatever they are called in the report."""
    pytest.importorskip("skimage")
    keys = {spec: open_contestant(spec).key(cell(tmp_path)) for spec in ("base=nlm", "base=tv", "nlm", "nlm=tv", "tv")}
    assert keys["base=nlm"] == keys["nlm"] != keys["tv"] == keys["base=tv"] == keys["nlm=tv"]


def test_what_is_read_from_a_file_goes_where_models_go(monkeypatch):
    assert contestants._loaded_here({"device": "cpu"}) == {"device": "cpu"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert contestants._loaded_here({"tile": 64}) == {"tile": 64, "device": "cuda"} == contestants._loaded_here({"tile": 64, "device": "auto"})
    assert contestants._loaded_here({"device": "cpu"}) == {"device": "cpu"}


def test_the_hash_sees_normalisation_and_not_use():
    def adapted(**options):
        torch.manual_seed(0)
        return SegmenterAdapter(torch.nn.Conv2d(3, 4, 3, padding=1), 4, **options)

    used = adapted()
    used(torch.rand(1, 3, 8, 8))
    assert used.stride == 1 and hash_module(used) == hash_module(adapted())
    assert hash_module(adapted(mean=(0.4, 0.4, 0.4))) != hash_module(adapted())  # a buffer that no checkpoint holds
    assert hash_module(adapted(class_names=list("abcd"))) != hash_module(adapted())
