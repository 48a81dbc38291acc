"""The sections of docs/make_awareness.py on the final: what is reported, by level, judge and image set."""

from __future__ import annotations

from pathlib import Path

from awareness_record import Found, bracket, grid, num, shown, text

WORTH_WINNING = 0.02  # of mIoU


def final(found: Found) -> list[str]:
    if not found.frames:
        return []
    source = found.frames
    out = [
        "## The final: reported data", "",
        f"{source['images']} frames of {source['source']['name']}{' (' + source['source']['note'] + ')' if source['source'].get('note') else ''};"
        f" brackets are 95 % bootstrap intervals over {'blocks of ' + str(source['block']) + ' neighbouring frames' if source['block'] > 1 else 'images'},"
        " paired with the control over the seeds that both have. They say nothing of other streets, nor of other trainings: how far those"
        " differ is what the figures of each seed are for. Weights and shares were chosen by the"
        " same held-out judges that report here, on other frames: to these judges the figures are kinder than to strangers. `+keep`: the share of the noise that was best on held-out"
        " data is given back, level by level; a level that no share was chosen at takes that of the nearest. p is corrected for the number of contestants (Holm). Retention: the gain under the held-out judges"
        " over that under the training segmenter, where the latter is one.", "",
        *fewer_seeds(found),
        *(["Bars: intervals; dots: seeds.", "", "![Gain by judge and level](images/awareness-gains.png)", ""] if several_seeds(found) else []),
    ]  # fmt: skip
    for noise in found.noises(source):
        judges = [j for j in source["judges"] if j != "home"]
        rows = [["contestant", "PSNR, dB", "against the control", "mIoU across judges, gain in points", "p", "each seed", "of the gap, %", "retention", *judges, "training segmenter"]]
        for name in found.names(source):
            psnr, gap = found.row(source, "psnr", noise, name), found.gap(noise, name)
            value = interval_cell((psnr or {}).get("against", {}).get("fidelity"), 3, 1)
            cells = [text((found.row(source, f"miou:{j}", noise, name) or {}).get("value"), 1, 100) for j in (*judges, "home")]
            gap = gap or {}
            one = name in found.record.get("beside", ())  # one training, whatever it is compared with
            seeds = "" if one else ", ".join(text(g, 1, 100, True) for g in gap.get("seed_gains", ()))
            rows.append([f"`{name}`", text((psnr or {}).get("value")), value, bracket(gap, "gain"), text(gap.get("p_holm"), 3), seeds or "–", bracket(gap, "closed", 0, 100, False),
                         bracket(gap, "retention", 2, 1, False), *cells])  # fmt: skip
        out += [f"### {noise}", "", *grid(rows)]
    return [*out, *won_back(found), *beyond(found), *chosen_on(found)]


def several_seeds(found: Found) -> bool:
    """Whether there are some to show."""
    return any(len(gap.get("seed_gains", ())) > 1 for gap in found.record.get("gaps", ()))


def fewer_seeds(found: Found) -> list[str]:
    """Who has lost a seed, or whose control has."""
    total = len({r["seed"] for r in found.record["final"]["runs"]})
    counts = {name: len(gap["seed_gains"]) for noise in found.noises(found.frames)[:1] for name in found.names(found.frames) if (gap := found.gap(noise, name))}
    lines = [f"`{name}` {count}" for name, count in counts.items() if count < total]
    return [f"Compared over fewer than the {total} seeds (stopped, or not there yet): {', '.join(lines)}.", ""] if lines else []


def won_back(found: Found) -> list[str]:
    """By judge, the share of what the control loses against clean frames."""
    levels = found.noises(found.frames)
    rows = [["contestant", "judge", *levels]]
    for name in (n for n in found.names(found.frames) if n == "fidelity+keep" or n != "fidelity" and not n.endswith("+keep")):
        gaps = [(found.gap(noise, name) or {}).get("by_judge", {}) for noise in levels]
        rows += [[f"`{name}`", shown(judge), *(share_won(gap.get(judge)) for gap in gaps)] for judge in found.frames["judges"]]
    if all(cell == "–" for row in rows[1:] for cell in row[2:]):
        return []
    words = (
        f"% of the points of mIoU that the control is behind clean frames, where these are more than {100 * WORTH_WINNING:g}; brackets are"
        " the interval of the gain, the loss taken as it was found."
    )
    return ["### Of what is lost, by judge", "", words, "", *grid(rows)]


