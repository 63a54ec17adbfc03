from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.artifact import INSTANCE, LABEL, Arrays, Source, Z
from spade_deploy.errors import ExportError
from spade_deploy.export import pipeline, precision
from spade_deploy.export.build import build_model, model_inputs, unit_names
from spade_deploy.export.dense_values import dense_values
from spade_deploy.export.distinct_windows import distinct_windows
from spade_deploy.export.pipeline import ExportRequest, export_artifact, run_reference
from spade_deploy.export.precision import (
    FP16_MAX,
    HEADROOM,
    kept_units,
    measure_ranges,
    unit_ranges,
    units_to_keep,
    weight_ranges,
)
from spade_deploy.export.spade import DeployModel
from spade_deploy.export.stress_maps import StressMap
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.networks.spade import make_segmap
from spade_deploy.spec import Architecture, GraphKind, LabelSpec, NormType, Precision
from tests.support.generators import build_generator, graph_inputs, random_inputs
from tests.support.past_half import small_generator, with_a_large_output, with_a_large_stream


def test_ordinary_model_keeps_nothing() -> None:
    generator = build_generator()
    ranges = unit_ranges(DeployModel(generator), graph_inputs(generator.spec, *random_inputs(generator.spec, 1)))
    assert list(ranges) == unit_names(generator.spec)
    assert all(0 < value < 100 for value in ranges.values())
    assert units_to_keep(ranges) == ()


