"""A Hugging Face Hub on the loopback: what the client asks of the real one, with a log and with faults."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def commit_of(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def etag(name: str, data: bytes) -> str:
    """As the Hub gives it: sha256 of large files, git's hash of the others."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class LoopbackHub:
    """Repositories in a dictionary; ``fault`` is one word that the handler below looks at.

    ``log`` has ``(METHOD, path)`` of every request, ``tokens`` the authorization of each.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, str] = {}
        self.log: list[tuple[str, str]] = []
        self.tokens: list[str | None] = []
        self.lfs: dict[str, bytes] = {}
        self.fault = ""
        self.cut_left = 0
        self.reached = threading.Event()
        self.release = threading.Event()
        self.servers = [_Server(self), _Server(self)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def put(self, repo: str, files: dict[str, bytes]) -> str:
        """A new commit on the main branch."""
        commit = commit_of(f"{repo} {len(self.commits.get(repo, {}))}")
        self.commits.setdefault(repo, {})[commit] = files
        self.branches[repo] = commit
        return commit

    def methods(self) -> list[str]:
        """Of requests for files; newer clients ask for other things as well, once a process."""
        return [method for method, path in self.log if "/resolve/" in path or path.startswith("/storage/")]

    def close(self) -> None:
        self.release.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: LoopbackHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        pass  # clients that are killed or that hang up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def answer(self) -> None:
        hub = self.server.hub
        hub.log.append((self.command, self.path.split("?")[0]))
        hub.tokens.append(self.headers.get("authorization"))
        body = self.body()
        if self.path.startswith("/storage/"):
            return self.stored(body)
        if self.command in ("POST", "PUT"):
            return self.upload(body)
        if about := re.match(r"/api/models/([^/?]+/[^/?]+)", self.path):  # older clients ask before they upload
            repo = about.group(1)
            if repo not in hub.commits:
                return self.refuse(404, "RepoNotFound")
            return self.reply({"id": repo, "modelId": repo, "sha": hub.branches[repo], "siblings": [], "tags": []})
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+?)(?:\?.*)?", self.path)
        if not found:
            return self.refuse(404, "EntryNotFound")
        self.file(*found.groups())

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def file(self, repo: str, revision: str, name: str) -> None:
        hub = self.server.hub
        if hub.fault == "error 500":
            return self.refuse(500)
        if hub.fault == "gated":
            return self.refuse(403, "GatedRepo")
        if hub.fault == "unauthorized":
            return self.refuse(401)
        if repo not in hub.commits:
            return self.refuse(404, "RepoNotFound")
        commit = revision if revision in hub.commits[repo] else hub.branches[repo] if revision == "main" else None
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        data = hub.commits[repo][commit].get(name)
        if data is None:
            return self.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(name, data)}"', "Accept-Ranges": "bytes"}
        large = name.endswith(".safetensors")
        if large and hub.fault == "redirect":
            oid = etag(name, data)
            hub.lfs[oid] = data
            more = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data)), "Location": f"{hub.storage}/storage/{oid}"}
            return self.send(302, b"", headers | more)
        if large and self.command == "GET" and hub.fault == "wrong bytes":
            data = bytes(len(data))
        if large and self.command == "GET" and hub.fault == "wrong bytes once":
            hub.fault, data = "", bytes(len(data))
        if large and self.command == "GET" and hub.fault == "slow":
            hub.release.wait(0.3)
        if large and self.command == "GET" and hub.fault == "stuck":
            hub.release.wait(20)
        self.send(200, data, headers, cut=large and self.command == "GET")

    def stored(self, body: bytes) -> None:
        hub, oid = self.server.hub, self.path.rsplit("/", 1)[-1]
        if self.command == "PUT":
            hub.lfs[oid] = body
            return self.send(200, b"", {"ETag": f'"{oid}"'})
        self.send(200, hub.lfs[oid], {"ETag": f'"{oid}"'})

    def upload(self, body: bytes) -> None:
        hub = self.server.hub
        if hub.fault == "read only":
            return self.refuse(403)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if repo in hub.commits:
                return self.send(409, json.dumps({"url": f"{hub.endpoint}/{repo}"}).encode())
            hub.put(repo, {})
            return self.reply({"url": f"{hub.endpoint}/{repo}", "id": repo, "name": repo})
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/.+", self.path):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            return self.reply(
                {"files": [{"path": p, "uploadMode": modes[p.endswith(".safetensors")], "shouldIgnore": False} for p in files]}
            )
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                o | {"actions": {"upload": {"href": f"{hub.storage}/storage/{o['oid']}", "header": {}}}}
                for o in json.loads(body)["objects"]
            ]
            return self.reply({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+)/commit/.+", self.path):
            repo = found.group(1)
            files = dict(hub.commits[repo][hub.branches[repo]])
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.lfs[value["oid"]]
            commit = hub.put(repo, files)
            return self.reply({"success": True, "commitOid": commit, "commitUrl": f"{hub.endpoint}/{repo}/commit/{commit}"})
        self.refuse(404, "EntryNotFound")

    def refuse(self, status: int, code: str = "", headers: dict[str, str] | None = None) -> None:
        self.send(status, b"{}", (headers or {}) | ({"X-Error-Code": code} if code else {}))

    def reply(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        hub = self.server.hub
        start, total = 0, len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range") or ""):
            start, status = int(asked.group(1)), 206
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut and hub.fault in ("cut", "hang") and hub.cut_left:
            hub.cut_left -= 1
            # never any data: the client counts its tries anew after each byte
            part = data[start : (start + total) // 2] if hub.fault == "hang" or hub.cut_left < 2 else b""
            self.wfile.write(part)
            self.wfile.flush()
            if hub.fault == "hang":
                hub.reached.set()
                hub.release.wait(20)
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data[start:])
