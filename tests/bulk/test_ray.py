"""With real Ray on a cluster of two nodes on this machine; a worker, then a node, are killed in the middle."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segaware
from segaware import DnCNN
from segaware.bulk import DenoiseBatch, model_hash
from segaware.entries import write_entry

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
psutil = pytest.importorskip("psutil")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "bulk" / "denoise_with_ray.py"
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]), "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "20",
    "RAY_raylet_start_wait_time_s": "240", "RAY_agent_register_timeout_ms": "240000",
}  # fmt: skip
IMAGES, UNIT = 96, 24  # a unit is more than one chunk: its first images are written while others are denoised


def log(*words: object) -> None:
    print(f"[{time.strftime('%H:%M:%S')}]", *words, flush=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def started():
    """Two raylets of one processor each. With ports of our choice a raylet does not wait for its agents, on a busy machine in vain."""
    from ray.cluster_utils import Cluster

    def lean():
        names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
        return {"num_cpus": 1, "object_store_memory": 100 << 20, "include_log_monitor": False, **dict(zip(names, free_ports(4), strict=True))}

    made = None
    for attempt in range(3):
        try:
            made = Cluster(initialize_head=True, head_node_args={**lean(), "include_dashboard": False})
            made.add_node(**lean())
            made.wait_for_nodes(120)
            return made
        except Exception as error:
            log(f"attempt {attempt + 1} to start Ray: {str(error).splitlines()[0]}")
            if made is not None:
                made.shutdown()
    pytest.fail("Ray did not start in three attempts; is the machine busy with other work?")


@contextlib.contextmanager
def running():
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    made = started()
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def cluster():
    with running() as made:
        yield made


@pytest.fixture
def fresh_cluster():
    """For what takes a node away: after killed workers and jobs, Ray may start no worker on the second node any more."""
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of many sizes, and a small model."""
    folder = tmp_path_factory.mktemp("bulk")
    torch.manual_seed(0)
    write_entry(folder / "model", DnCNN(depth=4, width=8))
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        path = folder / "photos" / f"{i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40 + i, 160 - i, 3), dtype=np.uint8)).save(path, compress_level=1)
    return folder


def start(cluster, photos: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, str(EXAMPLE), str(photos / "photos"), str(out), "--model", str(photos / "model")]
    command += ["--unit", str(UNIT), "--workers", "2", "--address", cluster.address, *options]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(cluster) -> dict[int, list[psutil.Process]]:
    """The processes of this cluster that denoise, by the number of their node."""
    found: dict[int, list[psutil.Process]] = {}
    for number, node in enumerate([cluster.head_node, *cluster.worker_nodes]):
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for child in raylet.children():
            try:
                if "DenoiseUnit" in " ".join(child.cmdline()):
                    found.setdefault(number, []).append(child)
            except psutil.Error:
                continue
    return found


def manifests(out: Path) -> list[Path]:
    return sorted(out.glob("_segaware/*.jsonl"))


def written(out: Path) -> list[Path]:
    return [path for path in out.rglob("*.png")]


def wait_for(what, process: subprocess.Popen, seconds: float = 240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := what():
            return value
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"nothing after {seconds} s: {process.communicate()}")


def finish(process: subprocess.Popen, seconds: float = 400) -> tuple[int, str, str]:
    try:
        said, told = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"not done after {seconds} s: {process.communicate()}") from None
    return process.returncode, said, told


def check_all(out: Path, photos: Path) -> None:
    """Every image once, whole, with the right pixels; nothing else."""
    names = sorted(path.relative_to(photos / "photos").as_posix() for path in (photos / "photos").rglob("*.png"))
    rows = [json.loads(line) for file in manifests(out) for line in file.read_text().splitlines()]
    assert sorted(row["file"] for row in rows) == names and {row["status"] for row in rows} == {"done"}
    assert {row["model"] for row in rows} == {model_hash(photos / "model")}
    engine = segaware.inference.engine.Engine(photos / "model")
    shards = sorted(out.glob("shard-*.tar"))
    if shards:
        found = []
        for shard in shards:
            with tarfile.open(shard) as tar:
                for entry in tar:
                    found.append(entry.name)
                    noisy = np.asarray(Image.open(photos / "photos" / entry.name))
                    assert np.array_equal(np.asarray(Image.open(tar.extractfile(entry))), engine(noisy)), entry.name
        assert sorted(found) == names
    else:
        assert sorted(path.relative_to(out).as_posix() for path in written(out)) == names
        for name in names:
            assert np.array_equal(np.asarray(Image.open(out / name)), engine(np.asarray(Image.open(photos / "photos" / name)))), name
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def begun(out: Path, photos: Path) -> list[int]:
    """Units of which some images are there, but not all."""
    names = sorted(path.relative_to(photos / "photos").as_posix() for path in (photos / "photos").rglob("*.png"))
    counts = [sum((out / name).exists() for name in names[first : first + UNIT]) for first in range(0, IMAGES, UNIT)]
    return [unit for unit, count in enumerate(counts) if 0 < count < UNIT]


def hold(cluster, out: Path, photos: Path, process: subprocess.Popen) -> tuple[list[psutil.Process], list[int]]:
    """The workers of both nodes, suspended while some unit is half done, and those units."""
    at_work = wait_for(lambda: len(found := workers(cluster)) == 2 and found, process)
    log(f"both nodes work: { {number: [p.pid for p in found] for number, found in at_work.items()} }")
    both = [found[0] for found in at_work.values()]

    def in_the_middle():
        for worker in both:
            worker.suspend()  # nothing moves while we look
        units = begun(out, photos)
        if units:
            return units
        for worker in both:
            worker.resume()
        return None

    units = wait_for(in_the_middle, process)
    log(f"{len(written(out))} of {IMAGES} images written, {len(manifests(out))} of {IMAGES // UNIT} units finished, in the middle of: {units}")
    return both, units


