"""Train a denoiser on a folder of clean images, with or without segmentation awareness.

    python examples/train_denoiser.py --data IMAGES --model dncnn --out runs/dncnn
    python examples/train_denoiser.py --data IMAGES --model ffdnet --awareness entropy --gamma 1 --out runs/aware

Killed at any moment, the same command goes on where it was. ``--hold-out 32`` keeps every so many
images (by sorted name) out of training and validates on them. ``torchrun`` works as usual. Options
from ``--steps`` on are the fields of ``segaware.training.Recipe``, which says what they do.
Needs the extra ``train``. What comes out is a folder for ``segaware.from_pretrained`` and ``segaware denoise --model``.
"""

from __future__ import annotations

import argparse
import dataclasses

from segaware import SegAwareWrapper, from_pretrained
from segaware.denoisers import DENOISERS
from segaware.errors import SegawareError, TrainingError
from segaware.losses import LABEL_FREE, label_free
from segaware.losses.judge_pool import JudgePoolLoss
from segaware.training import Recipe, fit
from segaware.training.data import image_files
from segaware.training.guard import stop_if_dominated


def awareness(name: str, segmenters: list[str]) -> object:
    """The awareness term by name, through one segmenter or a pool of several; () is none."""
    if name == "none":
        return ()
    judges = [from_pretrained(segmenter) for segmenter in segmenters]
    return label_free(name)(judges[0]) if len(judges) == 1 else JudgePoolLoss(judges, label_free(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of clean images")
    parser.add_argument("--out", required=True, help="folder of this run")
    parser.add_argument("--model", default="dncnn", choices=sorted(DENOISERS))
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3))
    parser.add_argument("--start-from", help="weights to begin with: a zoo name or a model folder")
    parser.add_argument("--hold-identity", action="store_true", help="ffdnet: train the noise alone (much faster)")
    parser.add_argument("--awareness", default="none", choices=("none", *LABEL_FREE), help="see docs/losses.md")
    parser.add_argument(
        "--segmenter", nargs="+", default=["fpn-camvid"], metavar="NAME",
        help="frozen segmenter of the awareness term; of several one is drawn at each step, with a flip and a scale",
    )  # fmt: skip
    parser.add_argument("--gamma", type=float, default=1.0, help="weight of the awareness term")
    parser.add_argument("--hold-out", type=int, default=0, metavar="N", help="validate on N images left out of training")
    for field in dataclasses.fields(Recipe):  # every field of the recipe is an option
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if isinstance(default, tuple):
            parser.add_argument(flag, type=float, nargs="*", default=default)
        elif isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(flag, type=float if default is None else type(default), default=default)
    args = parser.parse_args()

    try:
        files = image_files(args.data)
        if args.hold_out >= len(files):
            raise TrainingError(f"--hold-out {args.hold_out} of {len(files)} images leaves none to train on; hold fewer out")
        step = len(files) // args.hold_out if args.hold_out else 0
        held = files[step // 2 :: step][: args.hold_out] if step else []
        denoiser = from_pretrained(args.start_from) if args.start_from else DENOISERS[args.model](channels=args.channels)
        called = {}  # a network that was saved with the way it is called is called so
        if isinstance(denoiser, SegAwareWrapper):
            denoiser, called = denoiser.denoiser, denoiser.adapter
        if args.hold_identity:
            if not hasattr(denoiser, "hold_identity"):
                raise TrainingError("--hold-identity is for ffdnet; leave it out")
            denoiser.hold_identity()
        wrapper = SegAwareWrapper(denoiser, awareness(args.awareness, args.segmenter), gamma=args.gamma, **called)
        stop_if_dominated(wrapper)
        recipe = Recipe(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe)})
        result = fit(wrapper, [f for f in files if f not in held], recipe, args.out, validation=held or None)
    except SegawareError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the same command goes on from the last checkpoint") from None
    print(f"{result.step} steps, {result.seconds:.0f} s here; {result.model}; held-out PSNR {result.psnr}")


if __name__ == "__main__":
    main()
