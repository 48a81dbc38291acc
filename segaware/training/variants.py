"""Which networks SDABN and its paper's comparisons are made of, by name, and what each is trained after.

====================  ==========================================================================================
S0, S1, D1, S2, ...   the cascade itself: S0 on clean images, then S_i and D_i in turns
DDFN1, DDFN2, ...     plain denoisers in turns, each after those before it ("DDFN x n"; DDFN1 is "D0")
ImgD                  the denoiser with a condition, which is the noisy image ("ImgD")
GtD1                  the denoiser with a condition, which is the true labels ("GtD1", an oracle)
DMS                   a plain denoiser trained through the frozen S0 (Liu et al. as SDABN compares with it)
S0+, S1+              a larger segmenter on clean and on noisy images ("S1+")
joint                 S1, D1 and S2 at once, on the loss of S2 alone ("S1D1S2-joint")
X+S                   a segmenter after the finished denoiser X; after S1D1 it is S2 itself
====================  ==========================================================================================

A stage that stands in for another (DDFN1, ImgD, GtD1, DMS for D1; X+S for S2) draws the same crops
and the same noise in training, and starts from the same weights as far as it has them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from segaware.errors import TrainingError, closest

__all__ = ["VARIANTS", "Entry", "entry", "order", "plan", "targets"]


class Entry(NamedTuple):
    """One training.

    Args:
        name: of the stage and its folder.
        part: "segmenter", "denoiser", or "joint" (a segmenter with all before it).
        stage: place in the order; 0 = on clean images. Noise and crops are drawn by it and the part.
        network: which kind is built, a key of the makers; "" = as ``part``.
        start: stage whose weights it begins with; "" = from scratch.
        before: finished stages that make the estimate it is given, in order; none = the noisy image.
        eyes: segmenter that tells a denoiser its condition; "" = nobody does.
        judge: frozen segmenter through which a denoiser is trained as well; "" = none.
    """

    name: str
    part: str
    stage: int
    network: str = ""
    start: str = ""
    before: tuple[str, ...] = ()
    eyes: str = ""
    judge: str = ""

    @property
    def kind(self) -> str:
        """Key of the makers."""
        return self.network or self.part

    @property
    def needs(self) -> tuple[str, ...]:
        """All stages that must be there first."""
        return tuple(name for name in (self.start, *self.before, self.eyes, self.judge) if name)


#: The paper's comparisons: what to train for each. "progressive", "SD", "DDFN" and "X+S" depend on options.
VARIANTS: dict[str, tuple[str, ...]] = {
    "progressive": (),
    "SD": ("D1",),
    "D0": ("DDFN1",),
    "DDFN": (),
    "ImgD": ("ImgD",),
    "GtD1": ("GtD1",),
    "X+S": (),
    "S1+": ("S1+",),
    "joint": ("joint",),
    "DMS": ("DMS",),
    "denoise-then-segment": ("S0", "DDFN1"),
}


def entry(name: str) -> Entry:
    """What the stage of that name is.

    Raises:
        TrainingError: no such stage.
    """
    fixed = {
        "S0": Entry("S0", "segmenter", 0),
        "S0+": Entry("S0+", "segmenter", 0, network="segmenter+"),
        "S1+": Entry("S1+", "segmenter", 1, network="segmenter+", start="S0+"),
        "ImgD": Entry("ImgD", "denoiser", 1, network="image"),
        "GtD1": Entry("GtD1", "denoiser", 1, network="labels"),
        "DMS": Entry("DMS", "denoiser", 1, network="plain", judge="S0"),
        "joint": Entry("joint", "joint", 2, network="joint", start="S0"),
    }
    if name in fixed:
        return fixed[name]
    if name.endswith("+S") and len(name) > 2:
        several = re.fullmatch(r"DDFN([1-9]\d*)", name[:-2])
        made = (name[:-2],) if several is None else tuple(f"DDFN{i}" for i in range(1, int(several[1]) + 1))
        return Entry(name, "segmenter", 2, start="S1", before=made)
    found = re.fullmatch(r"(S|D|DDFN)([1-9]\d*)", name)
    if found is None:
        known = [*fixed, "S1", "D1", "DDFN1", "DDFN1+S"]
        raise TrainingError(f"no stage {name!r}; {closest(name, known)}")
    kind, number = found[1], int(found[2])
    if kind == "DDFN":
        return Entry(name, "denoiser", number, network="plain", before=tuple(f"DDFN{i}" for i in range(1, number)))
    before = tuple(f"{part}{i}" for i in range(1, number) for part in "SD")
    if kind == "D":
        return Entry(name, "denoiser", number, before=before, eyes=f"S{number}")
    return Entry(name, "segmenter", number, start=f"S{number - 1}", before=before)


def plan(wanted: Sequence[str], given: Collection[str] = ()) -> list[Entry]:
    """The stages ``wanted`` with all that they need, in an order in which they can be trained.

    Args:
        given: stages that are there already, from elsewhere.
    """
    found: dict[str, Entry] = {}

    def visit(name: str) -> None:
        if name in found or name in given:
            return
        this = entry(name)
        for other in this.needs:
            visit(other)
        found[name] = this

    for name in wanted:
        visit(name)
    return list(found.values())


def targets(variant: str, *, stages: int = 3, closing: bool = False, on: str = "DDFN1") -> tuple[str, ...]:
    """The stages that a variant is there for.

    Args:
        stages: blocks of "progressive", denoisers of "DDFN".
        closing: one more segmenter after the last block.
        on: the denoiser before the segmenter of "X+S": a stage, or another name that is given.

    Raises:
        TrainingError: no such variant, or fewer than one stage.
    """
    if variant not in VARIANTS:
        raise TrainingError(f"no variant {variant!r}; {closest(variant, VARIANTS)}")
    if stages < 1:
        raise TrainingError(f"stages {stages}: need at least 1")
    if variant == "progressive":
        names = tuple(f"{part}{i}" for i in range(1, stages + 1) for part in "SD")
        return (*names, f"S{stages + 1}") if closing else names
    if variant == "DDFN":
        return tuple(f"DDFN{i}" for i in range(1, stages + 1))
    if variant == "X+S":
        return ("D1", "S2") if on in ("S1D1", "SD") else (f"{'DDFN1' if on == 'D0' else on}+S",)
    return VARIANTS[variant]


def order(stages: int, *, clean: bool = True, closing: bool = False) -> list[Entry]:
    """S0 (on clean images, where S1 starts from), S1, D1, S2, D2, ..., and with ``closing`` one more S at the end."""
    return plan(targets("progressive", stages=stages, closing=closing), () if clean else ("S0",))
