"""What `auto` takes on a CPU: toy engines whose speed and errors are set, and one run of the real ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import IMAGE, LABEL, PIXELS, Arrays, Artifact
from spade_deploy.engines import open as opening
from spade_deploy.engines.lookup import AutoRuntime
from spade_deploy.engines.open import ENGINES, Engine
from spade_deploy.errors import ConfigError, RuntimeUnavailableError, ValidationFailedError
from spade_deploy.files.user_cache import VARIABLE
from spade_deploy.metrics.tolerances import FP32_FACTOR, FP32_FLOOR
from spade_deploy.progress import Silent
from spade_deploy.spec import GeneratorSpec, GraphChoice, GraphKind, Precision, PrecisionChoice
from spade_deploy.tuning import key, timing
from spade_deploy.tuning import measure as measuring
from spade_deploy.tuning.open import open_runtime
from spade_deploy.tuning.tune import tune
from spade_deploy.tuning.wish import Wish
from tests.support import toy_engine
from tests.support.stand_in import PLAIN, expected, golden_outputs, random_inputs, stand_in_artifact
from tests.support.toy_engine import ToyMachine

USUAL = Engine("usual", toy_engine.__name__, title="Usual", on_cpu=True, distributions=("numpy",))
OTHER = Engine("other", toy_engine.__name__, is_automatic=False, has_bf16=True, title="Other", on_cpu=True)
MANY = 10_000
"""So many images that measuring pays."""
FEW_MAP = {LABEL: np.ones((1, 64, 32), np.uint8)}


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyMachine:
    """Two toy engines. The usual one takes 1 s for an image, the other 0.5 s, and 0.2 s in bf16."""
    made = ToyMachine(seconds={("usual", "fp32"): 1.0, ("other", "fp32"): 0.5, ("other", "bf16"): 0.2})
    made.errors[("other", "bf16", "dense")] = made.errors[("other", "bf16", "lookup")] = 0.004
    monkeypatch.setattr(toy_engine, "MACHINE", made)
    monkeypatch.setattr(opening, "ENGINES", (USUAL, OTHER))
    for module in ("key", "wish"):
        monkeypatch.setattr(f"spade_deploy.tuning.{module}.ENGINES", (USUAL, OTHER))
    monkeypatch.setattr(timing, "now", made.now)
    for module in ("measure", "open"):
        monkeypatch.setattr(f"spade_deploy.tuning.{module}.now", made.now)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return made


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """Dense alone."""
    return stand_in_artifact(tmp_path / "artifact")


def with_graphs(artifact: Artifact, share: float | None = None, *, int8: bool = False) -> Artifact:
    """The artifact, as if it had a lookup graph with that break-even, and int8 graphs."""
    (dense,) = artifact.manifest.graphs
    graphs = [dense]
    if int8:
        graphs.append(replace(dense, precision=Precision.INT8, min_psnr_db=30.0))
    if share is not None:
        graphs += [replace(graph, kind=GraphKind.LOOKUP, break_even_share=share) for graph in graphs]
    return Artifact(artifact.path, replace(artifact.manifest, graphs=tuple(graphs)))


def taken(artifact: Artifact, worst: float = 0.01, **asked: Any) -> tuple[str, list[str]]:
    """What runs, as 'backend precision', and the lines that were told. The images are right, or nearly so."""
    notes = Notes()
    with open_runtime(artifact, progress=notes, **{"images": MANY, **asked}) as runtime:
        inputs = random_inputs(PLAIN)
        np.testing.assert_allclose(runtime.run(inputs)[IMAGE], expected(PLAIN, inputs)[IMAGE], atol=worst)
        (backend,) = {one[0] for one in toy_engine.MACHINE.is_open}
        precision = runtime.precision
    assert toy_engine.MACHINE.is_open == [], "closing the runtime closes everything"
    return f"{backend} {precision}", notes.lines


def cache_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "auto").glob("*.json"))


# --- The fastest whose images are right ------------------------------------------------------------------------------


@pytest.mark.usefixtures("machine")
def test_the_fastest_is_taken_and_told(artifact: Artifact, tmp_path: Path) -> None:
    what, lines = taken(artifact)
    assert what == "other fp32"
    (file,) = cache_files(tmp_path)
    assert lines[0].startswith("auto: measuring once what is fastest here, Usual and Other")
    assert lines[1] == f"auto: Other fp32, measured 2.0 x faster than Usual here (kept in {file})"


def test_the_next_time_nothing_is_measured(artifact: Artifact, machine: ToyMachine) -> None:
    taken(artifact)
    machine.opened.clear()
    machine.seconds["usual", "fp32"] = 0.001  # if it were measured again, this one would be taken
    what, lines = taken(artifact, images=1)
    assert what == "other fp32"
    assert machine.opened == [("other", "fp32", "dense")]
    assert lines[0].startswith("auto: Other fp32, measured 2.0 x faster than Usual here on 20")


def test_the_usual_engine_is_taken_where_it_is_the_fastest(artifact: Artifact, machine: ToyMachine) -> None:
    machine.seconds["other", "fp32"] = 1.3
    what, lines = taken(artifact)
    assert what == "usual fp32"
    assert "auto: Usual fp32, measured 1.3 x faster than Other here" in lines[1]


@pytest.mark.parametrize("kind", ["dense", "lookup"])
def test_the_fastest_is_refused_and_named_if_its_images_are_wrong(
    artifact: Artifact, machine: ToyMachine, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine.errors["other", "fp32", kind] = 0.01
    what, lines = taken(with_graphs(artifact, 0.5 if kind == "lookup" else None))
    assert what == "usual fp32"
    assert (
        f"auto leaves Other fp32 out: the images of Other fp32 {kind} are wrong on this machine: max abs" in caplog.text
    )
    assert "the only one that can be used here" in lines[1]
    caplog.clear()
    machine.opened.clear()
    assert taken(artifact if kind == "dense" else with_graphs(artifact, 0.5))[0] == "usual fp32"
    assert {one[0] for one in machine.opened} == {"usual"}, "it is not tried again"


def test_nothing_right_is_an_error(artifact: Artifact, machine: ToyMachine) -> None:
    machine.errors["other", "fp32", "dense"] = machine.errors["usual", "fp32", "dense"] = 0.5
    with pytest.raises(ValidationFailedError, match="usual fp32: dense graph: max absolute error") as caught:
        open_runtime(artifact)
    assert "`backend` cpu runs it anyway" in (caught.value.hint or "")
    assert machine.is_open == []


def test_an_engine_that_does_not_open_is_named(
    artifact: Artifact, machine: ToyMachine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.broken.add(("other", "fp32"))
    assert taken(artifact)[0] == "usual fp32"
    assert "auto leaves Other fp32 out: other is broken" in caplog.text


def test_one_engine_alone_is_opened_as_it_is(artifact: Artifact, machine: ToyMachine, tmp_path: Path) -> None:
    machine.missing |= {("other", "fp32"), ("other", "bf16")}
    assert taken(artifact) == ("usual fp32", [])
    assert cache_files(tmp_path) == []


def test_an_engine_that_is_named_runs_without_a_measurement(artifact: Artifact, machine: ToyMachine) -> None:
    assert taken(artifact, backend="usual") == ("usual fp32", [])
    assert machine.opened == [("usual", "fp32", "dense")]


# --- Lower precisions ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("machine")
def test_a_faster_lower_precision_is_only_mentioned(artifact: Artifact) -> None:
    what, lines = taken(artifact)
    assert what == "other fp32"
    assert lines[2] == "`precision` bf16 (Other) would be 2.5 x faster here, at 54.0 dB against the reference"
    assert taken(artifact)[1][1] == lines[2], "the next time, too"
    assert len(taken(artifact, precision=Precision.FP32)[1]) == 1, "not to somebody who asked for fp32"


def test_bf16_is_not_mentioned_if_it_is_wrong_or_no_faster(artifact: Artifact, machine: ToyMachine) -> None:
    machine.errors["other", "bf16", "dense"] = 0.4
    assert len(taken(artifact)[1]) == 2
    machine.errors["other", "bf16", "dense"] = 0.004
    machine.seconds["other", "bf16"] = 0.49
    tune(artifact)
    assert len(taken(artifact)[1]) == 1


def test_bf16_that_was_asked_for_is_checked_before_it_runs(artifact: Artifact, machine: ToyMachine) -> None:
    what, lines = taken(artifact, precision="bf16", images=1)
    assert what == "other bf16"
    assert "the only engine for it here; its golden images are right on this machine (54.0 dB)" in lines[0]
    for backend in ("auto", "other"):
        other = stand_in_artifact(artifact.path.with_name(backend), PLAIN, (Precision.FP32,))
        other = Artifact(other.path, replace(other.manifest, created_unix_ns=1 + len(backend)))
        machine.errors["other", "bf16", "dense"] = 0.4
        with pytest.raises(ValidationFailedError, match=r"other bf16: dense graph: .*PSNR"):
            open_runtime(other, "bf16", backend)


def test_fastest_takes_the_fastest_that_is_good_enough(artifact: Artifact, machine: ToyMachine) -> None:
    artifact = with_graphs(artifact, int8=True)
    machine.seconds |= {("other", "int8"): 0.1, ("usual", "int8"): 2.0}
    machine.errors |= {("other", "int8", "dense"): 0.03, ("usual", "int8", "dense"): 0.03}  # 36.5 dB
    what, lines = taken(artifact, precision="fastest", images=1)
    assert what == "other bf16", "45 dB are asked for if nothing is said"
    assert lines[-1].startswith(
        "auto: Other bf16, at 54.0 dB against the reference, measured 5.0 x faster than Usual fp32"
    )
    machine.opened.clear()
    for least, best in ((35.0, "other int8"), (50.0, "other bf16"), (60.0, "other fp32")):
        assert taken(artifact, 0.031, precision="fastest", min_psnr_db=least)[0] == best
    assert taken(artifact, precision="fastest", min_psnr_db=35.0, backend="usual")[0] == "usual fp32"
    assert taken(artifact)[0] == "other fp32", "what the fastest is changes nothing for others"
    assert len(machine.opened) == 5, "all from one measurement"


def test_fastest_refuses_what_no_precision_reaches(artifact: Artifact, machine: ToyMachine) -> None:
    machine.errors[("other", "fp32", "dense")] = machine.errors[("usual", "fp32", "dense")] = 5e-7
    with pytest.raises(
        ConfigError, match=r"`min_psnr_db` 200: no precision reaches it here; the best is fp32 with 13\d"
    ):
        open_runtime(artifact, "fastest", min_psnr_db=200)
    machine.missing |= {("other", "fp32"), ("other", "bf16")}
    with pytest.raises(ConfigError, match="`min_psnr_db` 200"):
        open_runtime(artifact, "fastest", min_psnr_db=200)


@pytest.mark.usefixtures("machine")
def test_impossible_requests(artifact: Artifact) -> None:
    for precision in (None, "fp32", Precision.BF16):
        with pytest.raises(ConfigError, match="`min_psnr_db` says which precisions `precision` fastest may take"):
            open_runtime(artifact, precision, min_psnr_db=45)
    for least in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="is not a positive number of decibels"):
            open_runtime(artifact, "fastest", min_psnr_db=least)
    with pytest.raises(ConfigError, match="`precision`: 'quick' is not one of fp32, bf16, fp16, int8, fastest"):
        open_runtime(artifact, "quick")
    with pytest.raises(ConfigError, match="`backend` usual has no bf16 arithmetic"):
        open_runtime(artifact, "bf16", "usual")


def test_a_gpu_goes_before_as_ever_and_fastest_says_that_it_is_for_cpus(
    artifact: Artifact, machine: ToyMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Engine("gpu", toy_engine.__name__, note_on_failure="the GPU does not run here")
    monkeypatch.setattr(opening, "ENGINES", (gpu, USUAL, OTHER))
    assert taken(artifact) == ("gpu fp32", [])
    with pytest.raises(ConfigError, match="fastest is measured only on a CPU, and Toy, fp32 dense would run here"):
        open_runtime(artifact, "fastest")
    assert machine.is_open == []
    with pytest.raises(ConfigError, match="`backend` gpu runs elsewhere"):
        open_runtime(artifact, "fastest", "gpu")
    machine.broken.add(("gpu", "fp32"))
    with open_runtime(artifact) as runtime:
        assert runtime.name == "Toy, fp32 dense (the GPU does not run here: gpu is broken)"
        assert machine.is_open == [("other", "fp32", "dense")]


# --- Whether measuring pays ------------------------------------------------------------------------------------------


def test_a_few_images_are_not_worth_a_measurement(artifact: Artifact, machine: ToyMachine, tmp_path: Path) -> None:
    what, lines = taken(artifact, images=3)
    assert what == "usual fp32"
    assert lines == [
        "auto: Usual fp32, not measured: for 3 images that takes longer than it saves; `spade bench --tune` measures it"
    ]
    assert machine.opened == [("usual", "fp32", "dense")]
    assert cache_files(tmp_path) == []


def test_with_more_images_the_usual_engine_is_timed_to_find_out(artifact: Artifact, machine: ToyMachine) -> None:
    """Two golden images and three rounds of three candidates are 15 images, and a third of 50 images is more."""
    asked: Callable[[int], str] = lambda images: taken(artifact, images=images)[0]  # noqa: E731
    assert asked(44) == "usual fp32"
    assert asked(50) == "other fp32"
    assert ("usual", "fp32", "dense") in machine.opened


def test_opening_that_takes_long_counts(
    artifact: Artifact, machine: ToyMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(toy_engine.ToyRuntime):
        def __init__(self, *what: Any) -> None:
            super().__init__(*what)
            machine.clock_s += 100

    monkeypatch.setattr(toy_engine, "ToyRuntime", Slow)
    what, lines = taken(artifact, images=500)
    assert what == "usual fp32"
    assert "for 500 images that takes longer than it saves" in lines[0]
    assert machine.opened == [("usual", "fp32", "dense")], "what was opened to find out is what runs"
    assert taken(artifact, images=2000)[0] == "other fp32"


def test_without_a_measurement_an_engine_that_was_checked_is_taken(artifact: Artifact, machine: ToyMachine) -> None:
    machine.missing.add(("usual", "fp32"))
    assert taken(artifact, images=1)[0] == "other fp32"
    machine.missing.clear()
    what, lines = taken(artifact, images=1)
    assert what == "other fp32"
    assert lines[0].startswith("auto: Other fp32, whose golden images are right here, not measured: for 1 image that")


@pytest.mark.usefixtures("machine")
def test_no_images_measure_nothing(artifact: Artifact) -> None:
    assert taken(artifact, images=0)[1] == [
        "auto: Usual fp32, not measured yet: `spade bench --tune` measures what is fastest"
    ]


def test_hints_are_left_out_where_opening_takes_long(
    artifact: Artifact, machine: ToyMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.seconds |= {("usual", "fp32"): 3.0, ("other", "fp32"): 2.0}  # two golden images and two more: 8 s and over
    what, lines = taken(artifact)
    assert what == "other fp32"
    assert len(lines) == 2
    assert not any(one[1] == "bf16" for one in machine.opened)


# --- Dense or lookup -------------------------------------------------------------------------------------------------


def test_each_map_runs_on_the_faster_graph_by_the_manifests_rule(artifact: Artifact, machine: ToyMachine) -> None:
    artifact = with_graphs(artifact, 0.5)
    notes = Notes()
    with open_runtime(artifact, images=MANY, progress=notes) as runtime:
        assert isinstance(runtime, AutoRuntime)
        assert runtime.name.endswith("(dense above 50% unique patterns)")
        assert machine.is_open == [("other", "fp32", "lookup")]
        for inputs, kind in ((FEW_MAP, GraphKind.LOOKUP), (random_inputs(PLAIN), GraphKind.DENSE)):
            np.testing.assert_array_equal(runtime.run(inputs)[PIXELS], expected(PLAIN, inputs)[PIXELS])
            assert runtime.kind is kind
        assert machine.is_open == [("other", "fp32", "lookup"), ("other", "fp32", "dense")]
    assert machine.is_open == []
    assert "auto: Other fp32 lookup, measured" in notes.lines[1]


def test_a_wrong_dense_graph_beside_a_right_lookup_graph_is_never_used(
    artifact: Artifact, machine: ToyMachine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.errors["other", "fp32", "dense"] = 0.5
    artifact = plain_golden(with_graphs(artifact, 0.5))
    with open_runtime(artifact, images=MANY) as runtime:
        assert machine.is_open == [("other", "fp32", "lookup")]
        inputs = random_inputs(PLAIN)
        np.testing.assert_array_equal(runtime.run(inputs)[PIXELS], expected(PLAIN, inputs)[PIXELS])
    assert "Other fp32 dense are wrong on this machine" in caplog.text
    assert "every map runs on the lookup graph" in caplog.text


def plain_golden(artifact: Artifact) -> Artifact:
    """The artifact with golden maps of one class, which have few patterns."""
    inputs = {LABEL: np.stack([np.full((64, 32), 1, np.uint8), np.full((64, 32), 2, np.uint8)])}
    golden = artifact.golden()
    made = replace(golden, inputs=inputs, outputs=golden_outputs(PLAIN, inputs))

    class Plain(Artifact):
        def golden(self) -> Any:
            return made

    return Plain(artifact.path, artifact.manifest)


@pytest.mark.usefixtures("machine")
def test_each_golden_map_is_judged(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_for_class_2(spec: GeneratorSpec, inputs: Arrays) -> Arrays:
        found = expected(spec, inputs)
        return {**found, IMAGE: found[IMAGE] + np.float32(0.5 * (2 in inputs[LABEL]))}

    monkeypatch.setattr(toy_engine, "expected", wrong_for_class_2)
    with pytest.raises(ValidationFailedError, match=r"no engine that may run .* makes right images"):
        open_runtime(plain_golden(artifact), images=MANY)


def test_the_map_that_is_timed_is_the_golden_one_in_the_middle_by_its_patterns(artifact: Artifact) -> None:
    wish = Wish(artifact, None, None, "auto", 1, GraphChoice.AUTO, None)
    flat, noise = FEW_MAP[LABEL], random_inputs(PLAIN, 1)[LABEL]
    half = np.concatenate([flat[:, :32], noise[:, 32:]], axis=1)
    for maps in ((noise, flat, half), (half, noise, flat), (noise, noise, half, flat)):
        assert np.array_equal(measuring._usual_map(wish, {LABEL: np.concatenate(maps)})[LABEL], half)


def test_a_machine_that_is_slower_while_a_rule_is_measured_changes_no_time(
    artifact: Artifact, machine: ToyMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = plain_golden(with_graphs(artifact, 0.1))
    steady = [time.ms for time in tune(artifact).session.times]
    real = measuring._with_rule

    def slower(*asked: Any) -> Any:
        for name in machine.seconds:
            machine.seconds[name] *= 3
        return real(*asked)

    monkeypatch.setattr(measuring, "_with_rule", slower)
    assert [time.ms for time in tune(artifact).session.times] == pytest.approx(steady)


def test_small_models_get_a_rule_of_each_engine(artifact: Artifact, machine: ToyMachine) -> None:
    """A toy's lookup graph takes 0.5 + share of what its dense graph takes: 95 % of that at a share of 0.45."""
    for name in machine.seconds:
        machine.seconds[name] *= 0.01
    artifact = plain_golden(with_graphs(artifact, 0.1))
    with open_runtime(artifact, images=None) as runtime:
        assert runtime.name.endswith("(dense above 45% unique patterns)")


