"""Denoise a folder or a bucket with Ray, on one machine or a cluster, into images or tar shards.

    python examples/bulk/denoise_with_ray.py photos clean --model segaware-blind --workers 4
    python examples/bulk/denoise_with_ray.py s3://bucket/photos s3://bucket/clean --form shards --address auto

The list of images is cut into units of ``--unit`` images. A worker takes a unit, denoises it, writes
its images (under their own names) or one shard (``shard-00012.tar``, readable by webdataset), and last
its manifest, ``_segaware/00012.jsonl``: for each image file, status, seconds, sigma (in 8-bit units, as
``segaware denoise`` tells it), and the model's hash. Everything appears whole or not at all. A worker
that dies is replaced and its unit done again, which ends in the same files; the whole command, killed,
goes on where it was when it is given again.
An image that cannot be read or denoised is in its manifest with the reason; ``--retry`` tries those
again. Needs: pip install "segaware[ray]", and "segaware[s3]" for s3://. Exit code: 0 done, 1 some
images failed or the job was stopped, 2 wrong input.
"""

import argparse
import contextlib
import fnmatch
import hashlib
import io
import json
import logging
import os
import socket
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from segaware.bulk import DenoiseBatch, Storage, model_hash
from segaware.errors import InputError, SegawareError
from segaware.image_io import EXTENSIONS

RUN = "_segaware/run.json"
CHUNK = 16  # images read ahead while as many are denoised
T = TypeVar("T")


def manifest(unit: int) -> str:
    return f"_segaware/{unit:05d}.jsonl"


class Stopped(Exception):
    """A worker met what concerns all images: no right to write, a full disk, no network."""


class DenoiseUnit:
    """Reads a unit, denoises it, writes it. For ``map_batches`` with ``batch_size=1``; a plain callable otherwise."""

    def __init__(self, source: Storage, target: Storage, form: str, model: str, digest: str, **options) -> None:
        self.source, self.target, self.form, self.digest = source, target, form, digest
        self.denoise = DenoiseBatch(model, column="bytes", errors="row", **options)
        self.opened = False

    def open(self) -> None:
        """Once a worker; not when built: Ray would try a constructor that fails again and again."""
        if model_hash(self.denoise.model) != self.digest:
            raise InputError(f"{self.denoise.model}: not the same files here as where the job was started; copy the model's folder to all machines")
        self.denoise.engine()
        self.opened = True

    def __call__(self, batch: dict) -> dict:
        if not self.opened:
            self.open()
        counts = [self.unit(int(unit), json.loads(names)) for unit, names in zip(batch["unit"], batch["names"], strict=True)]
        return {"unit": batch["unit"], "done": np.array([c[0] for c in counts]), "failed": np.array([c[1] for c in counts])}

    def unit(self, unit: int, names: list[str]) -> tuple[int, int]:
        """How many images of it are done, and how many failed."""
        rows = []
        with ThreadPoolExecutor(CHUNK) as pool:  # reading from a bucket and writing into it is waiting
            if self.form == "shards":
                with self.target.writing(f"shard-{unit:05d}.tar") as file, tarfile.open(fileobj=file, mode="w") as tar:
                    for chunk in self.chunks(names, pool):
                        rows += [self._into_shard(tar, row) for row in chunk]
            else:
                there = list(pool.map(self.target.has, names))  # written by a worker that died with this unit
                for name in (name for name, written in zip(names, there, strict=True) if written):
                    rows.append({"file": name, "status": "done", "seconds": None, "sigma": None, "model": self.digest})
                for chunk in self.chunks([name for name, written in zip(names, there, strict=True) if not written], pool):
                    rows += list(pool.map(self._into_file, chunk))
        self.target.put(manifest(unit), "".join(json.dumps(row) + "\n" for row in rows).encode())
        failed = sum(row["status"] == "failed" for row in rows)
        return len(rows) - failed, failed

    def chunks(self, names: list[str], pool: ThreadPoolExecutor) -> Iterator[list[dict]]:
        """The lines of the manifest, each with its image under "bytes"; the next images are read meanwhile."""
        ahead = [pool.submit(self._load, name) for name in names[:CHUNK]]
        for first in range(0, len(names), CHUNK):
            chunk, loaded = names[first : first + CHUNK], [future.result() for future in ahead]
            ahead = [pool.submit(self._load, name) for name in names[first + CHUNK : first + 2 * CHUNK]]
            start = time.monotonic()
            files = np.empty(len(chunk), dtype=object)
            files[:] = [data for data, _ in loaded]
            made = self.denoise({"name": chunk, "bytes": files, "error": [error for _, error in loaded]})
            seconds = round((time.monotonic() - start) / len(chunk), 4)  # the mean of the chunk
            levels = made.get("sigma", [self.denoise.sigma] * len(chunk))
            rows = []
            for name, data, error, level in zip(chunk, made["bytes"], made["error"], levels, strict=True):
                sigma = None if level is None or np.isnan(level) else round(float(level) * 255, 2)
                row = {"file": name, "status": "failed" if error else "done", "seconds": seconds, "sigma": sigma, "model": self.digest}
                rows.append({**row, "bytes": data, **({"error": error} if error else {})})
            yield rows

    def _load(self, name: str) -> tuple[bytes, str]:
        try:
            return self.source.read(name), ""
        except (FileNotFoundError, PermissionError) as error:  # of this one image; what concerns all ends the job
            return b"", f"{name}: cannot be read ({error.strerror or error})"

    def _into_file(self, row: dict) -> dict:
        data = row.pop("bytes")
        if row["status"] == "done":
            self.target.put(row["file"], data)
        return row

    def _into_shard(self, tar: tarfile.TarFile, row: dict) -> dict:
        data = row.pop("bytes")
        if row["status"] == "done":
            entry = tarfile.TarInfo(row["file"])
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        return row


