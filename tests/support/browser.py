"""A real browser for tests of pages: the one that is installed, else Debian's chromium, which the test installs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench_model import load_script

_installed = load_script("local_page").installed_chromium
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--mute-audio", "--force-color-profile=srgb")
_INSTALL_S = 240


def find_chromium() -> str:
    """The path of chromium; it is installed with apt-get where that can be. Skips the test where there is none."""
    if path := _installed():
        return path
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip("there is no chromium, and only root can install it: apt-get install chromium")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    said = ""
    for command in ("apt-get update -q", "apt-get install -q -y --no-install-recommends chromium"):
        try:
            done = subprocess.run(
                command.split(), env=environment, capture_output=True, text=True, timeout=_INSTALL_S, check=False
            )
            said = (done.stderr or done.stdout).strip()[-300:]
        except subprocess.TimeoutExpired:
            said = f"{command} took more than {_INSTALL_S} s"
    path = _installed()
    if path is None:
        pytest.skip(f"chromium cannot be installed: {said}")
    return path


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium without a window, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = find_chromium()
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        try:
            yield found
        finally:
            found.close()


@contextmanager
def another(found: Any, *arguments: str) -> Iterator[Any]:
    """A further browser of the driver of one that is open, with more arguments for chromium."""
    opened = found.browser_type.launch(executable_path=find_chromium(), args=[*_ARGUMENTS, *arguments])
    try:
        yield opened
    finally:
        opened.close()


def axe_script() -> str:
    """The source of axe-core, which looks for what keeps people with disabilities out."""
    package = pytest.importorskip("axe_playwright_python", reason="pip install axe-playwright-python")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
