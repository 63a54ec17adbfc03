"""Polygraphy on what we write: its Comparator over our runtimes, and `polygraphy inspect` on our graphs and engines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, PIXELS, Arrays, Artifact, Source, rewrite_manifest
from spade_deploy.engines.base import Runtime
from spade_deploy.engines.cuda.driver import Gpu, require_gpu
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.tensorrt.build import build
from spade_deploy.engines.tensorrt.builder import RTX_CAPABILITIES
from spade_deploy.engines.tensorrt.library import Library, load_library
from spade_deploy.engines.tensorrt.request import BuildRequest
from spade_deploy.engines.tensorrt.store import capability_text
from spade_deploy.errors import ConfigError, InputRefusedError, MissingDependencyError, RuntimeUnavailableError
from spade_deploy.export.build import stage_names
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.metrics.tolerances import Tolerance, tolerance_for
from spade_deploy.spec import Flavour, GraphKind, Precision, RoundingError
from spade_deploy.validation import second_opinion
from spade_deploy.validation.second_opinion import (
    compare_graph,
    make_runner,
    polygraphy_compare,
    require_polygraphy,
)
from tests.support.generators import build_generator
from tests.support.stand_in import EDGES, PLAIN, random_inputs, stand_in_artifact, stand_in_graph

ROUNDING = RoundingError(1e-6, 1e-7, 1e-6, 1e-7)
FP32 = tolerance_for(Precision.FP32, ROUNDING)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A small generator's fp32 graphs, dense and lookup."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small convolutions, and a machine that may be busy
    generator = build_generator(base_channels=4, hidden_channels=8)
    ids, objects = synthetic_label_maps(generator.spec.labels, 64, 64, 2, seed=0)
    folder = tmp_path_factory.mktemp("polygraphy")
    export_artifact(
        generator,
        folder,
        ExportRequest(
            precisions=(Precision.FP32,),
            golden_inputs={LABEL: ids.astype(np.uint8), INSTANCE: objects.astype(np.int32)},
            source=Source("tiny-001", 1, "train", "0" * 64),
        ),
    )
    torch.set_num_threads(before)
    return Artifact.open(folder)


def cpu(artifact: Artifact, kind: GraphKind = GraphKind.DENSE) -> Runtime:
    return open_runtime(artifact, backend="cpu", graph=str(kind))


def polygraphy(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("polygraphy")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize("kind", list(GraphKind))
def test_inspect_reads_our_graphs(exported: Artifact, kind: GraphKind) -> None:
    done = polygraphy("inspect", "model", exported.path_of(exported.graph(None, kind).file), "--show", "layers")
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    inputs = re.search(r"---- (\d+) Graph Input\(s\) ---- \{(.*?)\}", text)
    outputs = re.search(r"---- (\d+) Graph Output\(s\) ---- \{(.*?)\}", text)
    assert inputs is not None
    assert outputs is not None
    fed = {GraphKind.DENSE: "label [dtype=uint8", GraphKind.LOOKUP: "codes_32 [dtype=int32"}
    assert fed[kind] in inputs[2]
    assert "pixels [dtype=uint8" in outputs[2]
    assert "image [dtype=float32" in outputs[2]
    spec = exported.manifest.generator
    # The layers' names are there for whoever looks for a tensor by its name; a lookup graph makes no norm_s.
    stages = [name for name in stage_names(spec) if kind is GraphKind.DENSE or not name.endswith("norm_s")]
    assert [name for name in stages if not re.search(rf"[{{ ]{re.escape(name)}[ }}\[]", text)] == []


def test_inspect_refuses_what_is_no_graph(exported: Artifact, tmp_path: Path) -> None:
    whole = exported.path_of(exported.graph().file).read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    assert polygraphy("inspect", "model", tmp_path / "half.onnx").returncode != 0


def skip_unless_engines_can_be_built() -> None:
    """A card alone builds nothing: there must be a TensorRT that knows it."""
    try:
        gpu = require_gpu()
        library = load_library()
    except (MissingDependencyError, RuntimeUnavailableError) as error:
        pytest.skip(error.message)
    if library.flavour is Flavour.RTX and capability_text(gpu.compute_capability) not in RTX_CAPABILITIES:
        pytest.skip(f"{library.title} does not build for {gpu.name}")


def test_a_card_without_a_tensorrt_that_knows_it_is_a_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    here = sys.modules[__name__]
    h100 = Gpu(0, "NVIDIA H100", (9, 0), 80 << 30, "13.0")
    rtx = Library(types.ModuleType("rtx"), Flavour.RTX, "1.7.1.116")

    def installed(**_: object) -> Library:
        return rtx

    monkeypatch.setattr(here, "require_gpu", lambda: h100)
    monkeypatch.setattr("spade_deploy.engines.tensorrt.library.is_installed", lambda *_, **__: False)
    with pytest.raises(pytest.skip.Exception, match="neither TensorRT nor TensorRT for RTX is installed"):
        skip_unless_engines_can_be_built()
    monkeypatch.setattr(here, "load_library", installed)
    with pytest.raises(pytest.skip.Exception, match=r"RTX 1\.7\.1\.116 does not build for NVIDIA H100"):
        skip_unless_engines_can_be_built()
    h100 = replace(h100, compute_capability=(8, 9))
    skip_unless_engines_can_be_built()
    h100, rtx = replace(h100, compute_capability=(9, 0)), replace(rtx, flavour=Flavour.TENSORRT)
    skip_unless_engines_can_be_built()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(GraphKind))
def test_inspect_reads_our_engines(exported: Artifact, kind: GraphKind) -> None:
    skip_unless_engines_can_be_built()
    engine = next(one for one in build(exported, BuildRequest()) if one.key.kind is kind)
    rtx = {"POLYGRAPHY_USE_TENSORRT_RTX": "1"} if engine.key.flavour == "rtx" else {}
    done = polygraphy("inspect", "model", engine.path, "--model-type", "engine", "--show", "layers", **rtx)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pixels" in done.stdout


def test_dense_and_lookup_agree(exported: Artifact, capfd: pytest.CaptureFixture[str]) -> None:
    dense = exported.graph()
    with cpu(exported, GraphKind.LOOKUP) as lookup:
        verdict = compare_graph(exported, dense, lookup)
    image, pixels = verdict.outputs
    assert verdict.passed
    assert (image.name, pixels.name) == (IMAGE, PIXELS)
    assert image.statistic == "max"
    tolerance = tolerance_for(dense.precision, exported.manifest.rounding)
    assert 0 < image.mean_abs < image.max_abs <= image.limit == 2 * (tolerance.max_abs or 0)
    assert verdict.images == 2
    assert str(verdict).startswith(
        f"Polygraphy {require_polygraphy()}: {lookup.name} agrees with {verdict.reference} on 2 images"
    )
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""  # Polygraphy logs every step unless it is told not to


def test_a_weight_that_is_slightly_off_is_seen(exported: Artifact, tmp_path: Path) -> None:
    """The counter-test: 3e-5 relative, some hundred roundings."""
    for path in exported.path.rglob("*.*"):
        (tmp_path / path.relative_to(exported.path)).parent.mkdir(exist_ok=True)
        (tmp_path / path.relative_to(exported.path)).write_bytes(path.read_bytes())
    file = tmp_path / exported.graph(None, GraphKind.LOOKUP).file
    model = onnx.load(str(file))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "up_2.conv_0.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1 + 3e-5), tensor.name))
    onnx.save(model, str(file))
    rewrite_manifest(tmp_path, exported.manifest)
    changed = Artifact.open(tmp_path)
    with cpu(changed, GraphKind.LOOKUP) as lookup:
        verdict = compare_graph(changed, changed.graph(), lookup)
    assert not verdict.passed
    assert not verdict.outputs[0].passed
    assert "does not agree" in str(verdict)
    assert "is over" in str(verdict)


class Fixed:
    """A runtime of the stand-in's inputs that answers what it was told, one image after another."""

    kind = GraphKind.DENSE
    precision = Precision.FP32
    patterns_s = None

    def __init__(self, image: Any, pixels: Any = None, spec: Any = PLAIN) -> None:
        self.name, self.spec = "fixed", spec
        self._image = np.asarray(image, np.float32)
        size = (*self._image.shape[:1], *self._image.shape[2:], 3)
        self._pixels = np.zeros(size, np.uint8) if pixels is None else np.asarray(pixels, np.uint8)
        self._next = 0

    def run(self, inputs: Any, output_names: Any = None) -> Arrays:
        here = slice(self._next, self._next + len(inputs[LABEL]))
        self._next = here.stop
        return {IMAGE: self._image[here], PIXELS: self._pixels[here]}

    def close(self) -> None:
        raise AssertionError("whoever opened it closes it")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


