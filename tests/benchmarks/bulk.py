"""Many small images: two processes against one, against the bare network, and what a manifest costs.

    python tests/benchmarks/bulk.py                        200 images of 256 x 256, three rounds, about twenty minutes
    python tests/benchmarks/bulk.py --images 6 --side 32   smaller: does it run? (its figures mean nothing)
    python tests/benchmarks/bulk.py --json bulk.json       the same as JSON
    python tests/benchmarks/bulk.py --page docs/cost.md    also write the table of that page

Every side is a whole command, from its start to its end, on the same one or two cores, asked in turn;
medians are compared. The same command with two images tells what starting takes. Measure on a quiet
machine. Needs a system that can tie a process to cores (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from speed import Report, machine, versions  # noqa: E402

FEW = 2  # images of the runs that measure the start
BEGIN, END = "<!-- measured: tests/benchmarks/bulk.py --page -->", "<!-- end of measured -->"
#: The network alone, in as many processes and threads as told; tensors in memory, nothing read or written.
BARE = """
import multiprocessing, sys, torch
def work(model, images, side, threads, fast):
    import torch
    from segaware import from_pretrained
    torch.set_num_threads(threads)
    if fast:
        from segaware.inference.engine import Engine
        engine = Engine(model).__enter__()
        network = engine._module
    else:
        network = from_pretrained(model)
    noisy = torch.rand(1, 3, side, side)
    if fast:
        noisy = noisy.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(images):
            network(noisy)
