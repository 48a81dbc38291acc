"""What every test gets: a fixed seed and a machine without network. Loopback stays open."""

from __future__ import annotations

import ipaddress
import socket

import pytest
import torch

from segaware import DnCNN, FFDNet
from segaware.entries import write_entry

pytest.register_assert_rewrite("denoisers.tester")


def _is_local(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return host == socket.gethostname()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections and name look-ups beyond this machine fail at once, and say so."""

    def refuse(host: object) -> None:
        raise OSError(f"a test tried to reach {host!r}; tests run without network (loopback is allowed)")

    def guard(name: str) -> None:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address, *rest):
            if isinstance(address, tuple) and not _is_local(address[0]):
                refuse(address[0])
            return original(self, address, *rest)

        monkeypatch.setattr(socket.socket, name, connect)

    guard("connect")
    guard("connect_ex")
    lookup = socket.getaddrinfo

    def getaddrinfo(host, *rest, **options):
        if not _is_local(host):
            refuse(host)
        return lookup(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def launcher() -> list[str]:
    """Python's arguments that start two processes; older launchers do not look for a free port themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
        "--dynamo_backend", "no", "--main_process_port", str(port),
    ]  # fmt: skip


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A zoo of tiny models in a temporary folder, in place of the shipped one."""
    zoo = tmp_path / "zoo"
    measured = {"psnr": {"15": 33.5, "25": 31.0}, "command": "python score.py"}
    noise, data = "AWGN, sigma 0-55", {"name": "BSDS500 train", "terms": "research"}
    write_entry(
        zoo / "segaware-blind",
        DnCNN(depth=3, width=4),
        {"training_noise": noise, "training_data": data, "measured": measured},
    )
    write_entry(zoo / "ffdnet", FFDNet(depth=3, width=4), {"training_data": "BSDS500 train"})
    monkeypatch.setattr("segaware.entries._SHIPPED", zoo)
    return zoo
