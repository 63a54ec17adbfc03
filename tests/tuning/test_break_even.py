"""The rule by which a map goes to the lookup graph: its arithmetic, and that a real artifact's is measured and kept."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import Artifact, Graph
from spade_deploy.engines.base import Backend, GraphChoice
from spade_deploy.engines.lookup import AutoRuntime
from spade_deploy.engines.open import open_runtime
from spade_deploy.lookup.tables import unique_share
from spade_deploy.release import release as releasing
from spade_deploy.release.release import export_checkpoint
from spade_deploy.release.request import ReleaseRequest
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.spec import GraphKind, LabelSpec, Precision
from spade_deploy.tuning import break_even as measuring
from spade_deploy.tuning import timing
from spade_deploy.tuning.break_even import MARGIN, BreakEven, measure_break_even
from tests.support.bench_model import small_artifact
from tests.support.generators import build_generator
from tests.support.stand_in import stand_in_artifact

LARGE = BreakEven(0.1, 1.0, few_ms=300, many_ms=1200, dense_ms=1000, look_ms=1, usual_shares=(0.1, 0.2))


def test_the_lines_cross_where_a_map_costs_as_much_as_dense() -> None:
    # 300 ms at 0.1 and 1000 ms more for each whole share: 950 ms are reached at 0.75.
    assert pytest.approx(0.75) == LARGE.crossing
    assert pytest.approx(0.75) == LARGE.share
    assert LARGE.few_ms + (LARGE.share - 0.1) * 1000 == pytest.approx(MARGIN * LARGE.dense_ms)


def test_a_lookup_graph_that_never_wins_is_never_taken() -> None:
    assert replace(LARGE, few_ms=1000, many_ms=2000).share == 0


def test_one_that_always_wins_is_always_taken() -> None:
    assert replace(LARGE, many_ms=500).share == 1
    assert replace(LARGE, many_ms=300).share == 1  # flat: no share makes it slower


def test_a_model_of_one_class_has_one_pattern_and_one_answer() -> None:
    """Two maps of few and of many patterns are the same map, and there is no line through one point."""
    same = BreakEven(0.01, 0.01, few_ms=300, many_ms=310, dense_ms=1000, look_ms=1, usual_shares=(0.01, 0.01))
    assert same.share == 1
    assert replace(same, few_ms=1000).share == 0
    assert replace(same, usual_shares=()).share == 1


@pytest.mark.parametrize(
    "labels",
    [
        LabelSpec(1),
        *(
            pytest.param(labels, marks=pytest.mark.slow)
            for labels in (LabelSpec(1, True), LabelSpec(1, has_edges=True))
        ),
    ],
)
def test_a_model_of_one_class_is_exported(tmp_path: Path, labels: LabelSpec) -> None:
    run = new_run(tmp_path / "runs", "one")
    generator = build_generator(labels=labels, base_channels=2, hidden_channels=4)
    save_checkpoint(checkpoint_folder(run, 0), generator, step=0, origin="import")
    made = export_checkpoint(ReleaseRequest(), runs_dir=tmp_path / "runs")
    assert made.report.passed
    share = made.artifact.graph(kind=GraphKind.LOOKUP).break_even_share
    assert share is not None
    assert 0 <= share <= 1


def test_a_rule_that_wins_nothing_on_the_models_own_maps_is_not_taken_up() -> None:
    """A small model of detailed maps: two of three end up dense, and looking at them costs more than the third wins."""
    small = BreakEven(0.4, 1.0, few_ms=20, many_ms=44, dense_ms=22, look_ms=0.8, usual_shares=(0.4, 0.6, 0.8))
    assert small.crossing > 0.4
    assert small.expected_ms == pytest.approx((20 + 22.8 + 22.8) / 3)
    assert small.share == 0
    # The same model on plain maps: the rule is worth it.
    assert replace(small, usual_shares=(0.1, 0.2, 0.4)).share == small.crossing


@pytest.mark.parametrize(
    ("seconds", "do_agree", "rounds"),
    [
        (1.0, [True], 2),  # slow, and the first two rounds agree
        (1.0, [False, False], 3),  # slow, and they never do: the fewest rounds
        (0.01, [True], 41),  # fast: as many rounds as are allowed
        (0.05, [True], 30),  # between: the time that is meant for it, though all rounds agree
    ],
)
def test_slow_rounds_end_where_they_agree(
    seconds: float, do_agree: list[bool], rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked = [0.0], []

    def job() -> None:
        clock[0] += seconds

    def agree(found: Any) -> bool:
        asked.append(len(found))
        return do_agree[len(asked) - 1]

    monkeypatch.setattr(timing, "now", lambda: clock[0])
    assert timing.medians_ms([job], measuring.PACE, agree) == [pytest.approx(1e3 * seconds)]
    assert clock[0] == pytest.approx(rounds * seconds)
    assert len(asked) <= len(do_agree)


@pytest.mark.parametrize(
    ("jobs", "orders"),
    [
        (1, ["a", "a"]),
        (2, ["ab", "ba", "ab", "ba"]),
        (3, ["abc", "bac", "cab", "acb", "bca", "cba"]),
        (4, ["abcd", "badc", "cdab", "dcba"]),
    ],
)
def test_each_round_has_another_order_in_which_each_job_has_each_place(jobs: int, orders: list[str]) -> None:
    ran: list[str] = []
    letters = "abcd"[:jobs]
    timing.medians_ms([partial(ran.append, one) for one in letters], timing.Pace(len(orders), len(orders), 0.0))
    assert ["".join(ran[first : first + jobs]) for first in range(0, len(ran), jobs)] == orders
    for places in zip(*orders, strict=True):
        assert {places.count(one) for one in letters} == {len(orders) // jobs}


def test_rounds_agree_by_their_break_even() -> None:
    maps = measuring.TimedMaps({}, {}, 0.1, 1.0, (0.1, 0.2))
    steady = [300.0, 1200.0, 1000.0, 1.0]  # 0.75
    assert measuring._agree(maps, [steady, [310.0, 1205.0, 1010.0, 1.0]])
    assert measuring._agree(maps, [steady, [2 * one for one in steady]])  # a slower machine in one round
    assert measuring._agree(maps, [steady, [300.0, 1200.0, 1100.0, 1.0]])  # 0.845
    assert not measuring._agree(maps, [steady, [300.0, 1200.0, 1300.0, 1.0]])  # 1
    assert not measuring._agree(maps, [steady, steady, [300.0, 1200.0, 700.0, 1.0]])  # 0.465
    between = replace(maps, usual_shares=(0.1, 0.8))  # the second round gives a golden map to the other graph
    assert not measuring._agree(between, [steady, [300.0, 1200.0, 1100.0, 1.0]])


def test_a_noisy_map_is_noise_in_its_upper_rows_alone() -> None:
    spec = build_generator(base_channels=2, hidden_channels=4, training_steps=0).spec
    plain = {"label": np.full((1, 64, 64), 3, np.uint8), "instance": np.full((1, 64, 64), 7, np.int32)}
    half, whole = (measuring.noisy(spec, plain, rows) for rows in (0.5, 1.0))
    for name, ids in (("label", spec.labels.num_ids), ("instance", 2)):
        assert np.array_equal(half[name][:, 32:], plain[name][:, 32:])
        assert set(np.unique(half[name][:, :32])) == set(range(ids)) == set(np.unique(whole[name]))
        assert half[name].dtype == plain[name].dtype
        assert len(np.unique(plain[name])) == 1
    few, some, many = (unique_share(spec, one) for one in (plain, half, whole))
    assert few < 0.1
    assert few + 0.2 < some < many - 0.2
    assert many > 0.95


def test_golden_maps_of_noise_are_timed_beside_a_plain_one() -> None:
    spec = build_generator(base_channels=2, hidden_channels=4, training_steps=0).spec
    plain = {"label": np.full((2, 64, 64), 3, np.uint8), "instance": np.full((2, 64, 64), 7, np.int32)}
    maps = measuring.TimedMaps.of(spec, measuring.noisy(spec, plain))
    assert not maps.is_golden
    assert {name: set(np.unique(array)) for name, array in maps.few.items()} == {"label": {0}, "instance": {0}}
    assert maps.few_share < 0.1 < maps.many_share - 0.2
    assert min(maps.usual_shares) > 0.95
    maps = measuring.TimedMaps.of(spec, plain)
    assert maps.is_golden
    assert all(np.array_equal(array, plain[name][1:]) for name, array in maps.few.items())


def test_a_real_artifacts_rule_is_measured_and_followed(tmp_path_factory: pytest.TempPathFactory) -> None:
    artifact = small_artifact(tmp_path_factory)
    found = measure_break_even(artifact, Precision.FP32, threads=1)
    assert 0 <= found.few_share < found.many_share <= 1
    assert min(found.few_ms, found.many_ms, found.dense_ms, found.look_ms) > 0
    assert len(found.usual_shares) == len(artifact.golden().inputs["label"])
    for share, kind in ((0.0, GraphKind.DENSE), (1.0, GraphKind.LOOKUP)):
        graphs = tuple(
            replace(graph, break_even_share=share) if graph.kind is GraphKind.LOOKUP else graph
            for graph in artifact.manifest.graphs
        )
        ruled = Artifact(artifact.path, replace(artifact.manifest, graphs=graphs))
        with open_runtime(ruled, Precision.FP32, "cpu") as runtime:
            assert isinstance(runtime, AutoRuntime) == (share > 0)
            runtime.run({name: array[:1] for name, array in artifact.golden().inputs.items()})
            assert runtime.kind is kind


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_both_graphs_are_run_in_the_precision_that_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """A half-precision graph has another break-even than a float32 one: on a CPU it is far slower."""
    opened: list[tuple[Any, ...]] = []
    ran: dict[GraphChoice, list[int]] = {GraphChoice.DENSE: [], GraphChoice.LOOKUP: []}

    @contextmanager
    def remember(artifact: Artifact, *asked: Any) -> Any:
        opened.append(asked)
        run = lambda inputs: ran[asked[3]].append(len(set(inputs["label"].flat)))  # noqa: E731
        yield SimpleNamespace(run=run, spec=artifact.manifest.generator)

    monkeypatch.setattr(measuring, "open_runtime", remember)
    measure_break_even(stand_in_artifact(tmp_path / "artifact"), precision, threads=3)
    assert opened == [(precision, Backend.CPU, 3, choice) for choice in (GraphChoice.DENSE, GraphChoice.LOOKUP)]
    assert len(set(ran[GraphChoice.LOOKUP])) == 2, "a plain map and a noisy one"
    assert len(set(ran[GraphChoice.DENSE])) == 1


@pytest.mark.parametrize(
    ("dense_s", "is_golden", "is_taken"), [(4.0, True, True), (0.9, True, False), (4.0, False, False)]
)
def test_times_of_the_validation_are_the_first_round(
    dense_s: float, is_golden: bool, is_taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(timing, "now", lambda: clock[0])
    ran: list[str] = []
    few, many = {"label": np.zeros((1, 64, 64), np.uint8)}, {"label": np.ones((1, 64, 64), np.uint8)}

    def runtime(name: str, seconds: float) -> Any:
        def run(inputs: Any) -> None:
            ran.append(name + ("" if inputs is few else " many"))
            clock[0] += seconds

        return SimpleNamespace(run=run, spec=build_generator(base_channels=2, training_steps=0).spec)

    maps = measuring.TimedMaps(few, many, 0.1, 0.6, (0.1,), is_golden)
    monkeypatch.setattr(measuring.TimedMaps, "look", lambda *_: lambda: None)
    dense, lookup = runtime("dense", 5.0), runtime("lookup", 2.0)
    found = measuring.time_break_even(maps, dense, lookup, lookup_s=1.0, dense_s=dense_s)
    assert ran.count("dense") == ran.count("lookup") == (1 if is_taken else 2)
    assert ran.count("lookup many") == 2  # both rounds agree, and are late
    assert (found.few_ms, found.dense_ms) == ((1500.0, 4500.0) if is_taken else (2000.0, 5000.0))
    assert found.many_ms == 2000


def test_each_lookup_graph_gets_the_rule_of_its_own_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = stand_in_artifact(tmp_path / "artifact").manifest
    kinds = (GraphKind.DENSE, GraphKind.LOOKUP)
    precisions = (Precision.FP32, Precision.FP16)
    graphs = tuple(
        Graph(f"{precision}.{kind}.onnx", precision, (), 18, kind) for precision in precisions for kind in kinds
    )
    rules = {Precision.FP32: LARGE, Precision.FP16: replace(LARGE, dense_ms=700)}
    results = [
        SimpleNamespace(graph=graph, break_even=rules[graph.precision] if graph.kind is GraphKind.LOOKUP else None)
        for graph in graphs
    ]
    report: Any = SimpleNamespace(results=results)
    made, measured = releasing._with_break_even(replace(manifest, graphs=graphs), report)
    shares = {graph.name: graph.break_even_share for graph in made.graphs if graph.kind is GraphKind.LOOKUP}
    assert shares == {"fp32 lookup": rules[Precision.FP32].share, "fp16 lookup": rules[Precision.FP16].share}
    assert shares["fp32 lookup"] != shares["fp16 lookup"]
    assert {name: entry["share"] for name, entry in measured.items()} == shares
    assert all(graph.break_even_share is None for graph in made.graphs if graph.kind is GraphKind.DENSE)
