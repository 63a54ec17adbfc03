"""The inference protocol of KServe and Triton over HTTP, with its extension for binary tensors, before a `LocalTriton`.

https://github.com/kserve/open-inference-protocol, and Triton's page on its binary tensor data extension.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from google.protobuf import json_format

from tests.support.triton import LocalTriton, TritonRefusal

NUMPY = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32}
NAMES = {np.dtype(kind): name for name, kind in NUMPY.items()}
LENGTH = "Inference-Header-Content-Length"


@contextmanager
def kserve(triton: LocalTriton) -> Iterator[str]:
    """Serve on a free port of this machine; the address, host and port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            model = self.path.split("/")[3]
            config = json_format.MessageToDict(triton.models[model].config, preserving_proto_field_name=True)
            self._answer(200, json.dumps(config).encode())

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            end = int(self.headers.get(LENGTH, len(content)))
            asked, rest = json.loads(content[:end]), content[end:]
            inputs = {}
            for told in asked["inputs"]:
                size = told["parameters"]["binary_data_size"]
                inputs[told["name"]] = np.frombuffer(rest[:size], NUMPY[told["datatype"]]).reshape(told["shape"])
                rest = rest[size:]
            try:
                made = triton.infer(self.path.split("/")[3], inputs, [one["name"] for one in asked["outputs"]])
            except TritonRefusal as error:
                self._answer(400, json.dumps({"error": str(error)}).encode())
                return
            outputs: list[dict[str, Any]] = [
                {
                    "name": name,
                    "datatype": NAMES[array.dtype],
                    "shape": list(array.shape),
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in made.items()
            ]
            head = json.dumps({"model_name": self.path.split("/")[3], "outputs": outputs}).encode()
            self._answer(200, head, b"".join(array.tobytes() for array in made.values()))

        def _answer(self, status: int, head: bytes, rest: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/octet-stream" if rest else "application/json")
            self.send_header("Content-Length", str(len(head) + len(rest)))
            if rest:
                self.send_header(LENGTH, str(len(head)))
            self.end_headers()
            self.wfile.write(head + rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