def begin(source: Storage, target: Storage, settings: dict) -> list[str]:
    """The images, once the target is known to be new or to hold the first part of this very run."""
    if source.holds(target) or target.holds(source):
        raise InputError(f"{target.address}: one of source and target lies in the other; choose folders apart")
    names = source.names(tuple(EXTENSIONS))
    if not names:
        raise InputError(f"{source.address}: no images in this folder or below; looked for {' '.join(EXTENSIONS)}")
    try:
        source.read(names[0])
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"{source.address}/{names[0]}: cannot be read ({error}); check the rights of the bucket and your credentials") from error
    listing = hashlib.sha256("\n".join(names).encode(errors="surrogatepass")).hexdigest()
    run = {"source": source.address, "images": len(names), "listing": listing, **settings}
    if target.has(RUN):
        before = written(target, RUN, settings_of)
        differs = [key for key in run if before.get(key) != run[key]]
        if differs:
            what = ", ".join("other images" if key == "listing" else f"{key} {before.get(key)} then, {run[key]} now" for key in differs)
            raise InputError(f"{target.address}: holds another run ({what}); give the command as it was, or choose another target")
    else:
        if (taken := occupied(target, names, settings["form"])) is not None:
            raise InputError(f"{target.address}: holds {taken} already, of no run of this command; choose an empty or new target, or move it away")
        target.put(RUN, (json.dumps(run, indent=2) + "\n").encode())
    return names


def occupied(target: Storage, names: list[str], form: str) -> str | None:
    """A file in the target that a run would take for one of its own."""
    if form == "images" and target.local:  # a look is cheap there, and sees through links and letters of another case
        return next(filter(target.has, names), None)
    there = target.names((".tar",) if form == "shards" else tuple(EXTENSIONS), must_exist=False)
    if form == "shards":
        return next((name for name in there if "/" not in name and fnmatch.fnmatch(name, "shard-*.tar")), None)
    ours = set(names)
    return next((name for name in there if name in ours), None)


def written(target: Storage, name: str, parse: Callable[[bytes], T]) -> T:
    """What ``parse`` makes of a file of this run."""
    try:
        data = target.read(name)
    except OSError as error:
        raise InputError(f"{target.address}/{name}: cannot be read ({error.strerror or error}); check your rights in the target") from error
    try:
        return parse(data)
    except ValueError as error:
        raise InputError(f"{target.address}/{name}: damaged ({error}); restore it, or choose another target") from error


def settings_of(data: bytes) -> dict:
    run = json.loads(data)
    if not isinstance(run, dict):
        raise ValueError("no settings of a run")
    return run


