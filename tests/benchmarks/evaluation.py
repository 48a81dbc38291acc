"""What ``segaware evaluate`` costs beside the networks it runs: memory, time, NIQE.

    python tests/benchmarks/evaluation.py                    everything, about ten minutes on two cores
    python tests/benchmarks/evaluation.py --only overhead    one section: memory overhead minute niqe
    python tests/benchmarks/evaluation.py --images 10,200    numbers of images of the section memory
    python tests/benchmarks/evaluation.py --quick            tiny sizes: does it run? (its figures mean nothing)
    python tests/benchmarks/evaluation.py --json out.json    the same as JSON

Pictures are made up: the times do not depend on what they show. Measure on a quiet machine. deepinv is
in the extra "test"; without it its line is left out.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peak_memory import DEFINE_PEAK  # noqa: E402
from speed import Report, clock, machine, versions  # noqa: E402

SECTIONS = ("memory", "overhead", "minute", "niqe")


def pictures(folder: Path, count: int, height: int, width: int) -> Path:
    """Smooth colours with edges, ``count`` PNG files."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (8, 12, 3), dtype=np.uint8))
        pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        pixels[:, width // 2 :] += 30
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"im{index:04}.png", compress_level=1)
    return folder


# --- memory ----------------------------------------------------------------------------------------

#: ``python -m segaware``, and the peak of its resident memory, when the cells are done and at the end.
_PEAK = (
    DEFINE_PEAK
    + """
import runpy
from segaware.evaluation import runner
go, cells = runner._Run.go, []
def measured(self):
    results = go(self)
    cells.append(peak())
    return results
runner._Run.go = measured
try:
    runpy.run_module("segaware", run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
print("peak", cells[0], peak())
"""
)


