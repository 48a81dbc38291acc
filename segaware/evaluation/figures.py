"""Figures from a report's rows and kept pictures; no model runs here. matplotlib is loaded when used.

Methods differ in colour, marker and dash; colours are Okabe and Ito's, class colours (:mod:`segaware.class_maps`) Tol's: people
who see few colours can tell them apart, and errors are shown as light against dark.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from segaware.class_maps import class_colours
from segaware.errors import EvaluationError
from segaware.evaluation.pictures import Pictures
from segaware.evaluation.results import Measure
from segaware.evaluation.summary import Summary
from segaware.task_metrics import IGNORE

__all__ = ["fidelity_task", "jpeg", "levels", "png", "strip"]

# Okabe and Ito 2008, black last but one; their yellow is too light for lines on white, Tol's wine stands for it
_METHODS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#882255")
_NOISY = {"color": "#888888", "marker": "x", "linestyle": ":"}
_MARKERS = "osD^vPXhp*"
_DASHES = ("-", "--", "-.", ":")
_VOID = (1.0, 1.0, 1.0)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise EvaluationError("figures need matplotlib; pip install 'segaware[viz]'") from error
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def figure(width: float, height: float) -> Any:
        made = Figure(figsize=(width, height), dpi=110, layout="constrained")
        FigureCanvasAgg(made)  # no display, and nothing of pyplot's state
        return made

    matplotlib.rcParams["svg.hashsalt"] = "segaware"
    return figure


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def jpeg(figure: Any) -> bytes:
    """The figure as a JPEG file: for photographs, of which a report may hold dozens."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 85, "optimize": True})
    return buffer.getvalue()


def _style(summary: Summary, name: str) -> dict[str, Any]:
    if name == "noisy":
        return dict(_NOISY)
    index = [other for other in summary.results.names if other != "noisy"].index(name)
    return {
        "color": _METHODS[index % len(_METHODS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index // len(_METHODS) % len(_DASHES)],
    }


def levels(summary: Summary) -> Any | None:
    """Each measure against sigma, a line a method with its interval; None with fewer than two sigmas."""
    results = summary.results
    noises = [noise for noise in results.protocol.noises if noise.kind == "gaussian"]
    measures = [m for m in results.measures if m.major]
    if len(noises) < 2 or not measures:
        return None
    noises = sorted(noises, key=lambda noise: noise.sigma)
    across = min(3, len(measures))
    down = -(-len(measures) // across)
    figure = _pyplot()(4.2 * across, 3.2 * down + 0.6)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, measure in zip(axes, measures, strict=False):
        factor = 100 if measure.percent else 1
        shown: list[float] = []
        for name in results.names:
            found = [(noise.sigma, summary.entry(measure.key, noise.label, name)) for noise in noises]
            points = [(x, e) for x, e in found if e is not None and math.isfinite(e.value)]
            if not points:
                continue
            xs = [x for x, _ in points]
            style = _style(summary, name)
            axis.plot(xs, [factor * e.value for _, e in points], label=name, markersize=5, linewidth=1.4, **style)
            if name != "noisy":
                shown += [factor * v for _, e in points for v in (e.value, e.low, e.high) if math.isfinite(v)]
            if all(not math.isnan(e.low) for _, e in points):
                low, high = ([factor * getattr(e, side) for _, e in points] for side in ("low", "high"))
                axis.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)
        _frame(axis, "y", shown)
        axis.set_title(_short(measure), fontsize=9)
        axis.set_xlabel("sigma (8-bit units)", fontsize=8)
        axis.set_xticks([noise.sigma for noise in noises])
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(measures) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, max(1, len(labels))), fontsize=8)
    return figure


def _frame(axis: Any, side: str, shown: list[float]) -> None:
    """Frame what the denoisers did: with the noisy image's far lower figures in it their differences could not be seen."""
    if shown and max(shown) > min(shown):
        room = 0.07 * (max(shown) - min(shown))
        getattr(axis, f"set_{side}lim")(min(shown) - room, max(shown) + room)


def _short(measure: Measure) -> str:
    kind, _, judge = measure.key.partition(":")
    names = {"miou": "mIoU (%)", "consistency": "consistency (mIoU with clean, %)", "changed": "changed pixels (%)"}
    return measure.title if not judge else f"{names.get(kind, kind)}\nby {judge}"


