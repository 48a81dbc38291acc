"""What ``torch.compile`` (inductor) brings to the models that ship, in one graph each.

    python tests/benchmarks/compiled.py                    every model, 240 x 320 pixels
    python tests/benchmarks/compiled.py --model liu-blind --size 480x640

Needs a C++ compiler. The eager side is the network as ``segaware.denoise`` runs it: batch normalisation
folded, channels last, freed pages kept. Both sides run in turn; medians are compared.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn

from segaware import from_pretrained, list_models
from segaware.errors import SegawareError
from segaware.inference.folding import fold_batch_norm
from segaware.inference.memory import keep_pages


def ready(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model = copy.deepcopy(from_pretrained(name)).eval().requires_grad_(False)
    fold_batch_norm(model)
    info = getattr(model, "info", None)
    sigma = (torch.full((1,), 25 / 255),) if info is not None and info.takes_sigma else ()
    return model.to(memory_format=torch.channels_last), sigma


def clock(call, arguments) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="may be given several times; default: all")
    parser.add_argument("--size", default="240x320", help="HEIGHTxWIDTH")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    height, width = (int(side) for side in options.size.split("x"))
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    image = image.contiguous(memory_format=torch.channels_last)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, one image of {height} x {width}\n")
    print("| model | eager, s | compiled, s | ratio | largest difference | compiling, s |\n|---|---|---|---|---|---|")
    with keep_pages(), torch.inference_mode():
        for name in options.model or [record.name for record in list_models()]:
            torch.compiler.reset()
            model, sigma = ready(name)
            compiled = torch.compile(model, fullgraph=True)
            arguments = (image, *sigma)
            first = clock(compiled, arguments)
            difference = float((compiled(*arguments) - model(*arguments)).abs().max())
            times = [(clock(model, arguments), clock(compiled, arguments)) for _ in range(options.repeats)]
            eager, fast = (statistics.median(side) for side in zip(*times, strict=True))
            print(f"| {name} | {eager:.3f} | {fast:.3f} | {fast / eager:.2f} | {difference:.1e} | {first:.0f} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except SegawareError as error:
        raise SystemExit(f"error: {error}") from error