def share_won(gap: dict | None) -> str:
    if not gap or not num(gap["gap"]) > WORTH_WINNING:
        return "–"
    scale = 100 / num(gap["gap"])
    return f"{bracket(gap, 'gain', 0, scale, False)} of {text(gap['gap'], 1, 100)}"


def beyond(found: Found) -> list[str]:
    """Is it more than retained texture? Differences from the control with give-back."""
    rows = [["contestant", "judge", *found.noises(found.frames)]]
    for name in found.names(found.frames):
        if name not in ("fidelity", "fidelity+keep"):
            gaps = [found.gap(noise, name) or {} for noise in found.noises(found.frames)]
            rows.append([f"`{name}`", "**across**", *map(beyond_keep, gaps)])
    rows += beyond_by_judge(found, found.frames, "miou")
    return [*theirs(found), "### More than retained texture?", "", "mIoU in points against the control with its best give-back; p after Holm's correction: across the judges over the rows of a column, by judge over all that is tested against the control, with and without noise given back.", "", *grid(rows)]


def beyond_by_judge(found: Found, source: dict, measure: str) -> list[list[str]]:
    """Rows of a table: each contestant by each judge, less the control with give-back."""
    rows = []
    for name in found.names(source):
        if name in ("fidelity", "fidelity+keep", "noisy"):
            continue
        for judge in source["judges"]:
            gaps = [(found.row(source, f"{measure}:{judge}", noise, name) or {}).get("against", {}).get("fidelity+keep") for noise in found.noises(source)]
            rows.append([f"`{name}`", shown(judge), *map(beyond_cell, gaps)])
    return rows


def beyond_cell(gap: dict | None) -> str:
    if not gap:
        return "–"
    return f"{interval_cell(gap)}, p {text(gap['p_holm'], 3)}"


def beyond_keep(gap: dict) -> str:
    """The gain over the control with its best give-back, and its corrected p."""
    return bracket(gap, "over_keep") + (f", p {text(gap['over_keep_p_holm'], 3)}" if "over_keep_p_holm" in gap else "")


def theirs(found: Found) -> list[str]:
    """Differences from the denoisers that were not trained here, and from those that were told labels."""
    taught = {name: "Trained here with true labels" for name in found.names(found.frames) if found.labels(name) and not name.endswith("+keep")}
    lines = []
    for other, kind in ({name: f"{kind}, not trained here" for name, kind in found.record.get("beside", {}).items()} | taught).items():
        rows = [["contestant", *found.noises(found.frames)]]
        for name in found.names(found.frames):
            gaps = [found.gap(noise, name) or {} for noise in found.noises(found.frames)]
            if name != other and any(f"over:{other}" in gap for gap in gaps):
                rows.append([f"`{name}`", *(bracket(gap, f"over:{other}") + f", p {text(gap.get(f'over:{other}_p_holm'), 3)}" for gap in gaps)])
        if len(rows) > 1:
            lines += [f"### Beside `{other}`", "", f"{kind}. mIoU across judges, points above it; p after Holm's correction over the rows of a column, so that it depends on who stands in the table.", "", *grid(rows)]
    return lines


def chosen_on(found: Found) -> list[str]:
    """The same trainings on the frames that weights and shares were chosen on: another street."""
    if not found.drive:
        return []
    levels = found.noises(found.drive)
    rows = [["contestant", "judge", *levels]]
    for name in (n for n in found.names(found.drive) if n not in ("fidelity", "noisy") and (n == "fidelity+keep" or not n.endswith("+keep"))):
        gaps = [found.gap(noise, name, "drive_gaps") or {} for noise in levels]
        rows.append([f"`{name}`", "**across**", *(both(bracket(gap, "gain"), beyond_keep(gap)) for gap in gaps)])
        for judge in found.drive["judges"]:
            against = [(found.row(found.drive, f"miou:{judge}", noise, name) or {}).get("against", {}) for noise in levels]
            rows.append([f"`{name}`", shown(judge), *(both(*map(interval_cell, map(one.get, ("fidelity", "fidelity+keep")))) for one in against)])
    return [
        "### On the street that was chosen on", "",
        f"The same trainings on held-out frames of another drive, {found.drive['images']} of them, intervals as above (wide where a class is on few"
        " frames, and comes and goes with them): mIoU in points against the control, and in parentheses against the control with its best give-back. Weights and shares were chosen on these very frames, which flatters both; what holds on this street"
        " and on that above is more than one clip's.", "", *grid(rows),
    ]  # fmt: skip


def both(plain: str, beyond: str) -> str:
    """The one, and the other in parentheses where there is one."""
    return plain if beyond == "–" else f"{plain} ({beyond})"


