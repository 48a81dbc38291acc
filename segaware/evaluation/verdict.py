"""What a reader wants to know first, in words: which denoiser, and whether denoising helps at all.

Built from a summary's intervals: nothing is called better that an interval does not set apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from segaware.evaluation.results import Measure
from segaware.evaluation.significance import Comparison
from segaware.evaluation.summary import Entry, Summary, rank

__all__ = ["Finding", "ceilings", "details", "finding", "findings", "gain", "gentlest", "headline", "short_title"]

#: How the leader stands to the noisy image it was given.
HELPS, HARMS, UNCLEAR = "helps", "harms", "unclear"
#: Of those measured on all images none helps, but one that was measured on fewer does, on those that it has.
PARTLY = "partly"


@dataclass(frozen=True)
class Finding:
    """One measure under one condition.

    Args:
        leader: the denoiser with the best value.
        alone: whether it is ahead of every other method beyond its interval.
        tied: other denoisers that cannot be told from it.
        beaten: whether one with fewer images is ahead of it on those that it has.
        gap: leader minus the noisy image; None where that was not measured.
        effect: "helps", "harms", "unclear" or "partly", by the interval of ``gap``, and "helps" only where its p, times the
            number of denoisers that the leader is the best of, is small enough as well; "" without an interval.
    """

    measure: Measure
    noise: str
    leader: Entry
    alone: bool
    tied: tuple[str, ...]
    beaten: bool
    gap: Comparison | None
    effect: str

    @property
    def good(self) -> tuple[str, ...]:
        """All that may be the best, the leader first."""
        return (self.leader.contestant, *self.tied)


def finding(summary: Summary, measure: Measure, noise: str) -> Finding | None:
    """The finding of one cell of the verdict; None if no denoiser has a value there."""
    names = [name for name in summary.results.names if name != "noisy"]
    found = [entry for name in names if (entry := summary.entry(measure.key, noise, name)) and _ranks(summary, entry)]
    if not found:
        return None
    leader = max(found, key=lambda entry: rank(measure, entry))
    noisy = summary.entry(measure.key, noise, "noisy")
    others = [entry for entry in found if entry is not leader]
    if noisy is None or rank(measure, noisy) <= rank(measure, leader):
        tied = tuple(e.contestant for e in others if leader.mark == e.mark == "tied")
    else:  # the marks tell who is level with the noisy image
        tied = tuple(e.contestant for e in others if _side(summary, measure, noise, e.contestant, leader.contestant, len(others)) == 0)
    fewer = [entry.contestant for entry in others if entry.n < leader.n]
    beaten = any(_side(summary, measure, noise, name, leader.contestant, len(others)) == 1 for name in fewer)
    gap = summary.comparison(measure.key, noise, leader.contestant, "noisy")
    effect = ""
    if gap is not None and not math.isnan(gap.low):
        side = _side(summary, measure, noise, leader.contestant, "noisy", len(found))  # the best of many is ahead by chance now and then
        worse = (gap.high if measure.better > 0 else -gap.low) < 0
        effect = HELPS if side == 1 else HARMS if worse else UNCLEAR
        ahead = {entry.contestant for entry in others if _side(summary, measure, noise, entry.contestant, "noisy", len(found)) == 1}
        if effect != HELPS and ahead and ahead <= {*fewer}:
            effect = PARTLY
    return Finding(measure, noise, leader, leader.mark == "best", tied, beaten, gap, effect)


def _ranks(summary: Summary, entry: Entry) -> bool:
    """Whether there is something to compare: PSNR may be infinite on some images, but not on all."""
    if math.isfinite(entry.value):
        return True
    pairs = summary.comparisons.get((entry.measure, entry.noise), ())
    return not math.isnan(entry.value) and any(not math.isnan(p.low) for p in pairs if entry.contestant in (p.first, p.second))


def _side(summary: Summary, measure: Measure, noise: str, one: str, other: str, looks: int) -> int | None:
    """1 if ``one`` is ahead of ``other`` beyond its interval and a p that is one of so many; -1 if behind; 0 if neither; None: not known."""
    gap = summary.comparison(measure.key, noise, one, other)
    if gap is None or math.isnan(gap.low):
        return None
    low, high = (gap.low, gap.high) if measure.better > 0 else (-gap.high, -gap.low)
    if gap.p * looks >= 1 - summary.results.protocol.level:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def findings(summary: Summary, measures: Sequence[Measure] | None = None) -> list[Finding]:
    """Of the measures that tables show, under every noise, in their order."""
    chosen = [m for m in summary.results.measures if m.major] if measures is None else measures
    noises = [noise for noise in summary.results.noises if noise != "clean"]
    return [one for m in chosen for noise in noises if (one := finding(summary, m, noise)) is not None]


def headline(summary: Summary) -> list[str]:
    """A few sentences: whether denoising helps, and which denoiser to take, by judges if there are any.

    Of judges what counts is mIoU, or consistency without labels; without judges, the first metric.
    """
    results = summary.results
    kind = "miou" if results.labelled else "consistency"
    deciding = [m for m in results.measures if m.key.startswith(f"{kind}:")] or results.measures[:1]
    found = findings(summary, deciding)
    if not found:
        return []
    return [_help(found), _which(found, [name for name in results.names if name != "noisy"]), *_against_fidelity(summary, found)]


def details(summary: Summary) -> list[str]:
    """A sentence for every condition and measure that tables show, and one a judge on clean input."""
    order = {noise: place for place, noise in enumerate(summary.results.noises)}
    found = sorted(findings(summary), key=lambda one: order[one.noise])
    return [*map(_detail, found), *ceilings(summary), *gentlest(summary)]


def ceilings(summary: Summary) -> list[str]:
    """What the judges reach on the clean images themselves: more than that no denoiser can bring, and a poor judge shows."""
    found = {m.judge: (m, summary.entry(m.key, "clean", "noisy")) for m in summary.results.measures if m.key.startswith("miou:")}
    parts = [f"{judge} reaches {m.text(entry.value)} % mIoU" for judge, (m, entry) in found.items() if entry is not None]
    return [f"On the clean images themselves {_list(parts)}."] if parts else []


def gentlest(summary: Summary) -> list[str]:
    """Per judge, the denoiser that changes least of what it sees in clean images.

    Left out are those that give the clean image back as it is because they are told that there is no noise.
    """
    lines = []
    names = [name for name in summary.results.names if name != "noisy" and not _idle(summary, name)]
    for measure in summary.results.measures:
        if measure.key.startswith("changed:"):
            entries = [e for e in (summary.entry(measure.key, "clean", name) for name in names) if e is not None and math.isfinite(e.value)]
            if entries:
                best = min(entries, key=lambda entry: entry.value)
                share = measure.text(best.value)
                lines.append(f"On clean input the gentlest by {measure.judge} is {best.contestant}: {share} % of the pixels change class.")
    return lines


def _idle(summary: Summary, name: str) -> bool:
    psnr, ssim = (summary.entry(metric, "clean", name) for metric in ("psnr", "ssim"))
    return psnr is not None and math.isinf(psnr.value) or ssim is not None and ssim.value >= 1


def _detail(one: Finding) -> str:
    text = f"{one.noise}, {one.measure.title}: {one.leader.contestant} {one.measure.text(one.leader.value)}"
    if one.alone:
        text += ", ahead of all others"
    elif one.tied:
        text += f", not to be told from {', '.join(one.tied)}"
    words = {
        HELPS: "denoising helps", HARMS: "denoising does harm", UNCLEAR: "whether denoising helps cannot be said",
        PARTLY: "of the denoisers one that was measured on fewer images helps on these",
    }  # fmt: skip
    return f"{text}; {words[one.effect]} ({gain(one)} against noisy)." if one.effect else f"{text}."


def gain(one: Finding) -> str:
    """Leader minus noisy with its interval; "" where there is none."""
    if one.gap is None:
        return ""
    parts = [one.measure.text(v, signed=True) for v in (one.gap.difference, one.gap.low, one.gap.high)]
    return parts[0] if math.isnan(one.gap.low) else f"{parts[0]} [{parts[1]}, {parts[2]}]"


def short_title(measure: Measure) -> str:
    """What is measured, in as few words as a sentence takes."""
    names = {"miou": "mIoU", "consistency": "consistency", "psnr": "PSNR", "ssim": "SSIM", "niqe": "NIQE"}
    kind = measure.key.partition(":")[0]
    return names.get(kind, kind)


def _unit(measure: Measure) -> str:
    if measure.percent:
        return f" points of {short_title(measure)}"
    return " dB" if measure.key == "psnr" else f" {short_title(measure)}"


def _for(found: Sequence[Finding]) -> str:
    """Whom the findings are about: "the judge X", "both judges", "PSNR"."""
    judges = list(dict.fromkeys(one.measure.judge for one in found))
    if judges == [""]:
        return short_title(found[0].measure)
    return f"the judge {judges[0]}" if len(judges) == 1 else f"{'both' if len(judges) == 2 else f'all {len(judges)}'} judges"


def _where(found: Sequence[Finding], everything: Sequence[Finding]) -> str:
    """The conditions of ``found``, a judge at a time, without what goes without saying."""
    judges = list(dict.fromkeys(one.measure.judge for one in everything))
    noises = list(dict.fromkeys(one.noise for one in everything))
    groups: dict[str, list[str]] = {}
    for one in found:
        groups.setdefault(one.measure.judge, []).append(one.noise)
    parts = []
    for judge, here in groups.items():
        which = "" if here == noises else f" at {_list(here)}"
        parts.append(f"for {judge}{which}" if len(judges) > 1 else which.strip() or "at every level")
    return _list(parts)


#: Looks (judges x levels) up to which a verdict names the best of each.
_FEW = 6


def _help(found: list[Finding]) -> str:
    whom = _for(found)
    known = [one for one in found if one.effect]
    levels = len({one.noise for one in found})
    at = "" if levels == 1 else " at both noise levels" if levels == 2 else f" at all {levels} noise levels"
    if all(one.gap is None for one in found):
        return "Whether denoising helps was not measured: of the noisy image there is no figure to compare with."
    if not known:
        return "Too few images to say whether denoising helps: there are no intervals."
    groups = {effect: [one for one in known if one.effect == effect] for effect in (HELPS, PARTLY, HARMS, UNCLEAR)}
    if len(groups[HELPS]) == len(found):
        return f"Denoising helps: for {whom}{at} the best denoiser is ahead of the noisy image ({_amount(found)})."
    if len(groups[HARMS]) == len(found):
        return f"Denoising does harm: for {whom}{at} even the best denoiser is behind the noisy image itself. Leave the image as it is."
    says = {
        HELPS: "helps", HARMS: "does harm", UNCLEAR: "makes no difference that can be told from chance",
        PARTLY: "helps by one that was measured on fewer images, on these, and by none that has all",
    }  # fmt: skip
    parts = [f"{says[effect]} {_where(group, found)}" for effect, group in groups.items() if group]
    if groups[HELPS]:
        parts[0] += f" ({_amount(groups[HELPS])} over the noisy image)"
    return f"Denoising {'; it '.join(parts)}."


def _amount(found: list[Finding]) -> str:
    """What the leaders gain: one with its interval, or the least and the most."""
    first = found[0].measure
    if len(found) == 1:
        return gain(found[0]) + _unit(first)
    gaps = sorted((one.gap.difference for one in found if one.gap is not None), key=abs)
    low, high = (first.text(gap, signed=True) for gap in (gaps[0], gaps[-1]))
    return (low if low == high else f"{low} to {high}") + _unit(first)


def _which(found: list[Finding], names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} is the only denoiser here; add others with --model to compare."
    helped = [one for one in found if one.effect in (HELPS, "")]
    whom = f"for {_for(found)}" + (" throughout" if len(found) > 1 else "")
    if helped and len(helped) < len(found):
        take, whom = "Where denoising helps, take", "there"
    else:
        take = "Take" if helped else "Of the denoisers"
    helped = helped or found
    if not any(one.effect or one.leader.mark for one in found):
        return f"The best figures are those of {_best(helped)}; more images are needed to tell them from chance."
    common = [name for name in names if all(name in one.good for one in helped)]
    if not common:
        return f"No denoiser is best throughout. {_most(helped, names) if len(helped) > _FEW else f'{take} {_best(helped)}.'}"
    best = max(common, key=Counter(one.leader.contestant for one in helped).__getitem__)
    if all(one.alone for one in helped):
        return f"{take} {best}: {whom} it is ahead of every other method."
    rivals = [name for name in common if name != best]
    if rivals:
        return f"{take} {best}, or {' or '.join(rivals)}: {whom} nothing is measurably better, and these cannot be told apart."
    if any(one.beaten or one.leader.mark == "first" for one in helped):
        return f"{take} {best}: {whom} it leads those that were measured on every image; one that lacks some is better on those that it has."
    return f"{take} {best}: {whom} nothing is measurably better."


def _most(found: list[Finding], names: list[str]) -> str:
    """Who is among the best most often, where naming all would be a list that nobody reads."""
    times = Counter(name for name in names for one in found if name in one.good)
    (name, most), *others = times.most_common()
    text = f"{name} is among the best, not to be told from the leader or leading, in {most} of {len(found)} looks (judges x levels)"
    runners = [f"{other} in {count}" for other, count in others[:2]]
    return f"{text}{', ' if runners else ''}{', '.join(runners)}. The tables say where."


def _best(found: list[Finding]) -> str:
    """Who is best where."""
    groups: dict[str, list[Finding]] = {}
    for one in found:
        groups.setdefault(" or ".join(one.good), []).append(one)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{who} {_where(group, found)}" for who, group in groups.items())


def _against_fidelity(summary: Summary, found: list[Finding]) -> list[str]:
    """Where the machine's choice is not the one that is nearest to the clean image."""
    psnr = next((m for m in summary.results.measures if m.key == "psnr"), None)
    if psnr is None or not found[0].measure.judge:
        return []
    parts = []
    for noise in dict.fromkeys(one.noise for one in found):
        near = finding(summary, psnr, noise)
        here = [one for one in found if one.noise == noise]
        shared = set.intersection(*(set(one.good) for one in here))
        taken = shared or {name for one in here for name in one.good}  # as the verdict names them
        if near is not None and not taken & set(near.good):
            parts.append(f"{' or '.join(near.good)} ({psnr.text(near.leader.value)} dB) at {noise}")
    return [f"The nearest to the clean image in PSNR is another: {'; '.join(parts)}."] if parts else []


def _list(parts: Sequence[str]) -> str:
    return "".join(parts) if len(parts) < 2 else f"{', '.join(parts[:-1])} and {parts[-1]}"