@pytest.mark.parametrize("kind", list(GraphKind))
@pytest.mark.parametrize("fields", [{}, {"norm": NormType.INSTANCE, "z_dim": 5}])
def test_what_is_not_read_again_is_no_larger(
    kind: GraphKind, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(build_generator(**fields), kind)
    inputs = maps_of(model.spec) | ({Z: np.full((1, 5), 3, np.float32)} if fields else {})
    found = unit_ranges(model, model_inputs(model, inputs), weight_ranges(model))
    read: list[str] = []

    def every_result(watcher: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        watcher._book(result)
        read.append(func.name())
        return result

    monkeypatch.setattr(precision._Watcher, "__torch_dispatch__", every_result)
    assert unit_ranges(model, model_inputs(model, inputs)) == found
    assert {name.split(".")[0] for name in read} >= precision._NO_LARGER - {"aten::index_select"} - (
        {"aten::embedding", "aten::cat"} if kind is GraphKind.DENSE else {"aten::upsample_nearest2d"}
    )


@pytest.mark.parametrize(
    "fields", [{}, {"labels": LabelSpec(5), "kernel_size": 1, "norm": NormType.INSTANCE}, {"z_dim": 5}]
)
def test_ranges_by_distinct_windows_are_those_of_the_whole_maps(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DeployModel(build_generator(**fields))
    inputs = maps_of(model.spec) | ({Z: np.full((1, 5), 3, np.float32)} if "z_dim" in fields else {})
    for name in inputs.keys() & {LABEL, INSTANCE}:
        inputs[name][:, 4:], inputs[name][:, 4:, 40:] = 1, 2  # two regions below a few rows that differ
    with distinct_windows(model, model_inputs(model, inputs)):
        assert sum("forward" in vars(module) for module in model.modules()) > 5
    for scale in (1.0, 1e3):
        with torch.no_grad():
            model.get_submodule("up_1").norm_0.modulation.bias += scale  # type: ignore[union-attr, operator]
        found = unit_ranges(model, model_inputs(model, inputs))
        with monkeypatch.context() as patch:
            patch.setattr(precision, "distinct_windows", lambda *_: nullcontext())
            expected = unit_ranges(model, model_inputs(model, inputs))
        assert found == pytest.approx(expected, rel=1e-5)  # measured 5e-7
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_block_that_overflows_is_kept_and_the_image_saved() -> None:
    generator = build_generator(spectral_norm=False)
    with torch.no_grad():
        # Values pass half precision's maximum inside the block alone: its last convolution scales them back.
        generator.up_1.norm_1.mlp_gamma.bias += 4e6
        generator.up_1.conv_1.weight /= 4e6
    inputs = graph_inputs(generator.spec, *random_inputs(generator.spec, 1))
    ranges = unit_ranges(DeployModel(generator), inputs)
    kept = units_to_keep(ranges)
    assert "up_1" in kept
    assert ranges["up_1"] > FP16_MAX / HEADROOM
    with torch.no_grad():
        expected = generator(make_segmap(inputs[0], inputs[1], generator.spec.labels))
        _, careless = DeployModel(generator, fp16=True)(*inputs)
        _, careful = DeployModel(generator, fp16=True, keep_fp32=kept)(*inputs)
    assert not torch.isfinite(careless).all()
    assert (careful - expected).abs().mean() < 0.05


def test_not_a_number_counts_as_too_large() -> None:
    assert units_to_keep({"fc": 1.0, "up_0": float("nan"), "up_1": float("inf")}) == ("up_0", "up_1")


@pytest.mark.parametrize("value", [-70_000.0, float("nan")])
def test_a_weight_of_any_sign_counts_and_what_follows_from_it(value: float) -> None:
    generator = build_generator()
    model, inputs = DeployModel(generator), graph_inputs(generator.spec, *random_inputs(generator.spec, 1))
    with torch.no_grad():
        model.get_submodule("up_3.conv_1").bias[0] = value
    ranges = unit_ranges(model, inputs)
    assert weight_ranges(model)["up_3"] == pytest.approx(abs(value), nan_ok=True)
    assert units_to_keep(weight_ranges(model)) == ("up_3",)
    assert units_to_keep(ranges) == ("up_3", "conv_img")
    assert np.isnan(ranges["conv_img"]) == np.isnan(value)


@pytest.fixture(autouse=True)
def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six changes instead of sixty, and maps of six classes: the search itself is tests/export/test_stress_maps.py."""
    monkeypatch.setattr(precision, "evaluations_for", lambda _: 6)


def maps_of(spec: Any, classes: int | None = None) -> Arrays:
    """Synthetic maps; classes: of the first so many alone."""
    ids, objects = synthetic_label_maps(spec.labels, spec.height, spec.width, 1, seed=0)
    inputs: Arrays = {LABEL: (ids % (classes or spec.labels.num_ids)).astype(np.uint8)}
    if spec.labels.has_edges:
        inputs[INSTANCE] = objects.astype(np.int32)
    return inputs


def in_half(generator: Any, kind: GraphKind, kept: tuple[str, ...], inputs: Arrays) -> Any:
    """The image of the deploy model in PyTorch's half on the CPU."""
    model = build_model(generator, kind, fp16=True, keep_fp32=kept)
    with torch.inference_mode():
        return model(*model_inputs(model, inputs))[1].numpy()


def test_the_headroom_is_eight() -> None:
    assert units_to_keep({"a": 8187.0, "b": 8189.0, "c": 65000.0, "d": 0.0}) == ("b", "c")


@pytest.mark.parametrize("kind", list(GraphKind))
@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (with_a_large_output, ("up_3", "conv_img")),
        (with_a_large_stream, ("fc", "head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3", "conv_img")),
    ],
)
def test_what_is_cast_into_a_unit_counts(make: Any, kept: tuple[str, ...], kind: GraphKind) -> None:
    generator = make()
    inputs = maps_of(generator.spec)
    found = kept_units(generator.spec, measure_ranges({kind: build_model(generator, kind)}, inputs).largest, ())
    assert found == kept
    expected = run_reference(generator, inputs)["image"]
    assert np.abs(in_half(generator, kind, found, inputs) - expected).mean() < 2e-3  # measured 4e-4
    # The counter-test: without conv_img, whose own results and weights are small, the image breaks.
    careless = in_half(generator, kind, tuple(name for name in found if name != "conv_img"), inputs)
    assert np.isnan(careless).mean() > 0.1


@pytest.mark.parametrize("architecture", [Architecture.PIX2PIXHD, Architecture.CRN])
def test_what_is_cast_counts_in_other_architectures(architecture: Architecture) -> None:
    from spade_deploy.networks.build import build_generator as build

    spec = small_generator().spec.with_architecture(architecture)
    torch.manual_seed(0)
    generator = build(spec).eval()
    unit = unit_names(spec)[-2]
    with torch.no_grad():
        # What conv_img takes is the last norm's result, times 1e5; its weights divide by as much.
        if architecture is Architecture.CRN:
            generator.get_submodule(unit).norm_1.weight *= 1e5
            generator.get_submodule(unit).norm_1.bias *= 1e5
        else:
            hook = generator.get_submodule(unit).register_forward_hook(lambda *args: args[-1] * 1e5)
        generator.conv_img.weight /= 1e5
    model = build_model(generator)
    if architecture is Architecture.PIX2PIXHD:
        hook.remove()
        model.get_submodule(unit).register_forward_hook(lambda *args: args[-1] * 1e5)
    ranges = unit_ranges(model, model_inputs(model, maps_of(spec)))
    assert ranges["conv_img"] > FP16_MAX
    assert "conv_img" in units_to_keep(ranges)


def with_a_class_that_explodes(number: int) -> Any:
    """Where that class is, up_2's beta reaches far beyond half; its last convolution takes it back."""
    generator = small_generator()
    with torch.no_grad():
        layer = generator.up_2.norm_1
        layer.mlp_shared[0].weight[:, number] *= 1e6
        generator.up_2.conv_1.weight *= 1e-3
    return generator


def test_a_class_that_no_golden_map_has_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = with_a_class_that_explodes(6)
    golden = maps_of(generator.spec, classes=5)
    monkeypatch.setattr(precision, "hardest_map", lambda *_: (StressMap("none", golden), 0.0))  # not by the search
    model = build_model(generator)
    assert units_to_keep(unit_ranges(model, model_inputs(model, golden))) == ("level_2",)  # its weights alone
    for kind in GraphKind:
        found = units_to_keep(measure_ranges({kind: build_model(generator, kind)}, golden).largest)
        assert {"level_2", "up_2"} <= set(found)


def test_what_the_search_finds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = with_a_class_that_explodes(6)
    golden = maps_of(generator.spec, classes=5)
    tame = StressMap("tame", golden)
    wild = StressMap("wild", {**golden, LABEL: np.full_like(golden[LABEL], 6)})
    monkeypatch.setattr(precision, "stress_maps", lambda *_, **__: (tame,))
    scores: list[float] = []

    def climb(_: Any, start: Arrays, score: Any, evaluations: int) -> tuple[StressMap, float]:
        assert start is tame.inputs
        assert evaluations == 6
        scores.extend([score(start), score(wild.inputs)])
        return wild, scores[-1]

    monkeypatch.setattr(precision, "hardest_map", climb)
    measured = measure_ranges({GraphKind.DENSE: build_model(generator)}, golden)
    assert "up_2" in units_to_keep(measured.largest)
    assert measured.hardest is wild
    # Among units that are kept anyway nothing is searched: level_2's weights are larger than anything.
    assert scores[0] < 100 < scores[1]


@pytest.mark.parametrize(
    "fields",
    [{}, {"labels": LabelSpec(5), "kernel_size": 1, "norm": NormType.INSTANCE}, {"z_dim": 5}],
)
def test_one_pass_measures_both_graphs(fields: dict[str, Any]) -> None:
    generator = build_generator(spectral_norm=False, **fields)
    with torch.no_grad():
        # The dense graph alone computes this beta: the lookup graph has its product with the shortcut's weights.
        generator.up_1.norm_s.mlp_beta.bias += 1e3
        generator.up_1.conv_s.weight *= 1e-3
        if generator.spec.labels.has_edges:  # in the lookup graph this weight is part of a sum, which is smaller
            generator.up_2.norm_1.mlp_shared[0].weight[0, -1, 1, 1] = 1e2
            generator.up_2.norm_1.mlp_shared[0].weight[0, :-1, 1, 1] = -6e1
    models = {kind: build_model(generator, kind) for kind in GraphKind}
    inputs = maps_of(generator.spec) | ({Z: np.full((1, 5), 3, np.float32)} if "z_dim" in fields else {})
    apart = [unit_ranges(model, model_inputs(model, inputs)) for model in models.values()]
    expected = {name: max(one[name] for one in apart) for name in apart[0]}
    lookup = models[GraphKind.LOOKUP]
    before = lookup(*model_inputs(lookup, inputs))[1]
    with dense_values(lookup, models[GraphKind.DENSE]):
        found = unit_ranges(lookup, model_inputs(lookup, inputs))
        assert torch.equal(lookup(*model_inputs(lookup, inputs))[1], before)
    assert found["up_1"] == pytest.approx(expected["up_1"], rel=1e-5)
    assert apart[list(models).index(GraphKind.LOOKUP)]["up_1"] < 0.9 * found["up_1"]
    assert not any("forward" in vars(module) for module in lookup.modules())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "stress_maps", lambda *_, **__: (StressMap("golden", inputs),))
        patch.setattr(precision, "hardest_map", lambda *_: (StressMap("none", inputs), 0.0))
        measured = measure_ranges(models, inputs)
    assert measured.largest == pytest.approx(expected, rel=1e-5)


