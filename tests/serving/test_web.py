"""The web folder: the page finds the patterns that Python finds, and paints in a browser without a server."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, PIXELS, Artifact, Source, rewrite_manifest
from spade_deploy.errors import ConfigError
from spade_deploy.lookup.tables import extract_patterns, modulated_channels
from spade_deploy.metrics.judge import Judge, Verdict
from spade_deploy.serving.page_files import PAGE_FOLDER, page_digest
from spade_deploy.serving.web.folder import require_free, write_web
from spade_deploy.serving.web.onnxruntime_web import WASM_FILES, WEBGPU_FILES, runtime_files
from spade_deploy.spec import GeneratorSpec, GraphKind, LabelSpec, Precision
from tests.support.browser import another, browser
from tests.support.generators import build_generator
from tests.support.page import Page
from tests.support.paths import ROOT
from tests.support.served import right_pixels
from tests.support.stand_in import STYLED, stand_in_artifact, with_directions
from tests.support.web import onnxruntime_web, static_host


@pytest.fixture(scope="module")
def runtime_of_web() -> Mapping[str, bytes]:
    return onnxruntime_web()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


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
    with pytest.raises(ConfigError, match="is not a web folder"):
        require_free(tmp_path / "one")


@pytest.mark.parametrize(("measured", "told"), [(None, [None]), (0.2, [0.5]), (0.7, [0.7]), (0.0, [])])
def test_when_a_map_runs_on_the_dense_graph(tmp_path: Path, measured: float | None, told: list[float | None]) -> None:
    artifact = stand_in_artifact(tmp_path / "one")
    (dense,) = artifact.manifest.graphs
    lookup = replace(dense, file="generator.lookup.fp32.onnx", kind=GraphKind.LOOKUP, break_even_share=measured)
    shutil.copy(artifact.path / dense.file, artifact.path / lookup.file)
    rewrite_manifest(artifact.path, replace(artifact.manifest, graphs=(dense, lookup)))
    files = dict.fromkeys((*WASM_FILES, *WEBGPU_FILES), b"")
    write_web(Artifact.open(artifact.path), tmp_path / "site", files)
    (about,) = (tmp_path / "site").rglob("model.json")
    graphs = json.loads(about.read_text())["graphs"]
    assert [graph["dense_above"] for graph in graphs if graph["kind"] == "lookup"] == told
    assert [graph["kind"] for graph in graphs][-1] == "dense"


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


def test_painting_without_a_server(tmp_path: Path, runtime_of_web: Mapping[str, bytes], chromium: Any) -> None:
    artifact = stand_in_artifact(tmp_path / "styled", STYLED)
    write_web(with_directions(artifact.path), tmp_path / "host" / "below" / "styled", runtime_of_web)
    with static_host(tmp_path / "host") as url:
        page = Page(chromium, f"{url}/below/styled/")
        wait_until_open(page)
        page.pick(3)
        page.tool("rectangle")
        page.drag((4, 10), (12, 20), (20, 30))
        label = np.zeros((STYLED.height, STYLED.width), int)
        label[10:31, 4:21] = 3
        page.wait_for_photo(right_pixels(STYLED, label))
        page.tab.click("#style")
        page.tab.fill("#seed", "7")
        page.tab.locator("#style-directions input").nth(1).fill("-1.5")
        random = np.random.default_rng(7).standard_normal(2, np.float32)
        right = right_pixels(STYLED, label, style=random + np.float32([1.2, -0.9]))
        page.wait_for_photo(right)
        page.tab.keyboard.press("Escape")
        assert page.tab.evaluate("crossOriginIsolated"), "the service worker adds the headers that threads need"
        assert page.text("state-text") == "Live"
        page.context.set_offline(True)
        page.tab.reload()
        wait_until_open(page)
        page.wait_for_photo(right)
        assert page.complaints == []
        page.close()
        (worker,), (graph,) = ((tmp_path / "host").rglob(name) for name in ("worker.js", "*.onnx"))
        graph.unlink()
        page = Page(chromium, f"{url}/below/styled/")
        page.wait_for_text("notice-title", r"cannot be loaded: .*generator\.fp32\.onnx")
        page.wait_for_text("empty", "no photo yet")
        page.close()
        worker.write_text("throw new Error('no memory')")
        page = Page(chromium, f"{url}/below/styled/")
        page.wait_for_text("notice-text", "^Uncaught .*no memory")
        assert page.tab.locator("#notice-retry").inner_text() == "Try again"
        assert "server" not in page.text("notice") + page.text("state-text")
        status = f"./page/{page_digest()}/status.js"
        said = "`size`: the map has 3 x 4 pixels", "choose another `size`"
        page.tab.evaluate(
            "([file, one, two]) => import(file).then((m) => m.showNotice('problem', one, two))",
            [f"{url}/below/styled/{status}", *said],
        )
        assert page.text("notice-title") == "Size: the map has 3 x 4 pixels"
        assert page.text("notice-text") == "Choose another size"


RUN = """async ([runtime, maps]) => {
  const said = [];
  console.info = (line) => said.push(line);
  const {Runtime} = await import(runtime);
  const facts = await (await fetch(location.href)).json();
  const opened = await Runtime.open(location.href, facts);
  const images = [];
  for (const map of maps) {
    const {kind, pixels, image} = await opened.run(map, {}, ["pixels", "image"]);
    images.push({kind, pixels: [...pixels], image: [...image]});
  }
  return {images, provider: opened.provider, said};
}"""
WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
"""WebGPU on the processor, with chromium's own Vulkan driver; chromium uses it for tests of WebGPU too."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two golden inputs: large regions, which the lookup graph runs, and ids that are nearly all noise."""
    from spade_deploy.export.pipeline import ExportRequest, export_artifact

    # Eight channels: with nine, onnxruntime-web computes the first convolutions wrong on WebGPU.
    generator = build_generator(labels=LabelSpec(6, has_dontcare=True, has_edges=True))
    spec, folder = generator.spec, tmp_path_factory.mktemp("exported") / "one"
    rng = np.random.default_rng(0)
    label = np.stack([blocks(rng, spec.labels.num_ids, size)[:, :64] for size in (7, 1)])
    instance = np.stack([blocks(rng, 9, size)[:, :64] for size in (5, 9)])
    golden = {LABEL: label.astype(spec.labels.id_type), INSTANCE: instance.astype(np.int32)}
    folder.mkdir()
    export_artifact(generator, folder, ExportRequest(golden, Source("tiny", 1, "train", "0" * 64)))
    return Artifact.open(folder)


