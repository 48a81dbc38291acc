"""The report as one HTML file with its figures inside: no script, no request to anywhere."""

from __future__ import annotations

import base64
import os
from typing import Any

from segaware.errors import EvaluationError
from segaware.evaluation import figures
from segaware.evaluation.pictures import Pictures, slug
from segaware.evaluation.report import about, failures, how_to_read, tables
from segaware.evaluation.summary import Summary

__all__ = ["page"]

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; min-width: 7rem; }
th:first-child, td:first-child { text-align: left; }
td.best { font-weight: 700; background: #e2f0e6; } td.best::after { content: " \\2605"; }
td.tied { background: #f3f3f3; } td.tied::after { content: " ~"; }
td small { color: #555; font-weight: 400; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; }
.verdict li { margin: .3rem 0; } .failed { color: #8a1c00; }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; } footer { margin-top: 3rem; color: #555; font-size: .9rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in about %}<p>{{ line }}</p>
{% endfor %}
{% if verdict %}<h2>In short</h2>
<ul class="verdict">{% for line in verdict %}<li>{{ line }}</li>
{% endfor %}</ul>{% endif %}
{% for name, rows in tables %}<h2>{{ name }}</h2>
<div class="scroll"><table>
<thead><tr>{% for cell in rows[0] %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows[1:] %}
<tr>{% for cell in row %}{% if loop.first %}<td>{{ cell }}</td>{% else %}<td class="{{ cell.mark }}">{{ cell.value }}{% if cell.more %} <small>{{ cell.more }}</small>{% endif %}</td>{% endif %}{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endfor %}
{% for figure in figures %}<figure><h2>{{ figure.title }}</h2><img alt="{{ figure.alt }}" src="data:image/png;base64,{{ figure.data }}"><figcaption>{{ figure.alt }}</figcaption></figure>
{% endfor %}
<h2>How to read this</h2>
<ul>{% for line in reading %}<li>{{ line }}</li>
{% endfor %}</ul>
{% if failures %}<h2 class="failed">Not measured</h2>
<ul>{% for line in failures %}<li>{{ line }}</li>
{% endfor %}</ul>{% endif %}
<h2>Methods</h2>
<ul>{% for one in contestants %}<li><b>{{ one.name }}</b>: {{ one.kind }}</li>
{% endfor %}</ul>
{% if command %}<h2>Made by</h2><pre>{{ command }}</pre>{% endif %}
<footer>{% for key, value in environment.items() %}{% if value is string or value is number %}{{ key }} {{ value }}{% if not loop.last %}, {% endif %}{% endif %}{% endfor %}</footer>
</body>
</html>
"""


def page(summary: Summary, folder: str | os.PathLike[str], *, command: str = "", crop: tuple[int, int, int] | None = None) -> str:
    """The whole page; pictures are looked for in ``folder``.

    Raises:
        EvaluationError: matplotlib or jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise EvaluationError("the HTML report needs jinja2; pip install 'segaware[viz]'") from error
    results = summary.results
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_TEMPLATE)
    return template.render(
        title=f"Denoisers on {results.source['name']}",
        about=about(summary),
        verdict=summary.verdict(),
        tables=[(name, [rows[0], *([row[0], *map(_parts, row[1:])] for row in rows[1:])]) for name, rows in tables(summary)],
        figures=_figures(summary, Pictures(folder), crop),
        reading=how_to_read(summary),
        failures=failures(results),
        contestants=results.contestants,
        command=command,
        environment=results.environment,
    )


def _parts(cell: str) -> dict[str, str]:
    """A cell of the text tables as value, interval and mark."""
    mark = "best" if cell.startswith("**") else "tied" if cell.endswith(" ~") else ""
    value, _, more = cell.strip("*").removesuffix(" ~").partition(" ")
    return {"value": value, "more": more, "mark": mark}


def _figures(summary: Summary, pictures: Pictures, crop: tuple[int, int, int] | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def add(title: str, alt: str, figure: Any) -> None:
        if figure is not None:
            found.append({"title": title, "alt": alt, "data": base64.b64encode(figures.png(figure)).decode()})

    results = summary.results
    add("Against the noise level", "Each measure against sigma, one line a method, shaded by its interval.", figures.levels(summary))
    add(
        "Fidelity and task",
        "PSNR against what a judge sees; a method further up serves the machine better, further right it is nearer to the clean image.",
        figures.fidelity_task(summary),
    )
    judges: list[str | None] = [judge["name"] for judge in results.judges] or [None]
    kept = {path.name for path in pictures.folder.iterdir()} if pictures.folder.is_dir() else set()
    for image in results.images:
        if slug(image) in kept:
            for noise in results.noises:
                for judge in judges:
                    text = f"{image}, {noise}" + (f": classes and errors by {judge}." if judge else ".")
                    add(f"{image}, {noise}", text, figures.strip(summary, pictures, image, noise, judge, crop))
    return found