def test_a_killed_worker(cluster, photos, tmp_path):
    out = tmp_path / "out"
    process = start(cluster, photos, out)
    both, units = hold(cluster, out, photos, process)
    victim, other = both
    victim.kill()
    if len(units) < 2:  # whose unit it is nobody can see: both are killed
        other.kill()
    else:
        other.resume()
    log(f"kill -9: {victim.pid}{'' if len(units) == 2 else f', {other.pid}'}")
    code, said, told = finish(process)
    print(told, said)
    assert code == 0, told
    assert json.loads(said)["done"] == IMAGES
    assert "Traceback" not in told
    check_all(out, photos)
    rows = [json.loads(line) for file in manifests(out) for line in file.read_text().splitlines()]
    kept = [row["file"] for row in rows if row["seconds"] is None]
    log(f"{len(rows)} lines in the manifests, {len(kept)} of them of images that a killed worker had written: kept, not done again")
    assert kept


def test_a_killed_job_goes_on(cluster, photos, tmp_path):
    out = tmp_path / "out"
    process = start(cluster, photos, out, "--form", "shards")
    wait_for(lambda: manifests(out), process)
    process.kill()
    process.communicate()
    end = time.monotonic() + 120
    while workers(cluster) and time.monotonic() < end:  # Ray ends them when their driver is gone
        time.sleep(0.2)
    before = {path: path.stat().st_mtime_ns for path in manifests(out)}
    assert len(before) < IMAGES // UNIT
    finished = [out / f"shard-{path.stem}.tar" for path in before]
    shards = {path: path.stat().st_mtime_ns for path in finished}
    log(f"killed the job after {len(before)} of {IMAGES // UNIT} units")
    code, said, told = finish(start(cluster, photos, out, "--form", "shards"))
    print(told, said)
    assert code == 0 and f"{IMAGES // UNIT - len(before)} to do" in told and json.loads(said)["done"] == IMAGES
    assert {path: path.stat().st_mtime_ns for path in [*before, *shards]} == before | shards, "nothing that was finished is done again"
    check_all(out, photos)


def test_map_batches(cluster, tmp_path):
    """The class itself, on what Ray's readers give: ragged and read-only tensors, bytes, and rows that fail."""
    random = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(random.integers(0, 256, (20 + i // 2, 30, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    torch.manual_seed(0)
    write_entry(tmp_path / "model", DnCNN(depth=3, width=4))
    ray.init(address=cluster.address, log_to_driver=False, ignore_reinit_error=True)
    ray.data.DataContext.get_current().enable_progress_bars = False
    options = {"model": str(tmp_path / "model"), "errors": "row"}
    engine = segaware.inference.engine.Engine(tmp_path / "model")

    photos = ray.data.read_images(str(tmp_path), file_extensions=["png"], include_paths=True)
    made = photos.map_batches(DenoiseBatch, fn_constructor_kwargs={**options, "out": "clean"}, batch_size=4, concurrency=1).take_all()
    assert len(made) == 6
    for row in made:
        assert row["error"] == "" and np.array_equal(row["clean"], engine(np.asarray(Image.open(row["path"]))))

    (tmp_path / "bad.png").write_bytes(b"no image")
    files = ray.data.read_binary_files(str(tmp_path), file_extensions=["png"], include_paths=True)
    made = files.map_batches(DenoiseBatch(**options, column="bytes"), batch_size=3).take_all()  # an instance does as well
    assert sorted(Path(row["path"]).name for row in made if row["error"]) == ["bad.png"]
    assert sum(len(row["bytes"]) > 0 for row in made) == 6

    rows = [{"image": random.random((9 + i, 8, 3)).astype(np.float32) * (1000 if i == 2 else 1)} for i in range(5)]
    made = ray.data.from_items(rows).map_batches(DenoiseBatch, fn_constructor_kwargs=options, batch_size=2, concurrency=1).take_all()
    assert sorted(row["image"].shape for row in made) == [(0, 0, 3), (9, 8, 3), (10, 8, 3), (12, 8, 3), (13, 8, 3)]
    assert [bool(row["error"]) for row in sorted(made, key=lambda row: row["image"].shape)] == [True, *[False] * 4]

    threads = ray.data.range(1).map_batches(_Threads, fn_constructor_args=(DenoiseBatch(**options),), concurrency=1).take_all()
    assert threads[0]["threads"] == 1


class _Threads:
    def __init__(self, denoise: DenoiseBatch) -> None:
        self.denoise = denoise

    def __call__(self, batch):
        self.denoise.engine()
        return {"threads": np.array([torch.get_num_threads()])}


def test_a_killed_node(fresh_cluster, photos, tmp_path):
    out = tmp_path / "out"
    process = start(fresh_cluster, photos, out)
    both, _ = hold(fresh_cluster, out, photos, process)
    fresh_cluster.remove_node(next(iter(fresh_cluster.worker_nodes)), allow_graceful=False)
    log("removed a node with its raylet")
    for worker in both:  # the one without a node ends by itself
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()
    code, said, told = finish(process)
    print(told, said)
    assert code == 0 and json.loads(said)["done"] == IMAGES
    check_all(out, photos)


def test_no_cluster(photos, tmp_path, capfd):
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(photos / "photos"), str(tmp_path / "out"), "--model", str(photos / "model"), "--address", "127.0.0.1:1"],
        env=ENVIRONMENT | {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "leave --address out" in done.stderr and "Traceback" not in done.stderr
