"""Where does each term pull? Maps of its gradient at the denoised image, after Figure 3 of Liu et al. (TIP 2020).

    python examples/studies/gradient_maps.py --image CamVid/val/0016E5_08041.png --labels CamVid/valannot/0016E5_08041.png \\
        --model dncnn-blind --segmenter fpn-camvid --sigma 50 --out runs/gradient-maps

Without --labels the supervised term is left out. Writes gradient-maps.json (norms, how alike the gradients are in each
image, and over all of several) and gradient-maps.png to --out. Maps are the length of the gradient over the colours,
each on its own scale.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segaware import from_pretrained, image_io
from segaware.errors import InputError, SegawareError
from segaware.evaluation.figures import _pyplot, png
from segaware.losses.consistency import ConsistencyLoss
from segaware.losses.entropy import EntropySegAwareLoss
from segaware.losses.fisher import FisherLoss
from segaware.losses.jacobian import JacobianLoss
from segaware.losses.perceptual import PerceptualLoss
from segaware.losses.task import TaskLoss
from segaware.noise import add_gaussian
from segaware.wrapper import fidelity


def read(path: Path) -> torch.Tensor:
    """An image, (1, 3, H, W) in [0, 1]."""
    pixels = image_io.read(path, deep=False).pixels
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()[None] / 255


def read_labels(path: Path, size: tuple[int, int], void: int) -> torch.Tensor:
    """Its label map, (1, H, W), 255 where it does not count.

    Raises:
        InputError: no file of class indices, or one of another size than the image.
    """
    try:
        labels = torch.from_numpy(np.array(Image.open(path))).long()
    except (OSError, TypeError) as error:
        raise InputError(f"--labels {path}: cannot be read as a label map ({error})") from error
    if labels.ndim != 2:
        raise InputError(f"{path}: a label map has one channel of class indices, this has shape {tuple(labels.shape)}")
    if tuple(labels.shape) != size:
        raise InputError(f"{path}: {labels.shape[1]} x {labels.shape[0]} labels for an image of {size[1]} x {size[0]} pixels; give its own map")
    return torch.where(labels == void, 255, labels)[None]


def middle(image: torch.Tensor, crop: int) -> torch.Tensor:
    top, left = (max(0, (side - crop) // 2) for side in image.shape[-2:])
    return image[..., top : top + crop, left : left + crop]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--image", type=Path, nargs="+", required=True, help="clean images; the figure shows the first")
    p.add_argument("--labels", type=Path, nargs="+", default=[], help="their label maps, indices, --void and 255 not counted")
    p.add_argument("--model", default="dncnn-blind")
    p.add_argument("--segmenter", default="fpn-camvid")
    p.add_argument("--layer", default="backbone.features.5", help="of the segmenter, for the feature term")
    p.add_argument("--sigma", type=float, default=50.0, help="8-bit units")
    p.add_argument("--crop", type=int, default=256)
    p.add_argument("--void", type=int, default=11)
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args(argv)
    if args.labels and len(args.labels) != len(args.image):
        raise InputError(f"--labels: {len(args.labels)} maps for {len(args.image)} images; give one for each, in the same order")
    denoiser, segmenter = from_pretrained(args.model), from_pretrained(args.segmenter)
    images, shown = {}, None
    for file, labels in zip(args.image, args.labels or [None] * len(args.image), strict=True):
        if file.stem in images:
            raise InputError(f"--image {file}: a second image of this name; rename one of them")
        found = look(args, denoiser, segmenter, file, labels)
        shown = shown or found
        images[file.stem] = alike(found[-1])
    first = next(iter(images.values()))
    together = {}
    for name, terms in first.items():
        for other in terms["cosine_to"]:
            values = [record[name]["cosine_to"][other] for record in images.values()]
            together.setdefault(name, {})[other] = {"mean": float(np.mean(values)), "least": min(values), "greatest": max(values)}
    for name, found in together.items():
        told = ", ".join(f"{other} {c['mean']:+.3f} [{c['least']:+.2f}, {c['greatest']:+.2f}]" for other, c in found.items())
        print(f"{name}: norm {np.mean([record[name]['norm'] for record in images.values()]):.3g}; cosine to {told}")
    args.out.mkdir(parents=True, exist_ok=True)
    result = {"model": Path(args.model).name, "segmenter": Path(args.segmenter).name, "layer": args.layer, "sigma": args.sigma, "crop": args.crop,
              "cosines": together, "images": images}  # fmt: skip
    (args.out / "gradient-maps.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "gradient-maps.png").write_bytes(png(draw(*shown)))
    return result


def look(args, denoiser, segmenter, file: Path, labels_file: Path | None):
    """Of one image: clean, noisy, denoised, and the gradient of each term."""
    whole = read(file)
    clean = middle(whole, args.crop)
    noisy = add_gaussian(clean, args.sigma / 255, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        denoised = denoiser(noisy, args.sigma / 255) if denoiser.info.takes_sigma else denoiser(noisy)

    terms = {
        "fidelity": partial(fidelity, clean=clean),
        "perceptual": partial(PerceptualLoss(segmenter, [args.layer], normalize=None), clean=clean),
        "entropy": EntropySegAwareLoss(segmenter),
        "KL to clean": partial(ConsistencyLoss(segmenter), clean=clean),
        "Jacobian": partial(JacobianLoss(segmenter), clean=clean),
        "Fisher": partial(FisherLoss(segmenter), clean=clean),
    }
    if labels_file:
        labels = middle(read_labels(labels_file, tuple(whole.shape[2:]), args.void), args.crop)
        terms["true labels"] = partial(TaskLoss(segmenter), labels=labels)

    gradients = {}
    for name, term in terms.items():
        image = denoised.clone().requires_grad_()
        (gradients[name],) = torch.autograd.grad(term(image), image)
    return clean, noisy, denoised, gradients


def alike(gradients):
    """Norm of each gradient, and its cosine to the others."""
    unit = {name: gradient.flatten() / gradient.norm().clamp_min(1e-30) for name, gradient in gradients.items()}
    return {
        name: {"norm": float(gradient.norm()), "cosine_to": {other: float(unit[name] @ unit[other]) for other in unit if other != name}}
        for name, gradient in gradients.items()
    }  # fmt: skip


def draw(clean, noisy, denoised, gradients):
    maps = {name: gradient[0].norm(dim=0) for name, gradient in gradients.items()}
    pictures = {"clean": clean, "noisy": noisy, "denoised": denoised}
    columns = 4
    rows = -(-(len(pictures) + len(maps)) // columns)
    figure = _pyplot()(3 * columns, 3 * rows)
    places = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for name, image in pictures.items():
        axes = next(places)
        axes.imshow(image[0].clamp(0, 1).permute(1, 2, 0).numpy())
        axes.set_title(name, fontsize=9)
    for name, values in maps.items():
        axes = next(places)
        axes.imshow(values.numpy(), cmap="magma", vmin=0, vmax=max(float(values.quantile(0.995)), 1e-30))
        axes.set_title(f"gradient of {name}", fontsize=9)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        sys.exit(f"error: {error}")
