"""The bisection on made-up judges and on small models that half precision breaks; TensorRT's part with real builds."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spade_deploy.artifact import (
    INSTANCE,
    LABEL,
    Arrays,
    Artifact,
    Graph,
    Source,
    graph_file,
    list_engines,
    write_engine,
    write_golden,
    write_manifest,
)
from spade_deploy.engines.base import Backend, Runtime
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.tensorrt.key import BuildOptions, EngineKey
from spade_deploy.engines.tensorrt.request import BuildRequest
from spade_deploy.errors import ArtifactError, ConfigError, ExportError, NotFoundError
from spade_deploy.export import pipeline, precision
from spade_deploy.export.build import unit_names
from spade_deploy.export.dense_model import dtype_of
from spade_deploy.export.pipeline import ExportRequest, export_artifact, rounding_error, run_reference
from spade_deploy.export.precision import parse_kept
from spade_deploy.labels.files import synthetic_label_maps
from spade_deploy.metrics.differences import DiffAccumulator
from spade_deploy.metrics.tolerances import Tolerance
from spade_deploy.release import release as release_module
from spade_deploy.release.release import export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import load_generator, save_checkpoint
from spade_deploy.spec import Flavour, GraphKind, Precision, ShapeProfile
from spade_deploy.validation import precision_search
from spade_deploy.validation.bisection import PrecisionSearch, Trial, find_layers_to_keep
from spade_deploy.validation.precision_search import (
    EmulatedTrial,
    Evidence,
    opener_like,
    search_failures,
    search_precision,
    tensorrt_opener,
)
from spade_deploy.validation.report import GraphResult, ValidationReport
from spade_deploy.validation.request import ValidationRequest
from tests.support.generators import build_generator
from tests.support.listener import Listener
from tests.support.stand_in import stand_in_artifact
from tests.support.torch_candidates import torch_candidates

UNITS = tuple(f"unit_{number}" for number in range(14))
Judge = Callable[[tuple[str, ...]], tuple[str, ...]]


def needing(*needed: str) -> Judge:
    """Good iff all of these are kept."""
    return lambda kept: tuple(f"{name} overflows" for name in needed if name not in kept)


@given(needed=st.sets(st.sampled_from(UNITS), max_size=5), held=st.sets(st.sampled_from(UNITS), max_size=5))
@settings(deadline=None)
def test_just_what_is_needed_is_found(needed: set[str], held: set[str]) -> None:
    judged: list[tuple[str, ...]] = []

    def failures_with(kept: tuple[str, ...]) -> tuple[str, ...]:
        judged.append(kept)
        return needing(*needed)(kept)

    search = find_layers_to_keep(UNITS, failures_with, held=held, most_trials=99)
    missing = needed - held
    assert search.found == tuple(name for name in UNITS if name in missing)
    assert search.is_minimal
    assert set(search.held) == held
    assert [trial.kept for trial in search.trials] == judged
    assert len(set(judged)) == len(judged)  # no set is judged twice
    assert all(held <= set(kept) for kept in judged)
    assert len(judged) <= len(missing) * (math.ceil(math.log2(len(UNITS))) + 2) + 1


def test_a_search_begins_at_the_output() -> None:
    # The first unit or the last one helps: which is found depends on where the search begins.
    def either(kept: Collection[str]) -> tuple[str, ...]:
        return () if UNITS[0] in kept or UNITS[-1] in kept else ("too far",)

    assert find_layers_to_keep(UNITS, either).found == UNITS[-1:]


@given(seed=st.integers(0, 10_000))
@settings(deadline=None)
def test_a_judge_without_rhyme_or_reason_still_gets_a_set_it_called_good(seed: int) -> None:
    rng = np.random.default_rng(seed)
    verdicts: dict[tuple[str, ...], bool] = {UNITS: True, (): False}

    def failures_with(kept: tuple[str, ...]) -> tuple[str, ...]:
        return () if verdicts.setdefault(kept, bool(rng.random() < 0.5)) else ("bad",)

    search = find_layers_to_keep(UNITS, failures_with, most_trials=999)
    assert verdicts[search.found]
    if search.is_minimal:
        for name in search.found:
            assert not verdicts[tuple(other for other in search.found if other != name)]


def test_trials_that_are_used_up_give_the_smallest_good_set_so_far() -> None:
    judge = needing("unit_3", "unit_9")
    seen: list[Trial] = []
    search = find_layers_to_keep(UNITS, judge, most_trials=5, on_trial=seen.append)
    assert not search.is_minimal
    assert len(search.trials) == 5
    assert tuple(seen) == search.trials
    good = [trial.kept for trial in search.trials if trial.passed]
    assert search.found == min(good, key=len)
    assert {"unit_3", "unit_9"} < set(search.found) < set(UNITS)
    assert "used up" in str(search)
    assert find_layers_to_keep(UNITS, judge).is_minimal
    with pytest.raises(ConfigError, match="2 or more"):
        find_layers_to_keep(UNITS, judge, most_trials=1)


def test_what_a_search_says() -> None:
    found = find_layers_to_keep(UNITS, needing("unit_3", "unit_9"))
    assert str(found) == f"keep unit_3, unit_9 in float32 ({len(found.trials)} trials)"
    assert found.flags == "--keep-fp32 unit_3 --keep-fp32 unit_9"
    fine = find_layers_to_keep(UNITS, needing())
    assert (fine.found, fine.flags, len(fine.trials)) == ((), "", 1)
    assert "as it is" in str(fine)


def test_where_nothing_helps_that_is_the_answer() -> None:
    with pytest.raises(ExportError, match=r"no unit helps: with all 14 .* PSNR 9 dB") as caught:
        find_layers_to_keep(UNITS, lambda kept: ("PSNR 9 dB",) if len(kept) == 14 else ("PSNR 3 dB",))
    assert "spade validate" in str(caught.value.hint)
    # All are held, and it is judged once.
    with pytest.raises(ExportError, match="no unit helps"):
        find_layers_to_keep(UNITS, lambda _: ("bad",), held=UNITS)


def small_generator() -> Any:
    return build_generator(base_channels=4, hidden_channels=8, spectral_norm=False)


def break_in_half(generator: Any, block: str) -> None:
    """Values pass half precision's maximum inside the block alone: its last convolution scales them back."""
    with torch.no_grad():
        part = generator.get_submodule(block)
        part.norm_1.mlp_gamma.bias += 4e6
        part.conv_1.weight /= 4e6


