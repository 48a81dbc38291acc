"""What can be imported from the root: one list, and every name in it works."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import segaware

NAMES = json.loads((Path(__file__).parent / "public_names.json").read_text())


def test_the_list_is_the_package():
    """To add or drop a public name, change public_names.json in the same commit."""
    assert segaware.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_name_works(name):
    value = getattr(segaware, name)
    assert value is getattr(segaware, name)
    assert name in dir(segaware)
    if name != "__version__":
        module = importlib.import_module(segaware._PUBLIC[name])
        assert name in module.__all__


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'SegAware'"):
        _ = segaware.SegAware


def test_editors_see_the_same_names():
    tree = ast.parse(Path(segaware.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == segaware._PUBLIC


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import segaware", "torchvision timm segmentation_models_pytorch huggingface_hub matplotlib scipy"),
        ("import segaware.denoisers.dncnn", "torchvision timm segmentation_models_pytorch huggingface_hub"),
        ("import segaware.cli.main", "timm segmentation_models_pytorch huggingface_hub matplotlib scipy accelerate"),
    ],
)
def test_import_loads_nothing_heavy(statement, unwanted):
    script = f"import sys\n{statement}\nprint(*[m for m in {unwanted.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
