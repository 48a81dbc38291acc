"""A page for each model that ships, from its ``config.json`` and its card, and a table of all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["setup", "write_pages"]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "segaware" / "weights"


def write_pages(folder: Path, weights: Path = FOLDER) -> list[str]:
    """Write ``index.md`` and one page a model into ``folder``; files that are right already are left alone.

    Returns:
        The names of the models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(weights.glob("*/config.json"))}
    pages = {f"{name}.md": _page(weights / name, config) for name, config in entries.items()}
    pages["index.md"] = _index(entries)
    for stale in folder.glob("*.md"):
        if stale.name not in pages:
            stale.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return list(entries)


def _index(entries: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Models that ship",
        "",
        "They come with the package; loading one makes no request. [Loading, saving, converting](../zoo.md) tells how.",
        "",
        "| model | architecture | made for | measured |",
        "|---|---|---|---|",
    ]
    for name, config in entries.items():
        what = config.get("training_noise") or "segmentation"
        lines.append(f"| [{name}]({name}.md) | `{config['architecture']}` | {what} | {_measured(config)} |")
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *entries, "```", ""])


def _measured(config: dict[str, Any]) -> str:
    """PSNR by noise level, or mean IoU by set; the rest is on the model's page."""
    measured = config.get("measured")
    measured = measured if isinstance(measured, dict) else {}
    psnr = measured.get("psnr")
    if isinstance(psnr, dict) and psnr:
        return f"PSNR {' / '.join(f'{value:.2f}' for value in psnr.values())} dB at sigma {' / '.join(psnr)}"
    sets = {name: inner for name, inner in measured.items() if isinstance(inner, dict) and "miou" in inner and name != "held_out"}
    scores = [f"mean IoU {inner['miou']:.1f} % ({name.replace('_', ' ')})" for name, inner in sets.items()]
    return "; ".join(scores) or "see its page"


def _page(folder: Path, config: dict[str, Any]) -> str:
    card = (folder / "README.md").read_text(encoding="utf-8")
    card = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)  # the Hub's metadata
    facts = json.dumps(config, indent=2, ensure_ascii=False)
    return f"{card.rstrip()}\n\n## config.json\n\nThe recipe, its command and the course of its training:\n\n```json\n{facts}\n```\n"


def _to_page(app: Any, document: str, source: list[str]) -> None:
    """A link to a card leads to the model's page here; in the repository, where there are no such pages, to the card."""
    source[0] = re.sub(r"\]\((?:\.\./)+segaware/weights/([\w-]+)/README\.md\)", r"](/models/\1.md)", source[0])


def setup(app: Any) -> dict[str, bool]:
    """Write the pages before sources are read."""
    app.connect("source-read", _to_page)
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "models"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
