"""The documentation's Python blocks run, and what it links to is there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TRAINING = (DOCS / "training.md").read_text(encoding="utf-8")


def test_the_training_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```", TRAINING, flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/training.md", "exec"), {"__name__": "__main__"})
    assert "'25': " in capsys.readouterr().out and (tmp_path / "run/model/config.json").exists()


def test_the_losses_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}  # the blocks build on each other
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / "losses.md").read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/losses.md", "exec"), names)
    assert (tmp_path / "sensitivity-run/model/config.json").exists()


def test_the_zoo_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "zoo.md").read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    exec(compile(block, "docs/zoo.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "my-ffdnet" / "README.md").exists()


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [target for target in targets if "://" not in target and not (page.parent / target).exists()]
