"""Print the oldest versions that setup.cfg allows, as a pip constraints file.

python .ci/lowest.py test > lowest.txt && pip install -c lowest.txt ".[test]"

Arguments are extras; what they refer to, as in ``segaware[train,tiff]``, is followed.
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"


def floors(extras: list[str], setup: Path = SETUP) -> dict[str, str]:
    """Lower bounds by project, of the package and of ``extras``."""
    config = configparser.ConfigParser()
    config.read(setup, encoding="utf-8")
    listed = {key: config["options.extras_require"][key].split("\n") for key in config["options.extras_require"]}
    waiting, seen, found = [*config["options"]["install_requires"].split("\n")], set(extras), {}
    for extra in extras:
        waiting += listed[extra]
    while waiting:
        line = waiting.pop().partition("#")[0].partition(";")[0].strip()
        own = re.fullmatch(r"segaware\[([\w, -]+)\]", line)
        if own:
            fresh = {name.strip() for name in own[1].split(",")} - seen
            seen |= fresh
            waiting += [entry for name in fresh for entry in listed[name]]
            continue
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w, -]+\])?\s*>=\s*([\w.]+)(?:\s*,.*)?", line)
        if match:
            found[match[1]] = max(found.get(match[1], "0"), match[2], key=_order)  # of several bounds the highest holds
        elif line:
            raise SystemExit(f"setup.cfg: {line!r} has no lower bound; write NAME>=VERSION")
    return found


def _order(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


if __name__ == "__main__":
    for name, version in sorted(floors(sys.argv[1:]).items()):
        print(f"{name}=={version}")
