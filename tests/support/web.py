"""Web folders behind a plain static server, and onnxruntime-web for them; a test skips where it cannot be fetched."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from spade_deploy.errors import MissingDependencyError
from spade_deploy.files.user_cache import VARIABLE
from spade_deploy.serving.web.onnxruntime_web import runtime_files
from tests.support.bench_model import load_script
from tests.support.clients import CACHE


def onnxruntime_web() -> Mapping[str, bytes]:
    """The files of onnxruntime-web, from the npm package that is kept between runs of the tests. It takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(CACHE))
        try:
            return runtime_files()
        except MissingDependencyError as error:
            pytest.skip(error.message)


static_host = load_script("local_page").static_host
"""Serves a folder as a static host does; yields its address."""