if __name__ == "__main__":
    model, images, side, processes, threads, fast = sys.argv[1], *map(int, sys.argv[2:])
    if processes == 1:
        work(model, images, side, threads, fast)
    else:
        context = multiprocessing.get_context("spawn")
        several = [context.Process(target=work, args=(model, (images + part) // processes, side, threads, fast)) for part in range(processes)]
        [one.start() for one in several]
        [one.join() for one in several]
        assert not any(one.exitcode for one in several)
"""


def pictures(folder: Path, count: int, side: int) -> Path:
    """Smooth colours with noise of sigma 25, as PNG."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        noisy = np.array(coarse) + random.normal(0, 25, (side, side, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index:05}.png")
    return folder


def seconds(command: list[str], cores: list[int], threads: int) -> float:
    """Of a whole command tied to some cores."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    ended = subprocess.run(command, env=env, preexec_fn=lambda: os.sched_setaffinity(0, cores), capture_output=True, text=True)
    spent = time.perf_counter() - start
    if ended.returncode:
        raise SystemExit(f"{command}: {ended.stderr}")
    return spent


def measure_throughput(report: Report, options: argparse.Namespace, root: Path) -> dict[str, Any]:
    images, side, model = options.images, options.side, options.model
    bare = root / "bare.py"
    bare.write_text(BARE)
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed")
    folders = {images: pictures(root / "many", images, side), FEW: pictures(root / "few", FEW, side)}
    made = [0]

    def denoise(count: int, processes: int) -> float:
        made[0] += 1
        out = root / f"out{made[0]}"
        command = [sys.executable, "-m", "segaware", "denoise", str(folders[count]), "-o", str(out), "-m", model, "--device", "cpu",
                   "--processes", str(processes), "--manifest", str(root / f"{made[0]}.jsonl")]  # fmt: skip
        spent = seconds(command, cores[:processes], 1)
        assert len(list(out.glob("*.png"))) == count
        return spent

    def alone(count: int, processes: int, threads: int, fast: bool) -> float:
        command = [sys.executable, str(bare), model, *map(str, (count, side, processes, threads, int(fast)))]
        return seconds(command, cores, threads)

    sides = {
        "one": lambda count: denoise(count, 1),
        "two": lambda count: denoise(count, 2),
        "plain": lambda count: alone(count, 1, 2, False),
        "fast": lambda count: alone(count, 2, 1, True),
    }
    times: dict[tuple[str, int], list[float]] = {(name, count): [] for name in sides for count in (images, FEW)}
    for _ in range(options.rounds):
        for name, count in times:
            times[name, count].append(sides[name](count))
    whole = {name: statistics.median(times[name, images]) for name in sides}
    start = {name: statistics.median(times[name, FEW]) for name in sides}
    labels = {
        "one": "segaware denoise, one core", "two": "segaware denoise --processes 2, two cores",
        "plain": "the network as it comes, forward passes, two threads", "fast": "the network folded and channels last, a process a core",
    }  # fmt: skip
    for name, label in labels.items():
        report.add(f"{images} images of {side} x {side}: {label}", whole[name], "s")
        report.add(f"  {FEW} images", start[name], "s")
    report.add("two processes against one: throughput", whole["one"] / whole["two"], "x", 1.6, at_least=True)
    report.add("two processes against the network as it comes", whole["plain"] / whole["two"], "x", 0.9, at_least=True)
    report.add("two processes against the network made fast", whole["fast"] / whole["two"], "x", 0.9, at_least=True)
    each = (whole["two"] - start["two"]) / (images - FEW)
    report.add("two processes: an image more", each, "s")
    rows = [f"| {label} | {whole[name]:.3g} s | {images / whole[name]:.2f} | {whole['one'] / whole[name]:.2f} x |" for name, label in labels.items()]
    return {"start": start["two"] - FEW * each, "each": each, "rows": rows}


_SCALE = """
import json, resource, sys, time
from pathlib import Path
from segaware.inference.folder import _name
from segaware.inference.files import images_below
from segaware.inference.manifest import Manifest
from segaware.inference.shards import Shard, place_of
source, target, path = map(Path, sys.argv[1:4])
run = {"model_hash": "0" * 64}
if sys.argv[4] == "write":
    with Manifest(path, run, Shard()) as book:
        start = time.perf_counter()
        for image in images_below(source):
            size = image.stat().st_size
            book.add({"file": _name(image, source), "status": "done", "seconds": 0.25, "sigma": None, "model_hash": "0" * 16,
                      "shard": "1/1", "bytes_in": size, "bytes_out": size})
        print(time.perf_counter() - start, 0)
else:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with Manifest(path, run, Shard()) as book:
        for image in images_below(source):
            name = _name(image, source)
            assert book.is_done(place_of(name), image, target / name)
    print(time.perf_counter() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def measure_manifest(report: Report, options: argparse.Namespace, root: Path) -> dict[str, float]:
    """A line an image, and starting again when all is done; the images themselves are a byte each."""
    source = root / "names"
    for index in range(options.names):
        file = source / f"{index // 1000:04}" / f"{index % 1000:03}.png"
        if index % 1000 == 0:
            file.parent.mkdir(parents=True)
        file.write_bytes(b"1")
    figures = {}
    for what in ("write", "skip"):
        command = [sys.executable, "-c", _SCALE, str(source), str(source), str(root / "names.jsonl"), what]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        spent, memory = map(float, ended.stdout.split())
        figures[what] = spent / options.names
        report.add(f"manifest of {options.names} images: {what}, an image", figures[what] * 1e6, "us")
    report.add("  memory to start again, an image", memory / options.names, "bytes")
    return figures | {"memory": memory / options.names}


def duration(value: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s"


def size(value: float) -> str:
    return f"{value / 2**30:.3g} GiB" if value >= 2**30 else f"{value / 2**20:.3g} MiB" if value >= 2**20 else f"{value / 2**10:.3g} KiB" if value >= 2**10 else f"{value:.0f} bytes"


def table(options: argparse.Namespace, cost: dict[str, Any], book: dict[str, float]) -> str:
    """The part of the page that is written by this program."""
    lines = [
        f"`python tests/benchmarks/bulk.py --page docs/cost.md`: `{options.model}`, PNG files of {options.side} x {options.side}, {machine()},"
        f" torch {versions()['torch']}; medians of {options.rounds} rounds.",
        "",
        f"| {options.images} images, from the start of the command to its end | time | images a second | |",
        "|---|---|---|---|",
        *cost["rows"],
        "",
        "The networks alone read and write nothing, and see one tensor again and again. What many images take, with `--processes 2`:",
        "",
        "| images | time, two cores | started again when all is done | memory for what is done | |",
        "|---|---|---|---|---|",
    ]
    for count in (FEW, options.images, *(10**power for power in range(3, 8))):
        measured = count in (FEW, options.images)
        lines.append(
            f"| {count:,} | {duration(cost['start'] + count * cost['each'])} | {duration(cost['start'] + count * book['skip'])} |"
            f" {size(count * book['memory'])} | {'time measured' if measured else '*extrapolated*'} |"
        )
    lines += [
        "",
        f"Time is {cost['start']:.3g} s to start and {cost['each']:.3g} s an image; starting again, {book['skip'] * 1e6:.3g} us an image, and its"
        f" memory were measured with {options.names:,} names, on a file system that was in memory for the most part. *Extrapolated* rows continue"
        " these lines: they know nothing of slower disks, networks or neighbours.",
    ]
    return "\n".join(lines)


def write_page(page: Path, text: str) -> None:
    """Replace what stands between the marks."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--names", type=int, default=100_000, help="files of the manifest that is measured")
    parser.add_argument("--model", default="dncnn-blind")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("this system cannot tie a process to cores")
    if options.images <= FEW:
        parser.error(f"--images must be more than {FEW}")
    print(machine())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    report = Report()
    with tempfile.TemporaryDirectory(prefix="segaware-bulk-") as folder:
        cost = measure_throughput(report, options, Path(folder))
        book = measure_manifest(report, options, Path(folder))
    print(f"{report.missed} targets missed")
    if options.json:
        record = {"machine": machine(), "versions": versions(), "images": options.images, "side": options.side, "rows": report.rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if options.page:
        write_page(options.page, table(options, cost, book))


if __name__ == "__main__":
    main()
