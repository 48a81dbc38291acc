"""Exported files give what the network gives, at sizes they were not traced with."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from segaware import (
    DDFN,
    SDABN,
    SDB,
    DeepLabSegmenter,
    DnCNN,
    FFDNet,
    FPNSegmenter,
    HRNetSegmenter,
    LiuDenoiser,
    SegAwareWrapper,
    SMPSegmenter,
)
from segaware.cli.main import main
from segaware.errors import InputError, ModelError
from segaware.export import TOLERANCE, export_onnx, export_program
from segaware.layers.sizes import crop, multiple_of, pad_edges, resize

SIZES = [(1, 64, 96), (3, 45, 70), (1, 32, 33), (2, 5, 3), (1, 1, 1)]


def built(name):
    """Small networks; of segmenters those that pad, crop and resize."""
    model = {
        "dncnn": lambda: DnCNN(depth=3, width=4),
        "ffdnet": lambda: FFDNet(depth=3, width=4),
        "liu": lambda: LiuDenoiser(encoder_width=8, decoder_width=8),
        "ddfn": lambda: DDFN(blocks=1),
        "wrapped": lambda: SegAwareWrapper(FFDNet(channels=1, depth=2, width=4), ()),
        "padded": lambda: SegAwareWrapper(DnCNN(depth=2, width=4), (), size_multiple=8),
        "fpn": lambda: FPNSegmenter(3, "squeezenet1_0", width=8, head="trained"),
        "fpn-resnet": lambda: FPNSegmenter(3, "resnet18", width=8),
        "fpn-timm": lambda: FPNSegmenter(3, "timm:mobilenetv3_small_050", width=8),
        "deeplab": lambda: DeepLabSegmenter(3, width=8),
        "hrnet": lambda: HRNetSegmenter(3, width=4, modules=(1, 1, 1), blocks=1, bottlenecks=1),
        "smp": lambda: SMPSegmenter(3, encoder="resnet18", options={"decoder_channels": [8] * 5}),
        "sdabn": lambda: SDABN([SDB(FPNSegmenter(3, "squeezenet1_0", width=4), DDFN(condition_channels=3, blocks=1))]),
    }[name]().eval()  # fmt: skip
    if name in ("ddfn", "fpn", "fpn-resnet", "fpn-timm", "deeplab", "hrnet", "sdabn"):  # as built they answer next to nothing, whatever they see
        generator = torch.Generator().manual_seed(0)
        for weight in (value for value in model.parameters() if value.ndim == 4):
            nn.init.kaiming_normal_(weight, generator=generator)
    if name != "sdabn":
        shaken, level = torch.rand(2, given(model, 1, 64, 64)[0].shape[1], 64, 64, generator=torch.Generator().manual_seed(1)), given(model, 1, 64, 64)[1:]
        with torch.no_grad():
            one, other = (model(image[None], *level) for image in shaken)
        assert (one - other).abs().mean() > 0.01, f"{name} does not look at its image: its tests would say nothing"
    return model


slow = pytest.mark.slow
recent = pytest.mark.skipif(torch.__version__ < "2.6", reason="torch before 2.6 exports fixed sizes to torch.export alone")
NAMES = [
    "dncnn", "ffdnet", *(pytest.param(name, marks=slow) for name in (
        "liu", "ddfn", "wrapped", "padded", "fpn", "fpn-resnet", "fpn-timm", "deeplab", "hrnet", "smp", "sdabn")),
]  # fmt: skip


def given(model, batch, height, width):
    info = getattr(model, "info", None)
    images = torch.rand(batch, (info.channels if info else None) or 3, height, width)
    return (images, torch.full((batch,), 0.1)) if info is not None and info.takes_sigma else (images,)


@recent
@pytest.mark.parametrize("name", NAMES)
def test_onnx_with_open_sizes(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = built(name)
    done = export_onnx(model, tmp_path / "a.onnx", dynamic=True)
    assert len(done.checks) == 2 and all(check.difference < TOLERANCE for check in done.checks)
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
    session = runtime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == list(done.inputs)
    assert [value.shape for value in session.get_inputs()] == [list(shape) for shape in done.inputs.values()]
    assert [value.name for value in session.get_outputs()] == [done.output[0]]
    for size in SIZES if name != "padded" else SIZES[:3]:
        inputs = given(model, *size)
        (found,) = session.run(None, {key: value.numpy() for key, value in zip(done.inputs, inputs, strict=True)})
        with torch.no_grad():
            expected = model(*inputs)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=TOLERANCE * max(1.0, float(expected.abs().max())))


@recent
@pytest.mark.parametrize("name", NAMES)
def test_torch_export_with_open_sizes(name, tmp_path):
    model = built(name)
    done = export_program(model, tmp_path / "a.pt2", dynamic=True)
    assert len(done.checks) == 2 and all(check.difference < 1e-5 for check in done.checks)
    inputs = given(model, 1, 52, 81)
    with torch.no_grad():
        expected = model(*inputs)
        found = torch.export.load(done.path).module()(*inputs)
    torch.testing.assert_close(found, expected, rtol=1.3e-6, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fpn", "fpn-resnet", "fpn-timm", "deeplab", "hrnet", "smp", "sdabn", "wrapped", "padded"])
def test_compiles_in_one_graph(name):
    """The denoisers' own test files do so for them."""
    model = built(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for size in ((1, 33, 40), (1, 64, 96)):
            inputs = given(model, *size)
            expected = model(*inputs)
            torch.testing.assert_close(compiled(*inputs), expected, rtol=1.3e-6, atol=1e-5 * max(1.0, float(expected.abs().max())))


@recent
def test_a_fixed_size(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = export_onnx(built("ffdnet"), tmp_path / "new" / "a.onnx", size=(9, 12), batch=2, metadata={"license": "x"})
    assert done.inputs == {"noisy": (2, 3, 9, 12), "sigma": (2,)} and done.output == ("clean", (2, 3, 9, 12))
    session = runtime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [2, 3, 9, 12]
    assert session.get_modelmeta().custom_metadata_map == {"made_by": "segaware", "network": "FFDNet", "license": "x"}


class Liar(nn.Module):
    """Asks for the size in a way that tracing settles for good."""

    def __init__(self):
        super().__init__()
        self.info = DnCNN(depth=2, width=2).info

    def forward(self, noisy):
        return noisy * (0.5 if torch.compiler.is_compiling() else 1.0)


@pytest.mark.parametrize(("export", "ending"), [pytest.param(export_onnx, "onnx", marks=recent), (export_program, "pt2")])
def test_a_file_that_differs_is_not_kept(export, ending, tmp_path):
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    with pytest.raises(ModelError, match="differs by 0.5 on images .* it was not kept"):
        export(Liar(), tmp_path / f"a.{ending}", size=(8, 8))
    assert not list(tmp_path.iterdir())


class Asking(Liar):
    def forward(self, noisy):
        return noisy if float(noisy.sum()) > 0 else noisy + 1


def test_a_network_that_cannot_be_traced(tmp_path):
    with pytest.raises(ModelError, match="Asking: torch.export cannot trace it"):
        export_program(Asking(), tmp_path / "a.pt2")
    with pytest.raises(ModelError, match="neither a denoiser nor a segmenter"):
        export_program(nn.Conv2d(3, 3, 1), tmp_path / "a.pt2")


def test_targets(tmp_path):
    (tmp_path / "a.pt2").write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        export_program(built("dncnn"), tmp_path / "a.pt2")
    assert (tmp_path / "a.pt2").read_text() == "mine"
    with pytest.raises(InputError, match="must end in .onnx"):
        export_onnx(built("dncnn"), tmp_path / "a.pt2")
    with pytest.raises(InputError, match="at least 1"):
        export_program(built("dncnn"), tmp_path / "b.pt2", size=(0, 8))


def test_without_the_packages(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.6.0"))
    monkeypatch.setattr("segaware.export.importlib.import_module", missing)
    with pytest.raises(ModelError, match=r"pip install 'segaware\[onnx\]'"):
        export_onnx(built("dncnn"), tmp_path / "a.onnx")


def test_an_old_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.5.1"))
    with pytest.raises(ModelError, match="ONNX needs torch 2.6 or later, and this is 2.5.1"):
        export_onnx(built("dncnn"), tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="open sizes needs torch 2.6"):
        export_program(built("dncnn"), tmp_path / "a.pt2", dynamic=True)


def run(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@recent
def test_the_command(shipped, tmp_path):
    result = run("torch", "ffdnet", tmp_path / "a.pt2", "--dynamic")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].endswith("a.pt2: noisy batch x 3 x height x width, sigma batch -> clean batch x 3 x height x width")
    assert lines[1].split() == ["tried", "in", "torch.export", "on", "largest", "difference"]
    assert [line.split()[:7] for line in lines[2:]] == ["1 x 3 x 64 x 96".split(), "3 x 3 x 45 x 70".split()]
    again = run("torch", "ffdnet", tmp_path / "a.pt2")
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    record = json.loads(run("torch", "segaware-blind", tmp_path / "b.pt2", "--size", "8x9", "--json").stdout)
    assert record["inputs"] == {"noisy": [1, 3, 8, 9]} and len(record["checks"]) == 2
    assert run("torch", "segaware-blind", tmp_path / "c.pt2", "--size", "8").exit_code == 2


@recent
def test_the_command_for_onnx(shipped, tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    result = run("onnx", "segaware-blind", tmp_path / "a.onnx", "--size", "8x8")
    assert result.exit_code == 0, result.output
    kept = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert kept["source"] == "segaware-blind" and kept["training_noise"] == "AWGN, sigma 0-55"


# --- what the networks are built with ---------------------------------------------------------


def test_sizes():
    assert [multiple_of(side, 8) for side in (1, 8, 9)] == [8, 8, 16] and multiple_of(3, 4, 32) == 32
    images = torch.rand(1, 2, 5, 7)
    padded = pad_edges(images, 8, 8)
    assert padded.shape == (1, 2, 8, 8) and torch.equal(padded[:, :, 5:, :7], images[:, :, 4:].expand(-1, -1, 3, -1))
    assert torch.equal(crop(padded, 5, 7), images)
    assert pad_edges(images, 5, 7) is images and resize(images, images) is images
    assert resize(images, padded).shape == padded.shape