INPUTS = random_inputs(PLAIN)
SHAPE = (2, 3, PLAIN.height, PLAIN.width)


def judge(candidate: Any, tolerance: Tolerance = FP32, undecided: Any = None, pixels: Any = None) -> Any:
    zeros = np.zeros(SHAPE, np.float32)
    return polygraphy_compare(Fixed(zeros), Fixed(candidate, pixels), INPUTS, tolerance, undecided)


def test_a_broken_graph_does_not_agree(tmp_path: Path) -> None:
    right = stand_in_artifact(tmp_path / "right", EDGES)
    model = onnx.load_from_string(stand_in_graph(EDGES))
    step = next(tensor for tensor in model.graph.initializer if tensor.name == "step")
    step.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(step) * np.float32(1.001), "step"))
    wrong = stand_in_artifact(tmp_path / "wrong", EDGES, graph=model.SerializeToString())
    with cpu(right) as one, cpu(right) as same:
        assert polygraphy_compare(one, same, random_inputs(EDGES), FP32).passed
        with cpu(wrong) as other:
            verdict = polygraphy_compare(one, other, random_inputs(EDGES), FP32)
    assert not verdict.passed
    assert [output.passed for output in verdict.outputs] == [False, True]  # a tenth of a grey level flips pixels by one


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_what_is_not_finite_fails_even_where_rounding_decides(value: float, precision: Precision) -> None:
    image = np.zeros(SHAPE, np.float32)
    image[1, 2, 3, 4] = value
    verdict = judge(image, tolerance_for(precision, ROUNDING), np.ones(SHAPE, np.bool_))
    assert [output.passed for output in verdict.outputs] == [False, True]


