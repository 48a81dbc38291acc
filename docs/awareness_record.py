"""The JSON of examples/compare_awareness.py, with the look-ups that its page and figures need."""

from __future__ import annotations

import math

COLOURS = {"control": "#666666", "seed": "#D55E00", "later": "#0072B2", "keep": "#009E73"}
NUMBERS = {"inf": math.inf, "-inf": -math.inf}


def num(value) -> float:
    """A number of the JSON, which has neither NaN nor infinity."""
    return math.nan if value is None else NUMBERS.get(value, value) if isinstance(value, str) else float(value)


def text(value, digits=2, scale=1.0, signed=False) -> str:
    value = num(value)
    if math.isnan(value):
        return "–"
    value = round(value * scale, digits) + 0.0  # no "-0.00"
    return f"{value:{'+' if signed else ''}.{digits}f}"


class Found:
    """The JSON, with the look-ups the page needs."""

    def __init__(self, record: dict) -> None:
        self.record = record
        self.frames = record.get("reported", {}).get("frames")
        self.photographs = record.get("reported", {}).get("photographs")
        self.drive = record.get("reported", {}).get("drive")
        self.chosen = record["screen"]["chosen"]

    def group(self, name: str) -> str:
        if name.endswith("@random"):
            return "control"
        return self.record["contestants"].get(name.removesuffix("+keep"), {}).get("group", "control")

    def labels(self, name: str) -> bool:
        return self.record["contestants"].get(name.partition("@")[0].removesuffix("+keep"), {}).get("labels") == "true"

    def what(self, name: str) -> str:
        base, _, twin = name.partition("@")
        return f"`{base}` through an untrained segmenter" if twin else self.record["contestants"].get(base, {}).get("what", "")

    def row(self, which: dict | None, measure: str, noise: str, name: str) -> dict | None:
        rows = (which or {}).get("rows", ())
        return next((r for r in rows if (r["measure"], r["noise"], r["contestant"]) == (measure, noise, name)), None)

    def names(self, which: dict | None) -> list[str]:
        return list(dict.fromkeys(r["contestant"] for r in (which or {}).get("rows", ())))

    def noises(self, which: dict | None) -> list[str]:
        return [n for n in dict.fromkeys(r["noise"] for r in (which or {}).get("rows", ())) if n != "clean"]

    def gap(self, noise: str, name: str, key: str = "gaps") -> dict | None:
        """Against the control across judges, on the reported frames; ``drive_gaps``: on those that were chosen on."""
        return next((g for g in self.record.get(key, ()) if g["noise"] == noise and g["contestant"] == name), None)


def means(run: dict, name: str, judge: str | None = None, noise: str | None = None) -> list[float]:
    """[PSNR, mIoU] of ``name`` in a run's held-out figures: means over levels and held-out judges, or at one of each."""
    found: dict[str, list[float]] = {"psnr": [], "miou": []}
    for f in run.get("held_out", ()):
        measure, _, who = f["measure"].partition(":")
        level = f["noise"] == noise if noise else f["noise"] != "clean"
        if f["contestant"] == name and level and (who in ("", judge) if judge else who != "home"):
            found[measure].append(num(f["value"]))
    return [sum(values) / len(values) if values else math.nan for values in found.values()]


def bracket(row: dict, name: str, digits=1, scale=100.0, signed=True) -> str:
    """``value [low, high]`` of ``name``, ``name_low``, ``name_high``; a dash where it was not measured."""
    if num(row.get(name)) != num(row.get(name)):
        return "–"
    value = text(row[name], digits, scale, signed)
    low, high = (num(row.get(f"{name}_{end}")) for end in ("low", "high"))
    return value if math.isnan(low) else f"{value} [{text(low, digits, scale, signed)}, {text(high, digits, scale, signed)}]"


def shown(judge: str) -> str:
    """``home``, of the JSON, is the judge that trains."""
    return "the training segmenter" if judge == "home" else judge


def grid(rows: list[list[str]]) -> list[str]:
    if len(rows) < 2:
        return []
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(cells[0]) + " |", "|" + "---|" * len(cells[0]), *("| " + " | ".join(row) + " |" for row in cells[1:]), ""]