def in_browser(browser: Any, host: Path, maps: list[tuple[Any, Any]]) -> dict[str, Any]:
    """What the page's runtime makes of label maps and their instance maps."""
    asked = [
        {
            "width": ids.shape[1],
            "height": ids.shape[0],
            "ids": ids.ravel().tolist(),
            "instances": objects.ravel().tolist(),
        }
        for ids, objects in maps
    ]
    ((model,), (runtime,)) = (host.rglob(name) for name in ("model.json", "runtime.js"))
    with static_host(host) as url:
        tab = browser.new_page()
        tab.goto(f"{url}/{model.relative_to(host).as_posix()}")
        found: dict[str, Any] = tab.evaluate(RUN, [f"{url}/{runtime.relative_to(host).as_posix()}", asked])
        tab.close()
    return found


def check_golden_pixels(browser: Any, artifact: Artifact, host: Path, ran: tuple[str, GraphKind]) -> None:
    """The page's runtime makes the golden images, and one that differs by a pixel of another class is told apart."""
    spec, golden = artifact.manifest.generator, artifact.golden()
    label, instance = golden.inputs[LABEL], golden.inputs[INSTANCE]
    changed = label[0].copy()
    changed[30, 30] = (changed[30, 30] + 1) % spec.labels.num_ids
    maps = list(zip([*label, changed], [*instance, instance[0]], strict=True))
    told = in_browser(browser, host, maps)
    found = told["images"]
    assert {(told["provider"], one["kind"]) for one in found} == {ran}

    def verdict(*pairs: tuple[int, int]) -> Verdict:
        """Of some answers, each held against a golden output."""
        judge = Judge(spec.labels, Precision.FP32, artifact.manifest.rounding)
        for made, number in pairs:
            expected = {name: values[number : number + 1] for name, values in golden.outputs.items()}
            outputs = {
                PIXELS: np.array(found[made]["pixels"], np.uint8).reshape(expected[PIXELS].shape),
                IMAGE: np.array(found[made]["image"], np.float32).reshape(expected[IMAGE].shape),
            }
            judge.add(label[number : number + 1], expected, outputs)
        return judge.verdict()

    assert verdict((0, 0), (1, 1)).failures == ()
    assert not verdict((2, 0)).passed, "another class in one pixel is seen"


def test_a_lookup_graph_makes_the_pixels_of_pytorch(
    tmp_path: Path, runtime_of_web: Mapping[str, bytes], chromium: Any, exported: Artifact
) -> None:
    write_web(exported, tmp_path, runtime_of_web)
    check_golden_pixels(chromium, exported, tmp_path, ("wasm", GraphKind.LOOKUP))


def test_webgpu_makes_the_pixels_of_pytorch_or_is_not_used(
    tmp_path: Path, runtime_of_web: Mapping[str, bytes], chromium: Any, exported: Artifact
) -> None:
    write_web(exported, tmp_path, runtime_of_web)
    with another(chromium, *WEBGPU) as found:
        tab = found.new_page()
        with static_host(tmp_path) as url:
            tab.goto(url)
            if not tab.evaluate("navigator.gpu?.requestAdapter().then(Boolean) ?? false"):
                pytest.skip("this chromium has no WebGPU on the processor (SwiftShader)")
        check_golden_pixels(found, exported, tmp_path, ("webgpu", GraphKind.DENSE))
        (golden,) = tmp_path.rglob("golden.bin")
        content = np.fromfile(golden, np.uint8)
        content[-12288 : -12288 + 4000] = 255 - content[-12288 : -12288 + 4000]  # of 64 x 64 x 3 colour values
        content.tofile(golden)
        told = in_browser(found, tmp_path, [])
        assert told["provider"] == "wasm"
        (line,) = told["said"]
        assert re.search(
            r"runs in WebAssembly. WebGPU paints the golden map with a PSNR of \d+\.\d dB, not 45 dB", line
        )
