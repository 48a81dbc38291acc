"""From the runs' folders to one JSON: what was chosen, what was found, and how sure it is.

Needs no model and no image; works on whatever is finished.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import NormalDist

import numpy as np

from segaware.errors import EvaluationError
from segaware.evaluation.report import read_report
from segaware.evaluation.results import Measure, Results, number
from segaware.evaluation.significance import compare, holm, interval, replicates, resample, statistic, student

from .entrants import ENTRANTS, TWIN, entrant, group
from .judging import same_class
from .setting import REPORTED, read_json

BUDGET = 0.10  # dB that awareness may cost
SHOWN = ("psnr", "ssim", "niqe", "miou", "consistency", "changed")

#: Of the environment of a report that was taken over: its judges were compared then, and not by their keys.
JUDGES_COMPARED = "judges compared"


def runs_of(out: Path, phase: str) -> list[dict]:
    """The results of the finished trainings (of the denoisers beside them: those that are measured), with their folder."""
    found = [(read_json(file), file.parent.name) for file in sorted((out / phase).glob("*/result.json"))]
    return [{**result, "folder": folder} for result, folder in found if result.get("done", True)]


def mean_of(figures: Iterable[dict], contestant: str, measure: str) -> float:
    """Mean over judges and levels; NaN where nothing was measured."""
    values = [
        f["value"] for f in figures
        if f["contestant"] == contestant and f["noise"] != "clean" and f["measure"].startswith(measure) and f["measure"] != "miou:home"
    ]  # fmt: skip
    return float(np.mean(values)) if values else math.nan


def score(run: dict, control: dict | None) -> dict:
    """What is chosen by: gain of mIoU over the held-out judges, and cost in dB, against the control."""
    own = run.get("held_out", [])
    result = {"miou": mean_of(own, run["contestant"], "miou:"), "psnr": mean_of(own, run["contestant"], "psnr")}
    if control is not None:
        other = control.get("held_out", [])
        result["gain"] = result["miou"] - mean_of(other, control["contestant"], "miou:")
        frames = mean_of(other, control["contestant"], "psnr") - result["psnr"]
        lost = [psnr - run["photographs_psnr"][level] for level, psnr in control.get("photographs_psnr", {}).items()]
        result |= {"frames_cost": frames, "photographs_cost": float(np.mean(lost)) if lost else math.nan}
        result["cost"] = max(frames, float(np.mean(lost))) if lost else frames  # neither kind of picture may pay
    return result


def choose(runs: list[dict], budget: float = BUDGET) -> dict[str, dict]:
    """The weight of each contestant: most mIoU within the budget of dB; where none is, the least cost.

    Each seed is scored against the control of that seed (those without one count only where there is none at all);
    a weight has the mean over its seeds. One that lacks a seed (stopped, or not there yet) stands behind those that do not.
    """
    controls = {r["seed"]: r for r in runs if r["contestant"] == "fidelity" and "held_out" in r}
    scores: dict[tuple[str, float], list[dict]] = {}
    for run in runs:
        if "held_out" in run and (run["seed"] in controls or not controls):
            scores.setdefault((run["contestant"], run["factor"]), []).append(score(run, controls.get(run["seed"])))
    chosen: dict[str, dict] = {}
    for (name, factor), seeds in scores.items():
        found = {"factor": factor, "seeds": len(seeds), **{key: float(np.mean([s[key] for s in seeds])) for key in seeds[0]}}
        if name not in chosen or (found["seeds"], *_rank(found, budget)) > (chosen[name]["seeds"], *_rank(chosen[name], budget)):
            chosen[name] = found
    return chosen


def _rank(found: dict, budget: float) -> tuple:
    within = found.get("cost", 0.0) <= budget
    return (within, found.get("gain", found["miou"]) if within else -found["cost"])


def one_factor(folder: Path, runs: list[dict]) -> None:
    """Seeds of a contestant are pooled: two weights of one are refused."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        found.setdefault(run["contestant"], {})[f"{run['factor']:.3g}"] = run["folder"]
    for name, folders in found.items():
        if len(folders) > 1:
            raise EvaluationError(
                f"{folder}: {name} with two weights, {' and '.join(folders.values())}; its seeds would be mixed:"
                " move those of one weight away, or take another --out"
            )


