"""How fast it is, beside the machine's own matrix rates. All ratios are of one run, sides in turn.

    python tests/benchmarks/speed.py                       everything, about half an hour on two cores
    python tests/benchmarks/speed.py --only training       one section: rates training awareness denoise cascade import memory
    python tests/benchmarks/speed.py --quick               tiny sizes: does it run? (its figures mean nothing)
    python tests/benchmarks/speed.py --json speed.json     the same as JSON

Each side lives in a process of its own (allocators do not mix), builds its case once, warms up,
and is then asked in turn, A B C A B C, for one timing; medians are compared. Measure on a quiet
machine. deepinv is in the extra "test".
"""

from __future__ import annotations

import argparse
import atexit
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SECTIONS = ("rates", "training", "awareness", "denoise", "cascade", "import", "memory")
Case = Callable[[], float]  # runs once and gives the seconds that count


def clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- the sides: each builds its case and returns what is timed -------------------------------------


def network(open_norms: bool = True):
    """A DnCNN whose activations do not die out: fresh scales of 0.025 leave denormal numbers."""
    import torch
    from torch import nn

    from segaware import DnCNN

    torch.manual_seed(0)
    model = DnCNN()
    if open_norms:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
    return model.eval()


def rate(dtype_name: str, quick: bool) -> Case:
    """GFLOP/s of a matrix product."""
    import torch

    side = 512 if quick else 3072
    dtype = getattr(torch, dtype_name)
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)

    def run() -> float:
        return 2 * side**3 / clock(lambda: a @ b) / 1e9

    return run


def batch(quick: bool):
    import torch

    size = 2 if quick else 16
    clean = torch.rand(size, 3, 48, 48)
    return clean + 0.1 * torch.randn_like(clean), clean


def training_plain(_: str, quick: bool) -> Case:
    """The loop of a first script: float32, contiguous, mean squared error, Adam."""
    import torch

    model = network(False).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    noisy, clean = batch(quick)

    def step() -> None:
        loss = (model(noisy) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return lambda: clock(step)


def awareness_term(kind: str):
    from segaware import EntropySegAwareLoss, FPNSegmenter

    if kind == "none":
        return ()
    return EntropySegAwareLoss(FPNSegmenter(num_classes=21, backbone=kind).requires_grad_(False))


def training_fit(awareness: str, quick: bool) -> Case:
    """One step of ``segaware.training.fit`` as its loop does it, drawing patches and noise included."""
    import torch

    from segaware import SegAwareWrapper
    from segaware.inference.memory import keep_pages
    from segaware.training import Recipe
    from segaware.training.fit import _Run

    wrapper = SegAwareWrapper(network(False), awareness_term(awareness))
    images = [torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8) for _ in range(32)]
    recipe = Recipe(batch_size=2 if quick else 16, patch_size=48)
    folder = tempfile.TemporaryDirectory(prefix="segaware-speed-")
    atexit.register(folder.cleanup)
    run = _Run(wrapper, images, recipe, Path(folder.name), None, False, None)
    keep_pages().__enter__()  # as fit does, until this process ends

    def step() -> None:
        run.train_step(run.patches[run.step])
        run.step += 1

    return lambda: clock(step)


def image(quick: bool):
    import torch

    height, width = (96, 128) if quick else (512, 768)
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def denoise_eager(_: str, quick: bool) -> Case:
    """The same network called as it is: contiguous, batch normalisation not folded, default allocator."""
    import torch

    model, noisy = network(), image(quick)

    def run() -> float:
        with torch.no_grad():
            return clock(lambda: model(noisy))

    return run


def denoise_segaware(_: str, quick: bool) -> Case:
    """``segaware.denoise`` from image to image: copying, folding and checks included."""
    from segaware import denoise

    model, noisy = network(), image(quick)
    return lambda: clock(lambda: denoise(noisy, model))


def denoise_deepinv(_: str, quick: bool) -> Case:
    """deepinv's DnCNN: 20 layers of 64 channels, biases, no batch normalisation at all."""
    import torch
    from deepinv.models import DnCNN

    model, noisy = DnCNN(pretrained=None).eval(), image(quick)

    def run() -> float:
        with torch.no_grad():
            return clock(lambda: model(noisy))

    return run


