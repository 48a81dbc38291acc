"""The site is built without a warning; its links lead somewhere, and opening a page fetches nothing from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parents[2]
#: Attributes that make a browser fetch at once. ``<a href>`` waits for a click.
FETCHED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("video", "src"), ("object", "data"), ("link", "href")}
#: Relations of <link> that fetch nothing.
NAMES = {"search", "index", "next", "prev", "author", "canonical", "license"}


class Page(HTMLParser):
    """What a page fetches, where it links, and the places in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        if "id" in given:
            self.places.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        for key, value in given.items():
            if (tag, key) in FETCHED and not (tag == "link" and given.get("rel") in NAMES):
                self.fetched.append(value)


def is_far(target: str) -> bool:
    return target.startswith("//") or "://" in target


def fetched_from_elsewhere(folder: Path) -> list[str]:
    found = [f"{path.name}: {target}" for path in folder.rglob("*.html") for target in Page(path).fetched if is_far(target)]
    for path in folder.rglob("*.css"):
        text = path.read_text(encoding="utf-8").replace(" ", "").replace('"', "").replace("'", "")
        found += [f"{path.name}: {word}" for word in ("url(http", "url(//", "@importhttp", "@importurl(http") if word in text]
    return found


def lost(folder: Path) -> list[str]:
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for target in [*page.links, *page.fetched]:
            place, anchor = urldefrag(target)
            if is_far(place) or place.startswith(("data:", "mailto:")):
                continue
            file = (path.parent / unquote(place.partition("?")[0])).resolve() if place else path
            if not file.exists() or anchor and file in pages and unquote(anchor) not in pages[file].places:
                found.append(f"{path.relative_to(folder.resolve())}: {target}")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-d", str(folder / "trees"), str(ROOT / "docs"), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


@pytest.mark.slow
def test_pages_fetch_nothing_from_elsewhere(site):
    assert fetched_from_elsewhere(site) == []


@pytest.mark.slow
def test_links_of_the_site_lead_somewhere(site):
    assert lost(site) == []


@pytest.mark.slow
def test_every_page_and_model_is_there(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert pages - built == set()
    assert {p.parent.name for p in (ROOT / "segaware/weights").glob("*/config.json")} <= {p.name for p in built if p.parent == Path("models")}


@pytest.mark.slow
def test_equations_are_written_out(site):
    text = (site / "concepts/entropy.html").read_text(encoding="utf-8")
    assert "<math" in text and "mathjax@" not in text and "MathJax.js" not in text and "\\frac" not in text


def test_what_must_be_found_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<link rel="stylesheet" href="https://fonts.example.org/x.css"><p id="here"><a href="#here">x</a><a href="#gone">y</a><a href="b.html">z</a>')
    (tmp_path / "a.css").write_text('@font-face { src: url("https://fonts.example.org/f.woff2"); }')
    assert fetched_from_elsewhere(tmp_path) == ["a.html: https://fonts.example.org/x.css", "a.css: url(http"]
    assert lost(tmp_path) == ["a.html: #gone", "a.html: b.html"]


@pytest.mark.parametrize("name", ["segaware.denoise", "segaware.losses.entropy.EntropySegAwareLoss.forward", "segaware.zoo"])
def test_names_that_exist(name, monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    from references import exists

    assert exists(name) and not exists(f"{name}.gone") and not exists("segaware.gone")