def alike(folder: Path, runs: list[dict], **planned) -> None:
    """Runs of a phase are compared with each other: other steps, another precision or kind of device are refused."""
    for key, repair in (("steps", "give the same --steps"), ("precision", "give the same --precision, not auto"), ("device", "go on with the same")):
        found: dict = {planned[key]: "this call"} if key in planned else {}
        for run in runs:
            if key in run:  # older ones do not tell all of it
                found.setdefault(run[key], run["folder"])
        if len(found) > 1:
            told = ", ".join(f"{value} ({where})" for value, where in found.items())
            raise EvaluationError(f"{folder}: trainings of different {key} would be compared: {told}; {repair}, move some away, or take another --out")


def carried(chosen: dict[str, dict], count: int, budget: float = BUDGET) -> list[str]:
    """Who goes to the final: the control, the generic control, the best without labels, and the best with labels."""
    ranked = sorted(chosen, key=lambda name: _rank(chosen[name], budget), reverse=True)
    own = [n for n in ranked if group(n) != "control" and n != "released-detached"]
    free = [n for n in own if entrant(n).labels != "true"][:count]
    taught = [n for n in own if entrant(n).labels == "true"][:1]
    return [n for n in ("fidelity", "perceptual-imagenet") if n in chosen] + free + taught


def best_keep(figures: list[dict], name: str, control: list[dict] | None = None, budget: float = BUDGET) -> dict[str, float]:
    """{noise: share} of most mIoU over the held-out judges, within the budget of dB; 0 where none is better.

    The budget is one, for awareness and give-back together: it is measured from the figures of the control, where there
    are any. A contestant that is itself beyond it gives nothing back.
    """
    base, against = (control, "fidelity") if control else (figures, name)
    found = {}
    for noise in sorted({f["noise"] for f in figures} - {"clean"}):
        here = [f for f in figures if f["noise"] == noise]
        top = mean_of([f for f in base if f["noise"] == noise], against, "psnr")
        options = {0.0: mean_of(here, name, "miou:")}
        for other in {f["contestant"] for f in here if f["contestant"].startswith(f"{name}+")}:
            if top - mean_of(here, other, "psnr") <= budget:
                options[float(other.rpartition("+")[2])] = mean_of(here, other, "miou:")
        found[noise] = max(sorted(options), key=lambda share: options[share])
    return found


# the final


class Panel:
    """Per image, over the seeds of each contestant: means of values, sums of confusion matrices."""

    def __init__(self, folders: dict[str, list[Path]], which: str, beside: Iterable[str] = ()) -> None:
        self.beside = tuple(beside)  # not trained here: the same for every seed, nothing given back
        self.reports = {name: [read_report(f / f"test-{which}") for f in found] for name, found in folders.items()}
        self.folders, self.which = folders, which
        first = next(iter(self.reports.values()))[0]
        for name, found in self.reports.items():
            for folder, report in zip(folders[name], found, strict=True):
                _same_look(folder / f"test-{which}", report, first)
        self.images, self.noises, self.block = first.images, first.noises, first.block
        self.measures: list[Measure] = [m for m in first.measures if m.key.partition(":")[0] in SHOWN]
        self.weights = resample(len(self.images), block=self.block)
        self.names = [n for name in self.reports for n in (name, f"{name}+keep") if name not in self.beside or n == name]
        if any(same_class(f / f"test-{which}") for found in folders.values() for f in found):
            self.measures.append(Measure("same-class", "first class of SqueezeNet kept (%)", percent=True))

    def seeds(self, name: str, measure: Measure, noise: str) -> dict[str, np.ndarray]:
        """By seed, one array of images; empty where it was not measured. What was not trained here stands beside each seed."""
        found = self._measured(name, measure, noise)
        if name not in self.beside:
            return found
        trained = [f for other, folders in self.folders.items() if other not in self.beside for f in folders]
        return {f.name.rpartition("-s")[2]: data for f in trained for data in found.values()}

    def _measured(self, name: str, measure: Measure, noise: str) -> dict[str, np.ndarray]:
        base = name.removesuffix("+keep")
        if measure.key == "same-class":
            looks = {f.name: same_class(f / f"test-{self.which}").get(noise) for f in self.folders[base]} if base == name else {}
            return {
                f.rpartition("-s")[2]: np.array([float(look.get(i, math.nan)) for i in self.images]) for f, look in looks.items() if look
            }
        found = {}
        for folder, results in zip(self.folders[base], self.reports[base], strict=True):
            data = results.data(measure, results.names.index(name), self.noises.index(noise))
            if not np.isnan(data).all():
                found[folder.name.rpartition("-s")[2]] = data
        return found

    def same(self, name: str, measure: Measure, noise: str) -> str:
        """Whose figures these are: nothing given back, ``NAME+keep`` is ``NAME``, and a test of one is that of the other."""
        base = name.removesuffix("+keep")
        if base == name:
            return name
        own, other = self.seeds(name, measure, noise), self.seeds(base, measure, noise)
        copied = own.keys() == other.keys() and all(np.array_equal(own[seed], other[seed], equal_nan=True) for seed in own)
        return base if copied else name

    def clean(self, judge: str) -> np.ndarray | None:
        """Confusion of the judge on the clean images themselves."""
        results: Results = next(iter(self.reports.values()))[0]
        found = [m for m in self.measures if m.key == f"miou:{judge}"]
        if not found or "clean" not in self.noises:
            return None
        data = results.data(found[0], results.names.index("noisy"), self.noises.index("clean"))
        return None if np.isnan(data).all() else data


