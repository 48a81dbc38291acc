"""The Python blocks of README, docs and cards run, and what the pages link to is there.

The blocks of a page run in order, in one namespace and one folder, which holds a few pictures (see
``stage``). A comment on the line above a block changes that, always with a reason or a name:

    <!-- not run: REASON -->     left out
    <!-- slow: REASON -->        the page from here on, in the slow tests only
    <!-- needs: PACKAGE -->      the page from here on, where that package is installed
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Of the built site, written by docs/_ext/zoo_pages.py from the cards, which are tested themselves.
GENERATED = DOCS / "models"
CARDS = sorted((ROOT / "segaware" / "weights").glob("*/README.md"))
SITE = [path for path in sorted(DOCS.rglob("*.md")) if GENERATED not in path.parents]
PAGES = [ROOT / "README.md", *SITE, *CARDS]
LINKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *SITE]

BLOCK = re.compile(r"^(?:<!-- (?P<word>not run|slow|needs): *(?P<value>.*?) *-->\n+)?```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)
#: Blocks of README.md and docs together; a number that falls says that blocks were lost.
AT_LEAST = 20


class Block(NamedTuple):
    word: str | None
    value: str | None
    code: str
    line: int


def blocks_of(text: str) -> list[Block]:
    return [
        Block(m["word"], m["value"], m["code"], text.count("\n", 0, m.start("code"))) for m in BLOCK.finditer(text)
    ]


def name(path: Path) -> str | None:
    return path.relative_to(ROOT).as_posix() if isinstance(path, Path) else None  # pytest 8.0 asks for the name of nothing, too


BLOCKS = {path: blocks_of(path.read_text(encoding="utf-8")) for path in PAGES}


SHELL = re.compile(r"^```(?:text|bash|shell)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:segaware|python examples/)[^`\n]*)`")


def commands_of(text: str) -> list[list[str]]:
    """Commands as a shell takes them: of the blocks each line, joined where a backslash ends it, and whole ones in a sentence."""
    lines = [line.strip() for block in SHELL.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *INLINE.findall(text)]:
        if "..." not in line and re.match(r"(\.venv/bin/)?(segaware|python examples/)\S* \S", line):
            found += [part for part in (shlex.split(piece, comments=True) for piece in line.split(";")) if part and re.search(r"segaware$|python$", part[0])]
    return found


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A folder with what pages take for granted: ``noisy.png`` and ``photos/`` (4 pictures)."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(4):
        base = np.kron(random.random((8, 10, 3)), np.ones((8, 8, 1)))
        Image.fromarray((base * 255).astype(np.uint8)).save(tmp_path / "photos" / f"{i}.png")
        noisy = np.clip(base + 25 / 255 * random.standard_normal(base.shape), 0, 1)
    Image.fromarray((noisy * 255).round().astype(np.uint8)).save(tmp_path / "noisy.png")
    return tmp_path


def run_page(path: Path, folder: Path, *, slow: bool) -> int:
    """Run a page's blocks; the number of those that ran."""
    # a card's block begins with the reader's own image
    own = {"noisy": torch.rand(3, 48, 64), "image": torch.rand(1, 3, 48, 64)} if path in CARDS else {}
    names: dict[str, object] = {"__name__": "__main__", **own}
    ran = 0
    for block in BLOCKS[path]:
        if block.word == "not run":
            continue
        if block.word == "slow" and not slow:
            break
        if block.word == "needs" and importlib.util.find_spec(str(block.value)) is None:
            break
        exec(compile("\n" * block.line + block.code, name(path), "exec"), names)
        ran += 1
    return ran


#: The README's blocks run one by one, in test_readme.py.
WITH_BLOCKS = [path for path in PAGES if BLOCKS[path] and path != ROOT / "README.md"]
SLOW = [path for path in WITH_BLOCKS if any(block.word == "slow" for block in BLOCKS[path])]


