"""Write a report from results, and read one back: no model is needed for either.

``report.json`` holds everything (schema in docs/evaluate.md); the CSV files, the Markdown and the
HTML page are views of it. Files are written beside their place and renamed.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from segaware.errors import EvaluationError
from segaware.evaluation.protocol import Protocol
from segaware.evaluation.results import Measure, Results, number
from segaware.evaluation.summary import Entry, Summary, summarise
from segaware.evaluation.verdict import details, headline

__all__ = [
    "FORMATS", "SCHEMA", "about", "failures", "figures_of", "how_to_read", "markdown", "read_report", "table", "tables",
    "terminal", "write_report",
]  # fmt: skip

#: Of ``report.json``; raised when a reader of the last one would go wrong.
SCHEMA = 1

FORMATS = ("json", "csv", "md", "html")


def write_report(
    results: Results,
    folder: str | os.PathLike[str],
    formats: Sequence[str] = FORMATS,
    *,
    summary: Summary | None = None,
    command: str = "",
    crop: tuple[int, int, int] | None = None,
) -> list[Path]:
    """Write the views asked for; the paths written.

    Args:
        formats: "json"; "csv" (``rows.csv`` with one row an image, ``summary.csv``); "md"; "html" (one
            file with figures inside; needs matplotlib and jinja2, extra ``viz``).
        command: what made it, for readers. ["" = as the report says that the results were read from]
        crop: (left, top, side) of the zoomed part of picture strips; None = where the noise hurt most.

    Raises:
        EvaluationError: an unknown format, a missing package, or a folder that cannot be written.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise EvaluationError(f"report format {unknown[0]!r} is unknown; use {', '.join(FORMATS)}")
    folder = Path(folder)
    summary = summary or summarise(results)
    command = command or results.command
    written = []
    if "json" in formats:
        written.append(_write(folder / "report.json", _json(summary, command)))
    if "csv" in formats:
        written += [_write(folder / "rows.csv", _rows_csv(results)), _write(folder / "summary.csv", _summary_csv(summary))]
    if "md" in formats:
        written.append(_write(folder / "report.md", iter([markdown(summary, command=command)])))
    if "html" in formats:
        from segaware.evaluation.page import page

        written.append(_write(folder / "report.html", iter([page(summary, folder, command=command, crop=crop)])))
    return written


