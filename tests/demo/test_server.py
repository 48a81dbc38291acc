import builtins
import socket
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from segaware.cli.main import main
from segaware.demo import server
from segaware.demo.server import choices, free_port
from segaware.errors import InputError


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} is in use.*--port"):
            free_port(port)
    assert free_port(0) > 0
    with pytest.raises(InputError, match="65535"):
        free_port(70_000)


def test_gradio_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"segaware\[demo\]"):
        server.load_gradio()
    result = CliRunner().invoke(main, ["demo", "--no-open"])
    assert result.exit_code == 2 and "segaware[demo]" in result.output and "Traceback" not in result.output


def test_choices(shipped):
    models, segmenters = choices()
    assert models == ["segaware-blind", "ffdnet"] and segmenters == []
    assert choices(["a/b"])[0] == ["a/b", "segaware-blind", "ffdnet"]


def test_the_shipped_models_can_be_chosen():
    models, segmenters = choices()
    assert models[0] == "segaware-blind" and "ffdnet" in models and "fpn-camvid" in segmenters
    assert not any("niqe" in name for name in [*models, *segmenters])


@pytest.fixture
def page():
    """The page in Chromium, and the hosts that were asked for anything."""
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    import shutil

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with server.serving(0) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
        page.set_default_timeout(120_000)
        page.asked = set()
        page.on("request", lambda request: page.asked.add(request.url.split("/")[2] if request.url.startswith("http") else ""))
        page.goto(address)
        page.wait_for_selector("#start")
        yield page
        browser.close()


@pytest.mark.slow
def test_the_page_in_a_browser(page, tmp_path):
    picture = np.kron(np.random.default_rng(0).integers(60, 200, (6, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    page.set_input_files("#upload input[type=file]", tmp_path / "photo.png")
    page.get_by_text("photo").first.wait_for()
    page.get_by_label("Add noise").check()
    page.click("#start")
    page.wait_for_selector("#download:visible")
    page.wait_for_selector("#pictures figure >> nth=8")
    assert "PSNR" in page.inner_text("#numbers")

    # the slider uncovers more of the one image as it moves
    box = page.locator("#slider").bounding_box()
    images = page.locator("#slider img")
    assert images.count() >= 2

    def styles():
        return [images.nth(i).get_attribute("style") for i in range(images.count())]

    before = styles()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    assert styles() != before

    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "photo-denoised.png"
    download.value.save_as(tmp_path / "result.png")
    result = np.array(Image.open(tmp_path / "result.png"))
    assert result.shape == picture.shape and np.abs(result.astype(int) - picture).mean() < 8

    (tmp_path / "bad.png").write_text("no image")
    page.locator("#upload").get_by_label("Clear").or_(page.locator("#upload button").first).first.click()
    page.set_input_files("#upload input[type=file]", tmp_path / "bad.png")
    page.get_by_text("bad").first.wait_for()
    page.click("#start")
    page.get_by_text("not an image").first.wait_for()
    assert len(page.asked - {""}) == 1  # nothing but the page's own address


def test_nothing_of_gradio_is_needed_for_help(monkeypatch):
    original = builtins.__import__

    def guarded(name, *rest, **options):
        assert not name.startswith("gradio")
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert CliRunner().invoke(main, ["demo", "--help"]).exit_code == 0
