"""The figures of docs/make_awareness.py."""

from __future__ import annotations

import math

from awareness_record import COLOURS, Found, means, num


def frontier(found: Found):
    """Each contestant's weights as a line: PSNR against the control to the right, mIoU upwards; final means with intervals."""
    from segaware.evaluation.figures import _pyplot

    noises = found.noises(found.frames)
    figure = _pyplot()(9, 5.5 * (1 + bool(noises)))
    axes = figure.subplots(1 + bool(noises), 1, squeeze=False)[:, 0]
    runs = found.record["screen"]["runs"]
    control = next((r for r in runs if r["contestant"] == "fidelity" and "held_out" in r), None)
    lines: dict[str, tuple[list[tuple[float, float]], str]] = {}  # by contestant: points, and colour
    if control is not None:
        zero = means(control, "fidelity")

        def place(run: dict, name: str) -> tuple[float, float]:
            psnr, miou = means(run, name)
            return psnr - zero[0], 100 * (miou - zero[1])

        runs = sorted((r for r in runs if r["seed"] == control["seed"] and "held_out" in r), key=lambda r: r["factor"])
        for name in dict.fromkeys(r["contestant"] for r in runs):
            lines[name] = [place(r, name) for r in runs if r["contestant"] == name], COLOURS[found.group(name)]
        shares = sorted({f["contestant"] for f in control["held_out"] if f["contestant"].startswith("fidelity+")}, key=lambda n: float(n.partition("+")[2]))
        if shares:
            lines["control, noise given back"] = [(0.0, 0.0), *(place(control, n) for n in shares)], COLOURS["keep"]
    words = "orange: terms of the papers; blue: later ones; grey: controls; green: noise given back"
    axes[0].set_title(f"screen: held-out frames, all weights, one seed\n{words}", fontsize=9)
    for name, (points, colour) in lines.items():
        axes[0].plot(*zip(*points, strict=True), "o-", ms=4, lw=1, color=colour, alpha=0.4 if "@" in name else 0.9)
    named = {name: (max(points, key=lambda p: p[1]), colour) for name, (points, colour) in lines.items() if name != "fidelity"}
    side_labels(axes[0], named, -2 * found.record["budget"])
    if noises:
        named, highest = {}, 0.0
        for name in found.names(found.frames):
            gap, psnr = found.gap(noises[-1], name), found.row(found.frames, "psnr", noises[-1], name)
            against = (psnr or {}).get("against", {}).get("fidelity")
            if gap is None or not against:
                continue
            x, y, low, high = num(against["difference"]), *(100 * num(gap[k]) for k in ("gain", "gain_low", "gain_high"))
            if named.get(name.removesuffix("+keep"), ((), ""))[0] == (x, y):
                continue  # nothing was given back
            bars = None if math.isnan(low) else [[max(y - low, 0)], [max(high - y, 0)]]  # an interval need not hold its figure
            highest = max(highest, y if math.isnan(high) else high)
            colour = COLOURS["keep" if name.endswith("+keep") else found.group(name)]
            axes[1].errorbar([x], [y], yerr=bars, fmt="s" if name.endswith("+keep") else "o", ms=5, lw=1, color=colour)
            named[name] = (x, y), colour
        axes[1].set_title(f"final: reported frames, {noises[-1]}, all seeds", fontsize=9)
        beside = [named[name][0][0] for name in found.record.get("beside", ()) if name in named]  # may have more PSNR than the control
        side_labels(axes[1], named, -2 * found.record["budget"], highest, max([0.0, *beside]))
    for ax in axes:
        ax.axhline(0, color="black", lw=0.5)
        ax.axvline(0, color="black", lw=0.5)
        ax.axvline(-found.record["budget"], color="black", lw=0.5, ls=":")
        ax.set_xlabel("PSNR against the control, dB (dotted: the budget)")
        ax.set_ylabel("mIoU across the held-out judges, points against the control")
    return figure


