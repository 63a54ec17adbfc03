"""Model repositories: what Triton is told fits the published schema, the graphs, and the artifact."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.text_format import ParseError
from onnx.external_data_helper import set_external_data
from tritonclient.grpc import model_config_pb2 as schema
from typer.testing import CliRunner

from spade_deploy.artifact import LABEL, PIXELS, Artifact, rewrite_manifest
from spade_deploy.cli import app
from spade_deploy.errors import ArtifactError, ConfigError
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.packaging.engines import choose_plan
from spade_deploy.packaging.repository import write_repository
from spade_deploy.packaging.request import Device, PackageRequest
from spade_deploy.spec import Flavour, GraphKind, Precision, ShapeProfile
from tests.packaging.conftest import with_share
from tests.support.built_engine import PROFILE, add_engine
from tests.support.commands import spade
from tests.support.stand_in import PLAIN, stand_in_artifact
from tests.support.triton import NUMPY, LocalTriton, read_config

KINDS = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
}


def told(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    return {one.name: (schema.DataType.Name(one.data_type), list(one.dims)) for one in tensors}


def in_file(values: Any, skip: int) -> dict[str, tuple[str, list[int]]]:
    """Name, type and sizes of a graph's inputs or outputs; -1 where a size is not fixed."""
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        sizes = [one.dim_value if one.HasField("dim_value") else -1 for one in tensor.shape.dim]
        found[value.name] = (KINDS[tensor.elem_type], sizes[skip:])
    return found


@pytest.mark.parametrize("which", ["edges_triton", "styled_triton"])
def test_inputs_and_outputs_are_those_of_the_graphs(which: str, request: pytest.FixtureRequest) -> None:
    triton: LocalTriton = request.getfixturevalue(which)
    dense, lookup, inner = sorted(triton.models)
    for name in (dense, inner):
        model = triton.models[name]
        graph = onnx.load(model.version / "model.onnx", load_external_data=False).graph
        skip = 1 if model.config.max_batch_size else 0
        assert told(model.config.input) == in_file(graph.input, skip)
        assert told(model.config.output) == in_file(graph.output, skip)
        assert model.config.backend == "onnxruntime"
    assert told(triton.models[lookup].config.input) == told(triton.models[dense].config.input)
    assert told(triton.models[lookup].config.output) == told(triton.models[dense].config.output)
    optional = {one.name: one.optional for one in triton.models[lookup].config.input}
    assert optional == {name: name != LABEL for name in optional}
    assert triton.models[inner].config.max_batch_size == 0
    assert not triton.models[inner].config.HasField("dynamic_batching")


def test_the_settings_stand_in_the_configuration(edges: Artifact, tmp_path: Path) -> None:
    asked = PackageRequest(
        triton=tmp_path / "models",
        name="city",
        device=Device.GPU,
        max_batch=6,
        max_delay_ms=1.5,
        instances=2,
        threads=3,
        model_version=7,
    )
    made = write_repository(edges, asked)
    assert (made.models, made.inner) == (("city", "city-lookup"), ("city-lookup-graph",))
    configs = {
        name: read_config((tmp_path / "models" / name / "config.pbtxt").read_text())
        for name in made.models + made.inner
    }
    for name, config in configs.items():
        assert (tmp_path / "models" / name / "7").is_dir()
        assert config.version_policy.latest.num_versions == 1
        (group,) = config.instance_group
        assert (group.kind, group.count) == (
            (group.KIND_CPU, 3) if config.backend == "python" else (group.KIND_GPU, 2)
        ), name
    for name in made.models:
        assert configs[name].max_batch_size == 6
        assert list(configs[name].dynamic_batching.preferred_batch_size) == [2, 4]
        assert configs[name].dynamic_batching.max_queue_delay_microseconds == 1500
    assert configs["city"].parameters["intra_op_thread_count"].string_value == "3"
    assert "enable_mem_pattern" not in configs["city"].parameters
    assert [one.batch_size for one in configs["city"].model_warmup] == [1, 2, 4]
    assert not configs["city-lookup"].model_warmup, "it would call a model that may not be loaded yet"


def test_without_batches_nothing_waits(edges: Artifact, tmp_path: Path) -> None:
    write_repository(edges, PackageRequest(triton=tmp_path / "m", max_batch=1))
    config = read_config((tmp_path / "m" / "tiny-001" / "config.pbtxt").read_text())
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")
    (group,) = config.instance_group
    assert group.kind == group.KIND_AUTO