def denoise_kair(_: str, quick: bool) -> Case:
    """The form of KAIR's test script, written anew: merged norms, 8-bit image in and out, autograd on, no gradients."""
    import numpy as np
    import torch

    from segaware.inference.folding import fold_batch_norm

    model = network()
    fold_batch_norm(model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    pixels = (image(quick)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)

    def work() -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float().div(255.0)[None]
        result = model(tensor).data.squeeze().float().clamp_(0, 1).numpy()
        return np.uint8((np.transpose(result, (1, 2, 0)) * 255.0).round())

    return lambda: clock(work)


def denoise_difference(_: str, quick: bool) -> Case:
    """Not a time: the largest difference between ``denoise`` and the plain forward."""
    import torch

    from segaware import denoise

    model, noisy = network(), image(quick)
    with torch.no_grad():
        difference = float((denoise(noisy, model) - model(noisy)).abs().max())
    return lambda: difference


def cascade(quick: bool):
    """S1 D1 S2 D2 S3 D3 for 11 classes with norms that do something, and an image of CamVid's size."""
    import torch
    from torch import nn

    from segaware import DDFN, SDABN, SDB, HRNetSegmenter

    torch.manual_seed(0)
    size = {"width": 4, "modules": (1, 1, 1), "blocks": 1, "bottlenecks": 1} if quick else {}
    depth = {"blocks": 2} if quick else {}
    model = SDABN([SDB(HRNetSegmenter(11, init="kaiming", **size), DDFN(condition_channels=11, **depth)) for _ in range(3)])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    for block in model.blocks:
        block.denoiser.reconstruct.weight.data.mul_(100)  # images of the order of 1
    return model.eval(), torch.rand(1, 3, *((64, 80) if quick else (360, 480)))


def cascade_by_hand(model, noisy):
    """The recurrence as one would write it down: contiguous, norms not folded, default allocator."""
    import torch
    import torch.nn.functional as F

    estimate = None
    with torch.no_grad():
        for block in model.blocks:
            logits = block.segmenter(noisy if estimate is None else estimate)
            condition = F.interpolate(logits, noisy.shape[-2:], mode="bilinear", align_corners=False)
            estimate = block.denoiser(noisy if estimate is None else estimate + noisy, condition=condition)
    return estimate


def cascade_eager(_: str, quick: bool) -> Case:
    model, noisy = cascade(quick)
    return lambda: clock(lambda: cascade_by_hand(model, noisy))


def cascade_segaware(precision: str, quick: bool) -> Case:
    """An engine made ready once, as for a folder of frames."""
    from segaware.inference.engine import Engine

    model, noisy = cascade(quick)
    engine = Engine(model, precision=precision).__enter__()
    return lambda: clock(lambda: engine(noisy))


def cascade_difference(_: str, quick: bool) -> Case:
    """Not a time: the largest difference between the two."""
    from segaware.inference.engine import Engine

    model, noisy = cascade(quick)
    difference = float((Engine(model, precision="float32")(noisy) - cascade_by_hand(model, noisy)).abs().max())
    return lambda: difference


SIDES: dict[str, Callable[[str, bool], Case]] = {
    "rate": rate,
    "training-plain": training_plain,
    "training-fit": training_fit,
    "denoise-eager": denoise_eager,
    "denoise-segaware": denoise_segaware,
    "denoise-deepinv": denoise_deepinv,
    "denoise-kair": denoise_kair,
    "denoise-difference": denoise_difference,
    "cascade-eager": cascade_eager,
    "cascade-segaware": cascade_segaware,
    "cascade-difference": cascade_difference,
}


# --- driver ----------------------------------------------------------------------------------------


def serve(side: str, argument: str, quick: bool) -> None:
    """A side's process: build, warm up, then one number for every line that comes."""
    case = SIDES[side](argument, quick)
    for _ in range(1 if quick else 2):
        case()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(case(), flush=True)


def in_turn(sides: dict[str, tuple[str, str]], repeats: int, quick: bool) -> dict[str, float]:
    """Median of each side; ``sides`` maps a label to (side, argument)."""
    workers = {}
    times: dict[str, list[float]] = {label: [] for label in sides}
    try:
        for label, (side, argument) in sides.items():
            command = [sys.executable, __file__, "--serve", side, argument, *(["--quick"] if quick else [])]
            workers[label] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            answer = workers[label].stdout.readline().strip()
            if answer != "ready":
                raise SystemExit(f"{label}: could not start (see above)")
        for _ in range(repeats):
            for label, worker in workers.items():
                worker.stdin.write("go\n")
                worker.stdin.flush()
                times[label].append(float(worker.stdout.readline()))
    finally:
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    return {label: statistics.median(values) for label, values in times.items()}


class Report:
    """Rows of what, figure, target; printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []
        self.missed = 0

    def add(self, what: str, value: float, unit: str = "", target: float | None = None, at_least: bool = False) -> None:
        row: dict[str, object] = {"what": what, "value": value, "unit": unit}
        text = f"  {what:<66} {value:>10.4g} {unit:<8}"
        if target is not None:
            met = value >= target if at_least else value <= target
            self.missed += not met
            row |= {"target": target, "at_least": at_least, "met": met}
            text += f" target {'>=' if at_least else '<='} {target:g}: {'met' if met else 'MISSED'}"
        self.rows.append(row)
        print(text, flush=True)


def measure_rates(report: Report, quick: bool) -> dict[str, float]:
    sides = {name: ("rate", name) for name in ("float32", "bfloat16")}
    rates = in_turn(sides, 3 if quick else 7, quick)
    for name, value in rates.items():
        report.add(f"matrix product, {name}", value, "GFLOP/s")
    return rates


def gflop(pixels: int, passes: int) -> float:
    """Of DnCNN: 20 convolutions, two operations a multiply-add; training passes three times."""
    return 2 * passes * pixels * (2 * 27 * 64 + 18 * 9 * 64 * 64) / 1e9


def measure_training(report: Report, quick: bool, rates: dict[str, float]) -> None:
    sides = {"plain": ("training-plain", ""), "fit": ("training-fit", "none")}
    times = in_turn(sides, 3 if quick else 9, quick)
    work = gflop((2 if quick else 16) * 48 * 48, 3)
    report.add("training step, plain float32 contiguous loop", times["plain"], "s")
    report.add("training step of fit, fidelity alone", times["fit"], "s")
    report.add("  against the plain loop", times["fit"] / times["plain"], "x", 0.5)
    report.add("  share of the bf16 matrix rate", work / times["fit"] / rates["bfloat16"], "", 0.8, at_least=True)


def measure_awareness(report: Report, quick: bool, _: dict[str, float]) -> None:
    targets = {"resnet18": 1.3, "squeezenet1_0": 1.3, "resnet101": 1.7}
    times = in_turn({kind: ("training-fit", kind) for kind in ("none", *targets)}, 3 if quick else 7, quick)
    for kind, target in targets.items():
        report.add(f"step with entropy on FPN {kind}, against fidelity alone", times[kind] / times["none"], "x", target)


def measure_denoise(report: Report, quick: bool, rates: dict[str, float]) -> None:
    names = ("segaware", "eager", "deepinv", "kair")
    times = in_turn({name: (f"denoise-{name}", "") for name in names}, 2 if quick else 5, quick)
    pixels = 96 * 128 if quick else 512 * 768
    labels = {"segaware": "segaware.denoise", "eager": "eager contiguous forward", "deepinv": "deepinv's DnCNN (no norms)",
              "kair": "KAIR's test loop (norms merged)"}  # fmt: skip
    for name, label in labels.items():
        report.add(f"denoise {pixels} pixels, float32: {label}", times[name], "s")
    ours = times["segaware"]
    report.add("  against the eager forward", ours / times["eager"], "x", 0.55)
    report.add("  against deepinv", ours / times["deepinv"], "x")
    report.add("  against KAIR's loop", ours / times["kair"], "x")
    report.add("  share of the float32 matrix rate", gflop(pixels, 1) / ours / rates["float32"], "", 0.9, at_least=True)
    difference = in_turn({"difference": ("denoise-difference", "")}, 1, quick)["difference"]
    report.add("  largest difference from the eager forward", difference, "", 1e-5)


def measure_cascade(report: Report, quick: bool, _: dict[str, float]) -> None:
    sides = {
        "eager": ("cascade-eager", ""), "float32": ("cascade-segaware", "float32"), "bfloat16": ("cascade-segaware", "bfloat16"),
    }  # fmt: skip
    times = in_turn(sides, 2 if quick else 7, quick)
    report.add("SDABN x3, 11 classes, one image: the plain loop, float32", times["eager"], "s")
    for precision in ("float32", "bfloat16"):
        report.add(f"  segaware's engine, {precision}", times[precision], "s")
    report.add("  float32 against the plain loop", times["float32"] / times["eager"], "x", 0.6)
    report.add("  bfloat16 against the plain loop", times["bfloat16"] / times["eager"], "x")
    difference = in_turn({"difference": ("cascade-difference", "")}, 1, quick)["difference"]
    report.add("  largest difference in float32", difference, "", 1e-3)


def measure_import(report: Report, quick: bool, _: dict[str, float]) -> None:
    statements = {"torch": "import torch", "segaware": "import segaware", "both": "import torch, segaware"}
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _round in range(2 if quick else 6):
        for name, statement in statements.items():
            times[name].append(clock(lambda s=statement: subprocess.run([sys.executable, "-c", s], check=True)))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first fills the disk cache
    report.add("import torch, a fresh interpreter", medians["torch"], "s")
    report.add("import segaware, against import torch", medians["segaware"] / medians["torch"], "x", 1.15)
    report.add("import torch and segaware, against import torch", medians["both"] / medians["torch"], "x", 1.15)


def measure_memory(report: Report, quick: bool, _: dict[str, float]) -> None:
    try:
        import resource
    except ImportError:
        print("  memory: needs the resource module (Linux, macOS)")
        return
    from PIL import Image

    from segaware.entries import write_entry

    height, width = (1000, 2000) if quick else (4000, 6000)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "photo.png"), Path(folder, "clean.png")
        Image.effect_noise((width, height), 64).convert("RGB").save(source, compress_level=1)
        entry = write_entry(Path(folder, "dncnn"), network())
        command = [sys.executable, "-m", "segaware", "denoise", str(source), "-o", str(target), "-m", str(entry)]
        seconds = clock(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    report.add(f"segaware denoise of {width * height / 1e6:g} megapixels, DnCNN", seconds, "s")
    report.add("  largest resident memory", peak / 2**30, "GiB", 2.0)


def versions() -> dict[str, str]:
    import segaware

    found = {"python": platform.python_version(), "segaware": segaware.__version__}
    for name in ("torch", "torchvision", "deepinv"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, {platform.system()} {platform.machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be given several times")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "ARGUMENT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve, options.quick)
        return

    chosen = options.only or SECTIONS
    print(machine())
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    report = Report()
    rates: dict[str, float] = {}
    # memory comes before what would leave a larger child behind in the count of the children
    for section in sorted(chosen, key=("memory", *SECTIONS).index):
        print(section, flush=True)
        if section == "rates" or (section in ("training", "denoise") and not rates):
            rates = measure_rates(report, options.quick)
        if section != "rates":
            measures = {"training": measure_training, "awareness": measure_awareness, "denoise": measure_denoise, "cascade": measure_cascade,
                        "import": measure_import, "memory": measure_memory}  # fmt: skip
            measures[section](report, options.quick, rates)
    if options.quick:
        print("quick: tiny sizes, the figures mean nothing")
    else:
        print(f"{report.missed} targets missed")
    if options.json:
        record = {"machine": machine(), "versions": versions(), "quick": options.quick, "rows": report.rows}
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