def interval_cell(gap: dict | None, digits: int = 1, scale: float = 100.0) -> str:
    """A difference with its interval, by default in points."""
    if not gap:
        return "–"
    difference, low, high = (text(gap[key], digits, scale, True) for key in ("difference", "low", "high"))
    return f"{difference} [{low}, {high}]"


def photographs(found: Found) -> list[str]:
    if not found.photographs:
        return []
    source = found.photographs
    out = ["## Photographs", "", f"{source['images']} images of {source['source']['name']}; against the control in brackets: difference and its interval.", ""]
    keys = list(dict.fromkeys((r["measure"], r["title"], r["digits"], r["percent"]) for r in source["rows"] if not r["measure"].startswith("changed")))
    for noise in found.noises(source):
        rows = [["contestant", *(title.replace(" by home", f" by {shown('home')}") for _, title, _, _ in keys)]]
        for name in found.names(source):
            cells = []
            for key, _, digits, percent in keys:
                row, scale = found.row(source, key, noise, name), 100 if percent else 1
                gap = (row or {}).get("against", {}).get("fidelity")
                cells.append("–" if row is None else both(text(row["value"], digits, scale), interval_cell(gap, digits, scale)))
            rows.append([f"`{name}`", *cells])
        out += [f"### {noise}", "", *grid(rows)]
    rows = [["contestant", "judge", *found.noises(source)], *beyond_by_judge(found, source, "consistency")]
    words = "Consistency in points against the control with the give-back that was best on held-out street frames; p after Holm's correction."
    return [*out, "### More than retained texture, on photographs?", "", words, "", *grid(rows)]


def harm(found: Found) -> list[str]:
    rows = [["contestant", "PSNR of clean input, dB", *(f"pixels whose class changes, %, {shown(j)}" for j in (found.frames or {}).get("judges", ()))]]
    for name in found.names(found.frames):
        psnr = found.row(found.frames, "psnr", "clean", name)
        if psnr is not None and not name.endswith("+keep"):  # to clean input nothing is given back here
            rows.append([f"`{name}`", text(psnr["value"]), *(text((found.row(found.frames, f"changed:{j}", "clean", name) or {}).get("value"), 2, 100) for j in found.frames["judges"])])  # fmt: skip
    return ["## Do no harm", "", *grid(rows)] if len(rows) > 1 else []


def again(title: str, found: Found, setting_of: dict | None = None) -> list[str]:
    """The final of another comparison, short: is what was found here found there? ``setting_of``: of the page's own."""
    source, setting = found.frames, found.record["setting"]
    if not source:
        return []
    steps = sorted({run["steps"] for run in found.record["final"]["runs"]})
    seeds = sorted({run["seed"] for run in found.record["final"]["runs"]})
    judges = [judge for judge in source["judges"] if judge != "home"]
    rows = [["level", "contestant", "PSNR, dB", "mIoU across judges, gain in points", "of the gap, %", "over given-back noise", *judges, "training segmenter"]]
    for noise in found.noises(source):
        for name in (n for n in found.names(source) if n == "fidelity+keep" or not n.endswith("+keep")):
            gap = found.gap(noise, name) or {}
            cells = [text((found.row(source, f"miou:{j}", noise, name) or {}).get("value"), 1, 100) for j in (*judges, "home")]
            rows.append([noise, f"`{name}`", text((found.row(source, "psnr", noise, name) or {}).get("value")), bracket(gap, "gain"),
                         bracket(gap, "closed", 0, 100, False), beyond_keep(gap), *cells])  # fmt: skip
    start = Path(str(setting["start"]))
    told = ("start", "start_weights", "learning_rate", "force")
    here = setting_of or {}
    other = [f"{key.replace('_', ' ')} {plain_value(setting[key])} (above {plain_value(here[key])})" for key in here if key in setting and key not in told and setting[key] != here[key]]
    return [
        f"## Again: {title}", "",
        f"Start: `{start.parent.name if start.name == 'model' else start.name}`; {', '.join(map(str, steps))} steps, rate {setting['learning_rate']:g};"
        f" seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {', '.join(other) + '; ' if other else ''}else as above."
        + (" **Some of these judges took part in training** (`--force`): what they say proves nothing." if setting.get("force") and not here.get("force") else ""),
        "", *grid(rows),
    ]  # fmt: skip


def plain_value(value) -> str:
    """As people read it; of a path its name."""
    if isinstance(value, list):
        return ", ".join(map(plain_value, value))
    return f"{value:g}" if isinstance(value, float) else Path(value).name if isinstance(value, str) else str(value)