@pytest.mark.parametrize(("which", "triton"), [("edges", "edges_triton"), ("styled", "styled_triton")])
def test_warmup_is_the_first_golden_map(which: str, triton: str, request: pytest.FixtureRequest) -> None:
    artifact: Artifact = request.getfixturevalue(which)
    server: LocalTriton = request.getfixturevalue(triton)
    golden = artifact.golden()
    first = {name: array[:1] for name, array in golden.inputs.items()}
    dense, _, inner = (server.models[name] for name in sorted(server.models))
    for sample in dense.config.model_warmup:
        inputs = dense.warmup_inputs(sample)
        assert set(inputs) == set(first)
        for name, array in inputs.items():
            np.testing.assert_array_equal(array, np.concatenate([first[name]] * sample.batch_size))
    (sample,) = inner.config.model_warmup
    tables = graph_inputs(artifact.manifest.generator, GraphKind.LOOKUP, first)
    inputs = inner.warmup_inputs(sample)
    assert set(inputs) == set(tables)
    for name, array in tables.items():
        np.testing.assert_array_equal(inputs[name], array)
    # Triton runs these requests: they must pass its checks and make the golden image.
    made = server.infer(inner.config.name, inputs)[PIXELS].astype(int)
    assert np.abs(made - golden.outputs[PIXELS][:1]).max() <= 1


def test_clients_are_told_what_the_onnx_file_says(edges: Artifact, edges_triton: LocalTriton) -> None:
    model = edges_triton.models["tiny-001"]
    metadata = {entry.key: entry.value for entry in onnx.load(model.version / "model.onnx").metadata_props}
    parameters = {name: value.string_value for name, value in model.config.parameters.items()}
    assert {name: parameters[name] for name in metadata} == metadata
    assert set(parameters) - set(metadata) == {"intra_op_thread_count", "enable_mem_pattern"}
    names = [edges.manifest.generator.labels.name_of(number) for number in range(8)]
    assert (model.folder / "labels.txt").read_text().splitlines() == names


def test_a_name_outside_of_the_schema_is_noticed(edges_triton: LocalTriton) -> None:
    text = (edges_triton.models["tiny-001"].folder / "config.pbtxt").read_text()
    with pytest.raises(ParseError):
        read_config(text.replace("max_queue_delay_microseconds", "max_queue_delay_ms"))
    with pytest.raises(ParseError):
        read_config(text.replace("TYPE_UINT8", "TYPE_BYTE"))


