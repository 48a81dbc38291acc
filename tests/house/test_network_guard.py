"""The guard of conftest.py holds: no test reaches beyond this machine."""

import socket
import threading
import urllib.request

import pytest


@pytest.mark.parametrize("host", ["example.org", "192.0.2.1", "2001:db8::1"])
def test_the_outside_is_refused(host):
    with pytest.raises(OSError, match="without network"):
        socket.create_connection((host, 443), timeout=1)


def test_urllib_is_refused_too():
    with pytest.raises(OSError, match="without network"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://example.org/", timeout=1)


def test_loopback_is_open():
    server = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: server.accept()[0].close(), daemon=True)
    thread.start()
    with socket.create_connection(server.getsockname(), timeout=5) as client:
        assert client.recv(1) == b""
    thread.join(5)
    server.close()