def test_tuning_measures_all_and_says_what_is_taken(artifact: Artifact, machine: ToyMachine, tmp_path: Path) -> None:
    artifact = plain_golden(with_graphs(artifact, 0.1))
    found = tune(artifact)
    (file,) = cache_files(tmp_path)
    assert found.line == f"auto: Other fp32 lookup, measured 2.0 x faster than Usual here (kept in {file})"
    assert found.hint == "`precision` bf16 (Other) would be 2.5 x faster here, at 54.0 dB against the reference"
    assert [found.name(time.candidate) for time in found.session.times] == ["Usual fp32", "Other fp32", "Other bf16"]
    assert [time.break_even_share for time in found.session.times] == [pytest.approx(0.45)] * 3
    assert machine.is_open == []
    machine.opened.clear()
    with open_runtime(artifact, images=1) as runtime:
        assert runtime.name.endswith("(dense above 45% unique patterns)")
    assert machine.opened == [("other", "fp32", "lookup")]


def test_no_two_candidates_have_both_graphs_open(artifact: Artifact, machine: ToyMachine) -> None:
    most = 0
    real = machine.now

    def watch() -> float:
        nonlocal most
        most = max(most, len(machine.is_open))
        return real()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "now", watch)
        tune(plain_golden(with_graphs(artifact, 0.5)))
    assert most == 4, "three lookup graphs, and one dense one"