def read_report(path: str | os.PathLike[str]) -> Results:
    """Results from ``report.json`` (or the folder that holds it).

    Raises:
        EvaluationError: missing, damaged, or of another schema.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "report.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema = record.get("schema")
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror}); give a report.json or its folder") from error
    except (ValueError, AttributeError) as error:
        raise EvaluationError(f"{path}: damaged ({error}); evaluate again, finished cells are kept") from error
    if schema != SCHEMA:
        raise EvaluationError(f"{path}: schema {schema!r}, this version reads {SCHEMA}; evaluate again")
    try:
        results = Results(
            protocol=Protocol.from_dict(record["protocol"]), source=record["source"], images=record["images"],
            contestants=record["contestants"], judges=record["judges"], environment=record["environment"],
            command=record.get("command", ""),
        )  # fmt: skip
        for row in record["rows"]:
            results.add(row)
    except (KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: not a whole report ({type(error).__name__}: {error}); evaluate again") from error
    return results


def table(summary: Summary, measures: Sequence[Measure], noises: Sequence[str], *, single: bool | None = None) -> list[list[str]]:
    """Cells of one table as text, header first: contestants down, measures or conditions across.

    ``single``: columns are measures (of the one condition); else conditions (of the one measure).
    """
    single = len(noises) == 1 if single is None else single
    columns = [(m, noises[0]) for m in measures] if single else [(measures[0], noise) for noise in noises]
    header = ["method", *((m.title if single else noise) for m, noise in columns)]
    rows = [header]
    for name in summary.results.names:
        cells = [_cell(summary.entry(m.key, noise, name), m) for m, noise in columns]
        if any(cell != "-" for cell in cells):
            rows.append([name, *cells])
    return rows


def _cell(entry: Entry | None, measure: Measure) -> str:
    if entry is None:
        return "-"
    text = measure.text(entry.value)
    if not math.isnan(entry.low):
        text += f" [{measure.text(entry.low)}, {measure.text(entry.high)}]"
    if entry.failed:
        text += f" ({entry.n} of {entry.n + entry.failed})"
    return {"best": f"**{text}**", "tied": f"{text} ~"}.get(entry.mark, text)


def tables(summary: Summary) -> Iterator[tuple[str, list[list[str]]]]:
    """All tables of a report, with a title each."""
    results = summary.results
    noises = [noise for noise in results.noises if noise != "clean"]
    measures = [m for m in results.measures if m.major]
    if len(noises) == 1:
        yield f"{noises[0]}", table(summary, measures, noises)
    elif noises:
        for measure in measures:
            yield measure.title, table(summary, [measure], noises)
    if "clean" in results.noises:
        harm = [m for m in results.measures if m.key.partition(":")[0] in ("psnr", "changed", "miou")]
        yield "Do no harm: what becomes of clean input", table(summary, harm, ["clean"])


def markdown(summary: Summary, *, command: str = "", title: str = "Evaluation") -> str:
    """The report as Markdown: verdict, tables, how to read them, what failed."""
    out = [f"# {title}", "", *about(summary), ""]
    short, long = headline(summary), details(summary)
    if short:
        out += ["## In short", "", " ".join(short), ""]
    if long:
        out += [*(f"- {line}" for line in long), ""]
    for name, rows in tables(summary):
        out += [f"## {name}", "", *_grid(rows), ""]
    speed = [(name, summary.results.seconds(c)) for c, name in enumerate(summary.results.names)]
    if any(not math.isnan(seconds) for _, seconds in speed):
        rows = [["method", "seconds an image (median)"], *([name, f"{s:.3f}"] for name, s in speed if not math.isnan(s))]
        out += ["## Time", "", *_grid(rows), ""]
    out += ["## How to read this", "", *(f"- {line}" for line in how_to_read(summary)), ""]
    if summary.results.failures:
        out += ["## Not measured", "", *(f"- {line}" for line in failures(summary.results)), ""]
    if command:
        out += ["## Made by", "", f"    {command}", ""]
    return "\n".join(out)


def terminal(summary: Summary) -> str:
    """The tables as aligned text, and what can be said."""
    out = [*about(summary)]
    for name, rows in tables(summary):
        widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        out += ["", name, *lines]
    return "\n".join([*out, "", *details(summary), "", *headline(summary)])


def figures_of(summary: Summary) -> dict[str, Any]:
    """Figures without rows, JSON-able."""
    return {"summary": _plain([vars(entry) for entry in summary.entries.values()]), "failures": summary.results.failures}


def about(summary: Summary) -> list[str]:
    """One paragraph: data, noise, seeds."""
    results, protocol = summary.results, summary.results.protocol
    note = f" ({results.source['note']})" if results.source.get("note") else ""
    seeds = f"seed {protocol.seed} by {protocol.seed_by}, {protocol.draws} draw{'s' if protocol.draws > 1 else ''} an image"
    judges = f"; judges: {', '.join(j['name'] for j in results.judges)}" if results.judges else ""
    return [
        f"{len(results.images)} image{'s' if len(results.images) > 1 else ''} of {results.source['name']}{note}; noise: {', '.join(results.noises)},"
        f" neither clipped nor rounded, {seeds}{judges}."
    ]


def how_to_read(summary: Summary) -> list[str]:
    """What the marks and intervals mean, for this report."""
    results = summary.results
    level = f"{100 * results.protocol.level:g} %"
    unit = "images" if results.block == 1 else f"blocks of {results.block} neighbouring frames"
    lines = [
        f"Brackets are {level} bootstrap intervals over {unit}, widened for small numbers.",
        "Bold is best: ahead of every other by a paired interval that leaves out zero, corrected for their number."
        " ~ marks all that cannot be told from the leader.",
    ]
    lines += [f"{key.upper()}: {text}." for key, text in results.environment.get("metrics", {}).items()]
    if results.judges:
        lines.append(
            "Consistency: mIoU between what the judge sees in the denoised and in the clean image; it needs no labels."
            " Judges see images clamped to [0, 1]."
        )
    units = -(-len(results.images) // results.block)
    if units < 20:
        lines.append(f"Only {units} independent {unit}: intervals are wide and tests weak." if units > 1 else "One unit: no intervals.")
    if any(c.p_draws is not None for found in summary.comparisons.values() for c in found):
        lines.append("p over draws (U-SAID's test, in report.json) says only that the noise draw does not matter, nothing of other images.")
    return lines


def failures(results: Results) -> list[str]:
    """Failed cells, equal ones together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for failure in results.failures:
        groups.setdefault((failure["contestant"], failure["error"]), []).append(f"{failure['image']} ({failure['noise']})")
    return [
        f"{who}: {', '.join(where[:3])}{f' and {len(where) - 3} more' if len(where) > 3 else ''}: {error}"
        for (who, error), where in groups.items()
    ]


