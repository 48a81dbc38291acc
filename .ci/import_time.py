"""Fail if ``import torch, segaware`` takes clearly longer than ``import torch``: medians of fresh processes, in turns."""

import statistics
import subprocess
import sys
import time

ROUNDS, ALLOWED = 7, 1.10


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


statements = ("import torch", "import torch, segaware")
for statement in statements:
    seconds(statement)  # files into the cache
times = [[seconds(statement) for statement in statements] for _ in range(ROUNDS)]
plain, ours = (statistics.median(column) for column in zip(*times, strict=True))
print(f"import torch: {plain:.2f} s; with segaware: {ours:.2f} s, {ours / plain:.2f} x (allowed: {ALLOWED:.2f} x)")
sys.exit(ours > ALLOWED * plain)
