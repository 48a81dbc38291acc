"""What a release holds: the archives, the notices of all that ships, the workflows, the oldest versions."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WEIGHTS = sorted(path for path in (ROOT / "segaware" / "weights").iterdir() if path.is_dir() and any(path.iterdir()))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("folder", WEIGHTS, ids=lambda path: path.name)
def test_whatever_ships_has_a_card_and_states_its_terms(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {folder.name}\n")
    terms = re.search(r"^\*\*(?:Terms|Licence)\.\*\* .{20,}", card, flags=re.MULTILINE)
    assert terms, "the card says under which terms the weights may be used"
    data = card[terms.start() :]
    notices = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for source in ("BSDS500", "CamVid"):
        assert source not in data or source in notices
    if any(folder.glob("LICENSE*")):
        assert f"segaware/weights/{folder.name}/" in notices, "a licence of its own is named in NOTICE"


@pytest.mark.parametrize("folder", [path for path in WEIGHTS if (path / "config.json").exists()], ids=lambda path: path.name)
def test_pretrained_parts_bring_their_licence(folder):
    """What began as somebody's weights carries their notice."""
    config = json.dumps(json.loads((folder / "config.json").read_text(encoding="utf-8"))).lower()
    if "squeezenet" in config and "imagenet" in config:
        assert list(folder.glob("LICENSE*"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Wheel and source archive, built from a copy of what is under version control or new."""
    pytest.importorskip("build")
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("setuptools 77 builds it")
    house = importlib.util.spec_from_file_location("layout", Path(__file__).with_name("test_layout.py"))
    layout = importlib.util.module_from_spec(house)
    house.loader.exec_module(layout)
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in layout.committed_files():
        place = copy / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return copy, next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.mark.slow
def test_the_wheel_holds_weights_and_notices(archives):
    copy, wheel, _ = archives
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if name.startswith("segaware/")}
    assert inside == {path.relative_to(copy).as_posix() for path in (copy / "segaware").rglob("*") if path.is_file()}
    licences = {name.split("/licenses/")[1] for name in names if "/licenses/" in name}
    assert {"LICENSE", "NOTICE"} <= licences
    assert {path.relative_to(copy).as_posix() for path in (copy / "segaware").rglob("LICENSE*")} <= licences
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert "License-Expression: Apache-2.0" in metadata


@pytest.mark.slow
def test_the_source_archive_is_complete_and_its_tests_are_found(archives, tmp_path):
    copy, _, sdist = archives
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    wanted = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file() and "build" not in path.relative_to(copy).parts[:1]}
    wanted = {path for path in wanted if not path.parts[0].endswith(".egg-info")}
    found = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    assert not wanted - found
    done = subprocess.run([sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def lowest():
    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".ci" / "lowest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lowest_versions_are_those_of_setup_cfg():
    floors = lowest().floors(["test"])
    assert floors["torch"] == "2.6" and floors["accelerate"] == "0.34" and floors["pytest"] == "8"
    assert floors["click"] == "8.2.1" and lowest().floors([])["click"] == "8.1"  # the tests need a later one
    assert "ruff" not in floors and "ruff" in lowest().floors(["dev"])


def test_a_dependency_without_a_floor_is_named(tmp_path):
    (tmp_path / "setup.cfg").write_text("[options]\ninstall_requires =\n    torch\n[options.extras_require]\n")
    with pytest.raises(SystemExit, match="'torch' has no lower bound"):
        lowest().floors([], tmp_path / "setup.cfg")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_yaml_and_call_what_exists(path):
    yaml = pytest.importorskip("yaml")
    text = path.read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert all("runs-on" in job and job["steps"] for job in jobs.values())
    for file in re.findall(r"(?:\.ci|tests|docs)/[\w./-]+", text):
        assert (ROOT / file.rstrip(".")).exists(), file


def test_publishing_stores_no_password():
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"} and jobs["publish"]["needs"] == "try"
    assert not any("secrets." in path.read_text(encoding="utf-8") for path in WORKFLOWS)


def test_the_page_of_commands_names_them_all():
    """And every extra that somebody may install."""
    from segaware.cli.main import main

    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `segaware ([a-z-]+)` \|", page, re.M)
    assert sorted(named) == sorted(main.commands)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = re.findall(r"`([a-z0-9]+)`", "".join(re.findall(r"^\| (`[a-z0-9`, ]+) \|", page[page.index("## Extras"):], re.M)))
    assert sorted(extras) == sorted(setup["options.extras_require"])
