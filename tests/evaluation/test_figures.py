import numpy as np
import pytest

pytest.importorskip("matplotlib")

from segaware.class_maps import class_colours  # noqa: E402
from segaware.evaluation import figures  # noqa: E402
from segaware.evaluation.pictures import Pictures  # noqa: E402
from segaware.evaluation.protocol import Noise, Protocol  # noqa: E402
from segaware.evaluation.runner import evaluate  # noqa: E402
from segaware.evaluation.sources import open_source  # noqa: E402
from segaware.evaluation.summary import summarise  # noqa: E402


def lightness(colours):
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return linear, linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("count", [3, 11, 21, 60])
def test_classes_have_colours_of_their_own(count):
    colours = class_colours(count)
    assert colours.shape == (count, 3) and len(np.unique(colours.round(3), axis=0)) == count


def test_camvid_colours_differ_for_those_without_red_or_green_cones():
    """Distances after Vienot's 1999 projection of linear RGB, for protanopes and deuteranopes."""
    linear, _ = lightness(class_colours(11))
    for matrix in ([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
                   [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]):  # fmt: skip
        seen = (linear @ np.array(matrix).T).clip(0, 1) ** (1 / 2.2)
        gaps = np.linalg.norm(seen[:, None] - seen[None], axis=2) + 9 * np.eye(11)
        assert gaps.min() > 0.06


@pytest.fixture
def measured(folder, thirds, shrink, tmp_path):
    protocol = Protocol(noises=(Noise(sigma=50), Noise(sigma=15)), metrics=("psnr",))
    results = evaluate(open_source(folder), [shrink()], protocol, judges=[thirds], out=tmp_path, pictures=["im1"])
    return summarise(results), Pictures(tmp_path)


def test_levels(measured):
    figure = figures.levels(measured[0])
    axis = figure.axes[0]
    assert axis.get_title() == "PSNR (dB)" and axis.lines[0].get_xdata().tolist() == [15, 50]
    entry = measured[0].entry("psnr", "sigma 15", "noisy")
    assert axis.lines[0].get_ydata()[0] == pytest.approx(entry.value)
    assert [text.get_text() for text in figure.legends[0].texts] == ["noisy", "Shrink"]


def test_fidelity_and_task(measured):
    figure = figures.fidelity_task(measured[0])
    assert "consistency" in figure.axes[0].get_ylabel() and figure.axes[0].get_xlabel() == "PSNR (dB)"


def test_strip(measured):
    summary, pictures = measured
    figure = figures.strip(summary, pictures, "im1", "sigma 50", "Thirds")
    assert [axis.get_title() for axis in figure.axes[:3]] == ["noisy", "Shrink", "clean"] and len(figure.axes) == 12
    names = {text.get_text() for text in figure.legends[0].texts}
    assert "wrong" in names and names - {"wrong"} <= {"red", "green", "blue"}
    assert figure.axes[11].get_xlabel() == "0.0 % wrong"  # the judge on clean against itself
    assert figures.png(figure).startswith(b"\x89PNG")
    assert len(figures.strip(summary, pictures, "im1", "sigma 50", None).axes) == 6


def test_a_crop_can_be_chosen(measured):
    figure = figures.strip(*measured, "im1", "sigma 50", "Thirds", crop=(2, 3, 5))
    assert figure.axes[3].images[0].get_array().shape == (5, 5, 3)


def test_no_figure_where_there_is_nothing_to_show(measured, folder):
    assert figures.strip(*measured, "im2", "sigma 50", "Thirds") is None
    alone = summarise(evaluate(open_source(folder).select(limit=2), []))
    assert figures.levels(alone) is None and figures.fidelity_task(alone) is None