@pytest.mark.parametrize("graph", ["dense", "lookup"])
def test_a_graph_that_is_named_is_measured_for_itself(artifact: Artifact, machine: ToyMachine, graph: str) -> None:
    artifact = with_graphs(artifact, 0.5)
    what, lines = taken(artifact, graph=graph)
    assert what == "other fp32"
    assert {one[2] for one in machine.opened} == {graph}
    assert ("Other fp32 lookup" in lines[1]) == (graph == "lookup")


# --- The real engines ------------------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pytest.importorskip("openvino")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    yield
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("precision", [None, "fastest"])
def test_whatever_is_chosen_the_images_are_right(
    tmp_path_factory: pytest.TempPathFactory, precision: str | None
) -> None:
    from tests.support.bench_model import small_artifact

    artifact = small_artifact(tmp_path_factory)
    golden, notes = artifact.golden(), Notes()
    with open_runtime(artifact, precision, "auto", 1, progress=notes) as runtime:
        if "CUDA" in runtime.name:
            pytest.skip("CUDA loads on this machine")
        found = runtime.run(golden.inputs)
    error = np.abs(found[IMAGE].astype(np.float64) - golden.outputs[IMAGE])
    if runtime.precision is Precision.FP32:
        assert error.max() <= FP32_FACTOR * artifact.manifest.rounding.max_abs + FP32_FLOOR, runtime.name
    else:
        assert precision == "fastest"
        assert 20 * np.log10(2 / np.sqrt((error**2).mean())) >= 45, runtime.name
    assert any(line.startswith(("auto: ONNX Runtime ", "auto: OpenVINO ")) for line in notes.lines), notes.lines


def test_every_precision_can_be_asked_for() -> None:
    assert {str(choice) for choice in PrecisionChoice} == {*map(str, Precision), "fastest"}


def test_engines_on_the_cpu_are_named_for_people_and_have_versions() -> None:
    on_cpu = [engine for engine in ENGINES if engine.on_cpu]
    assert [engine.title for engine in on_cpu] == ["ONNX Runtime", "OpenVINO"]
    assert all(engine.distributions for engine in on_cpu)
    assert "onnxruntime" in key.installed(on_cpu[0].distributions)


def test_a_library_that_reads_a_log_finds_the_line(artifact: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "spade_deploy"), open_runtime(artifact, images=1):
        pass
    assert "auto: " in caplog.text or len([engine for engine in ENGINES if engine.on_cpu]) == 1


def test_errors_of_the_engines_reach_the_caller(artifact: Artifact, machine: ToyMachine) -> None:
    machine.broken.add(("usual", "fp32"))
    machine.missing |= {("other", "fp32"), ("other", "bf16")}
    with pytest.raises(RuntimeUnavailableError, match="usual is broken"):
        open_runtime(artifact)