def test_dense_and_lookup_keep_the_same_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = small_generator()
    monkeypatch.setattr(precision, "has_all_values", lambda *_: False)  # as in the other architectures

    def ranges(model: Any, *_: Any) -> dict[str, float]:
        large = "up_1" if isinstance(model, DeployModel) else "up_2"
        return {name: 9e4 if name == large else 1.0 for name in unit_names(model.spec)}

    monkeypatch.setattr(precision, "unit_ranges", ranges)
    written = b"tests/export/test_onnx_graph.py"
    monkeypatch.setattr(pipeline, "write_onnx", lambda _, path, facts: path.write_bytes(written))
    exported = export_artifact(
        generator,
        tmp_path,
        ExportRequest(
            precisions=(Precision.FP16,),
            golden_inputs=maps_of(generator.spec),
            source=Source("small", 0, "import", "0" * 64),
            keep_fp32=("fc",),
        ),
    )
    assert [graph.kept_fp32[1:] for graph in exported.manifest.graphs] == [("fc", "up_1", "up_2")] * 2
    assert [one.name for one in exported.stress] == ["the largest activations found"]


def test_where_nothing_is_left_for_half_that_is_said() -> None:
    spec = small_generator().spec
    ranges = dict.fromkeys(unit_names(spec), 1000000.0)
    with pytest.raises(
        ExportError, match=r"no part of this model fits half precision: values reach 1e\+06, and up to 8188 are safe"
    ) as caught:
        kept_units(spec, ranges, ())
    assert "without `fp16`" in str(caught.value.hint)
    assert kept_units(spec, {**ranges, "fc": 1.0}, ()) == tuple(unit_names(spec)[1:])
    assert kept_units(spec, dict.fromkeys(ranges, 1.0), ("up_3", "fc")) == ("fc", "up_3")
