"""The web folder: the page finds the patterns that Python finds, and paints in a browser without a server."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from spade_deploy.artifact import INSTANCE, LABEL
from spade_deploy.errors import ConfigError
from spade_deploy.lookup.tables import extract_patterns, modulated_channels
from spade_deploy.serving.page_files import PAGE_FOLDER
from spade_deploy.serving.web.folder import require_free, write_web
from spade_deploy.serving.web.onnxruntime_web import WASM_FILES, WEBGPU_FILES, runtime_files
from spade_deploy.spec import GeneratorSpec, LabelSpec
from tests.support.browser import browser
from tests.support.page import Page
from tests.support.paths import ROOT
from tests.support.served import right_pixels
from tests.support.stand_in import EDGES, PLAIN, STYLED, stand_in_artifact
from tests.support.web import package, static_host

SPECS = {"plain": PLAIN, "edges": EDGES, "styled": STYLED}


def blocks(rng: np.random.Generator, num_ids: int, size: int) -> NDArray[np.int64]:
    """64 x 96 ids in squares of that size; squares of one pixel are noise."""
    ids = rng.integers(0, num_ids, (64 // size + 1, 96 // size + 1))
    return np.kron(ids, np.ones((size, size), np.int64))[:64, :96]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("labels", [LabelSpec(7), LabelSpec(7, True, True), LabelSpec(300, True)])
def test_the_page_finds_the_patterns_that_python_finds(tmp_path: Path, kernel: int, labels: LabelSpec) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    spec = GeneratorSpec(labels, base_channels=4, hidden_channels=4, height=64, width=96, kernel_size=kernel)
    module = Path(shutil.copy(PAGE_FOLDER / "patterns.js", tmp_path / "patterns.mjs"))
    rng = np.random.default_rng(kernel)
    maps, right = [], []
    for size in (1, 3, 8, 96):
        ids, objects = blocks(rng, labels.num_ids, size), blocks(rng, 9, 5)
        inputs = {LABEL: ids[None].astype(labels.id_type), INSTANCE: objects[None].astype(np.int32)}
        right.append(extract_patterns(spec, inputs[LABEL], inputs[INSTANCE] if labels.has_edges else None))
        maps.append({"width": 96, "height": 64, "ids": ids.ravel().tolist(), "instances": objects.ravel().tolist()})
    facts = {
        "num_ids": labels.num_ids,
        "has_edges": labels.has_edges,
        "has_latent": True,
        "kernel": kernel,
        "stride": spec.stride,
        "levels": list(modulated_channels(spec).items()),
    }
    asked = json.dumps({"module": module.as_uri(), "facts": facts, "maps": maps})
    command = ["node", str(ROOT / "tests/support/patterns.mjs")]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True, timeout=60)
    for tables, found in zip(right, json.loads(done.stdout), strict=True):
        assert tables is not None
        assert found["share"] == pytest.approx(tables.unique_share(spec), rel=1e-12)
        expected = tables.to_inputs()
        assert list(found["tables"]) == list(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(found["tables"][name], values.ravel(), err_msg=name)


def test_a_seed_is_the_same_style_as_in_python(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    module = Path(shutil.copy(PAGE_FOLDER / "random_styles.js", tmp_path / "random_styles.mjs"))
    seeds = [0, 1, 7, 2**31, 2**40 + 3, *range(1000, 1100)]
    script = f"""import {{standardNormal}} from {json.dumps(module.as_uri())};
    process.stdout.write(JSON.stringify({seeds}.map((seed) => [...standardNormal(seed, 256)])));"""
    command = ["node", "--input-type=module", "-e", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    right = [np.random.default_rng(seed).standard_normal(256, np.float32) for seed in seeds]
    np.testing.assert_array_equal(np.array(json.loads(done.stdout), np.float32), right)


def test_only_a_web_folder_is_replaced(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "one")
    target = tmp_path / "site"
    for _ in range(2):
        write_web(artifact, target, dict.fromkeys((*WASM_FILES, *WEBGPU_FILES), b""))
    (target / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files.*mine\.txt"):
        require_free(target)
    with pytest.raises(ConfigError, match="is no web folder"):
        require_free(tmp_path / "one")


def test_a_package_of_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(b"other")
    with pytest.raises(ConfigError, match="is not onnxruntime-web"):
        runtime_files(tmp_path / "a.tgz")


def wait_until_open(page: Page) -> None:
    """Until the model is open. The first visit loads itself once more, which ends what a test asks of the page."""
    end = time.monotonic() + 40
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if page.tab.evaluate("document.documentElement.dataset.runtime ?? ''"):
                return
        page.tab.wait_for_timeout(50)
    raise AssertionError(page.text("state-text"))


def test_painting_without_a_server(tmp_path: Path) -> None:
    files: Any = runtime_files(package())
    for name, spec in SPECS.items():
        write_web(stand_in_artifact(tmp_path / name, spec), tmp_path / "host" / "below" / name, files)
    with browser() as chromium, static_host(tmp_path / "host") as url:
        for name, spec in SPECS.items():
            page = Page(chromium, f"{url}/below/{name}/")
            label = np.full((spec.height, spec.width), 5 if name == "edges" else 0)
            wait_until_open(page)
            if name == "plain":
                page.pick(3)
                page.tool("rectangle")
                page.drag((4, 10), (12, 20), (20, 30))
                label[10:31, 4:21] = 3
            page.wait_for_photo(right_pixels(spec, label, label if name == "edges" else None))
            assert page.tab.evaluate("crossOriginIsolated"), "the service worker adds the headers that threads need"
            assert page.text("state-text") == "Live"
            page.context.set_offline(True)
            page.tab.reload()
            wait_until_open(page)
            page.wait_for_photo(right_pixels(spec, label, label if name == "edges" else None))
            assert page.complaints == []
            page.close()