@pytest.mark.parametrize("path", WITH_BLOCKS, ids=name)
def test_the_blocks_of_a_page_run(path, stage, capsys):
    run_page(path, stage, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("path", SLOW, ids=name)
def test_the_slow_blocks_of_a_page_run(path, stage, capsys):
    assert run_page(path, stage, slow=True)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_are_taken(path):
    """Copied as they stand, remarks and all: each option is there, and no word is left over."""
    from segaware.cli.main import main

    for program, *words in commands_of(path.read_text(encoding="utf-8")):
        if not program.endswith("segaware") or words[0].startswith("-") or words[0] == "COMMAND":
            continue
        command = main.get_command(click.Context(main), words[0])
        if isinstance(command, click.Group) and len(words) > 1 and not words[1].startswith("-"):
            command, words = command.get_command(click.Context(command), words[1]), words[1:]
        assert command is not None, f"{path.name}: segaware {words[0]} is no command"
        try:
            _, left, _ = command.make_parser(click.Context(command)).parse_args(words[1:])
        except click.UsageError as error:
            if words[-1].startswith("--") and "requires an argument" in str(error):
                continue  # a sentence that speaks of the option
            pytest.fail(f"{path.name}: {' '.join(words)}: {error.format_message()}")
        assert not left, f"{path.name}: {' '.join(words)}: {left} are no part of the command; put # before a remark"


@pytest.mark.slow
def test_options_of_the_examples_are_there():
    used: dict[str, set[str]] = {}
    for path in PAGES:
        for _, *words in commands_of(path.read_text(encoding="utf-8")):
            if words[0].startswith("examples/"):
                used.setdefault(words[0], set()).update(word.split("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word))
    assert len(used) >= 6
    for script, options in used.items():
        told = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, encoding="utf-8", check=True).stdout
        lost = {option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", told)}
        assert not lost, f"{script} has no {', '.join(sorted(lost))}"


def test_commands_with_bare_remarks_are_found():
    text = "```text\nsegaware denoise a.png -o b.png   one photograph\nsegaware denoise a.png -o b.png  # one\n```\nuse `segaware denoise a.png`"
    assert commands_of(text) == [["segaware", "denoise", "a.png", "-o", "b.png", "one", "photograph"], ["segaware", "denoise", "a.png", "-o", "b.png"], ["segaware", "denoise", "a.png"]]


def test_no_block_escapes():
    """Every fence of Python is seen, a mark has a reason, and there are as many as there were."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert len(re.findall(r"^ *```python\b", text, flags=re.MULTILINE)) == len(BLOCKS[path]), f"{name(path)}: indented, or not ```python alone"
        assert not [block for block in BLOCKS[path] if block.word and not block.value], f"{name(path)}: a mark without a reason"
    assert sum(len(BLOCKS[path]) for path in PAGES if path not in CARDS) >= AT_LEAST


def test_marks_are_read():
    text = "<!-- not run: no reason -->\n```python\na\n```\n\n```python\nb\n```\n<!-- slow: a minute -->\n\n```python\nc\n```\n"
    assert [(b.word, b.value, b.code) for b in blocks_of(text)] == [("not run", "no reason", "a\n"), (None, None, "b\n"), ("slow", "a minute", "c\n")]


# --- links ------------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """Without code, in which ``](`` is no link."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    """What GitHub, and the site, call the headings of a page."""
    headings = re.findall(r"^#{1,6} +(.*?) *$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lost_links(page: Path) -> list[str]:
    """Links to what is not there, and those of the site's pages to pages of the repository that the site has not (cards it has)."""
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(page.read_text(encoding="utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        if GENERATED in file.parents:
            known = {"index", *(card.parent.name for card in CARDS)}
            if file.stem not in known:
                lost.append(target)
        elif not file.exists() or anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            lost.append(target)
        elif DOCS in page.parents and file.suffix == ".md" and DOCS not in file.parents and file not in CARDS:
            lost.append(target)
    return lost


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page):
    assert not lost_links(page)


def test_lost_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A b, `c`\n[x](#a-b-c) [y](page.md#a-b-c) [lost](page.md#d) [gone](gone.md) [far](https://example.org/z) `[n](no.md)`\n")
    assert lost_links(page) == ["page.md#d", "gone.md"]


def test_links_that_the_site_lacks_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "DOCS", tmp_path / "docs")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    (tmp_path / "README.md").write_text("# A\n")
    page.write_text(f"[a](../README.md#a) [b](page.md) [card]({CARDS[0].as_posix()})")
    assert lost_links(page) == ["../README.md#a"]


def test_the_modules_of_public_names_are_in_the_reference():
    import segaware

    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    missing = {module for module in segaware._PUBLIC.values() if f"automodule:: {module}\n" not in text}
    assert not missing, "put them on a page of docs/reference"