def maps_of(spec: Any) -> Arrays:
    ids, objects = synthetic_label_maps(spec.labels, spec.height, spec.width, 2, seed=0)
    return {LABEL: ids.astype(np.uint8), INSTANCE: objects.astype(np.int32)}


def evidence_of(generator: Any) -> Evidence:
    inputs = maps_of(generator.spec)
    reference = run_reference(generator, inputs)
    return Evidence(generator.spec.labels, inputs, reference, rounding_error(generator, inputs, reference["logits"]))


def search_in_torch(generator: Any, evidence: Evidence, kind: GraphKind) -> PrecisionSearch:
    candidates = torch_candidates(generator, kind)

    def failures_with(kept: tuple[str, ...]) -> tuple[str, ...]:
        with candidates(kept) as run:
            return evidence.failures(run)

    return find_layers_to_keep(unit_names(generator.spec), failures_with)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine the threads of small convolutions wait for each other a hundred times longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", list(GraphKind))
@pytest.mark.parametrize("broken", [("up_1",), ("head_0", "up_2")])
def test_the_block_that_overflows_is_named(broken: tuple[str, ...], kind: GraphKind) -> None:
    generator = small_generator()
    for block in broken:
        break_in_half(generator, block)
    evidence = evidence_of(generator)
    search = search_in_torch(generator, evidence, kind)
    assert search.found == broken
    assert search.is_minimal
    assert "NaN or infinity" in search.trials[0].failures[0]


def test_an_ordinary_model_needs_nothing() -> None:
    generator = small_generator()
    search = search_in_torch(generator, evidence_of(generator), GraphKind.DENSE)
    assert (search.found, len(search.trials)) == ((), 1)