def _same_look(folder: Path, report: Results, first: Results) -> None:
    """What is pooled and paired was measured on the same images by the same judges, whatever their names.

    A judge's key changes with the version of Python and of the libraries; of what was packed elsewhere the setting, which
    was compared when it was taken over, tells what the judges hold, or that they are those that ship.

    Raises:
        EvaluationError: it was not.
    """
    elsewhere = any(one.environment.get(JUDGES_COMPARED) for one in (report, first))
    keys = [[(judge["name"], "" if elsewhere else judge["key"]) for judge in one.judges] for one in (report, first)]
    for what, own, other in (("images", report.images, first.images), ("judges", *keys)):
        if own != other:
            raise EvaluationError(f"{folder}: measured with other {what} than the control's; move {folder.parent} away and run again, or take another --out")


def _pool(seeds: dict[str, np.ndarray], which: Iterable[str], kind: str) -> np.ndarray:
    data = [seeds[seed] for seed in which]
    return np.mean(data, 0) if kind == "mean" else np.sum(data, 0)


def _common(panel: Panel, name: str, other: str, measure: Measure, noise: str) -> tuple[str, ...]:
    """The seeds that both have: what only one of them has is no pair."""
    return tuple(sorted(panel.seeds(name, measure, noise).keys() & panel.seeds(other, measure, noise).keys()))


def _figure(data: np.ndarray, kind: str) -> float:
    return float(statistic(data.mean(0) if kind == "mean" else data.sum(0), kind))


