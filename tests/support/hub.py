"""A local server that speaks as much of the Hugging Face Hub's protocol as an upload needs; huggingface_hub is real.

ONNX files go the way of large files (git LFS: a batch request, then a PUT), all others stand in the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_good"


class Hub(ThreadingHTTPServer):
    """`refuse_commits` answers every commit with 403; `at_a_commit` is called before one is taken."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}  # by their names: the files
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.refuse_commits = False
        self.at_a_commit: Callable[[], object] = lambda: None

    def environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """What huggingface_hub reads. Xet, the Hub's other protocol for large files, is switched off."""
        found = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**found, "HF_TOKEN": token} if token is not None else found


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        """Silence."""

    def _send(self, value: Any = None, code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._is_allowed():
            self._send({"error": "Invalid user token."}, 401)
        elif path == "/api/whoami-v2":
            self._send({"name": "ann", "type": "user"})
        elif "/tree/" in path:
            files = self.server.repositories[path.removeprefix("/api/models/").partition("/tree/")[0]]
            self._send([{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in files])
        else:
            self._send({"error": f"no such page: {path}"}, 404)

    def do_PUT(self) -> None:
        content = self._body()
        assert self.path == f"/large/{hashlib.sha256(content).hexdigest()}"
        self.server.stored[self.path.rpartition("/")[2]] = content
        self._send()

    def do_POST(self) -> None:
        content, path = self._body(), self.path.partition("?")[0]
        if not self._is_allowed():
            self._send({"error": "Invalid user token."}, 401)
        elif path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'ann'}/{asked['name']}"
            is_there = name in self.server.repositories
            if not is_there:
                self.server.repositories[name] = {".gitattributes": b""}
                self.server.private[name] = asked.get("private", asked.get("visibility") == "private")
            self._send({"url": f"{self.server.url}/{name}"}, 409 if is_there else 200)
        elif path.endswith("/preupload/main"):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".onnx") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(content)["files"]
            ]
            self._send({"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(content)["objects"]
            self._send(
                {
                    "objects": [
                        {**one, "actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}}
                        for one in wanted
                    ]
                }
            )
        elif path.endswith("/commit/main"):
            self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), content)
        else:
            self._send({"error": f"no such page: {path}"}, 404)

    def _commit(self, name: str, content: bytes) -> None:
        if self.server.refuse_commits:
            self._send({"error": "you may only read"}, 403)
            return
        self.server.at_a_commit()
        files = self.server.repositories[name]
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self._send({"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1" * 40})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """The server, while the block runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
