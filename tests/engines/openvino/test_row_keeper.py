"""Images from kept rows: they are the whole graph's, bit by bit, whichever maps came before."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, PIXELS, Arrays, Artifact, Source, Z
from spade_deploy.engines.base import KeepsRows
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.openvino import row_keeper
from spade_deploy.engines.openvino.cut import Part, part_of
from spade_deploy.engines.openvino.library import load_openvino
from spade_deploy.engines.openvino.models import SizedModels
from spade_deploy.engines.openvino.row_keeper import RowKeeper
from spade_deploy.engines.openvino.runtime import OpenVinoRuntime
from spade_deploy.errors import RuntimeUnavailableError
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.lookup import kept_rows
from spade_deploy.spec import GeneratorSpec, GraphKind, LabelSpec, Precision
from tests.support.generators import build_generator

MUCH = 1 << 30
SPADE = GeneratorSpec(
    LabelSpec(7, has_dontcare=True, has_edges=True), base_channels=4, hidden_channels=8, height=64, width=64
)
STYLED = replace(SPADE, labels=LabelSpec(7), z_dim=8, height=32, width=32)


def export(folder: Path, spec: GeneratorSpec) -> Artifact:
    fields = {name: getattr(spec, name) for name in ("labels", "base_channels", "hidden_channels", "height", "width")}
    generator = build_generator(z_dim=spec.z_dim, **fields)
    export_artifact(generator, folder, ExportRequest(drawing(spec, 0), Source("small", 0, "import", "0" * 64)))
    return Artifact.open(folder)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(tmp_path_factory.mktemp("edges"), SPADE)


@pytest.fixture(scope="module")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(tmp_path_factory.mktemp("styled"), STYLED)


@pytest.fixture
def whole(artifact: Artifact) -> Iterator[OpenVinoRuntime]:
    with OpenVinoRuntime(artifact, Precision.FP32, 1, GraphKind.LOOKUP) as runtime:
        yield runtime


def keeper_of(whole: OpenVinoRuntime, most_bytes: int = MUCH) -> RowKeeper:
    found = whole.keeping_rows(most_bytes)
    assert isinstance(found, RowKeeper)
    return found


def drawing(spec: GeneratorSpec, seed: int, size: tuple[int, int] | None = None) -> Arrays:
    """A few rectangles, each an object of its own."""
    rng, (height, width) = np.random.default_rng(seed), size or (spec.height, spec.width)
    found: Arrays = {LABEL: np.zeros((1, height, width), np.uint8)}
    if spec.labels.has_edges:
        found[INSTANCE] = np.zeros((1, height, width), np.int32)
    if spec.z_dim is not None:
        found[Z] = rng.standard_normal((1, spec.z_dim), np.float32)
    for number in range(4):
        found = painted(found, rng, number + 1, spec.labels.num_ids - 1, 30)  # the last id comes with an edit
    return found


def painted(maps: Arrays, rng: np.random.Generator, instance: int, ids: int, side: int) -> Arrays:
    """The maps with one more square."""
    found = {name: array.copy() for name, array in maps.items()}
    y, x = (int(rng.integers(0, length - 4)) for length in maps[LABEL].shape[1:])
    found[LABEL][0, y : y + side, x : x + side] = rng.integers(0, ids)
    if INSTANCE in found:
        found[INSTANCE][0, y : y + side, x : x + side] = instance
    return found


def assert_same(found: Arrays, right: Arrays) -> None:
    for name in (PIXELS, IMAGE):
        assert found[name].dtype == right[name].dtype
        np.testing.assert_array_equal(found[name], right[name])


def count_made(keeper: RowKeeper, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many patterns of the finest level the label side makes rows for, run after run."""
    asked: list[int] = []
    real = row_keeper._Sides._make

    def counted(self: Any, tables: Arrays) -> Arrays:
        asked.append(len(tables["patterns_1"]))
        return real(self, tables)

    monkeypatch.setattr(row_keeper._Sides, "_make", counted)
    return asked


