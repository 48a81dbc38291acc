"""What a user would do instead: train the segmenter further, on noisy images or on denoised ones."""

import dataclasses
import os
import time

import numpy as np
import torch
import train_segmenter
from torch import nn

from segaware.entries import load_entry, locate, read_config, write_entry
from segaware.errors import TrainingError
from segaware.evaluation.contestants import Model
from segaware.evaluation.judges import Judge
from segaware.evaluation.runner import evaluate
from segaware.evaluation.significance import compare, interval, replicates, resample, statistic

from .runs import claim
from .setting import HELD_DRIVE, Setting, contents, read_json, write_json
from .verdict import plain


def tune(setting: Setting, kind: str, control=None) -> nn.Module:
    """The home segmenter, trained further on frames with noise of sigma 0 to 55, ``"noisy"`` or ``"denoised"`` by the control.

    Resumes exactly: what a step sees depends on the step alone.
    """
    args = setting.args
    folder = setting.out / "segmenters" / kind
    behind = None if control is None else contents(control)

    def same(known: str | None) -> None:
        if differs(known, behind):
            raise TrainingError(f"{folder}: trained behind another denoiser than the control there is now; move that folder away, or take another --out")

    if (folder / "config.json").is_file():
        same(read_config(folder)["recipe"].get("behind"))
        return load_entry(folder)
    setting.check_classes(0)
    frames = train_segmenter.load(args.camvid, "train", lambda stem: HELD_DRIVE not in stem)
    weights = train_segmenter.class_weights(frames)
    model = load_entry(locate(args.segmenter[0])).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.segmenter_rate, weight_decay=1e-2)
    checkpoint, step, total = folder / "checkpoint.pt", 0, args.segmenter_steps
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["steps"] != total:
            raise TrainingError(f"{checkpoint}: of a training of {state['steps']} steps, not {total}; give the same --segmenter-steps")
        same(state.get("behind"))
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    saved = time.monotonic()
    per_epoch = max(1, len(frames) // args.segmenter_batch)
    model.train()
    while step < total:
        for group in optimiser.param_groups:
            group["lr"] = args.segmenter_rate * min(1.0, 2 * (1 - step / total))
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([0, epoch]).permutation(len(frames))
        torch.manual_seed(1_000_003 + step)
        chosen = order[place * args.segmenter_batch : (place + 1) * args.segmenter_batch]
        images, labels = train_segmenter.batch_of(frames, chosen, args.segmenter_crop, (0.65, 1.8))
        level = 55 / 255 * torch.rand(len(images), 1, 1, 1)
        images = images + level * torch.randn(images.shape)
        if control is not None:
            with torch.no_grad():
                told = (level.flatten(),) if control.info.takes_sigma else ()
                images = control(images, *told)
        images = images.clamp(0, 1)  # as the judges see them
        loss = train_segmenter.loss_of(model(images), labels, weights)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        step += 1
        if time.monotonic() - saved > 120 or step == total:
            folder.mkdir(parents=True, exist_ok=True)
            partial = checkpoint.with_suffix(".partial")
            torch.save({"steps": total, "step": step, "behind": behind, "model": model.state_dict(), "optimiser": optimiser.state_dict()}, partial)
            os.replace(partial, checkpoint)
            saved = time.monotonic()
    write_entry(folder, model.eval(), {"recipe": {"before": str(args.segmenter[0]), "trained on": kind, "behind": behind, "steps": total}})
    checkpoint.unlink()
    return model


def differs(known: str | None, behind: str | None) -> bool:
    """Whether a segmenter was trained behind another control; older ones do not tell, or tell the version of Python too."""
    return known is not None and len(known) == len(behind or "") and known != behind


def instead(setting: Setting, control_folder) -> bool:
    """Train both, judge them on the reported frames beside the frozen one, and write ``segmenters.json``.

    False if another process is at it.
    """
    file = setting.out / "segmenters.json"
    with claim(setting.out / "segmenters") as mine:
        if not mine:
            return file.is_file()
        control = load_entry(control_folder / "model")
        if file.is_file():
            if differs(read_json(file).get("behind"), contents(control)):
                raise TrainingError(
                    f"{file}: of another control than there is now ({control_folder}); move it and {setting.out / 'segmenters'} away to measure anew"
                )
            return True
        tuned = {"noisy": tune(setting, "noisy"), "denoised": tune(setting, "denoised", control)}
        judges = [setting.home_judge(), *(Judge(f"tuned on {kind}", net.eval()) for kind, net in tuned.items())]
        source = setting.test_sets()["frames"]
        protocol = dataclasses.replace(setting.protocols()["frames"], metrics=("psnr",))
        results = evaluate(source, [Model("fidelity", control_folder / "model")], protocol, judges=judges, out=setting.out / "segmenters" / "test")
        weights = resample(len(source), block=results.block)
        units = -(-len(source) // results.block)
        rows = []
        for k, noise in enumerate(results.noises):
            frozen = None
            for who, judge in (("fidelity", "home"), ("noisy", "home"), ("noisy", "tuned on noisy"), ("fidelity", "tuned on denoised")):
                measure = next(m for m in results.measures if m.key == f"miou:{judge}")
                data = results.data(measure, results.names.index(who), k)
                value = float(statistic(data.sum(0), "iou"))
                low, high = interval(value, replicates(data, weights, "iou"), units=units)
                row = {"noise": noise, "images": who, "segmenter": judge, "value": value, "low": low, "high": high}
                if frozen is None:
                    frozen = data
                else:
                    gap = compare(data, frozen, weights, kind="iou", block=results.block)
                    row["against"] = {"difference": gap.difference, "low": gap.low, "high": gap.high, "p": gap.p}
                rows.append(row)
        write_json(file, plain({"steps": setting.args.segmenter_steps, "behind": contents(control), "rows": rows}))
        return True