def units(names: list[str], size: int, target: Storage, retry: bool) -> tuple[list[dict], int, int]:
    """What is left to do, and how many images of the rest are done and failed."""
    count = -(-len(names) // size)
    there = {f"_segaware/{name}" for name in Storage(f"{target.address}/_segaware", **target.options).names((".jsonl",))}
    finished = [unit for unit in range(count) if manifest(unit) in there]  # other names, "00001 (1).jsonl", are none of ours
    with ThreadPoolExecutor(32) as pool:
        failures = pool.map(lambda unit: written(target, manifest(unit), lambda data: data.count(b'"status": "failed"')), finished)
        wrong = dict(zip(finished, failures, strict=True))
    left, done, failed = [], 0, 0
    for unit in range(count):
        part = names[unit * size : (unit + 1) * size]
        if unit not in wrong or (retry and wrong[unit]):
            left.append({"unit": unit, "names": json.dumps(part)})
        else:
            done, failed = done + len(part) - wrong[unit], failed + wrong[unit]
    return left, done, failed


def work(left: list[dict], arguments: dict, options: argparse.Namespace) -> tuple[int, int]:
    """Hand the units to Ray; images done and failed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f'this needs Ray ({error}); install it: pip install "segaware[ray]"') from error
    begun = not ray.is_initialized()
    answers(options.address)
    try:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster at {options.address!r} ({error}); start one, ray start --head, or leave --address out") from error
    try:
        check_room(ray.nodes(), options.cpus, options.gpus, grows=options.address is not None)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
        workers = min(options.workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // options.cpus), len(left))
        done = failed = 0
        start = time.monotonic()
        dataset = ray.data.from_items(left, override_num_blocks=len(left)).map_batches(
            DenoiseUnit, fn_constructor_kwargs=arguments, batch_size=1, concurrency=(1, workers), num_cpus=options.cpus, num_gpus=options.gpus or None
        )
        try:
            for row in dataset.iter_rows():
                done, failed = done + int(row["done"]), failed + int(row["failed"])
                print(f"unit {row['unit']}: {done} images done, {failed} failed, {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        except Exception as error:
            raise Stopped(reason(error)) from error
    finally:
        if begun:  # now: what Ray still has to tell would come between the lines of the result
            ray.shutdown()
    return done, failed


def check_room(nodes: list[dict], cpus: int, gpus: float, grows: bool) -> None:
    """Refuse workers that fit on no node, or, where an autoscaler may bring one, say so: Ray waits for ever, in silence."""
    there = {(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]}
    if not any(cpus <= cpu and gpus <= gpu for cpu, gpu in there):
        largest = ", ".join(f"{cpu:g} processors and {gpu:g} graphics cards" for cpu, gpu in sorted(there, reverse=True))
        words = f"no node has room for a worker of --cpus {cpus} --gpus {gpus:g}; there are nodes of {largest}; ask for less, or add a larger node"
        if not grows:
            raise InputError(words)
        print(f"{words}; waiting for one, end it with Ctrl-C", file=sys.stderr, flush=True)


def answers(address: str | None) -> None:
    """Refuse HOST:PORT where nobody listens: Ray itself would end this process, with a page of C++."""
    host, _, port = (address or "").rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster at {address!r} ({error}); start one, ray start --head, or leave --address out") from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or fsspec address of the images, with all below it")
    parser.add_argument("target", help="folder or address of the results; a killed run goes on there")
    parser.add_argument("--form", choices=("images", "shards"), default="images")
    parser.add_argument("--model", default="segaware-blind", help="name, folder (there on every machine) or OWNER/NAME of the Hub")
    parser.add_argument("--sigma", help="noise level in 8-bit units, or auto, for models that take one")
    parser.add_argument("--unit", type=int, default=256, help="images in a unit, and in a shard")
    parser.add_argument("--workers", type=int, help="at most; default: as many as the processors allow")
    parser.add_argument("--cpus", type=int, default=1, help="processors, and threads of torch, for each worker")
    parser.add_argument("--gpus", type=float, default=0, help="graphics cards for each worker, e.g. 0.5")
    parser.add_argument("--address", help="of a running Ray cluster, or auto; default: this machine alone")
    parser.add_argument("--storage", action="append", default=[], metavar="KEY=VALUE", help="for fsspec, e.g. endpoint_url=http://localhost:9000")
    parser.add_argument("--retry", action="store_true", help="try images again that failed before")
    given = parser.parse_args(arguments)
    try:
        if given.unit < 1 or given.cpus < 1 or (given.workers is not None and given.workers < 1):
            raise InputError("--unit, --cpus and --workers are positive numbers")
        if not given.gpus >= 0:  # also what is no number
            raise InputError("--gpus is 0 or more graphics cards for each worker, e.g. 0.5")
        try:
            level = given.sigma if given.sigma in (None, "auto") else float(given.sigma)
            sigma = level / 255 if isinstance(level, float) else level
            storage = dict(pair.split("=", 1) for pair in given.storage)
        except ValueError:
            raise InputError("--sigma takes a number or auto, --storage KEY=VALUE") from None
        source, target = Storage(given.source, **storage), Storage(given.target, **storage)
        digest = model_hash(given.model)
        settings = {"model": digest, "sigma": level, "form": given.form, "unit": given.unit}
        DenoiseBatch(given.model, sigma=sigma, device="cpu", threads=None).engine()  # says now what would end every worker
        names = begin(source, target, settings)
        left, done, failed = units(names, given.unit, target, given.retry)
        print(f"{len(names)} images in {-(-len(names) // given.unit)} units, {len(left)} to do", file=sys.stderr, flush=True)
        if left:
            with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of dead workers
                new = work(left, {"source": source, "target": target, "form": given.form, "model": given.model, "digest": digest, "sigma": sigma}, given)
            done, failed = done + new[0], failed + new[1]
        target.tidy()
    except SegawareError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished units are kept, give the command again to go on", file=sys.stderr)
        return 130
    except Stopped as error:
        print(f"stopped: {error}. Finished units are kept: mend it, and give the command again to go on", file=sys.stderr)
        return 1
    print(json.dumps({"images": len(names), "done": done, "failed": failed, "target": target.address}))
    return 1 if failed else 0


def reason(error: BaseException) -> str:
    """The innermost error of those that Ray has put around it, in one line."""
    seen = [error]
    while (inner := getattr(seen[-1], "cause", None) or seen[-1].__cause__) is not None and inner not in seen:
        seen.append(inner)
    ours = next((e for e in seen if isinstance(e, SegawareError)), seen[-1])
    return (str(ours).strip().splitlines() or [type(ours).__name__])[-1]


if __name__ == "__main__":
    sys.exit(main())
