"""The model card: README.md of a saved model, with the metadata block that the Hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["metadata_block", "model_card"]

#: Names of metrics that a config's "measured" may use, and how they are printed.
_METRICS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "niqe": "NIQE",
    "iou": "IoU (%)",
    "miou": "mean IoU (%)",
    "pixel_accuracy": "pixel accuracy (%)",
    "accuracy": "accuracy (%)",
}


def model_card(config: dict[str, Any], name: str, *, repo: str | None = None) -> str:
    """What it is, how to use it, what it was measured and trained on, its limits and its licence.

    Args:
        config: of the entry: ``architecture``, and as far as known ``training_noise``,
            ``training_data`` (a sentence, or an object with ``name`` and ``terms``), ``recipe``,
            ``measured`` (nested, numbers at the leaves), ``limits``, ``license``.
        name: the model's, as a title.
        repo: ``owner/name`` where it will be loaded from; None = the folder.
    """
    architecture = str(config["architecture"])
    segments = _segments(config)
    rows = list(_rows(config.get("measured")))
    return "\n\n".join(
        part
        for part in (
            metadata_block(config, name),
            f"# {name}",
            _what(config, architecture, segments),
            _use(repo or name, config, architecture, segments),
            _measured(config, rows),
            _training(config),
            _limits(config),
            f"**Licence.** {config.get('license') or 'Not stated: ask who trained it before you use it.'}",
        )
        if part
    ) + "\n"


def metadata_block(config: dict[str, Any], name: str) -> str:
    """What the Hub reads of a card: YAML, each value in its JSON form, which YAML includes: no text can break out of it."""
    rows, segments = list(_rows(config.get("measured"))), _segments(config)
    task = "image-segmentation" if segments else "image-to-image"
    metadata: dict[str, Any] = {}
    license_ = str(config.get("license") or "unknown")
    if re.fullmatch(r"[A-Za-z0-9.-]+", license_):
        metadata["license"] = license_.lower()
    else:
        metadata |= {"license": "other", "license_name": "see-model-card"}
    metadata |= {"library_name": "segaware", "pipeline_tag": task}
    metadata["tags"] = ["semantic-segmentation"] if segments else ["image-denoising", "image-restoration"]
    if rows:
        metadata["metrics"] = sorted({metric for metric, _, _ in rows})
        metadata["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": task},
                        "dataset": {"name": where or "see the card", "type": _slug(where) or "other"},
                        "metrics": [{"type": metric, "value": value, "name": _METRICS.get(metric, metric)}],
                    }
                    for metric, where, value in rows
                ],
            }
        ]
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in metadata.items()), "---"])


def _segments(config: dict[str, Any]) -> bool:
    return str(config["architecture"]).endswith("Segmenter")


def _what(config: dict[str, Any], architecture: str, segments: bool) -> str:
    kind = "A segmenter: image to class logits" if segments else "A denoiser: noisy image to clean image"
    noise = f" Trained for {config['training_noise']}." if config.get("training_noise") else ""
    arguments = ", ".join(f"{key}={value!r}" for key, value in config.get("arguments", {}).items() if _short(value))
    return f"{kind}, `{architecture}({arguments})` of [segaware](https://pypi.org/project/segaware/).{noise}"


def _use(source: str, config: dict[str, Any], architecture: str, segments: bool) -> str:
    foreign = architecture == "SegAwareWrapper" and not config.get("arguments", {}).get("denoiser")
    extra = ", denoiser=YourNetwork()" if foreign else ""
    last = "logits = model(image)" if segments else "clean = model(image)"
    note = "float tensor (B, C, H, W) in [0, 1]"
    return f"""```python
import torch
from segaware import from_pretrained

model = from_pretrained({source!r}{extra})
with torch.no_grad():
    {last}  # {note}
```"""


def _measured(config: dict[str, Any], rows: list[tuple[str, str, float]]) -> str:
    if not rows:
        return "**Measured.** Nothing has been stated."
    lines = ["| measured on | metric | value |", "|---|---|---|"]
    lines += [f"| {_cell(where) or '-'} | {_cell(_METRICS.get(metric, metric))} | {value:.4g} |" for metric, where, value in rows]
    measured = config.get("measured")
    words = [f"{key}: {value}" for key, value in measured.items() if isinstance(value, str)] if isinstance(measured, dict) else []
    return "\n".join(lines) + ("\n\n" + "; ".join(words) if words else "")


def _training(config: dict[str, Any]) -> str:
    data = config.get("training_data")
    if isinstance(data, dict):
        text = "; ".join(f"{key}: {value}" if key != "name" else str(value) for key, value in data.items())
    else:
        text = str(data or "not stated")
    recipe = config.get("recipe")
    command = recipe.get("command") if isinstance(recipe, dict) else None
    how = f"\n\n**Training.** `{str(command).replace('`', '')}`; the recipe is in `config.json`." if command else ""
    return f"**Training data.** {text}{how or (chr(10) * 2 + 'The recipe is in `config.json`.' if recipe else '')}"


def _limits(config: dict[str, Any]) -> str:
    limits = config.get("limits")
    if not limits:
        noise = config.get("training_noise")
        limits = f"Noise other than {noise}" if noise else "Noise other than in its training"
        limits += " was not measured; expect less there. It can remove fine texture, and it invents nothing on purpose."
    return f"**Limits.** {limits}"


def _rows(measured: Any, path: tuple[str, ...] = (), on: str = "") -> Iterator[tuple[str, str, float]]:
    """(metric, measured on, value) of every number in the nested figures.

    ``on`` beside figures says of which images they are; not so of those called ``held_out_...``.
    """
    if isinstance(measured, dict):
        on = str(measured["on"]) if isinstance(measured.get("on"), str) else on
        for key, value in measured.items():
            yield from _rows(value, (*path, str(key)), on)
    elif isinstance(measured, (int, float)) and not isinstance(measured, bool) and path:
        held_out = [key for key in path if key.startswith("held_out_")]
        path = tuple(key.removeprefix("held_out_") for key in path)
        metric = next((key for key in path if key.lower() in _METRICS), path[-1])
        where = [f"sigma={key}" if re.fullmatch(r"\d+(\.\d+)?", key) else key for key in path if key != metric]
        first = "held-out images" if held_out else on
        yield metric.lower(), " ".join([first, *where] if first else where), float(measured)


def _short(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool)) or value is None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
