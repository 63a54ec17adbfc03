"""Web folders behind a plain static server, and onnxruntime-web for them; a test skips where it cannot be fetched."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from spade_deploy.errors import MissingDependencyError
from spade_deploy.files.user_cache import VARIABLE
from spade_deploy.serving.web.onnxruntime_web import VERSION, runtime_files
from tests.support.clients import CACHE


def package() -> Path:
    """The npm package of onnxruntime-web, kept between runs of the tests."""
    place = CACHE / "onnxruntime-web" / f"onnxruntime-web-{VERSION}.tgz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(CACHE))
        try:
            runtime_files()
        except MissingDependencyError as error:
            pytest.skip(error.message)
    return place


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...


@contextmanager
def static_host(folder: Path) -> Iterator[str]:
    """Serve a folder as a static host does; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
