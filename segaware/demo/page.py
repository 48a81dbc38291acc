"""The page: what is on it, and what its button does."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segaware import image_io
from segaware.demo.comparison import SEGMENTED, Comparison, compare, display, figures, read_upload
from segaware.demo.maps import change_picture, class_picture, entropy_picture, legend
from segaware.errors import SegawareError
from segaware.evaluation.judges import Judge, open_judge
from segaware.inference.engine import Engine

__all__ = ["CSS", "NO_SEGMENTER", "build_page", "gallery", "result_name"]

NO_SEGMENTER = "none"

CSS = """
.gradio-container {max-width: 1180px !important; margin: 0 auto !important}
table.figures {border-collapse: collapse; width: 100%; font-size: 0.92rem}
table.figures, table.figures thead, table.figures tbody, table.figures tr {border: 0 !important}
table.figures th, table.figures td {text-align: right; padding: 0.3rem 0.6rem; white-space: nowrap; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important}
@media (max-width: 30em) {
  table.figures {font-size: 0.8rem}
  table.figures th, table.figures td {padding: 0.3rem 0.25rem}
  .maps {gap: 0.3rem}
}
table.figures th:first-child, table.figures td:first-child {text-align: left; white-space: normal}
.maps {display: grid; gap: 0.6rem}
.maps figure {margin: 0}
.maps img {width: 100%; border-radius: 3px; display: block; margin: 0}
.maps figcaption {font-size: 0.85rem; opacity: 0.8; margin-top: 0.15rem}
.chip {display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.45em; vertical-align: -0.08em; border: 1px solid #8888}
.bar {display: inline-block; width: 9em; height: 0.8em; vertical-align: -0.05em; margin: 0 0.3em}
.note {font-size: 0.92rem; margin-top: 0.6rem}
"""

_ABOUT = """# segaware
Denoise an image and see what a machine makes of it, before and after. Nothing leaves this machine."""


def build_page(
    gradio: Any, models: Sequence[str], segmenters: Sequence[str], *, folder: Path, device: str = "auto", opened: Callable[[str], Engine] | None = None
) -> Any:
    """The ``gradio.Blocks``.

    Args:
        gradio: the module.
        models, segmenters: names to choose from, the first is chosen.
        folder: where results are written.
        opened: how a model is opened, for tests.
    """
    engine_of = functools.lru_cache(maxsize=2)(opened or (lambda name: Engine(name, device=device)))
    judge_of = functools.lru_cache(maxsize=2)(open_judge)

    @contextlib.contextmanager
    def told() -> Iterator[None]:
        """Within: errors of the library are shown on the page."""
        try:
            yield
        except SegawareError as error:
            raise gradio.Error(html.escape(str(error)), duration=None, print_exception=False, title="This did not work") from error
        except MemoryError as error:
            raise gradio.Error("not enough memory for this image; cut it up", duration=None, print_exception=False) from error

    def asks(model: str) -> Any:
        """Whether the model is told the noise level."""
        with told():
            return gradio.update(visible=engine_of(model).info.takes_sigma, value=True)

    def run(path: str | None, add: bool, added: float, model: str, auto: bool, sigma: float, segmenter: str, progress: Any) -> tuple[Any, ...]:
        with told():
            image = read_upload(path)
            progress(0.0, desc="loading the model")
            engine = engine_of(model)
            judge: Judge | None = None if segmenter == NO_SEGMENTER else judge_of(segmenter)
            done = compare(
                image,
                engine,
                judge,
                added=float(added) if add else 0.0,
                sigma=None if auto else float(sigma),
                report=lambda share, what: progress(share, desc=what),
            )
            file = Path(tempfile.mkdtemp(dir=folder)) / result_name(Path(str(path)), done.result)
            done.result.save(file)
        seen = bool(done.views)
        return (
            gradio.update(value=(display(done.noisy), display(done.denoised)), visible=True),
            gradio.update(value=figures(done), visible=True),
            gradio.update(value=str(file), visible=True, label=f"Download {file.name}"),
            gradio.update(value=gallery(done), visible=seen),
            gradio.update(value=_words(done), visible=seen),
        )

    def start(
        path: str | None, add: bool, added: float, model: str, auto: bool, sigma: float, segmenter: str, progress: Any = gradio.Progress()  # noqa: B008
    ) -> tuple[Any, ...]:
        return run(path, add, added, model, auto, sigma, segmenter, progress)

    with gradio.Blocks(title="segaware", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(_ABOUT)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=300):
                upload = gradio.File(label="Image", file_types=list(image_io.EXTENSIONS), type="filepath", height=130, elem_id="upload")
                add = gradio.Checkbox(False, label="Add noise (the image counts as clean)", elem_id="add")
                added = gradio.Slider(0, 100, 25, step=1, label="Noise to add, of 255", visible=False, elem_id="added")
                model = gradio.Dropdown(list(models), value=models[0], label="Model", elem_id="model")
                takes = engine_of(models[0]).info.takes_sigma
                auto = gradio.Checkbox(True, label="Estimate the noise level", visible=takes, elem_id="auto")
                sigma = gradio.Slider(0, 100, 25, step=0.5, label="Noise level, of 255", visible=False, elem_id="sigma")
                segmenter = gradio.Dropdown(
                    [*segmenters, NO_SEGMENTER], value=segmenters[0] if segmenters else NO_SEGMENTER, label="Segmenter", elem_id="segmenter"
                )
                button = gradio.Button("Denoise", variant="primary", elem_id="start")
            with gradio.Column(scale=2, min_width=320):
                slider = gradio.ImageSlider(
                    label="Noisy | denoised", type="numpy", format="png", interactive=False, buttons=["fullscreen"], elem_id="slider"
                )
                numbers = gradio.HTML(visible=False, elem_id="numbers")
                download = gradio.DownloadButton("Download", visible=False, elem_id="download")
        pictures = gradio.HTML(visible=False, elem_id="pictures")
        words = gradio.HTML(visible=False, elem_id="words")

        add.change(lambda on: gradio.update(visible=on), add, added, show_progress="hidden")
        model.change(asks, model, auto, show_progress="hidden")
        auto.change(lambda on: gradio.update(visible=not on), auto, sigma, show_progress="hidden")
        results = [slider, numbers, download, pictures, words]
        # the last picture's results do not stay beside the next one
        upload.change(lambda: (None, *[gradio.update(visible=False)] * 4), None, results, show_progress="hidden")
        button.click(start, [upload, add, added, model, auto, sigma, segmenter], results, show_progress_on=[slider])
    return page


def gallery(done: Comparison) -> str:
    """HTML: a row of classes, one of what changed, one of entropy; a column each of noisy, denoised, clean."""
    if not done.views:
        return ""
    rows, columns = done.window
    reference = "Clean" if "Clean" in done.views else "Noisy"
    against = done.views[reference]
    parts = []
    for who, seen in done.views.items():
        image = display(done.pictures[who][rows, columns])
        parts.append(
            [
                _figure(class_picture(seen), f"{who}: classes"),
                _figure(change_picture(seen, against, image), f"{who}: {'the reference' if seen is against else f'changed from {reference.lower()}'}"),
                _figure(entropy_picture(seen), f"{who}: entropy"),
            ]
        )
    body = "".join("".join(row) for row in zip(*parts, strict=True))
    return f'<div class="maps" style="grid-template-columns:repeat({len(parts)}, 1fr)">{body}</div>'


def _figure(pixels: np.ndarray, caption: str) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def result_name(upload: Path, result: image_io.Image) -> str:
    """``NAME-denoised`` with an ending that holds the result without loss: PNG, or TIFF for floats."""
    return f"{upload.stem}-denoised{'.tif' if result.pixels.dtype.kind == 'f' else '.png'}"


def _words(done: Comparison) -> str:
    rows, columns = done.window
    whole = (rows.stop - rows.start, columns.stop - columns.start) == done.noisy.shape[:2]
    note = "" if whole else f'<p class="note">Segmented: {SEGMENTED} pixels a side from the middle, at full resolution.</p>'
    return note + (legend(done.views) if done.views else "")
