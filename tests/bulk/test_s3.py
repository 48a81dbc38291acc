"""Buckets, on a server of moto on this machine: pip install "segaware[s3]" "moto[server]"."""

from __future__ import annotations

import io
import json
import runpy
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segaware
from segaware.bulk import Storage, batch
from segaware.errors import InputError

pytestmark = pytest.mark.slow
pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")

EXAMPLE = Path(__file__).parents[2] / "examples" / "bulk" / "denoise_with_ray.py"


def post(address: str, data: bytes = b"") -> None:
    urllib.request.urlopen(urllib.request.Request(address, data=data, headers={"Content-Type": "text/plain"}, method="POST")).close()


@pytest.fixture
def server(monkeypatch):
    """An endpoint with a bucket "photos" of five pictures and an empty one, "clean"."""
    for key, value in {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(key, value)
    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    post(f"{endpoint}/moto-api/reset")  # what it holds outlives a server
    s3 = boto3.client("s3", endpoint_url=endpoint)
    for bucket in ("photos", "clean"):
        s3.create_bucket(Bucket=bucket)
    random = np.random.default_rng(0)
    for i in range(5):
        data = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(data, format="PNG")
        s3.put_object(Bucket="photos", Key=f"of/{i % 2}/{i}.png", Body=data.getvalue())
    yield endpoint
    running.stop()


@pytest.fixture
def command(shipped, server, monkeypatch):
    """The example, its units done here in the place of Ray."""
    monkeypatch.setattr(batch, "_ENGINES", {})
    names = runpy.run_path(str(EXAMPLE))

    def work(left, arguments, options):
        unit = names["DenoiseUnit"](**arguments)
        made = [unit({"unit": np.array([row["unit"]]), "names": [row["names"]]}) for row in left]
        return sum(int(m["done"][0]) for m in made), sum(int(m["failed"][0]) for m in made)

    names["main"].__globals__["work"] = work
    return lambda *options: names["main"]([*options, "--unit", "2", "--storage", f"endpoint_url={server}"])


def objects(server, bucket):
    s3 = boto3.client("s3", endpoint_url=server)
    found = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {entry["Key"]: s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read() for entry in found}


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_images_from_bucket_to_bucket(command, server, capsys):
    assert command("s3://photos/of", "s3://clean/out") == 0
    given, made = objects(server, "photos"), objects(server, "clean")
    assert {key for key in made if key.endswith(".png")} == {key.replace("of/", "out/") for key in given}
    assert all(np.array_equal(pixels(made[key.replace("of/", "out/")]), segaware.denoise(pixels(data))) for key, data in given.items())
    rows = [json.loads(line) for key, data in made.items() if key.endswith(".jsonl") for line in data.splitlines()]
    assert sorted(row["file"] for row in rows) == sorted(key.removeprefix("of/") for key in given)
    assert command("s3://photos/of", "s3://clean/out") == 0
    assert "0 to do" in capsys.readouterr().err


def test_shards_go_on_after_a_failure(command, server, monkeypatch):
    pipe, written = Storage.put, []

    def fails(self, name, data):
        written.append(name)
        if name.endswith("00001.jsonl"):
            raise InputError("s3://clean: cannot be written (connection lost)")
        pipe(self, name, data)

    monkeypatch.setattr(Storage, "put", fails)
    assert command("s3://photos/of", "s3://clean", "--form", "shards") == 2
    assert set(objects(server, "clean")) == {"_segaware/run.json", "_segaware/00000.jsonl", "shard-00000.tar", "shard-00001.tar"}
    monkeypatch.setattr(Storage, "put", pipe)
    assert command("s3://photos/of", "s3://clean", "--form", "shards") == 0
    names = []
    for key, data in objects(server, "clean").items():
        if key.endswith(".tar"):
            names += tarfile.open(fileobj=io.BytesIO(data)).getnames()
    assert sorted(names) == [f"{i % 2}/{i}.png" for i in (0, 2, 4, 1, 3)]


def test_a_shard_that_is_broken_off_is_not_there(command, server):
    place = Storage("s3://clean/x", endpoint_url=server)
    with pytest.raises(RuntimeError), place.writing("shard.tar") as file:
        file.write(b"half of it")
        raise RuntimeError("killed")
    assert objects(server, "clean") == {}
    with place.writing("shard.tar") as file:
        file.write(b"all of it")
    assert objects(server, "clean") == {"x/shard.tar": b"all of it"}


@pytest.fixture
def reader(server, monkeypatch):
    """Somebody who may read "photos" and nothing else."""
    iam = boto3.client("iam", endpoint_url=server)
    iam.create_user(UserName="reader")
    allowed = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*", "s3:Head*"], "Resource": ["arn:aws:s3:::photos", "arn:aws:s3:::photos/*"]}
    listing = {"Effect": "Allow", "Action": ["s3:List*"], "Resource": ["arn:aws:s3:::clean"]}
    iam.put_user_policy(UserName="reader", PolicyName="p", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allowed, listing]}))
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    post(f"{server}/moto-api/reset-auth", b"0")  # from here on rights are looked at
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    post(f"{server}/moto-api/reset-auth", b"inf")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_without_rights(command, reader, capsys):
    assert command("s3://photos/of", "s3://clean") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: s3://clean: cannot be") and "check the rights of the folder or bucket" in said and len(said.splitlines()) == 1


def test_keys_that_nobody_knows(command, reader, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    assert command("s3://photos/of", "s3://clean") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: s3://photos/of: cannot be listed") and "credentials" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "repair"), [("s3://no-such-bucket/of", "check the name"), ("s3://photos/nothing", "check the name"), ("s3://photos/of/0/0.png", "give the folder")]
)
def test_addresses_that_hold_nothing(command, capsys, address, repair):
    assert command(address, "s3://clean") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {address}: ") and repair in said and len(said.splitlines()) == 1


def test_a_server_that_is_not_there():
    place = Storage("s3://photos", endpoint_url="http://127.0.0.1:1", key="a", secret="b", config_kwargs={"retries": {"max_attempts": 1}, "connect_timeout": 1})
    with pytest.raises(InputError, match="check the address"):
        place.names((".png",))
