"""File lengths, file names, docstrings, and nothing of the machine it was written on."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "segaware"
MODULES = sorted(PACKAGE.rglob("*.py"))
CEILING = 400
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
# Absolute paths under a home or work folder of somebody's machine, and folders beside the clone.
OF_ONE_MACHINE = re.compile(r"(?<![\w.~$}])/(?:work|opt|home|root|mnt|Users)/\w|\.\./shared\b|[A-Z]:\\Users\\")


def committed_files() -> list[Path]:
    """Tracked and new files; without git (an unpacked archive), all that is no build product."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, check=True
        )
        paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        built = {"build", "dist", "__pycache__"}
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(p in built or p.endswith(".egg-info") or p.startswith(".venv") for p in path.parts)
        ]
    return [path for path in paths if path.is_file()]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_modules_to_look_at():
    assert len(MODULES) > 10 and len(committed_files()) > 20


def test_no_module_is_longer_than_one_sitting():
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {path: length for path, length in lengths.items() if length > CEILING}


def test_every_file_has_a_name_of_its_own():
    files = [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    assert not [name(path) for path in files if path.stem.removeprefix("_").removeprefix("test_") in NAMELESS]


def test_no_file_speaks_of_one_machine():
    found = []
    for path in committed_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name(path)}: {match.group()}" for match in OF_ONE_MACHINE.finditer(text)]
    assert not found


@pytest.mark.parametrize("text", ["/" + "home/me/x", '"/' + 'opt/x"', ".." + "/shared/data", "C:" + r"\Users\me"])
def test_the_search_for_machine_paths_finds_some(text):
    assert OF_ONE_MACHINE.search(text)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_docstrings(path):
    """Every module says what it is; every public function and class, what it does."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module starts with a docstring"
    public: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            if isinstance(node.value, (ast.List, ast.Tuple)):
                public = set(ast.literal_eval(node.value))
    if path.name not in ("__init__.py", "__main__.py"):
        assert public, "a module lists its public names in __all__"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    bare = [n.name for n in tree.body if isinstance(n, kinds) and n.name in public and not ast.get_docstring(n)]
    assert not bare, f"public without a docstring: {bare}"
