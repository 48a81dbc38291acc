"""The table of public names, and cross-references to them: names of the root lead to where they are documented.

A name that exists in the package but has no place in the reference stays text; one that does not
exist is a warning, and with ``-W`` an error.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import segaware

__all__ = ["exists", "setup", "table_of_names"]

PLACE = "<!-- names of the root -->"


def exists(name: str) -> bool:
    """Whether ``name`` is a module of the package, or an attribute of one, at any depth."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:i]))
        except ImportError:
            continue
        try:
            for attribute in parts[i:]:
                found = getattr(found, attribute)
        except AttributeError:
            return False
        return True
    return False


def _resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("segaware."):
        return None
    home = segaware._PUBLIC.get(target.removeprefix("segaware."))
    if home is not None:
        domain = env.get_domain("py")
        name = target.removeprefix("segaware.")
        found = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", f"{home}.{name}", node, content)
        if found is not None:
            return found
    return content if exists(target) else None


def table_of_names() -> str:
    """Every name that the root exports, with the first paragraph of its docstring."""
    rows = ["| name | what it is |", "|---|---|"]
    for name, module in sorted(segaware._PUBLIC.items(), key=lambda item: item[0].lower()):
        value = getattr(segaware, name)
        summary = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
        summary = re.sub(r":[\w:]+:`~?([^`]*)`", r"`\1`", summary).replace("``", "`").replace("|", "\\|")
        role = "class" if inspect.isclass(value) else "func"
        rows.append(f"| {{py:{role}}}`{name} <{module}.{name}>` | {summary} |")
    return "\n".join(rows)


def _insert(app: Any, document: str, source: list[str]) -> None:
    if PLACE in source[0]:
        source[0] = source[0].replace(PLACE, table_of_names())


def setup(app: Any) -> dict[str, bool]:
    """Step in where Sphinx finds nothing, and where a page has the mark ``PLACE``."""
    app.connect("source-read", _insert)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