def test_a_sequence_of_edits_makes_the_images_of_the_whole_graph(
    whole: OpenVinoRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, rng = keeper_of(whole), np.random.default_rng(0)
    asked = count_made(keeper, monkeypatch)
    maps, past = drawing(SPADE, 0), []
    for number in range(12):
        assert_same(keeper.run(maps), whole.run(maps))
        past.append(maps)
        maps = painted(maps, rng, 10 + number, SPADE.labels.num_ids, 6)
        if number % 4 == 1:  # other drawings in between, of this size, of another one, and a batch
            for other in (drawing(SPADE, number), drawing(SPADE, 3, (96, 32))):
                assert_same(keeper.run(other), whole.run(other))
            batch = {name: np.concatenate([array, past[0][name]]) for name, array in maps.items()}
            assert_same(keeper.run(batch), whole.run(batch))
    assert keeper.patterns_s is not None
    assert keeper.num_bytes > 0
    count = len(asked)
    for undone in reversed(past):
        assert_same(keeper.run(undone), whole.run(undone))
    assert len(asked) == count, "what was there before is not made again"
    one = painted(past[-1], rng, 99, SPADE.labels.num_ids, 3)
    assert_same(keeper.run(one), whole.run(one))
    assert 0 < asked[-1] < asked[0] / 2


def test_the_style_is_of_each_run(styled: Artifact) -> None:
    with OpenVinoRuntime(styled, Precision.FP32, 1, GraphKind.LOOKUP) as whole:
        keeper, maps = keeper_of(whole), drawing(STYLED, 0)
        other = {**maps, Z: -maps[Z]}
        first, second = keeper.run(maps), keeper.run(other)
        assert_same(first, whole.run(maps))
        assert_same(second, whole.run(other))
        assert np.abs(first[IMAGE] - second[IMAGE]).max() > 0.01


def test_little_memory_changes_no_image(whole: OpenVinoRuntime, artifact: Artifact) -> None:
    first = drawing(SPADE, 0)
    keeper = keeper_of(whole)
    keeper.run(first)
    limit = 2 * keeper.num_bytes
    with OpenVinoRuntime(artifact, Precision.FP32, 1, GraphKind.LOOKUP) as other:
        small, rng = keeper_of(other, limit), np.random.default_rng(0)
        for number in range(10):
            maps = drawing(SPADE, number)
            assert_same(small.run(maps), whole.run(maps))
            assert small.num_bytes <= limit
        noise = {**first, LABEL: rng.integers(0, 7, first[LABEL].shape).astype(np.uint8)}
        kept = small.num_bytes
        assert_same(small.run(noise), whole.run(noise))
        assert small.num_bytes == kept, "a map with more rows than may be kept is made by the whole graph"


def test_a_stale_row_is_seen(whole: OpenVinoRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are found by a part of their window make other images: the tests above ask for the right ones."""
    keeper, maps = keeper_of(whole), drawing(SPADE, 0)
    assert_same(keeper.run(maps), whole.run(maps))
    real = kept_rows.pattern_keys
    monkeypatch.setattr(kept_rows, "pattern_keys", lambda *given: [key[: len(key) // 2] for key in real(*given)])
    assert keeper._sides is not None
    keeper._sides.rows = kept_rows.KeptRows(SPADE, columns_of(keeper), MUCH)
    rng, wrong = np.random.default_rng(1), 0
    for number in range(6):
        maps = painted(maps, rng, 10 + number, 7, 8)
        wrong += not np.array_equal(keeper.run(maps)[IMAGE], whole.run(maps)[IMAGE])
    assert wrong > 3


def columns_of(keeper: RowKeeper) -> dict[int, dict[str, int]]:
    assert keeper._sides is not None
    return {
        stride: {name: tensor.shape[1] for name, tensor in level.tensors().items()}
        for stride, level in keeper._sides.rows._levels.items()
    }


@pytest.mark.parametrize("fault", ["image", "rows", "graph"])
def test_what_is_wrong_on_this_machine_is_not_used(
    whole: OpenVinoRuntime, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keeper, maps = keeper_of(whole), drawing(SPADE, 0)
    sides = row_keeper._Sides
    run, make, calls = sides.run, sides._make, 0

    def wrong_run(self: Any, fed: Any, names: Any) -> Any:
        found = run(self, fed, names)
        found[PIXELS][0, 3, 4, 1] ^= 1
        return found

    def wrong_make(self: Any, tables: Arrays) -> Arrays:  # as if sums were made in another order the second time
        nonlocal calls
        calls += 1
        found = {name: array.copy() for name, array in make(self, tables).items()}
        if calls == 2:
            one = found["rows_1_" + max(name.split("_", 2)[2] for name in found if name.startswith("rows_1_"))]
            one[0, 0] = np.nextafter(one[0, 0], np.float32(9))
        return found

    def no_part(model: Any, part: Part) -> Any:
        raise RuntimeUnavailableError(f"the {part} cannot be made")

    if fault == "image":
        monkeypatch.setattr(sides, "run", wrong_run)
    elif fault == "rows":
        monkeypatch.setattr(sides, "_make", wrong_make)
    else:
        monkeypatch.setattr("spade_deploy.engines.openvino.models.part_of", no_part)
    with caplog.at_level(logging.WARNING):
        assert_same(keeper.run(maps), whole.run(maps))
    said = {
        "image": "is not that of the whole graph",
        "rows": "a row depends on which others",
        "graph": "cannot be made",
    }
    assert [said[fault] in record.getMessage() for record in caplog.records] == [True]
    monkeypatch.setattr(sides, "__init__", lambda *_: pytest.fail("it is tried once"))
    other = drawing(SPADE, 1)
    assert_same(keeper.run(other), whole.run(other))
    assert keeper.num_bytes == 0


def test_a_run_that_fails_is_told_and_the_next_one_is_right(
    whole: OpenVinoRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, rng = keeper_of(whole), np.random.default_rng(0)
    maps = drawing(SPADE, 0)
    keeper.run(maps)
    maps = painted(maps, rng, 9, 7, 8)
    with monkeypatch.context() as patch:
        patch.setattr(kept_rows._Level, "add", lambda *_: (_ for _ in ()).throw(MemoryError("no memory")))
        with pytest.raises(RuntimeUnavailableError, match=r"rows kept failed on latent .*: no memory"):
            keeper.run(maps)
    assert_same(keeper.run(maps), whole.run(maps))


def test_who_keeps_rows_and_who_does_not(artifact: Artifact) -> None:
    for precision, kind in ((Precision.BF16, GraphKind.LOOKUP), (Precision.FP32, GraphKind.DENSE)):
        runtime = OpenVinoRuntime(artifact, precision, 1, kind)
        assert runtime.keeping_rows(MUCH) is None
    with open_runtime(artifact, Precision.FP32, "cpu", 1, "lookup") as other:
        assert not isinstance(other, KeepsRows)
    graphs = tuple(replace(one, break_even_share=0.4) for one in artifact.manifest.graphs)
    both = Artifact(artifact.path, replace(artifact.manifest, graphs=graphs))
    with open_runtime(both, Precision.FP32, "openvino", 1) as auto:
        assert isinstance(auto, KeepsRows)
        keeper = auto.keeping_rows(MUCH)
        assert keeper is not None
        assert auto.keeping_rows(MUCH) is keeper
        rng = np.random.default_rng(0)
        flat = drawing(SPADE, 0)
        noise = {**flat, LABEL: rng.integers(0, 7, flat[LABEL].shape).astype(np.uint8)}
        for maps, kind in ((flat, GraphKind.LOOKUP), (noise, GraphKind.DENSE), (flat, GraphKind.LOOKUP)):
            assert_same(keeper.run(maps), auto.run(maps))
            assert keeper.kind is kind
        assert keeper.name.endswith("fp32 lookup, rows kept (dense above 40% unique patterns)")
    with pytest.raises(RuntimeUnavailableError, match="it was closed"):
        keeper.run(flat)


def test_the_next_start_compiles_neither_side(artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, images = drawing(SPADE, 0), []
    for number in range(2):
        with OpenVinoRuntime(artifact, Precision.FP32, 1, GraphKind.LOOKUP) as whole:
            images.append(keeper_of(whole).run(maps))
        if not number:
            assert len(list(cache.iterdir())) == 3
            monkeypatch.setattr(SizedModels, "_compile", lambda *_: pytest.fail("it is compiled again"))
            monkeypatch.setattr(SizedModels, "_read", lambda _: pytest.fail("it is read again"))
    assert_same(images[1], images[0])


def test_the_sides_of_another_graph_are_refused(
    artifact: Artifact, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of the cache with another side in it is not run, whatever its name says."""
    maps = drawing(SPADE, 0)
    with OpenVinoRuntime(artifact, Precision.FP32, 1, GraphKind.LOOKUP) as whole:
        right = keeper_of(whole).run(maps)
    files = {len(path.read_bytes()): path for path in cache.iterdir()}
    contents = [path.read_bytes() for path in files.values()]
    for path, content in zip(files.values(), contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    with OpenVinoRuntime(artifact, Precision.FP32, 1, GraphKind.LOOKUP) as whole:
        assert_same(keeper_of(whole).run(maps), right)
    assert caplog.text.count("the model is compiled again") == 3


def op_graph(rows_of: Any, *, axis: int = 0) -> Any:
    """A graph that gathers rows by an index. rows_of: patterns and the other inputs -> the rows."""
    openvino = load_openvino()
    op = openvino.opset13
    made = {
        "patterns_1": op.parameter([-1, 4], np.int32),
        "index_1": op.parameter([-1], np.int32),
        "z": op.parameter([1, 4], np.float32),
    }
    for name, node in made.items():
        node.output(0).get_tensor().set_names({name})
    rows = rows_of(op, made)
    rows.output(0).get_tensor().set_names({"rows"})
    gathered = op.gather(rows, made["index_1"], op.constant(np.array(axis, np.int64)))
    image = op.add(op.convert(gathered, "f32"), made["z"])
    return openvino.Model([image], list(made.values()))


def plain_rows(op: Any, made: Any) -> Any:
    return op.relu(op.convert(made["patterns_1"], "f32"))


def rows_of_another_level(op: Any, made: Any) -> Any:
    codes = made["codes_2"] = op.parameter([1, 4], np.int32)
    codes.output(0).get_tensor().set_names({"codes_2"})
    return op.convert(op.add(made["patterns_1"], codes), "f32")


def test_what_can_be_cut_and_what_cannot() -> None:
    labels, image = (part_of(op_graph(plain_rows), part) for part in (Part.LABELS, Part.IMAGE))
    assert [tensor.get_any_name() for tensor in labels.inputs] == ["patterns_1"]
    assert [tensor.get_any_name() for tensor in labels.outputs] == ["rows_1_rows"]
    assert sorted(tensor.get_any_name() for tensor in image.inputs) == ["index_1", "rows_1_rows", "z"]
    for graph, why in (
        (lambda: op_graph(lambda op, made: op.add(plain_rows(op, made), made["z"])), "rows of level 1 depend on z"),
        (lambda: op_graph(rows_of_another_level), "rows of level 1 depend on codes_2"),
        (lambda: op_graph(plain_rows, axis=1), "it gathers no rows by an index"),
        (lambda: op_graph(lambda op, made: op.convert(made["patterns_1"], "f16")), "rows of level 1 are no float32"),
    ):
        for part in (Part.LABELS, Part.IMAGE):
            with pytest.raises(RuntimeUnavailableError, match=f"cannot be cut: {why}"):
                part_of(graph(), part)


@pytest.mark.parametrize("factor", [0, 1])
def test_only_a_zero_that_is_certain_is_taken_away(factor: int) -> None:
    """Patterns wait for the map by a zero that is made of it; anything else that is added to them stays."""

    def waiting(op: Any, made: Any) -> Any:
        first = op.convert(op.gather(made["z"], *(op.constant(np.array(k, np.int64)) for k in (0, 1))), "i32")
        added = op.multiply(first, op.constant(np.array([factor], np.int32)))
        return op.convert(op.add(made["patterns_1"], added), "f32")

    if factor:
        with pytest.raises(RuntimeUnavailableError, match="depend on z"):
            part_of(op_graph(waiting), Part.LABELS)
    else:
        assert [one.get_any_name() for one in part_of(op_graph(waiting), Part.LABELS).inputs] == ["patterns_1"]
