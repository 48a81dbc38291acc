"""Training networks stage after stage: the cascade (Algorithm 1 of SDABN) and what its paper compares it with.

S1, D1, S2, D2, ...: each stage trains one network; all before it are fixed, in eval mode, without
gradient. S1 starts from the same network trained on clean images (S0), S_i from S_{i-1}, every D_i
from scratch. Each stage has a folder of its own; what is finished is not trained again, for
whatever comparison it was trained first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from segaware.baselines import DenoiserCascade
from segaware.cascade import SDABN, SDB
from segaware.entries import read_config, write_entry
from segaware.errors import TrainingError
from segaware.inference.memory import keep_pages
from segaware.training.stage_run import Frames, StageRun, noise_words, number_of
from segaware.training.stages import StageRecipe
from segaware.training.variants import VARIANTS, Entry, plan, targets

__all__ = ["TASK_WEIGHT", "train_cascade", "train_stages"]

#: Of the cross-entropy in DMS, where the papers state none that can be taken over (the scale of the image is
#: unknown). What counts is the gradient at the denoised image: on crops of 96 x 96 at sigma 50 it begins with 0.2
#: times fidelity's. With 20, which looks balanced (the terms are about equal), it has 14 times, and the denoiser
#: learns to please the segmenter with skies brighter than white.
TASK_WEIGHT = 0.3

Maker = Callable[[], nn.Module]


def train_cascade(
    segmenter: Callable[[], nn.Module],
    denoiser: Callable[[], nn.Module],
    frames: Frames,
    recipes: Mapping[str, StageRecipe],
    out: str | os.PathLike[str],
    *,
    stages: int = 3,
    closing: bool = False,
    start: nn.Module | None = None,
    condition: str = "logits",
    validation: Frames = (),
    until: str | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> SDABN | None:
    """Train the stages of a cascade in order; killed at any moment, the same call goes on where it was.

    Args:
        segmenter, denoiser: make a fresh network each time, with ``config`` to be saved by.
        frames: (uint8 image ``(3, H, W)``, uint8 labels ``(H, W)``, 255 = not counted) pairs.
        recipes: ``"segmenter"`` and ``"denoiser"``, and for single stages their name ("S2").
        out: folder of this training alone; each stage in one of its name, the cascade in ``model``.
        stages: blocks. ``closing`` adds a segmenter after the last.
        start: what S1 starts from; None = S0, trained here on the clean images first.
        condition: see :class:`segaware.cascade.SDB`.
        validation: pairs that each finished stage is measured on (mean IoU in percent, or PSNR in dB).
        until: name of the last stage to train now.
        device: where to train.
        progress: show a bar on stderr.

    Returns:
        The cascade, also saved in ``out/model``; None where ``until`` ended it before.

    Raises:
        TrainingError: a stage that was trained with another recipe, after other networks or in
            another place of the order; labels that are no class; a loss that is not finite. All
            name the stage.
    """
    wanted = targets("progressive", stages=stages, closing=closing)
    given = {} if start is None else {"S0": start}
    done = train_stages(
        wanted, {"segmenter": segmenter, "denoiser": denoiser}, frames, recipes, out, given=given, condition=condition,
        validation=validation, until=until, device=device, progress=progress,
    )  # fmt: skip
    if done is None:
        return None
    blocks = [SDB(done[f"S{i}"], done[f"D{i}"], condition=condition) for i in range(1, stages + 1)]
    cascade = SDABN(blocks, done[f"S{stages + 1}"] if closing else None)
    _save(cascade, Path(out), "model", [entry.name for entry in plan(wanted, given)], recipes)
    return cascade


def train_stages(
    wanted: Sequence[str],
    makers: Mapping[str, Maker],
    frames: Frames,
    recipes: Mapping[str, StageRecipe],
    out: str | os.PathLike[str],
    *,
    given: Mapping[str, nn.Module] | None = None,
    condition: str = "logits",
    task_weight: float = TASK_WEIGHT,
    validation: Frames = (),
    until: str | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> dict[str, nn.Module] | None:
    """Train the stages of :mod:`segaware.training.variants` that are wanted, after all that they need.

    Several comparisons may share one ``out``: a stage that one of them has finished serves the others.

    Args:
        wanted: names of stages (:func:`segaware.training.variants.targets`).
        makers: make a fresh network each time, by kind: "segmenter", "denoiser" (takes a condition),
            "plain", "image" (:class:`segaware.baselines.ImageCondition`), "labels"
            (:class:`segaware.baselines.LabelCondition`), "segmenter+". Those that are used.
        given: finished networks from elsewhere, by stage ("S0"), or by the name that stands before
            the "+S" of a wanted stage.
        task_weight: of the cross-entropy in DMS.
        frames, recipes, out, condition, validation, until, device, progress: as in :func:`train_cascade`.

    Returns:
        All networks by name, on the CPU in eval mode; None where ``until`` ended it before. Several
        DDFN are also saved as one model, in ``out/model-DDFN``.

    Raises:
        TrainingError: as :func:`train_cascade`.
    """
    entries = plan(wanted, given or ())
    names = [entry.name for entry in entries]
    if until is not None and until not in names:
        raise TrainingError(f"until={until!r}: no such stage; there are {', '.join(names)}")
    # one file of recipes serves all comparisons
    others = {e.name for v in VARIANTS for e in plan(targets(v, closing=True))}
    if unknown := sorted(set(recipes) - {"segmenter", "denoiser", *names, *others} - {n for n in recipes if n.endswith("+S")}):
        raise TrainingError(f"recipes: no stage {', '.join(unknown)}; there are segmenter, denoiser, {', '.join(names)}")
    out, device = Path(out), torch.device(device)
    done: dict[str, nn.Module] = dict(given or {})
    with keep_pages():
        for entry in entries:
            recipe = recipes.get(entry.name, recipes["denoiser" if entry.part == "denoiser" else "segmenter"])
            torch.manual_seed(recipe.seed * 1000 + number_of(entry))
            stage = StageRun(
                entry, _begin(entry, makers, done, condition), recipe, out / entry.name, device, before=_before(entry, done, condition),
                eyes=done.get(entry.eyes), judge=done.get(entry.judge), weight=task_weight, start=done.get(entry.start), condition=condition,
            )  # fmt: skip
            done[entry.name] = stage.train(frames, validation, progress)
            if entry.name == until and entry is not entries[-1]:
                return None
    plain = [name for name in names if name in wanted and name.startswith("DDFN") and not name.endswith("S")]
    if len(plain) > 1:
        _save(DenoiserCascade([done[name] for name in plain]), out, "model-DDFN", plain, recipes)
    return done


def _begin(entry: Entry, makers: Mapping[str, Maker], done: Mapping[str, nn.Module], condition: str) -> nn.Module:
    """A fresh network, with the weights that it starts from."""
    network: nn.Module
    if entry.part == "joint":
        first = SDB(makers["segmenter"](), makers["denoiser"](), condition=condition)
        cascade = SDABN([first], makers["segmenter"]())
        assert cascade.closing_segmenter is not None
        network, parts = cascade, [first.segmenter, cascade.closing_segmenter]
    elif entry.kind in makers:
        network = makers[entry.kind]()
        parts = [network]
    else:
        raise TrainingError(f"stage {entry.name}: nobody makes a {entry.kind!r}; there are {', '.join(sorted(makers))}")
    for part in parts if entry.start else ():
        try:
            part.load_state_dict(done[entry.start].state_dict())
        except RuntimeError as error:
            raise TrainingError(f"stage {entry.name}: cannot start from those weights ({str(error)[:200]}); build both alike") from error
    return network


def _before(entry: Entry, done: Mapping[str, nn.Module], condition: str) -> list[nn.Module]:
    parts = [done[name] for name in entry.before]
    if len(parts) > 1 and entry.before[0] == "S1":
        return [SDB(s, d, condition=condition) for s, d in zip(parts[::2], parts[1::2], strict=True)]
    return parts


def _save(network: nn.Module, out: Path, folder: str, names: Sequence[str], recipes: Mapping[str, StageRecipe]) -> None:
    measured = {name: read_config(out / name / "model").get("measured") for name in names}
    write_entry(out / folder, network.cpu().eval(), {"training_noise": noise_words(recipes["denoiser"]), "measured": measured})