def _grid(rows: list[list[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in escaped]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _plain(record: Any) -> Any:
    """JSON-able: no NaN, no infinity, no tuples of arrays."""
    if isinstance(record, dict):
        return {key: _plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_plain(value) for value in record]
    return number(record) if isinstance(record, float) else record


def _json(summary: Summary, command: str) -> Iterator[str]:
    results = summary.results
    head = {
        "schema": SCHEMA, "command": command, "protocol": results.protocol.to_dict(), "source": results.source,
        "environment": results.environment, "contestants": results.contestants, "judges": results.judges, "images": results.images,
        "measures": [vars(measure) for measure in results.measures],
        "summary": [vars(entry) for entry in summary.entries.values()],
        "comparisons": [
            {"measure": m, "noise": n, **vars(one)} for (m, n), found in summary.comparisons.items() for one in found
        ],
    }  # fmt: skip
    yield json.dumps(_plain(head), indent=1)[:-2] + ',\n "rows": [\n'
    comma = ""
    for row in results.rows():
        yield comma + "  " + json.dumps(row, separators=(",", ":"))
        comma = ",\n"
    yield "\n ]\n}\n"


def _csv(rows: Iterator[list[Any]]) -> Iterator[str]:
    for row in rows:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(["" if value is None else value for value in row])
        yield line.getvalue()


def _rows_csv(results: Results) -> Iterator[str]:
    from segaware.evaluation.significance import statistic

    measures = results.measures

    def rows() -> Iterator[list[Any]]:
        yield ["image", "contestant", "noise", "draw", *(m.key for m in measures), "seconds", "error"]
        import numpy as np

        for row in results.rows():
            cells: list[Any] = []
            for measure in measures:
                if measure.kind == "mean":
                    found = row.get("judges", {}).get(measure.judge, {}) if measure.judge else row["values"]
                    cells.append(found.get(measure.key.partition(":")[0]))
                    continue
                against = "labels" if measure.key.partition(":")[0] in ("miou", "accuracy", "recall") else "clean"
                matrix = row.get("judges", {}).get(measure.judge, {}).get(against)
                cells.append(None if matrix is None else number(float(statistic(np.array(matrix, dtype=float), measure.kind))))
            yield [row["image"], row["contestant"], row["noise"], row["draw"], *cells, row["values"].get("seconds"), row.get("error")]

    return _csv(rows())


def _summary_csv(summary: Summary) -> Iterator[str]:
    def rows() -> Iterator[list[Any]]:
        yield ["measure", "noise", "contestant", "value", "low", "high", "n", "failed", "mark"]
        for e in summary.entries.values():
            yield [e.measure, e.noise, e.contestant, number(e.value), number(e.low), number(e.high), e.n, e.failed, e.mark]

    return _csv(rows())


def _write(path: Path, parts: Iterator[str]) -> Path:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "x", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)
        os.replace(partial, path)
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be written ({error.strerror}); check free space and permissions") from error
    finally:
        partial.unlink(missing_ok=True)
    return path