def measure_memory(report: Report, quick: bool, counts: list[int]) -> None:
    """A small denoiser and the shipped judge on ``counts`` images of 128 x 96, all views of the report written."""
    from segaware import DnCNN
    from segaware.entries import write_entry

    peaks: dict[int, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory(prefix="segaware-memory-") as name:
        root = Path(name)
        model = write_entry(root / "small", DnCNN(depth=5, width=16))
        for count in counts:
            folder = pictures(root / f"clean{count}", count, 96, 128)
            command = [sys.executable, "-c", _PEAK, "evaluate", str(folder), "-m", str(model), "-j", "fpn-camvid", "-s", "25",
                       "-o", str(root / f"out{count}")]  # fmt: skip
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode:
                raise SystemExit(f"memory: {ended.stderr}")
            cells, end = ended.stdout.splitlines()[-1].split()[1:]
            peaks[count] = int(cells), int(end)
            report.add(f"{count} images: peak resident memory with all cells done", peaks[count][0] / 1024, "MiB")
            report.add(f"{count} images: and with the report written", peaks[count][1] / 1024, "MiB")
    first, last = counts[0], counts[-1]
    for at, what in enumerate(("cells", "report")):
        report.add(f"  {what}: {last} images against {first}", peaks[last][at] / peaks[first][at], "x", 1.05)


# --- overhead --------------------------------------------------------------------------------------


@contextmanager
def watched(seconds: dict[str, float]) -> Iterator[None]:
    """Within: time spent in the parts of an evaluation is added up under their names, each without the parts inside it."""
    from segaware import metrics, niqe
    from segaware.evaluation import contestants, judges, protocol, runner, sources

    inner = [0.0]
    put_back = []

    def watch(owner: Any, name: str, label: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **options: Any) -> Any:
            before, inner[0] = inner[0], 0.0
            start = time.perf_counter()
            try:
                return original(*args, **options)
            finally:
                spent = time.perf_counter() - start
                seconds[label] += spent - inner[0]
                inner[0] = before + spent

        setattr(owner, name, timed)
        put_back.append((owner, name, original))

    parts = [
        (contestants.Model, "denoise", "denoiser"), (judges.Judge, "__call__", "judges: network, logits to image size"),
        (sources.Source, "load", "reading images"), (runner, "_hash", "hashing images"), (protocol.Protocol, "noisy", "drawing noise"),
        (metrics.Convention, "psnr", "PSNR"), (metrics.Convention, "ssim", "SSIM"), (niqe.NIQE, "__call__", "NIQE"),
        (runner, "open_judge", "opening judges"), (runner, "open_contestant", "opening denoisers"),
    ]  # fmt: skip
    for owner, name, label in parts:
        watch(owner, name, label)
    try:
        yield
    finally:
        for owner, name, original in reversed(put_back):
            setattr(owner, name, original)


def measure_overhead(report: Report, quick: bool, _: list[int]) -> None:
    """Shipped denoiser and judges: what an evaluation takes that is neither."""
    from segaware.evaluation.judges import default_judges
    from segaware.evaluation.protocol import Protocol
    from segaware.evaluation.runner import evaluate
    from segaware.evaluation.sources import open_source

    count, height, width = (2, 96, 128) if quick else (8, 320, 480)
    with tempfile.TemporaryDirectory(prefix="segaware-overhead-") as name:
        source = open_source(pictures(Path(name, "clean"), count, height, width))
        names = default_judges(source)
        evaluate(source.select(limit=1), ["dncnn-blind"], judges=names)  # warm up: imports, first calls
        for metrics in (("psnr", "ssim"), ("psnr", "ssim", "niqe")):
            if "niqe" in metrics and quick:
                continue  # too small for it
            for judges in ([], names):
                seconds: dict[str, float] = defaultdict(float)
                run = functools.partial(
                    evaluate, source, ["dncnn-blind"], Protocol(metrics=metrics), judges=judges,
                    out=Path(name, f"out{len(metrics)}{len(judges)}"),
                )  # fmt: skip
                with watched(seconds):
                    total = clock(run)
                label = ", ".join(metrics) + (f", {len(judges)} judges" if judges else "")
                report.add(f"{count} images of {width} x {height}: {label}", total, "s")
                for part, spent in sorted(seconds.items(), key=lambda pair: -pair[1]):
                    report.add(f"    {part}", spent, "s")
                report.add("    the rest", total - sum(seconds.values()), "s")
                networks = sum(spent for part, spent in seconds.items() if part.startswith(("denoiser", "judges:")))
                opened = sum(spent for part, spent in seconds.items() if part.startswith("opening"))  # once, however many images
                share = (total - networks - opened) / seconds["denoiser"]
                report.add("  all but the networks and opening them, against the denoiser", share, "", 0.15)


def measure_minute(report: Report, quick: bool, _: list[int]) -> None:
    """The line of the README, from a fresh interpreter."""
    count, height, width = (2, 96, 128) if quick else (8, 320, 480)
    with tempfile.TemporaryDirectory(prefix="segaware-minute-") as name:
        folder = pictures(Path(name, "clean"), count, height, width)
        command = [sys.executable, "-m", "segaware", "evaluate", str(folder), "--sigma", "25", "--model", "dncnn-blind"]
        took = clock(lambda: subprocess.run(command, check=True, capture_output=True))
    report.add(f"segaware evaluate, {count} images of {width} x {height}", took, "s", 60)


# --- NIQE ------------------------------------------------------------------------------------------


def measure_niqe(report: Report, quick: bool, _: list[int]) -> None:
    """One image, beside deepinv's on the same plane and parameters, and beside its own filters alone."""
    import torch
    import torch.nn.functional as F

    from segaware.inference.memory import keep_pages
    from segaware.niqe import NIQE
    from segaware.niqe_features import _filter, _halve

    height, width = (192, 192) if quick else (512, 768)
    height, width = height - height % 96, width - width % 96
    plane = torch.rand(1, 1, *((192, 192) if quick else (512, 768)), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    metric = NIQE.shipped()

    def filters() -> None:
        """Local mean and deviation at both scales and the halving, in strips of one row of blocks."""
        whole = 255 * plane[0, :, :height, :width]
        for planes, block in ((whole, 96), (_halve(whole), 48)):
            padded = F.pad(planes[:, None], (3, 3, 3, 3), mode="replicate")[:, 0]
            for top in range(0, planes.shape[1], block):
                strip = padded[:, top : top + block + 6]
                for one in (strip, strip.square()):
                    _filter(_filter(one, [1 / 7] * 7, -2), [1 / 7] * 7, -1)

    def median(work: Callable[[], object]) -> float:
        work()
        return statistics.median(clock(work) for _ in range(2 if quick else 7))

    with keep_pages():
        ours = median(lambda: metric(plane, data_range=1.0))
        report.add(f"NIQE of {plane.shape[2]} x {plane.shape[3]} pixels, {torch.get_num_threads()} threads", ours, "s")
        report.add("  against its own filters", ours / median(filters), "x")
    try:
        import deepinv
    except ImportError:
        print("  deepinv is not installed: its line is left out")
        return
    with tempfile.TemporaryDirectory(prefix="segaware-niqe-") as name:
        torch.save({"mu": metric.mean, "cov": metric.covariance}, Path(name, "parameters.pt"))
        theirs = deepinv.loss.metric.NIQE(weights_path=str(Path(name, "parameters.pt")), dtype=torch.float64)
        values = float(metric(plane, data_range=1.0)), float(theirs(plane * 255))
        report.add("  difference from deepinv's value", abs(values[0] - values[1]), "", 1e-3)
        report.add("  deepinv's time against ours", median(lambda: theirs(plane * 255)) / ours, "x", 5, at_least=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be given several times")
    parser.add_argument("--images", default="10,50,200,500", help="numbers of images of the section memory")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = [2, 6] if options.quick else [int(count) for count in options.images.split(",")]
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    print(machine())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    report = Report()
    measures = {"memory": measure_memory, "overhead": measure_overhead, "minute": measure_minute, "niqe": measure_niqe}
    for section in options.only or SECTIONS:
        print(section, flush=True)
        measures[section](report, options.quick, counts)
    print("quick: tiny sizes, the figures mean nothing" if options.quick else f"{report.missed} targets missed")
    if options.json:
        record = {"machine": machine(), "versions": versions(), "quick": options.quick, "rows": report.rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