def table(panel: Panel, level: float = 0.95) -> list[dict]:
    """Every figure with its interval, each seed's, and the difference from the control, alone and with give-back.

    Figures are of all seeds, differences of those that both have (``paired_seeds`` of them).
    """
    rows = []
    units = -(-len(panel.images) // panel.block)
    for measure in panel.measures:
        for noise in panel.noises:
            family: dict[frozenset, list[dict]] = {}  # by pair: one test, wherever it is told
            for name in panel.names:
                seeds = panel.seeds(name, measure, noise)
                if not seeds:
                    continue
                data = _pool(seeds, seeds, measure.kind)
                values = replicates(data, panel.weights, measure.kind)
                value = _figure(data, measure.kind)
                low, high = interval(value, values, level=level, units=units) if np.isfinite(data).all() else (math.nan, math.nan)
                row = {"measure": measure.key, "noise": noise, "contestant": name, "value": value, "low": low, "high": high,
                       "better": measure.better, "percent": measure.percent, "digits": measure.digits, "title": measure.title,
                       "seeds": [_figure(seed, measure.kind) for seed in seeds.values()], "seed_names": list(seeds), "against": {}}  # fmt: skip
                for other in ("fidelity", "fidelity+keep"):
                    bases = panel.seeds(other, measure, noise) if other in panel.names and other != name else {}
                    both = [seed for seed in seeds if seed in bases]
                    if not both:
                        continue
                    pair = (_pool(side, both, measure.kind) for side in (seeds, bases))
                    gap = compare(*pair, panel.weights, kind=measure.kind, level=level, block=panel.block)
                    row["against"][other] = {"difference": gap.difference, "low": gap.low, "high": gap.high, "p": gap.p, "n": gap.n,
                                             "paired_seeds": len(both)}  # fmt: skip
                    pair = frozenset(panel.same(n, measure, noise) for n in (name, other))
                    family.setdefault(pair, []).append(row["against"][other])
                rows.append(row)
            _correct([told for pair, told in family.items() if len(pair) == 2], "p", "p_holm")
            _correct([told for pair, told in family.items() if len(pair) == 1], "p", "p_holm")  # nothing given back: no test
    return rows


def _correct(tests: list[list[dict]], key: str, into: str) -> None:
    """Holm's correction for so many tests; each may be told in several places."""
    for told, p in zip(tests, holm([told[0][key] for told in tests]), strict=True):
        for place in told:
            place[into] = p


def gaps(panel: Panel, level: float = 0.95) -> list[dict]:
    """How much of the control's gap to clean input is closed, by judge and across the held-out ones; and gain retention.

    Everything is of the seeds that both sides have, ``paired_seeds`` of them. ``over:NAME``: above those beside, and above
    who was trained with labels.
    """
    rivals = (*panel.beside, *(n for n in panel.names if n in ENTRANTS and ENTRANTS[n].labels == "true"))
    measures = {m.judge: m for m in panel.measures if m.key.startswith("miou:")}
    units = -(-len(panel.images) // panel.block)
    rows: list[dict] = []
    if "fidelity" not in panel.names:
        return rows
    sampled: dict[tuple, tuple] = {}

    def figure(name, judge, noise, seeds):
        """(figure, its bootstrap values) over these seeds."""
        key, measure = (name, judge, noise, seeds), measures[judge]
        if key not in sampled:
            data = panel.clean(judge) if name == "clean" else _pool(panel.seeds(name, measure, noise), seeds, measure.kind)
            sampled[key] = (_figure(data, measure.kind), replicates(data, panel.weights, measure.kind))
        return sampled[key]

    for noise in panel.noises:
        if noise == "clean":
            continue
        for name in panel.names:
            if name == "fidelity":
                continue
            gains_of, gaps_of = {}, {}
            overs_of: dict[str, dict[str, tuple]] = {other: {} for other in ("fidelity+keep", *rivals) if other in panel.names and other != name}
            for judge, measure in measures.items():
                seeds = _common(panel, name, "fidelity", measure, noise)
                if panel.clean(judge) is None or not seeds:
                    continue
                own, control = (figure(n, judge, noise, seeds) for n in (name, "fidelity"))
                gains_of[judge] = _minus(own, control)
                gaps_of[judge] = _minus(figure("clean", judge, "clean", ()), control)
                for other, overs in overs_of.items():
                    seeds = _common(panel, name, other, measure, noise)
                    if seeds:
                        overs[judge] = _minus(*(figure(n, judge, noise, seeds) for n in (name, other)))
            mine = [j for j in gains_of if j != "home"]
            if not mine:
                continue
            across, gap = (tuple(np.mean([of[j][k] for j in mine], 0) for k in (0, 1)) for of in (gains_of, gaps_of))
            row = {"noise": noise, "contestant": name, "judges": mine, **_with("gain", across, units, level), **_with("gap", gap, units, level)}
            row |= {"p": _p(across, units, level), "seed_gains": _of_seeds(panel, name, noise, mine)}
            row["paired_seeds"] = len(row["seed_gains"])
            for other, overs in overs_of.items():
                if all(j in overs for j in mine):
                    over = tuple(np.mean([overs[j][k] for j in mine], 0) for k in (0, 1))
                    key = "over_keep" if other == "fidelity+keep" else f"over:{other}"
                    row |= _with(key, over, units, level) | {f"{key}_p": _p(over, units, level)}
            if row["gap_low"] > 0:
                row |= _with("closed", _ratio(across, gap), units, level)
            home = gains_of.get("home")
            if home is not None:
                row |= _with("home_gain", home, units, level)
                if row["home_gain_low"] > 0:  # a ratio to what may be nothing says nothing
                    row |= _with("retention", _ratio(across, home), units, level)
            row["by_judge"] = {j: {**_with("gain", gain, units, level), "gap": number(gaps_of[j][0])} for j, gain in gains_of.items()}
            rows.append(row)
        here = [row for row in rows if row["noise"] == noise]
        one = next(iter(measures.values()))
        others = {"p": "fidelity", "over_keep_p": "fidelity+keep", **{f"over:{other}_p": other for other in rivals}}
        for key, other in others.items():
            if other not in panel.names:
                continue
            family: dict[str, list[dict]] = {}
            for row in here:
                if key in row:
                    family.setdefault(panel.same(row["contestant"], one, noise), []).append(row)
            alone = family.pop(panel.same(other, one, noise), None)  # nothing given back: against itself
            _correct(list(family.values()), key, f"{key}_holm")
            _correct([alone] if alone else [], key, f"{key}_holm")
    return rows


def _of_seeds(panel: Panel, name: str, noise: str, judges: list[str]) -> list[float]:
    """The gain across judges of each seed, against the control of that seed."""
    found: list[list[float]] = []
    for judge in judges:
        measure = next(m for m in panel.measures if m.key == f"miou:{judge}")
        own, control = (panel.seeds(n, measure, noise) for n in (name, "fidelity"))
        found.append([_figure(own[s], measure.kind) - _figure(control[s], measure.kind) for s in own if s in control])
    return [float(np.mean(gains)) for gains in zip(*found, strict=True)]


def _p(pair, units: int, level: float) -> float:
    """Two-sided, from the bootstrap, stretched for few units as the intervals are."""
    values = pair[1][np.isfinite(pair[1])]
    if units < 2 or not len(values):
        return math.nan
    stretch = student(level, units - 1) / NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(units / (units - 1))
    values = pair[0] + stretch * (values - pair[0])
    return min(1.0, 2 * (float(min((values <= 0).sum(), (values >= 0).sum())) + 1) / (len(values) + 1))


def _minus(first, second):
    return first[0] - second[0], first[1] - second[1]


def _ratio(top, bottom):
    with np.errstate(divide="ignore", invalid="ignore"):
        return top[0] / bottom[0], np.where(bottom[1] > 0, top[1] / bottom[1], np.nan)


def _with(name: str, pair, units: int, level: float) -> dict:
    low, high = interval(float(pair[0]), pair[1], level=level, units=units)
    return {name: float(pair[0]), f"{name}_low": low, f"{name}_high": high}


def plain(value, digits: int = 17):
    """JSON has neither NaN nor infinity. ``digits``: of a float, from the first that is not zero; 17 are all."""
    if isinstance(value, dict):
        return {str(k): plain(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, digits) for v in value]
    return number(float(f"{value:.{digits}g}")) if isinstance(value, (float, np.floating)) else value


def collect(out: Path, record: dict) -> dict:
    """All there is, JSON-able.

    Raises:
        EvaluationError: a contestant of the final with two weights; a phase with trainings of different steps or precision.
    """
    result: dict = {"schema": 1, "setting": record, "budget": BUDGET}
    result["contestants"] = {n: {"group": f.group, "what": f.what, "labels": f.labels} for n, f in ENTRANTS.items()}
    for phase in ("screen", "final"):
        runs = runs_of(out, phase)
        alike(out / phase, runs)
        result[phase] = {"runs": runs, "chosen": choose(runs)}
    one_factor(out / "final", result["final"]["runs"])
    files = [*out.glob("skipped.json"), *sorted((out / "skipped").glob("*.json"))]  # older folders have one for all
    result["skipped"] = {name: reason for file in files for name, reason in json.loads(file.read_text(encoding="utf-8")).items()}
    others = runs_of(out, "beside")
    result["reported"], result["gaps"], result["drive_gaps"], result["beside"] = {}, [], [], {r["contestant"]: r["kind"] for r in others}
    for which in REPORTED:
        folders: dict[str, list[Path]] = {}
        for run in result["final"]["runs"]:
            folder = out / "final" / run["folder"]
            if (folder / f"test-{which}" / "report.json").is_file():
                folders.setdefault(run["contestant"], []).append(folder)
        if folders:
            own = {r["contestant"]: out / "beside" / r["folder"] for r in others}
            folders |= {name: [folder] for name, folder in own.items() if (folder / f"test-{which}" / "report.json").is_file()}
            folders = {name: folders[name] for name in sorted(folders, key=lambda n: n != "fidelity")}  # the control first
            panel = Panel(folders, which, [name for name in own if name in folders])
            first = panel.reports[next(iter(panel.reports))][0]
            result["reported"][which] = {
                "source": first.source, "images": len(panel.images), "block": panel.block, "rows": table(panel),
                "judges": [j["name"] for j in first.judges], "environment": first.environment,
            }  # fmt: skip
            labelled = {"frames": "gaps", "drive": "drive_gaps"}
            if which in labelled:
                result[labelled[which]] = gaps(panel)
    users = out / "segmenters.json"
    result["instead"] = json.loads(users.read_text(encoding="utf-8")) if users.is_file() else {}
    pooled = ("reported", "gaps", "drive_gaps")  # of the digits beyond half of the file is made, and nothing is read in them
    return {key: plain(value, 7 if key in pooled else 17) for key, value in result.items()}


__all__ = ["BUDGET", "TWIN", "Panel", "alike", "best_keep", "carried", "choose", "collect", "gaps", "mean_of", "one_factor", "plain", "runs_of", "score", "table"]
