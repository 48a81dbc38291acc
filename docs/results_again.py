"""Lay the figures of one denoiser that was trained on over those that docs/make_results.py keeps.

The kept figures hold no images, so what is measured again is compared with whom it was measured beside,
and with nobody else: its other pairs are dropped, and Holm's correction is made anew over those that are left.
"""

from __future__ import annotations

import math

from awareness_record import num

from segaware.evaluation.significance import compare, holm, resample

#: Of a figure of the same network, measured on another machine.
SAME = {"rel_tol": 2e-4, "abs_tol": 2e-4}


def lay_over(kept: dict, fresh: dict, results, again: list[str]) -> dict:
    """``kept`` with ``again``'s figures from ``fresh``, a report.json of some of the same contestants, and its ``results``."""
    known, measured = ([c["name"] for c in record["contestants"]] for record in (kept, fresh))
    for part in ("protocol", "source", "images", "judges"):
        if kept[part] != fresh[part]:
            raise SystemExit(f"error: {part} is not what the kept figures were measured with; measure all, without --again")
    strange = [name for name in measured if name not in known]
    if strange:
        raise SystemExit(f"error: {strange[0]} is not among the kept figures ({', '.join(known)}); measure all, without --again")
    new, old = _by_place(fresh["summary"]), _by_place(kept["summary"])
    _refuse_others(new, old, again)
    entries = {place: new.get(place, entry) if place[2] in again else entry for place, entry in old.items()}
    unknown = _mark(entries, old, results, again)
    before = [one for one in kept.get("again", []) if not set(one["names"]) & set(again)]
    beside = [name for name in measured if name not in again]
    return {
        **kept, "summary": list(entries.values()), "comparisons": _pairs(kept["comparisons"], fresh["comparisons"], again),
        "again": [*before, {"names": again, "beside": beside, "unknown": unknown}],
    }  # fmt: skip


def said(records: list[dict]) -> list[str]:
    """What a page has to say of it."""
    out = []
    for one in records:
        names, beside = ", ".join(one["names"]), ", ".join(one["beside"])
        line = f"After more training {names} was measured again, beside {beside}, and is compared with these alone."
        if one["unknown"]:
            places: dict[tuple[str, str], list[str]] = {}
            for measure, noise, _, lead in one["unknown"]:
                places.setdefault((measure, lead), []).append(noise)
            words = "; ".join(f"{measure} at {', '.join(noises)} ({lead} leads)" for (measure, lead), noises in places.items())
            line += f" Whether it is level with the leader was not looked at for {words}."
        out += [line, ""]
    return out


def _by_place(entries: list[dict]) -> dict[tuple[str, str, str], dict]:
    return {(entry["measure"], entry["noise"], entry["contestant"]): entry for entry in entries}


def _refuse_others(new: dict, old: dict, again: list[str]) -> None:
    for place, entry in new.items():
        now, then = num(entry["value"]), num(old[place]["value"])
        alike = math.isclose(now, then, **SAME) or math.isnan(now) and math.isnan(then)
        if place[2] not in again and not alike:
            raise SystemExit(
                f"error: {place[2]}, {place[0]} at {place[1]}: {entry['value']} where {old[place]['value']} is kept; it is another"
                " network or another machine, so name it in --again too, or measure all"
            )


def _pairs(kept: list[dict], fresh: list[dict], again: list[str]) -> list[dict]:
    def touches(found):
        return found["first"] in again or found["second"] in again

    families: dict[tuple[str, str], list[dict]] = {}
    for found in [one for one in kept if not touches(one)] + [one for one in fresh if touches(one)]:
        families.setdefault((found["measure"], found["noise"]), []).append(found)
    out = []
    for family in families.values():
        corrected = holm([num(found["p"]) for found in family])
        out += [{**found, "p_holm": None if math.isnan(p) else p} for found, p in zip(family, corrected, strict=True)]
    return out


def _mark(entries: dict, old: dict, results, again: list[str]) -> list[tuple[str, str, str, str]]:
    """Set who leads and who is level, as ``segaware.evaluation.summary`` does; where that could not be looked at is given back."""
    weights = resample(len(results.images), block=results.block)
    better = {measure.key: measure for measure in results.measures}
    unknown = []
    for key, noise in dict.fromkeys(place[:2] for place in entries):
        measure = better[key]

        def leader(record, measure=measure, noise=noise):
            here = [e for (k, n, name), e in record.items() if (k, n) == (measure.key, noise) and not (n == "clean" and name == "noisy")]
            here = [e for e in here if math.isfinite(num(e["value"]))]
            return len(here), max(here, key=lambda e: (e["n"], measure.better * e["value"]))["contestant"] if here else None

        (count, lead), (_, before) = leader(entries), leader(old)
        if count < 2 or math.isnan(num(entries[key, noise, lead]["low"])):
            continue  # nobody to lead, or too few images to say so
        shown = measure.key.partition(":")[0] in ("psnr", "changed") if noise == "clean" else measure.major  # on the page
        level = 1 - (1 - results.protocol.level) / (count - 1)
        names = [n for k, at, n in entries if (k, at) == (key, noise) and n != lead and not (at == "clean" and n == "noisy")]
        if lead != before or lead in again:
            asked = names  # nothing that is kept says who is level with a new leader
        else:
            asked = [name for name in names if name in again]
        if any(entries[key, noise, name]["failed"] for name in [lead, *names]):
            raise SystemExit(f"error: {measure.title} at {noise}: images are missing, so who leads depends on which; measure all")
        level_with = {name: _level(results, measure, noise, entries, lead, name, level, weights) for name in asked}
        if lead != before or lead in again:
            missing = [name for name, found in level_with.items() if found is None]
            if missing and not shown:  # so nobody is marked
                for name in [lead, *names]:
                    entries[key, noise, name] = {**entries[key, noise, name], "mark": ""}
                continue
            if missing:
                raise SystemExit(f"error: {lead} leads {measure.title} at {noise} now; measure {missing[0]} and {lead} beside it too")
        if shown:
            unknown += [(measure.title, noise, name, lead) for name, found in level_with.items() if found is None]
        tied = {name for name in names if level_with.get(name, entries[key, noise, name]["mark"] == "tied")}
        for name in [lead, *names]:
            mark = ("tied" if tied else "best") if name == lead else "tied" if name in tied else ""
            entries[key, noise, name] = {**entries[key, noise, name], "mark": mark}
    return unknown


def _level(results, measure, noise, entries, lead, name, level, weights) -> bool | None:
    """Whether ``name`` cannot be told from the leader: by the pair where both were measured, else by their two intervals."""
    if {lead, name} <= set(results.names):
        at = results.noises.index(noise)
        one, other = (results.data(measure, results.names.index(who), at) for who in (lead, name))
        gap = compare(one, other, weights, kind=measure.kind, level=level, block=results.block)
        return gap.low <= 0 <= gap.high
    ahead, behind = (entries[measure.key, noise, who] for who in (lead, name))
    apart = behind["high"] < ahead["low"] if measure.better > 0 else behind["low"] > ahead["high"]
    return False if apart else None