def test_a_maximum_holds_for_every_value() -> None:
    image = np.zeros(SHAPE, np.float32)
    limit = 2 * (FP32.max_abs or 0)
    image[1, 0, 0, 0] = 0.99 * limit
    assert judge(image).passed
    image[1, 0, 0, 0] = 1.01 * limit
    assert not judge(image).passed
    # Left out where rounding alone decides, and only there.
    undecided = np.zeros(SHAPE, np.bool_)
    undecided[0, 0, 0, 0] = True
    assert not judge(image, undecided=undecided).passed
    undecided[1, 0, 0, 0] = True
    assert judge(image, undecided=undecided).passed


def test_a_mean_is_over_all_images() -> None:
    half = tolerance_for(Precision.FP16, ROUNDING)
    limit = 2 * (half.mean_abs or 0)
    image = np.zeros(SHAPE, np.float32)
    image[1] = 1.98 * limit
    verdict = judge(image, half)
    assert verdict.passed
    assert verdict.outputs[0].statistic == "mean"
    assert verdict.outputs[0].mean_abs == pytest.approx(0.99 * limit)
    image[1] = 2.02 * limit
    assert not judge(image, half).passed


def test_a_psnr_becomes_a_mean() -> None:
    int8 = tolerance_for(Precision.INT8, ROUNDING, 40.0)
    image = np.full(SHAPE, 2 * 2 * 10 ** (-40 / 20) * 0.99, np.float32)
    assert judge(image, int8).passed
    assert not judge(image * np.float32(1.02), int8).passed
    with pytest.raises(ConfigError, match="without a maximum"):
        judge(image, Tolerance(min_ssim=0.9))


def test_pixels_are_held_too() -> None:
    zeros = np.zeros(SHAPE, np.float32)
    pixels = np.zeros((2, PLAIN.height, PLAIN.width, 3), np.uint8)
    pixels[0, 0, 0, 0] = 1
    assert judge(zeros, pixels=pixels).passed
    pixels[0, 0, 0, 0] = 2
    verdict = judge(zeros, pixels=pixels)
    assert [output.passed for output in verdict.outputs] == [True, False]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_outputs_of_another_shape_do_not_agree(precision: Precision) -> None:
    verdict = judge(np.zeros((2, 3, PLAIN.height, PLAIN.width - 1), np.float32), tolerance_for(precision, ROUNDING))
    assert [output.passed for output in verdict.outputs] == [False, False]
    assert verdict.outputs[0].max_abs == np.inf


def test_what_cannot_be_compared_is_refused() -> None:
    one, other = Fixed(np.zeros(SHAPE)), Fixed(np.zeros(SHAPE), spec=EDGES)
    with pytest.raises(ConfigError, match="different models"):
        polygraphy_compare(one, other, INPUTS, FP32)
    with pytest.raises(InputRefusedError, match=r"label: id 5 is out of range"):
        polygraphy_compare(one, one, {LABEL: np.full_like(INPUTS[LABEL], 5)}, FP32)


def test_a_runner_takes_what_the_runtime_takes() -> None:
    with make_runner(Fixed(np.zeros(SHAPE)), "mine") as runner:
        assert runner.name == "mine"
        metadata = runner.get_input_metadata(use_numpy_dtypes=False)
        assert list(metadata) == [LABEL]
        with pytest.raises(polygraphy_exception()):
            runner.infer({LABEL: INPUTS[LABEL].astype(np.float32)})
        assert set(runner.infer({LABEL: INPUTS[LABEL]})) == {IMAGE, PIXELS}


def polygraphy_exception() -> type[Exception]:
    from polygraphy.exception import PolygraphyException

    kind: type[Exception] = PolygraphyException
    return kind


@pytest.fixture
def no_polygraphy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    return


@pytest.mark.usefixtures("no_polygraphy")
def test_without_polygraphy_the_hint_installs_it() -> None:
    with pytest.raises(MissingDependencyError, match="not installed") as caught:
        judge(np.zeros(SHAPE))
    assert "pip install" in str(caught.value.hint)


def test_an_old_polygraphy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import polygraphy as installed

    monkeypatch.setattr(installed, "__version__", "0.49.9")
    with pytest.raises(MissingDependencyError, match=r"0\.49\.9 is too old; 0\.53\.4"):
        require_polygraphy()
    monkeypatch.setattr(installed, "__version__", "0.100.0rc1")
    assert require_polygraphy() == "0.100.0rc1"


def test_the_module_does_not_load_polygraphy_before_it_is_asked() -> None:
    code = f"import sys, {second_opinion.__name__}; print('polygraphy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert find_spec("polygraphy") is not None
