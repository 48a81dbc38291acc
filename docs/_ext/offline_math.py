"""Equations as MathML, written at build time: a page that is opened fetches no script and no font."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

__all__ = ["setup"]


#: MathML knows "ln" as a name like x, TeX as an operator with a little room after it.
_OPERATOR = re.compile(r"(<mi>(?:ln|log|exp|min|max)</mi>)")


def _mathml(node: Any, display: str) -> str:
    return _OPERATOR.sub(r'\1<mspace width="0.17em"></mspace>', convert(node.astext(), display=display))


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node, "inline"))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math-block">{_mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer; ``html_math_renderer = "offline"`` chooses it."""
    app.add_html_math_renderer("offline", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