def side_labels(ax, named: dict[str, tuple[tuple[float, float], str]], left: float, highest: float = 0.0, rightmost: float = 0.0) -> None:
    """Names on the right edge, tied to their points: the points that matter lie close together.

    The view ends at ``left``, right of ``rightmost``, a little below the control and above ``highest``; what lies beyond is
    listed in a corner.
    """
    if not named:
        return
    top = max(highest, *(y for (_, y), _ in named.values()))
    low, high, right = -0.6 * max(top, 0.5), top + 0.1 * max(top, 0.5), rightmost + 0.1 * -left
    ax.set_xlim(left, right)
    ax.set_ylim(low, high)
    inside = {name: value for name, value in named.items() if left <= value[0][0] <= right and value[0][1] >= low}
    gap, below = 0.036, 1.06
    for name, (point, colour) in sorted(inside.items(), key=lambda item: -item[1][0][1]):
        below = min(below - gap, (point[1] - low) / (high - low))
        ax.annotate(
            name, point, fontsize=7, color=colour, xytext=(1.02, below), textcoords="axes fraction", va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "lw": 0.4, "color": colour, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
    beyond = sorted(set(named) - set(inside), key=lambda name: -named[name][0][1])
    if beyond:
        words = ["out of view:", *(f"{name} ({x:+.2f} dB, {y:+.1f})" for name in beyond for x, y in [named[name][0]])]
        ax.text(0.01, 0.02, "\n".join(words), fontsize=7, transform=ax.transAxes, va="bottom")


def keep_curve(found: Found):
    """mIoU (held-out judges) and PSNR of the control by the share given back, a line a level."""
    from segaware.evaluation.figures import _pyplot

    runs = [r for phase in ("final", "screen") for r in found.record[phase]["runs"] if r["contestant"] == "fidelity" and "keep" in r]
    figure = _pyplot()(8, 3.6)
    left, right = figure.subplots(1, 2)
    if runs:
        figures = runs[0]["held_out"]
        for noise in dict.fromkeys(f["noise"] for f in figures if f["noise"] != "clean"):
            series: dict[float, dict[str, list[float]]] = {}
            for f in figures:
                base, _, share = f["contestant"].partition("+")
                if f["noise"] == noise and base == "fidelity" and f["measure"] != "miou:home":
                    series.setdefault(float(share or 0), {}).setdefault(f["measure"].partition(":")[0], []).append(num(f["value"]))
            shares = sorted(series)
            for ax, key, scale in ((left, "miou", 100), (right, "psnr", 1)):
                ax.plot([100 * s for s in shares], [scale * sum(series[s][key]) / len(series[s][key]) for s in shares], "o-", ms=4, label=noise)
    for ax, label in ((left, "mIoU, held-out judges, %"), (right, "PSNR, dB")):
        ax.set_xlabel("share of the noise given back, %")
        ax.set_ylabel(label)
    left.margins(y=0.2)
    if left.lines:
        left.legend(fontsize=7, ncols=4, loc="upper center", columnspacing=1, handlelength=1.5)  # the same colours on the right
    return figure


def gains(found: Found):
    """Gain over the control by level, a panel a judge and one across them: bars are intervals, dots the seeds."""
    from segaware.evaluation.figures import _pyplot

    names = [name for name in found.names(found.frames) if not name.endswith("+keep") and name not in ("fidelity", *found.record.get("beside", ()))]
    noises = found.noises(found.frames)
    judges = [None, *(judge for judge in found.frames["judges"] if judge != "home")]
    figure = _pyplot()(3.2 * len(judges), 3.8)
    panels = figure.subplots(1, len(judges), sharey=True, squeeze=False)[0]
    for ax, judge in zip(panels, judges, strict=True):
        for place, name in enumerate(names):
            colour, label = f"C{place}", name
            for x, noise in enumerate(noises):
                gap = found.gap(noise, name) or {}
                row = gap if judge is None else gap.get("by_judge", {}).get(judge, {})
                value, low, high = (100 * num(row.get(key)) for key in ("gain", "gain_low", "gain_high"))
                at = x + 0.16 * (place - (len(names) - 1) / 2)
                ax.errorbar([at], [value], [[max(value - low, 0)], [max(high - value, 0)]], fmt="_", ms=9, lw=1.2, color=colour, label=label)
                seeds = [100 * num(gain) for gain in gap.get("seed_gains", ())] if judge is None else of_seeds(found, name, judge, noise)
                ax.plot([at] * len(seeds), seeds, ".", ms=5, color=colour, alpha=0.6)
                label = None
        ax.axhline(0, color="black", lw=0.5)
        ax.set_xticks(range(len(noises)), [noise.removeprefix("sigma ") for noise in noises])
        ax.set_xlabel("sigma")
        ax.set_title(judge or "across the judges", fontsize=9)
    panels[0].set_ylabel("mIoU against the control, points")
    panels[0].legend(fontsize=8)
    return figure


def of_seeds(found: Found, name: str, judge: str, noise: str) -> list[float]:
    """Points over the control of the same seed, of the seeds that both have."""
    rows = [found.row(found.frames, f"miou:{judge}", noise, who) or {} for who in (name, "fidelity")]
    own, control = (dict(zip(row.get("seed_names", range(len(row.get("seeds", ())))), row.get("seeds", ()), strict=True)) for row in rows)
    if any("seed_names" not in row for row in rows) and len(own) != len(control):
        return []  # an older record: whose they are is not known
    return [100 * (num(own[seed]) - num(control[seed])) for seed in own if seed in control]