def test_a_model_that_is_wrong_in_float32_too_is_not_blamed_on_half_precision() -> None:
    generator = small_generator()
    evidence = evidence_of(generator)
    with torch.no_grad():
        generator.up_1.conv_1.weight *= -1
    with pytest.raises(ExportError, match=r"no unit helps.*PSNR"):
        search_in_torch(generator, evidence, GraphKind.DENSE)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    """(An artifact whose fp16 graph lacks up_1 alone among what it keeps, the runs with its checkpoint)."""
    home = tmp_path_factory.mktemp("search")
    generator = small_generator()
    break_in_half(generator, "up_1")
    runs = home / "runs"
    checkpoint = checkpoint_folder(new_run(runs, "small"), 0)
    save_checkpoint(checkpoint, generator, step=0, origin="import")
    evidence = evidence_of(generator)
    folder = home / "artifact"
    folder.mkdir()
    write_golden(folder, evidence.inputs, evidence.reference)
    file = graph_file(Precision.FP16)
    (folder / file).write_bytes(b"every trial is exported anew; this graph is not read")
    kept = ("tanh", *(name for name in unit_names(generator.spec) if name != "up_1"))
    write_manifest(
        folder,
        generator=generator.spec,
        graphs=(Graph(file, Precision.FP16, kept),),
        source=Source("small", 0, "import", load_generator(checkpoint).info.generator_sha256),
        versions={},
        rounding=evidence.rounding,
    )
    return Artifact.open(folder), runs


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_every_trial_is_exported_built_and_run(broken: tuple[Artifact, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Real exports and real TensorRT for RTX engines of mixed types; ONNX Runtime stands for the card."""
    artifact, runs = broken
    opened: list[tuple[str, ...]] = []

    def open_without_a_card(trial: Artifact, precision: Precision, backend: str, *, graph: str) -> Runtime:
        (engine,) = list_engines(trial)
        assert engine.key["compute_capability"] == "8.9"
        assert backend == "tensorrt"
        opened.append((precision, *trial.graph(precision).kept_fp32))
        # Without a card the typed network alone is known: it has just what it was asked for.
        shares.append(engine.proof["asked"] / engine.proof["total"])
        return open_runtime(trial, precision, "cpu", graph=graph)

    shares: list[float] = []
    monkeypatch.setattr(precision_search, "open_runtime", open_without_a_card)
    request = BuildRequest(flavour=Flavour.RTX, compute_capability="8.9")
    seen: list[Trial] = []
    search = search_precision(
        artifact,
        kind=GraphKind.DENSE,
        open_candidate=tensorrt_opener(artifact, request),
        runs_dir=runs,
        on_trial=seen.append,
    )
    assert search.found == ("up_1",)
    units = tuple(unit_names(artifact.manifest.generator))
    others = tuple(name for name in units if name != "up_1")
    assert [(trial.kept, trial.passed) for trial in seen] == [(others, False), (units, True)]
    # A graph that keeps everything is built as the fp32 graph that it is: the proof of an fp16 engine would refuse it.
    assert opened == [("fp16", *others), ("fp32",)]
    assert 0 < shares[0] < 0.3
    assert shares[1] == 1


def test_a_search_wants_the_very_weights(
    broken: tuple[Artifact, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, runs = broken

    def never(_: Artifact) -> Runtime:
        raise AssertionError("nothing is to be opened")

    def exporting(*_: Any) -> None:
        raise ExportError("exporting")

    def search(**options: Any) -> PrecisionSearch:
        return search_precision(artifact, kind=GraphKind.DENSE, open_candidate=never, **options)

    monkeypatch.setattr(precision_search, "write_onnx", exporting)
    with pytest.raises(NotFoundError, match="was not found"):
        search(runs_dir=tmp_path)
    other = checkpoint_folder(new_run(tmp_path, "other"), 0)
    save_checkpoint(other, build_generator(seed=9), step=0, origin="import")
    with pytest.raises(ConfigError, match="not those that were exported"):
        search(checkpoint=other, runs_dir=tmp_path)
    with pytest.raises(ArtifactError, match="no fp16 lookup graph"):
        search_precision(artifact, kind=GraphKind.LOOKUP, open_candidate=never, runs_dir=runs)
    with pytest.raises(ExportError, match="exporting"):  # the counter-test: the right weights get as far as that
        search(runs_dir=runs)


def test_only_half_precision_that_failed_is_searched(
    broken: tuple[Artifact, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, runs = broken
    passed, failed = Tolerance(min_psnr_db=0.0), ("PSNR 3 dB",)
    diff = DiffAccumulator(("sea",))
    blank = (np.zeros((1, 3, 16, 16), np.float32), np.zeros((1, 16, 16, 3), np.uint8))
    diff.add(np.zeros((1, 16, 16), np.uint8), blank, blank)

    def verdict(precision: Precision, kind: GraphKind, failures: tuple[str, ...]) -> GraphResult:
        return GraphResult(Graph("x.onnx", precision, kind=kind), "a runtime", diff.result(), passed, failures)

    report = ValidationReport(
        artifact=artifact.path,
        reference="PyTorch",
        inputs="golden",
        rounding=artifact.manifest.rounding,
        results=(
            verdict(Precision.FP32, GraphKind.DENSE, failed),
            verdict(Precision.FP16, GraphKind.DENSE, ()),
            verdict(Precision.FP16, GraphKind.LOOKUP, failed),
            verdict(Precision.INT8, GraphKind.DENSE, failed),
        ),
        samples=(),
    )
    asked: list[dict[str, Any]] = []
    said = Listener()
    answer = find_layers_to_keep(UNITS, needing("unit_3"))

    def search(_: Artifact, *, on_trial: Callable[[Trial], None], **options: Any) -> PrecisionSearch:
        asked.append(options)
        on_trial(answer.trials[0])
        return answer

    monkeypatch.setattr(precision_search, "search_precision", search)
    request = ValidationRequest(runs_dir=runs, backend=Backend.CPU)
    found = search_failures(artifact, report, request, progress=said)
    assert found == {"fp16 lookup": answer}
    assert [(options["kind"], options["runs_dir"]) for options in asked] == [(GraphKind.LOOKUP, runs)]
    assert said.steps == [f"fp16 lookup: tried with {len(answer.trials[0].kept)} layers in fp32"]


def test_a_trial_runs_where_the_graph_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = stand_in_artifact(tmp_path / "artifact", precisions=(Precision.FP16,))
    graph = artifact.graph()
    with pytest.raises(NotFoundError, match="no TensorRT engine of its fp16 graph"):
        opener_like(artifact, graph, Backend.TENSORRT)
    with opener_like(artifact, graph, Backend.CPU)(artifact) as runtime:
        assert isinstance(runtime, EmulatedTrial)  # ONNX Runtime's CPU kernels would find nothing wrong
    profile = ShapeProfile.parse("1x64x32:2x64x32:3x64x32")
    key = EngineKey(
        onnx_sha256="0" * 64,
        flavour=Flavour.RTX,
        version="1.7.1",
        gpu="a card",
        compute_capability="8.9",
        system="linux-x86_64",
        precision=Precision.FP16,
        kind=GraphKind.DENSE,
        profile=profile,
        options=BuildOptions(optimization_level=2),
    )
    write_engine(artifact, "fp16.dense.0", b"an engine", key=key.to_json(), proof={}, seconds=1.0)
    requests: list[BuildRequest] = []
    monkeypatch.setattr(precision_search, "tensorrt_opener", lambda _, request: requests.append(request))
    for backend in (Backend.TENSORRT, Backend.AUTO):
        opener_like(artifact, graph, backend)
    built_alike = BuildRequest(flavour=Flavour.RTX, profile=profile, options=key.options)
    assert requests == [built_alike, built_alike]
    with opener_like(artifact, graph, Backend.CPU)(artifact) as runtime:  # an engine is not what a CPU runs
        assert isinstance(runtime, EmulatedTrial)
    assert len(requests) == 2


def test_units_to_keep_are_read_from_the_command_line() -> None:
    spec = build_generator().spec
    assert parse_kept(spec, []) == ()
    assert parse_kept(spec, ["up_3", "fc", "up_3"]) == ("fc", "up_3")
    with pytest.raises(ConfigError, match=r"'up_9' is not a part.*allowed are fc, level_32, .*conv_img") as caught:
        parse_kept(spec, ["up_9"])
    assert caught.value.hint is None
    with pytest.raises(ConfigError, match=r"'up_1.conv_0'") as caught:
        parse_kept(spec, ["up_1.conv_0"])
    assert "`keep_fp32` up_1" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="nothing is left"):
        parse_kept(spec, unit_names(spec))


def test_an_export_keeps_what_is_asked_beside_what_the_ranges_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = small_generator()
    types: dict[str, torch.dtype] = {}

    def write(model: Any, path: Path, facts: Any) -> None:
        types.update({name: dtype_of(model.get_submodule(name)) for name in unit_names(model.spec)})
        path.write_bytes(b"what is written is tests/export/test_onnx_file.py")

    monkeypatch.setattr(precision, "units_to_keep", lambda _: ("up_1",))
    monkeypatch.setattr(precision, "evaluations_for", lambda _: 1)
    monkeypatch.setattr(pipeline, "write_onnx", write)
    exported = export_artifact(
        generator,
        tmp_path,
        ExportRequest(
            precisions=(Precision.FP16,),
            kinds=(GraphKind.DENSE,),
            golden_inputs=maps_of(generator.spec),
            source=Source("small", 0, "import", "0" * 64),
            keep_fp32=("up_3", "head_0"),
        ),
    )
    (graph,) = exported.manifest.graphs
    assert graph.kept_fp32[1:] == ("head_0", "up_1", "up_3")
    assert {name for name, dtype in types.items() if dtype is torch.float32} == {"head_0", "up_1", "up_3"}
    assert {name for name, dtype in types.items() if dtype is torch.float16} == set(types) - {"head_0", "up_1", "up_3"}


def test_release_hands_on_what_to_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    save_checkpoint(checkpoint_folder(new_run(runs, "small"), 0), small_generator(), step=0, origin="import")
    asked: list[Any] = []

    class HandedOnError(Exception):
        pass

    def export(_: Any, __: Path, request: ExportRequest, *___: Any) -> None:
        asked.append(request.keep_fp32)
        raise HandedOnError

    monkeypatch.setattr(release_module, "export_artifact", export)
    with pytest.raises(HandedOnError):
        export_checkpoint(ReleaseRequest(fp16=True, keep_fp32=("up_1", "fc")), runs_dir=runs)
    assert asked == [("fc", "up_1")]
    with pytest.raises(ConfigError, match="belongs to `fp16`"):
        export_checkpoint(ReleaseRequest(keep_fp32=("up_1",)), runs_dir=runs)
    with pytest.raises(ConfigError, match="is not a part with its own precision"):
        export_checkpoint(ReleaseRequest(fp16=True, keep_fp32=("up_9",)), runs_dir=runs)
    assert len(asked) == 1


def test_evidence_is_of_all_images() -> None:
    evidence = evidence_of(small_generator())

    def good(inputs: Arrays) -> Arrays:
        assert len(inputs[LABEL]) == 1
        index = next(k for k, ids in enumerate(evidence.inputs[LABEL]) if np.array_equal(ids, inputs[LABEL][0]))
        return {name: array[index : index + 1] for name, array in evidence.reference.items()}

    assert evidence.failures(good) == ()
    last = evidence.inputs[LABEL][-1:]

    def bad_at_the_end(inputs: Arrays) -> Arrays:
        found = good(inputs)
        return {**found, "image": -found["image"]} if np.array_equal(inputs[LABEL], last) else found

    assert any("PSNR" in failure for failure in evidence.failures(bad_at_the_end))
    lenient = replace(evidence, rounding=replace(evidence.rounding, logit_max=1e3, logit_mean=1e3))
    assert "rounding alone decides" in lenient.failures(good)[0]


def test_evidence_is_of_stress_maps_too() -> None:
    evidence = evidence_of(small_generator())
    first, second = ({name: array[k : k + 1] for name, array in evidence.inputs.items()} for k in (0, 1))
    answers = [{name: array[k : k + 1] for name, array in evidence.reference.items()} for k in (0, 1)]
    hard = replace(evidence, inputs=first, reference=answers[0], stress=((second, answers[1]),))

    def bad_under_stress(inputs: Arrays) -> Arrays:
        is_first = np.array_equal(inputs[LABEL], first[LABEL])
        return answers[0] if is_first else {**answers[1], "image": answers[1]["image"] + np.float32(0.05)}

    assert replace(hard, stress=()).failures(bad_under_stress) == ()
    (failure,) = hard.failures(bad_under_stress)
    assert failure.startswith("PSNR")
    assert failure.endswith("under 40.0 dB")
