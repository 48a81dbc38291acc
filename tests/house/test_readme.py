"""The README's Python blocks run as they stand, in order, each in a folder of its own."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
SHELL = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_block_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README.md, Python block {number + 1}", "exec"), {"__name__": "__main__"})


def test_there_are_blocks():
    assert len(BLOCKS) >= 3 and len(SHELL) >= 2


def test_the_first_two_shell_blocks_set_up_and_test():
    assert "segaware denoise" in SHELL[0] and "--reference" in SHELL[0]
    assert "[test]" in SHELL[1] and "pytest" in SHELL[1]


def test_pictures_and_links_exist():
    root = Path(__file__).parents[2]
    targets = re.findall(r"!?\[[^\]]*\]\(([^)#\s]+)", README)
    local = [target for target in targets if "://" not in target]
    assert local and not [target for target in local if not (root / target).exists()]
