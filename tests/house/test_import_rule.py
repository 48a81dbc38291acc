"""Stairs go one way: a module imports from lower floors and from its own room."""

import ast
from pathlib import Path

import pytest

import segaware

PACKAGE = Path(segaware.__file__).parent

#: Rooms by floor; a name is a folder or a module at the package's top. Rooms joined by a space are
#: one room (the ground floor). A new room gets its floor here.
FLOORS = [
    ["errors contracts checks registry pretrained"],
    ["layers", "noise", "image_io class_maps", "entries guarded", "luma", "parts", "fingerprint"],
    ["denoisers", "segmenters", "losses", "metrics task_metrics label_free detection", "niqe niqe_features"],
    ["wrapper", "cascade", "baselines", "inference"],
    ["training", "evaluation", "transforms"],
    ["zoo", "export", "doctor"],
    ["demo", "bulk"],
    ["cli __main__"],
]
PLACE = {
    name: (floor, room) for floor, rooms in enumerate(FLOORS) for room in rooms for name in room.split()
}
ROOT = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
PUBLIC = next(
    ast.literal_eval(node.value)
    for node in ROOT.body
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_PUBLIC"
)


def for_editors(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def walk(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if not for_editors(child):
            yield child
            yield from walk(child)


def imported_modules(source: str, module: str, is_package: bool = False) -> set[str]:
    """Full names of all that ``source`` imports, wherever in the file, from inside segaware."""
    names: set[str] = set()
    for node in walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            base = base[: len(base) - node.level + is_package] if node.level else []
            base += node.module.split(".") if node.module else []
            names |= {".".join([*base, alias.name]) for alias in node.names}
    public = {f"segaware.{name}": f"{target}.{name}" for name, target in PUBLIC.items()}
    names = {public.get(name, name) for name in names}
    return {name for name in names if name.startswith("segaware.") and name != "segaware.__version__"}


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    room = module.split(".")[1]
    if room not in PLACE:
        return [f"{module}: {room} has no floor; give it one in {Path(__file__).name}"]
    floor, own = PLACE[room]
    found = []
    for name in sorted(imported_modules(source, module, is_package)):
        target = name.split(".")[1]
        if target not in PLACE:
            found.append(f"{module} imports {name}: {target} is no room")
        elif PLACE[target][1] != own and PLACE[target][0] >= floor:
            found.append(f"{module} (floor {floor}) imports {name} (floor {PLACE[target][0]})")
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_imports_go_down():
    found = []
    for path in FILES:
        parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += violations(path.read_text(encoding="utf-8"), module, is_package)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("segaware.losses.entropy", "from segaware.segmenters.fpn import FPNSegmenter"),  # sideways
        ("segaware.losses.entropy", "def f():\n    from segaware import FPNSegmenter"),  # sideways, late, by the root
        ("segaware.denoisers.dncnn", "import segaware.wrapper"),  # up
        ("segaware.denoisers.dncnn", "from ..training import fit"),  # up, relative
        ("segaware.noise", "from segaware import entries"),  # sideways between modules
        ("segaware.errors", "from segaware.noise import add_gaussian"),
        ("segaware.attic.ghost", ""),  # no floor
        ("segaware.cli.main", "from segaware import utils"),  # no room
    ],
)
def test_the_rule_catches(module, source):
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("segaware.losses.entropy", "from segaware.checks import check_images\nfrom .focal import focal\nimport torch"),
        ("segaware.losses.entropy", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import segaware.wrapper"),
        ("segaware.checks", "from segaware.contracts import Sigma\nfrom segaware.errors import InputError"),
        ("segaware.cli.main", "from segaware import DnCNN, __version__, denoise"),
    ],
)
def test_the_rule_allows(module, source):
    assert not violations(source, module)
