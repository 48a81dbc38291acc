"""The report as one HTML file with its figures inside: no script, no request to anywhere."""

from __future__ import annotations

import base64
import os
from typing import Any

from segaware.errors import EvaluationError
from segaware.evaluation import figures
from segaware.evaluation.pictures import Pictures, folder_of
from segaware.evaluation.report import about, failures, how_to_read, tables
from segaware.evaluation.summary import Summary
from segaware.evaluation.verdict import Finding, ceilings, findings, gain, gentlest, headline

__all__ = ["page"]

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 76rem; margin: 0 auto; padding: 1rem 1rem 3rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p.about { color: #444; margin: 0 0 1rem; }
.answer { border-left: .4rem solid #0072b2; background: #eef5fa; padding: .8rem 1.1rem; }
.answer p { margin: .3rem 0; } .answer p:first-child { font-size: 1.15rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; min-width: 6rem; font-weight: 600; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; white-space: normal; }
td.best { font-weight: 700; background: #e2f0e6; } td.best::after { content: " \\2605"; }
td.tied { background: #f3f3f3; } td.tied::after { content: " ~"; }
small { color: #555; font-weight: 400; font-size: .85em; }
table.glance td { text-align: left; vertical-align: top; white-space: normal; min-width: 9rem; } table.glance th { text-align: left; }
.helps { color: #00507d; } .harms { color: #a33d00; } .partly, .unclear { color: #555; }
figure { margin: 0 0 1.6rem; } img { display: block; } .fit img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
.failed { color: #a33d00; } ul { padding-left: 1.2rem; } li { margin: .25rem 0; }
pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; } footer { margin-top: 3rem; color: #555; font-size: .85rem; }
@media (max-width: 45rem) {
  body { font-size: 15px; } th, td { padding: .3rem .45rem; } th:first-child, td:first-child { max-width: 7rem; overflow-wrap: anywhere; }
  td small { display: block; } table.glance { font-size: .9em; } table.glance td { min-width: 7rem; } table.glance td:first-child { min-width: 5rem; } .fit img { max-width: none; width: 46rem; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for line in about %}<p class="about">{{ line }}</p>
{% endfor %}
{% if headline %}<section class="answer">{% for line in headline %}<p>{{ line }}</p>
{% endfor %}</section>{% endif %}
{% if failures %}<p class="failed">{{ failures|length }} kinds of failure left cells out: see <a href="#not-measured">Not measured</a>.</p>{% endif %}
{% if glance %}<h2>At a glance: the best denoiser, and what it brings</h2>
<div class="scroll"><table class="glance">
<thead><tr><th scope="col">measure</th>{% for noise in glance.noises %}<th scope="col">{{ noise }}</th>{% endfor %}</tr></thead>
<tbody>{% for title, cells in glance.rows %}
<tr><td>{{ title }}</td>{% for cell in cells %}<td>{% if cell %}<b>{{ cell.best }}</b> {{ cell.value }}{% if cell.tied %} <small>or {{ cell.tied }}</small>{% endif %}{% if cell.gain %}<div class="{{ cell.effect }}">{{ cell.sign }} {{ cell.gain }}</div>{% endif %}{% else %}-{% endif %}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
<p><small><span class="helps">&#9650;</span> better than the noisy image itself, <span class="harms">&#9660;</span> worse, <span class="partly">&#9680;</span> better only for one that was measured on fewer images, ? cannot be said; by how much, with its interval if there is one. "or": not to be told from the best.</small></p>
{% if asides %}<ul>{% for line in asides %}<li>{{ line }}</li>
{% endfor %}</ul>{% endif %}{% endif %}
{% if figures %}<h2>Figures</h2>{% endif %}
{% for figure in figures %}<figure><h3>{{ figure.title }}</h3><div class="scroll fit"><img alt="{{ figure.alt }}" src="data:image/{{ figure.kind }};base64,{{ figure.data }}"></div><figcaption>{{ figure.alt }}</figcaption></figure>
{% endfor %}
<h2>All methods</h2>
<p><small>&#9733; ahead of every other method beyond its interval; ~ cannot be told from the best.</small></p>
{% for name, rows in tables %}<h3>{{ name }}</h3>
<div class="scroll"><table>
<thead><tr>{% for cell in rows[0] %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows[1:] %}
<tr>{% for cell in row %}{% if loop.first %}<td>{{ cell }}</td>{% else %}<td class="{{ cell.mark }}">{{ cell.value }}{% if cell.more %} <small>{{ cell.more }}</small>{% endif %}</td>{% endif %}{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% endfor %}
<h2>How to read this</h2>
<ul>{% for line in reading %}<li>{{ line }}</li>
{% endfor %}</ul>
{% if failures %}<h2 class="failed" id="not-measured">Not measured</h2>
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
        headline=headline(summary),
        glance=_glance(summary),
        asides=[*ceilings(summary), *gentlest(summary)],
        tables=[(name, [rows[0], *([row[0], *map(_parts, row[1:])] for row in rows[1:])]) for name, rows in tables(summary)],
        figures=_figures(summary, Pictures(folder), crop),
        reading=how_to_read(summary),
        failures=failures(results),
        contestants=results.contestants,
        command=command,
        environment=results.environment,
    )


_SIGNS = {"helps": "\u25b2", "harms": "\u25bc", "partly": "\u25d0", "unclear": "?"}


def _glance(summary: Summary) -> dict[str, Any]:
    """Measures down, conditions across: who is best, and how that stands to the noisy image."""
    found = {(one.measure.key, one.noise): one for one in findings(summary)}
    noises = list(dict.fromkeys(noise for _, noise in found))
    rows = []
    for measure in summary.results.measures:
        here = [found.get((measure.key, noise)) for noise in noises]
        if any(here):
            rows.append((measure.title, [one and _glanced(one) for one in here]))
    return {"noises": noises, "rows": rows} if rows else {}


def _glanced(one: Finding) -> dict[str, str]:
    tied = " or ".join(one.tied)
    return {
        "best": one.leader.contestant, "value": one.measure.text(one.leader.value), "tied": tied, "effect": one.effect,
        "sign": _SIGNS.get(one.effect, ""), "gain": gain(one),
    }  # fmt: skip


def _parts(cell: str) -> dict[str, str]:
    """A cell of the text tables as value, interval and mark."""
    mark = "best" if cell.startswith("**") else "tied" if cell.endswith(" ~") else ""
    value, _, more = cell.strip("*").removesuffix(" ~").partition(" ")
    return {"value": value, "more": more, "mark": mark}


def _figures(summary: Summary, pictures: Pictures, crop: tuple[int, int, int] | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def add(title: str, alt: str, figure: Any, kind: str = "png") -> None:
        if figure is not None:
            data = figures.png(figure) if kind == "png" else figures.jpeg(figure)
            found.append({"title": title, "alt": alt, "kind": kind, "data": base64.b64encode(data).decode()})

    results = summary.results
    add("Against the noise level", "Each measure against sigma, one line a method, shaded by its interval. Framed on the denoisers: the noisy image may lie outside.", figures.levels(summary))
    add(
        "Fidelity and task",
        "PSNR against what a judge sees; a method further up serves the machine better, further right it is nearer to the clean image.",
        figures.fidelity_task(summary),
    )
    judges: list[str | None] = [judge["name"] for judge in results.judges] or [None]
    kept = {path.name for path in pictures.folder.iterdir()} if pictures.folder.is_dir() else set()
    for image in results.images:
        if folder_of(image) in kept:
            for noise in [n for n in results.noises if n != "clean"] or results.noises:
                for judge in judges:
                    title = f"{image}, {noise}" + (f", seen by {judge}" if judge else "")
                    text = "Each denoiser's image, the zoomed part that is framed in it" + (
                        f", the classes that {judge} sees in it, and where these are wrong." if judge else "."
                    )
                    add(title, text, figures.strip(summary, pictures, image, noise, judge, crop), "jpeg")
    return found