def test_a_package_is_replaced_and_other_folders_are_not(edges: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "models"
    asked = PackageRequest(triton=target, device=Device.CPU)
    write_repository(edges, asked)
    graph = target / "tiny-001" / "1" / "model.onnx"
    right = graph.read_bytes()
    graph.write_bytes(b"old")
    with pytest.raises(ConfigError, match="has the model 'tiny-001', which 'other' would replace") as refused:
        write_repository(edges, replace(asked, name="other"))
    assert "give Triton each as a repository" in str(refused.value.hint)
    assert graph.read_bytes() == b"old"
    write_repository(edges, asked)
    assert graph.read_bytes() == right
    assert sorted(path.name for path in target.iterdir()) == [
        "package.json",
        "tiny-001",
        "tiny-001-lookup",
        "tiny-001-lookup-graph",
    ]
    (target / "mine").mkdir()
    (target / "mine" / "config.pbtxt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files, so it is not replaced \(mine/config.pbtxt\)"):
        write_repository(edges, asked)
    elsewhere = tmp_path / "photos"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(b"a")
    with pytest.raises(ConfigError, match="exists and is not a model repository"):
        write_repository(edges, replace(asked, triton=elsewhere))
    assert [path.name for path in elsewhere.iterdir()] == ["a.png"]
    (tmp_path / "file").write_text("a")
    with pytest.raises(ConfigError, match="exists and is not a model repository"):
        write_repository(edges, replace(asked, triton=tmp_path / "file"))


def test_what_fails_leaves_the_old_package(edges: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "models"
    asked = PackageRequest(triton=target)
    write_repository(edges, asked)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    graph = edges.path_of(edges.graph(kind=GraphKind.LOOKUP).file)
    content = graph.read_bytes()
    try:
        graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtifactError):
            write_repository(edges, replace(asked, max_batch=8))
    finally:
        graph.write_bytes(content)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["models"], "nothing half-written stays beside it"


def test_a_place_that_cannot_be_written(edges: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"`triton`: .* cannot be written: "):
        write_repository(edges, PackageRequest(triton=tmp_path / "file" / "models"))


def test_weights_in_a_second_file_come_along(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "artifact", PLAIN)
    path = artifact.path_of(artifact.graph().file)
    model = onnx.load(path)
    (half,) = (tensor for tensor in model.graph.initializer if tensor.name == "half")
    set_external_data(half, "weights.data")
    onnx.save(model, path)
    rewrite_manifest(artifact.path, artifact.manifest)
    write_repository(Artifact.open(artifact.path), PackageRequest(triton=tmp_path / "m", name="one", device=Device.CPU))
    assert (tmp_path / "m" / "one" / "1" / "weights.data").read_bytes() == (path.parent / "weights.data").read_bytes()
    server = LocalTriton(tmp_path / "m")
    golden = artifact.golden()
    np.testing.assert_array_equal(server.infer("one", golden.inputs)[PIXELS], golden.outputs[PIXELS])


def test_what_has_no_lookup_graph_says_so(tmp_path: Path) -> None:
    made = write_repository(stand_in_artifact(tmp_path / "one", PLAIN), PackageRequest(triton=tmp_path / "m"))
    assert (made.models, made.inner) == (("one",), ())
    assert made.left_out[0] == "there is no model of the lookup graph: the artifact has none in fp32"
    assert "`spade build`" in made.left_out[1]


def test_a_lookup_graph_that_never_wins_is_told(edges: Artifact, tmp_path: Path) -> None:
    share = edges.graph(kind=GraphKind.LOOKUP).break_even_share
    try:
        made = write_repository(with_share(edges, 0.0), PackageRequest(triton=tmp_path / "m"))
    finally:
        with_share(edges, share)
    assert "tiny-001-lookup runs every map on the lookup graph" in made.left_out[0]
    config = read_config((tmp_path / "m" / "tiny-001-lookup" / "config.pbtxt").read_text())
    assert config.parameters["spade.break_even_share"].string_value == ""


BOTH = (Precision.FP32, Precision.FP16)


def test_engines_of_several_cards_are_one_model(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "one", PLAIN, BOTH)
    add_engine(artifact, b"of an H100")
    add_engine(artifact, b"of an L4", gpu="NVIDIA L4", compute_capability="8.9")
    add_engine(artifact, b"of an older one", version="9.8.0", gpu="NVIDIA A10", compute_capability="8.6")
    made = write_repository(artifact, PackageRequest(triton=tmp_path / "m", max_batch=8))
    folder = tmp_path / "m" / "one-tensorrt"
    config = read_config((folder / "config.pbtxt").read_text())
    files = dict(config.cc_model_filenames)
    assert {card: (folder / "1" / file).read_bytes() for card, file in files.items()} == {
        "9.0": b"of an H100",
        "8.9": b"of an L4",
    }
    assert config.default_model_filename in files.values()
    assert config.backend == "tensorrt"
    assert config.max_batch_size == PROFILE.most[0] == 2
    assert list(config.dynamic_batching.preferred_batch_size) == [2]
    assert told(config.input) == {LABEL: ("TYPE_UINT8", [PLAIN.height, PLAIN.width])}
    assert told(config.output)[PIXELS] == ("TYPE_UINT8", [PLAIN.height, PLAIN.width, 3])
    assert [one.batch_size for one in config.model_warmup] == [1, 2]
    warm = np.frombuffer((folder / "warmup" / LABEL).read_bytes(), NUMPY["TYPE_UINT8"])
    np.testing.assert_array_equal(warm, artifact.golden().inputs[LABEL][0].ravel())
    (group,) = config.instance_group
    assert group.kind == group.KIND_GPU
    assert config.parameters["spade.tensorrt"].string_value == "9.9.9"
    assert config.parameters["spade.precision"].string_value == "fp16"
    (left,) = (text for text in made.left_out if "engine" in text)
    assert "TensorRT 9.8.0" in left


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flavour": Flavour.RTX}, "it was built by TensorRT for RTX, which Triton does not load"),
        ({"onnx_sha256": "0" * 64}, "it was built from another graph"),
        ({"profile": ShapeProfile((2, 64, 32), (2, 64, 32), (2, 64, 32))}, "it takes at least 2 images"),
    ],
)
def test_engines_that_triton_cannot_serve_are_left_out(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    artifact = stand_in_artifact(tmp_path / "one", PLAIN, BOTH)
    add_engine(artifact, **changes)
    made = write_repository(artifact, PackageRequest(triton=tmp_path / "m"))
    assert made.models == ("one",)
    assert any(said in text for text in made.left_out), made.left_out
    assert made.left_out[-1].startswith("there is no TensorRT model")


def test_an_engine_of_the_lookup_graph_is_left_out(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "one", PLAIN, BOTH)
    add_engine(artifact)
    dense, looked_up = artifact.manifest.graphs
    graphs = (dense, replace(looked_up, kind=GraphKind.LOOKUP))
    plan, left_out = choose_plan(Artifact(artifact.path, replace(artifact.manifest, graphs=graphs)), None)
    assert plan is None
    assert "it runs the lookup graph, for which Triton uses ONNX Runtime" in left_out[0]


def test_engines_of_other_sizes_are_not_one_model(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "one", PLAIN, BOTH)
    keys = [
        add_engine(artifact),
        add_engine(artifact, gpu="NVIDIA L4", compute_capability="8.9", profile=replace(PROFILE, most=(4, 64, 32))),
    ]
    plan, left_out = choose_plan(artifact, None)
    assert plan is not None
    (key,) = (key for key in keys if key.profile == plan.profile)
    assert (list(plan.files.values()), plan.cards) == ([key.compute_capability], (key.gpu,))
    assert len(left_out) == 1


def test_a_damaged_engine_is_left_out(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "one", PLAIN, BOTH)
    add_engine(artifact)
    (engine,) = (artifact.path / "engines").glob("*.engine")
    engine.write_bytes(b"x" + engine.read_bytes()[1:])
    made = write_repository(artifact, PackageRequest(triton=tmp_path / "m"))
    assert made.models == ("one",)
    assert any("its sha256 is not the one in its manifest" in text for text in made.left_out)


def test_an_engine_whose_manifest_is_damaged_keeps_no_other_out(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "one", PLAIN, BOTH)
    add_engine(artifact, b"whole")
    (artifact.path / "engines" / "fp16.dense.0.json").write_text("{")
    made = write_repository(artifact, PackageRequest(triton=tmp_path / "m"))
    assert made.models == ("one", "one-tensorrt")
    assert any("fp16.dense.0.json: the engine manifest is damaged" in text for text in made.left_out), made.left_out


def test_an_engine_of_any_size_and_one_of_a_named_precision(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "one", PLAIN, BOTH)
    add_engine(artifact, profile=ShapeProfile((1, 32, 32), (1, 128, 128), (4, 256, 256)))
    made = write_repository(artifact, PackageRequest(triton=tmp_path / "m"))
    config = read_config((tmp_path / "m" / "one-tensorrt" / "config.pbtxt").read_text())
    assert told(config.input) == {LABEL: ("TYPE_UINT8", [-1, -1])}
    assert made.models == ("one", "one-tensorrt")
    made = write_repository(artifact, PackageRequest(triton=tmp_path / "m", precision=Precision.FP32))
    assert made.models == ("one",)
    assert made.left_out[-1] == "there is no TensorRT model: the engines have the precision fp16, not fp32"


def test_an_engine_for_other_sizes_is_not_warmed_up(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "one", PLAIN, BOTH)
    add_engine(artifact, profile=ShapeProfile((1, 128, 128), (1, 128, 128), (1, 256, 256)))
    write_repository(artifact, PackageRequest(triton=tmp_path / "m"))
    config = read_config((tmp_path / "m" / "one-tensorrt" / "config.pbtxt").read_text())
    assert not config.model_warmup
    assert not (tmp_path / "m" / "one-tensorrt" / "warmup").exists()


def test_the_command(edges: Artifact, tmp_path: Path) -> None:
    done = spade("package", edges.path, "--triton", "models", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["result"]["models"] == ["tiny-001", "tiny-001-lookup"]
    assert "tiny-001-lookup" in done.stderr
    assert any("there is no TensorRT model" in note for note in told["notes"])
    assert told["result"]["bytes"] == sum(
        path.stat().st_size
        for path in (tmp_path / "models").rglob("*")
        if path.name != "package.json" and path.is_file()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--triton"),
        (("--triton", "m", "--name", "a/b"), "--name: 'a/b' cannot name a model"),
        (("--triton", "m", "--max-batch", "0"), "--max-batch"),
        (("--triton", "m", "--precision", "bf16"), "--precision"),
        (("--triton", "m", "--precision", "fp16"), "there is no fp16 dense graph"),
    ],
)
def test_what_the_command_refuses(
    edges: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["package", str(edges.path), *arguments])
    assert done.exit_code in (1, 2)
    assert said in " ".join(done.stderr.split())
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("content", ["endless", "pipe", "damaged"])
def test_a_folder_whose_record_cannot_be_read_is_not_replaced(edges: Artifact, tmp_path: Path, content: str) -> None:
    """A record may be a link to an endless device, or a pipe that nobody writes to: neither is read."""
    target = tmp_path / "models"
    target.mkdir()
    if content == "endless":
        (target / "package.json").symlink_to("/dev/zero")
    elif content == "pipe":
        os.mkfifo(target / "package.json")
    else:
        (target / "package.json").write_text('{"files": NaN}')
    with pytest.raises(ConfigError, match=r"exists and is not a model repository .*, so it is not replaced"):
        write_repository(edges, PackageRequest(triton=target, device=Device.CPU))
    assert [path.name for path in target.iterdir()] == ["package.json"]
