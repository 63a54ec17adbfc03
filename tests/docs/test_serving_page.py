"""The examples of docs/serving.md are run against a server: each makes the right photo."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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


def example(language: str, url: str, section: str = "Requests") -> str:
    """The one example of a section in this language, which asks the server at `url`."""
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", PAGE, flags=re.DOTALL | re.MULTILINE)
    (code,) = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return str(code).replace("http://127.0.0.1:8000", url)


def check(photo: Path, label: NDArray[Any] = LABEL, most: int = 0) -> None:
    found = pixels_of(photo.read_bytes()).astype(int)
    assert np.abs(found - right_pixels(PLAIN, label)).mean() <= most


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


EDITED = LABEL.copy()
EDITED[4:6, 8:11] = 2


def after_edit(served: ServedProcess, next_map: NDArray[Any], *command: str | Path) -> None:
    """Run an example of edits in a folder with these maps, and look at its photo."""
    assert not np.array_equal(LABEL, EDITED)
    (served.folder / "next.png").write_bytes(png(next_map))
    (served.folder / "photo.png").unlink(missing_ok=True)
    subprocess.run(command, cwd=served.folder, check=True, timeout=60)
    check(served.folder / "photo.png", EDITED)


OTHER = (LABEL + 1) % 5
"""In next.png: an example that sends the whole map, not the edit, makes a wrong photo of it."""


def test_the_python_example_of_edits(served: ServedProcess) -> None:
    after_edit(served, OTHER, sys.executable, "-c", example("python", served.url, "Edits"))


def test_the_curl_example_of_edits(served: ServedProcess) -> None:
    needed("curl")
    after_edit(served, OTHER, "bash", "-ec", example("bash", served.url, "Edits"))


def test_the_javascript_example_of_edits(served: ServedProcess) -> None:
    node, script, code = needed("node"), served.folder / "edits.mjs", example("javascript", served.url, "Edits")
    script.write_text(code, encoding="utf-8")
    after_edit(served, OTHER, node, script)
    stale = code.replace("{ drawing, base, patches }", "{ drawing, base: base + 1, patches }")
    assert stale != code
    script.write_text(stale, encoding="utf-8")
    after_edit(served, EDITED, node, script)  # the server refuses the edit, and gets the whole map


def test_every_status_of_the_page_is_one_of_the_servers() -> None:
    from spade_deploy.serving.problems import TITLES

    table = PAGE[PAGE.index("## Errors") : PAGE.index("## How it runs")]
    named = {
        int(number) for row in re.findall(r"^\| ([\d, ]+) \|", table, flags=re.MULTILINE) for number in row.split(", ")
    }
    assert named == set(TITLES) - {405, 500}
