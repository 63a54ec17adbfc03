"""The examples of docs/serving.md are run against a server: each makes the right photo."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.paths import ROOT
from tests.support.served import ServedProcess, pixels_of, png, right_pixels, some_map
from tests.support.stand_in import PLAIN

pytest.importorskip("fastapi", reason="pip install 'spade-deploy[serve]'")

PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
LABEL = np.repeat(np.repeat(some_map(PLAIN, 11)[::16, ::16], 16, 0), 16, 1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    found = ServedProcess(tmp_path_factory.mktemp("examples"))
    (found.folder / "map.png").write_bytes(png(LABEL))
    yield found
    found.stop()


def example(language: str, url: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    assert "http://127.0.0.1:8000" in code
    return str(code).replace("http://127.0.0.1:8000", url)


def check(photo: Path, most: int = 0) -> None:
    found = pixels_of(photo.read_bytes()).astype(int)
    assert np.abs(found - right_pixels(PLAIN, LABEL)).mean() <= most


def needed(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed here")
    return found


def test_the_python_example(served: ServedProcess) -> None:
    code = example("python", served.url)
    subprocess.run([sys.executable, "-c", code], cwd=served.folder, check=True, timeout=60)
    check(served.folder / "photo.png")


def test_the_curl_example(served: ServedProcess) -> None:
    needed("curl")
    subprocess.run(["bash", "-ec", example("bash", served.url)], cwd=served.folder, check=True, timeout=60)
    assert (served.folder / "photo.jpg").read_bytes().startswith(b"\xff\xd8")
    check(served.folder / "photo.jpg", most=3)  # a JPEG


def test_the_javascript_example(served: ServedProcess) -> None:
    node = needed("node")
    script = served.folder / "example.mjs"
    script.write_text(example("javascript", served.url), encoding="utf-8")
    (served.folder / "photo.png").unlink(missing_ok=True)
    subprocess.run([node, script], cwd=served.folder, check=True, timeout=60)
    check(served.folder / "photo.png")


def test_every_status_of_the_page_is_one_of_the_servers() -> None:
    from spade_deploy.serving.problems import TITLES

    table = PAGE[PAGE.index("## When it says no") : PAGE.index("## How it runs")]
    named = {
        int(number) for row in re.findall(r"^\| ([\d, ]+) \|", table, flags=re.MULTILINE) for number in row.split(", ")
    }
    assert named == set(TITLES) - {405, 500}