def fidelity_task(summary: Summary) -> Any | None:
    """PSNR across, what the judges see up, one panel a judge, bars are intervals of the latter; None without both."""
    results = summary.results
    noises = [noise for noise in results.noises if noise != "clean"]
    kind = "miou" if results.labelled else "consistency"
    measures = [m for m in results.measures if m.key.startswith(f"{kind}:")]
    if not measures or not noises or "psnr" not in results.protocol.metrics:
        return None
    across = min(3, len(measures))
    down = -(-len(measures) // across)
    figure = _pyplot()(4.8 * across, 3.9 * down + 0.6)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, measure in zip(axes, measures, strict=False):
        xs: list[float] = []
        ys: list[float] = []
        places: dict[str, tuple[float, float]] = {}
        for name in [name for name in results.names if name != "noisy"] or results.names:
            style = _style(summary, name)
            pairs = [(summary.entry("psnr", n, name), summary.entry(measure.key, n, name), n) for n in noises]
            first = True
            for psnr, task, noise in pairs:
                if psnr is None or task is None or not (math.isfinite(psnr.value) and math.isfinite(task.value)):
                    continue
                axis.errorbar(
                    psnr.value, 100 * task.value, yerr=_reach(task, 100), markersize=6, elinewidth=0.8,
                    color=style["color"], marker=style["marker"], linestyle="none", label=name if first else None,
                )  # fmt: skip
                first = False
                if name != "noisy":
                    xs.append(psnr.value)
                    ys += [100 * v for v in (task.value, task.low, task.high) if math.isfinite(v)]
                    top = 100 * (task.high if math.isfinite(task.high) else task.value)
                    places[noise] = max(places.get(noise, (0.0, -math.inf)), (psnr.value, top), key=lambda place: place[1])
        _frame(axis, "x", xs)
        _frame(axis, "y", ys)
        if len(noises) > 1:  # once a level, above its highest method: all of them would hide each other
            for noise, place in places.items():
                axis.annotate(noise, place, xytext=(0, 3), textcoords="offset points", fontsize=7, ha="center")
        axis.set_xlabel("PSNR (dB)", fontsize=8)
        axis.set_ylabel(_short(measure).replace("\n", " "), fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(measures) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend([h[0] for h in handles], labels, loc="outside lower center", ncols=min(5, max(1, len(labels))), fontsize=8)
    return figure


def _reach(entry: Any, factor: float) -> list[list[float]] | None:
    if math.isnan(entry.low):
        return None
    return [[max(0.0, factor * (entry.value - entry.low))], [max(0.0, factor * (entry.high - entry.value))]]


def strip(summary: Summary, pictures: Pictures, image: str, noise: str, judge: str | None, crop: tuple[int, int, int] | None = None) -> Any | None:
    """One image: noisy, by each method, clean; under them a zoomed part, the judge's classes, and its errors.

    Errors are against the labels where there are any, else against what the judge sees in the clean image.

    Args:
        crop: (left, top, side) of the zoom; None = where the methods go wrong most.
    """
    clean = pictures.load(pictures.image(image, "clean"))
    methods = [(name, pictures.load(pictures.image(image, name, noise))) for name in summary.results.names]
    found = [(name, pixels) for name, pixels in methods if pixels is not None]
    if clean is None or not found:
        return None
    columns = [*found, ("clean", clean)]
    maps: list[Any] = []
    truth = None
    if judge is not None:
        seen = pictures.load_classes(pictures.classes(image, "clean", judge))
        maps = [pictures.load_classes(pictures.classes(image, name, judge, noise)) for name, _ in found] + [seen]
        truth = pictures.load_classes(pictures.classes(image, "labels"))
        against = "labels" if truth is not None else f"{judge} on clean"
        truth = truth if truth is not None else seen
    if truth is None or any(one is None for one in maps):
        maps, truth = [], None
    height, width = clean.shape[:2]
    left, top, side = crop or _where(_trouble(summary, found, maps, truth), height, width)
    rows = 4 if truth is not None else 2
    wide = 2.6
    figure = _pyplot()(wide * len(columns), rows * wide * height / width + 0.9)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for axis in axes.flatten():
        axis.set_xticks([])
        axis.set_yticks([])
    from matplotlib.patches import Patch, Rectangle

    for column, (name, pixels) in enumerate(columns):
        axes[0, column].imshow(pixels, interpolation="antialiased")
        axes[0, column].set_title(name, fontsize=10)
        axes[0, column].add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="white", linewidth=1.6))
        axes[0, column].add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="black", linewidth=0.6))
        axes[1, column].imshow(pixels[top : top + side, left : left + side], interpolation="nearest")
        if truth is not None:
            known = truth != IGNORE
            colours = class_colours(int(max(int(m.max()) for m in maps)) + 1)
            axes[2, column].imshow(colours[maps[column]], interpolation="nearest")
            wrong = (maps[column] != truth) & known
            shown = np.where(wrong[..., None], (0.1, 0.1, 0.1), (0.92, 0.92, 0.92))
            axes[3, column].imshow(np.where(known[..., None], shown, _VOID), interpolation="nearest")
            axes[3, column].set_xlabel(f"{100 * wrong.sum() / max(1, known.sum()):.1f} % wrong", fontsize=9)
    axes[0, 0].set_ylabel(f"{image}, {noise}", fontsize=8)
    axes[1, 0].set_ylabel("zoomed", fontsize=8)
    if truth is not None:
        axes[2, 0].set_ylabel(f"{judge} sees", fontsize=8)
        axes[3, 0].set_ylabel(f"errors (against\n{against})", fontsize=8)
        names = next(j["class_names"] for j in summary.results.judges if j["name"] == judge)
        present = sorted(set(np.unique(np.stack(maps))))
        handles = [Patch(facecolor=colours[k], edgecolor="black", linewidth=0.4, label=names[k]) for k in present]
        handles.append(Patch(facecolor="#1A1A1A", label="wrong"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(12, len(handles)), fontsize=8)
    return figure


def _trouble(summary: Summary, found: list[Any], maps: list[Any], truth: Any) -> Any:
    """How many methods err at each pixel, the noisy image left out unless it is alone; None without classes."""
    if truth is None:
        return None
    chosen = [m for (name, _), m in zip(found, maps, strict=False) if name != "noisy"] or maps[:1]
    return sum((m != truth) & (truth != IGNORE) for m in chosen)


def _where(wrong: Any, height: int, width: int) -> tuple[int, int, int]:
    """The square, a quarter of the short side and more, that holds most errors; the centre without any."""
    side = max(1, min(height, width) // 3)
    if wrong is None or not wrong.any():
        return (width - side) // 2, (height - side) // 2, side
    total = np.pad(wrong.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(left), int(top), side

