"""What an ONNX file reads beside itself is known before anything opens it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from spade_deploy.files.onnx_data import external_files, stored_numbers

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402


def tensor(location: str | None, name: str = "w") -> TensorProto:
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    if location is None:
        made.raw_data = b"\0\0\0\0"
    else:
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("offset", "0"), ("location", location), ("length", "4")):
            made.external_data.add(key=key, value=value)
    return made


def model(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph(list(nodes), "location", [], [value], initializer=initializers))


def constant(location: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["y"], value=tensor(location))


def branch(location: str) -> onnx.NodeProto:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    inner = helper.make_graph([constant(location)], "inner", [], [value])
    return helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)


def in_function(location: str) -> onnx.ModelProto:
    made = model()
    made.functions.append(
        helper.make_function("local", "f", [], ["y"], [constant(location)], [helper.make_opsetid("", 18)])
    )
    return made


def in_default_of_a_function(location: str) -> onnx.ModelProto:
    made = in_function("weights.data")
    made.functions[0].attribute_proto.append(helper.make_attribute("a", tensor(location)))
    return made


def in_sparse(location: str) -> onnx.ModelProto:
    made = model()
    made.graph.sparse_initializer.add(values=tensor(None), indices=tensor(location), dims=[1])
    return made


def in_training(location: str) -> onnx.ModelProto:
    made = model()
    made.training_info.add().algorithm.CopyFrom(model(constant(location)).graph)
    return made


def in_list(location: str) -> onnx.ModelProto:
    node = helper.make_node("Custom", [], ["y"])
    node.attribute.append(helper.make_attribute("many", [tensor(None), tensor(location)]))
    return model(node)


PLACES: dict[str, Callable[[str], onnx.ModelProto]] = {
    "initializer": lambda location: model(initializers=(tensor(None, "a"), tensor(location))),
    "attribute": lambda location: model(constant(location)),
    "branch": lambda location: model(branch(location)),
    "function": in_function,
    "default": in_default_of_a_function,
    "sparse": in_sparse,
    "training": in_training,
    "list": in_list,
}


def write(folder: Path, made: onnx.ModelProto) -> Path:
    path = folder / "graph.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("place", PLACES)
class TestEveryPlaceOfATensor:
    def test_the_name_is_found(self, tmp_path: Path, place: str) -> None:
        assert "weights.data" in external_files(write(tmp_path, PLACES[place]("weights.data")))

    @pytest.mark.parametrize(
        "location",
        ["/etc/passwd", "../other.data", "sub/x.data", "..", "", "C:\\x", "*/_ORT_MEM_ADDR_/*", "a\x1b[31m", "a\0b"],
    )
    def test_what_is_no_plain_name_is_refused(self, tmp_path: Path, place: str, location: str) -> None:
        with pytest.raises(ValueError, match="not the name of a file beside it"):
            external_files(write(tmp_path, PLACES[place](location)))


def test_a_graph_that_holds_its_weights_names_nothing(tmp_path: Path) -> None:
    assert external_files(write(tmp_path, model(initializers=(tensor(None),)))) == ()
    (tmp_path / "empty.onnx").touch()
    assert external_files(tmp_path / "empty.onnx") == ()  # the runtime says what it is


def test_names_that_are_hidden_in_odd_encodings_are_found(tmp_path: Path) -> None:
    """Protobuf reads numbers with superfluous bytes, bits beyond the 32nd of a tag, and the last of two values."""
    entry = b"\x0a\x08location" + b"\x12\x01a" + b"\x12\x05../xx"
    for tag in (b"\x6a", b"\xea\x80\x00", b"\xea\x80\x80\x80\x10"):
        field = tag + bytes([len(entry)]) + entry
        graph = b"\x2a" + bytes([len(field)]) + field
        path = tmp_path / "graph.onnx"
        path.write_bytes(b"\x3a" + bytes([len(graph)]) + graph)
        if len(tag) < 5:  # of the parsers of protobuf, some drop those bits and some refuse them
            read = onnx.ModelProto.FromString(path.read_bytes())
            assert [part.value for part in read.graph.initializer[0].external_data] == ["../xx"]
        with pytest.raises(ValueError, match="not the name of a file beside it"):
            external_files(path)


@pytest.mark.parametrize(
    "content",
    [b"\x3a\x7flocation", b"location", b"\xff" * 20 + b"location", b"\x3b\x08location", b"\x3a\x09\x2a\x7flocation"],
    ids=["cut", "text", "endless number", "group", "cut inside"],
)
def test_damage_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        external_files(tmp_path / "graph.onnx")


def test_compiled_engines_and_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compiled engine"):
        external_files(write(tmp_path, model(helper.make_node("EPContext", [], ["y"], ep_cache_context="x.engine"))))
    (tmp_path / "graph.onnx").write_bytes(b"\0\0\0\0ORTM more")
    with pytest.raises(ValueError, match="own format"):
        external_files(tmp_path / "graph.onnx")


def test_a_great_many_fields_or_levels_end_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spade_deploy.files.onnx_data._MAX_FIELDS", 1000)
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"\x0a\x08location" + b"\x08\x00" * 2000)
    with pytest.raises(ValueError, match="more than 1,000 fields"):
        external_files(path)
    monkeypatch.undo()
    content = b"location"
    for field in [b"\x32", b"\x2a", b"\x0a"] * 40:  # graph of an attribute of a node of a graph
        content = field + varint(len(content)) + content
    path.write_bytes(b"\x3a" + varint(len(content)) + content)
    with pytest.raises(ValueError, match="nested too deeply"):
        external_files(path)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def weights(*shapes: tuple[int, ...], dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    sizes = [helper.make_tensor(f"w{n}", dtype, shape, [0] * math.prod(shape)) for n, shape in enumerate(shapes)]
    return model(initializers=sizes)


def test_the_numbers_of_weights_are_counted(tmp_path: Path) -> None:
    assert stored_numbers(write(tmp_path, weights((3, 4, 5), (7,)))) == 67
    for dtype in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8):
        assert stored_numbers(write(tmp_path, weights((300, 2), dtype=dtype))) == 600
    # Neither what a graph computes with, such as axes, nor scalars are weights.
    assert stored_numbers(write(tmp_path, weights((4,), dtype=TensorProto.INT64))) == 0
    assert stored_numbers(write(tmp_path, weights(()))) == 0


def test_packed_sizes_and_weights_in_another_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    tensor_bytes = bytes([0x0A, 3, 0xAC, 0x02, 2, 0x10, 1])  # dims [300, 2] packed, data_type 1
    graph = bytes([0x2A, len(tensor_bytes)]) + tensor_bytes
    path.write_bytes(bytes([0x3A, len(graph)]) + graph)
    assert stored_numbers(path) == 600
    outside = tensor("weights.data")
    assert stored_numbers(write(tmp_path, model(initializers=(outside,)))) == math.prod(outside.dims)


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", bytes([0x3A, 200, 1])])
def test_damaged_files_have_no_count(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "graph.onnx").write_bytes(content)
    with pytest.raises(ValueError, match="it is"):
        stored_numbers(tmp_path / "graph.onnx")
