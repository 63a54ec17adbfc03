import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spade_deploy.artifact import (
    FORMAT_VERSION,
    GOLDEN_INPUTS,
    GOLDEN_OUTPUTS,
    IMAGE,
    INSTANCE,
    LABEL,
    MANIFEST,
    PIXELS,
    REPORT_JSON,
    Artifact,
    Graph,
    Z,
    folder,
    graph_file,
    input_rule,
    input_tensors,
    list_engines,
    manifest,
    mismatch,
    output_tensors,
    read_engine,
    rewrite_manifest,
    whole_engines,
    write_engine,
    write_golden,
)
from spade_deploy.artifact.manifest import manifest_digest
from spade_deploy.errors import ArtifactError, NewerArtifactError, SpadeError
from spade_deploy.files import array_file
from spade_deploy.labels.files import label_dtype
from spade_deploy.spec import GeneratorSpec, GraphKind, LabelSpec, Precision
from spade_deploy.version import __version__
from tests.support.stand_in import (
    CREATED_UNIX_NS,
    EDGES,
    PLAIN,
    STYLED,
    golden_outputs,
    random_inputs,
    stand_in_artifact,
)

FP32, FP16 = Precision.FP32, Precision.FP16


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return stand_in_artifact(tmp_path / "artifact", PLAIN, (FP32, FP16))


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object], *, digest: bool = True) -> None:
    """Change the manifest as someone would who also knows how its digest is made."""
    value = json.loads((path / MANIFEST).read_text())
    change(value)
    if digest:
        value["manifest_sha256"] = manifest_digest(value)
    (path / MANIFEST).write_text(json.dumps(value))


def rehash(path: Path) -> None:
    """Write the manifest of files that were changed, so that nothing but their content is wrong."""
    rewrite_manifest(path, manifest.read_manifest(path))


# --- What was written is what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [PLAIN, EDGES, STYLED], ids=["plain", "edges", "styled"])
def test_open_reads_what_was_written(tmp_path: Path, spec: GeneratorSpec) -> None:
    artifact = stand_in_artifact(tmp_path / "a", spec, (FP32, FP16))
    found = artifact.manifest
    assert (found.generator, found.created_unix_ns, found.precisions) == (spec, CREATED_UNIX_NS, (FP32, FP16))
    assert found.format_version == FORMAT_VERSION
    assert found.versions["spade_deploy"] == __version__
    assert (found.source.run, found.source.step, found.source.origin) == ("tiny-001", 40, "train")
    assert set(found.files) == {graph_file(FP32), graph_file(FP16), GOLDEN_INPUTS, GOLDEN_OUTPUTS}
    found, inputs = artifact.golden(), random_inputs(spec)
    for found_arrays, right in ((found.inputs, inputs), (found.outputs, golden_outputs(spec, inputs))):
        assert list(found_arrays) == list(right)
        for name, array in right.items():
            assert found_arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(found_arrays[name], array)


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = (stand_in_artifact(tmp_path / name).path for name in ("one", "two"))
    for name in (MANIFEST, GOLDEN_INPUTS, GOLDEN_OUTPUTS):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_graph_by_precision(artifact: Artifact) -> None:
    assert artifact.graph().precision == FP32
    turned = Artifact(artifact.path, replace(artifact.manifest, graphs=artifact.manifest.graphs[::-1]))
    assert turned.manifest.graphs[0].precision == FP16
    assert turned.graph().precision == FP32
    assert artifact.graph(FP16) == Graph(graph_file(FP16), FP16, ("conv_img",))
    assert artifact.path_of(artifact.graph(FP16).file).is_file()
    with pytest.raises(ArtifactError, match="lookup graph; there is: fp32 dense, fp16 dense"):
        artifact.graph(FP32, kind=GraphKind.LOOKUP)
    with pytest.raises(ArtifactError, match="no file 'other'"):
        artifact.path_of("other")


def test_a_precision_that_is_missing_names_the_command_that_makes_it(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "a")
    with pytest.raises(ArtifactError, match="no fp16 dense graph; there is: fp32 dense") as caught:
        artifact.graph(FP16)
    assert "spade export --fp16" in (caught.value.hint or "")


def test_the_report_is_read_where_there_is_one(artifact: Artifact) -> None:
    assert artifact.report() is None
    (artifact.path / REPORT_JSON).write_text('{"passed": true}')
    assert Artifact.open(artifact.path).report() is None, "a file that the manifest does not name is never read"
    rehash(artifact.path)
    assert Artifact.open(artifact.path).report() == {"passed": True}


def test_hidden_files_are_left_out_and_odd_names_refused(artifact: Artifact) -> None:
    (artifact.path / ".DS_Store").write_text("x")
    rehash(artifact.path)
    assert ".DS_Store" not in Artifact.open(artifact.path).manifest.files
    (artifact.path / "a file").write_text("x")
    with pytest.raises(ArtifactError, match="'a file' is not allowed"):
        rehash(artifact.path)


def test_an_artifact_without_golden_tensors_cannot_be_written(artifact: Artifact) -> None:
    (artifact.path / GOLDEN_OUTPUTS).unlink()
    with pytest.raises(ArtifactError, match=r"files lacks 'golden/outputs\.npz'"):
        rehash(artifact.path)


# --- The contract of the graph ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_labels", [1, 255, 256, 257])
@pytest.mark.parametrize("has_dontcare", [False, True])
def test_the_label_type_is_that_of_the_label_reader(num_labels: int, has_dontcare: bool) -> None:
    labels = LabelSpec(num_labels, has_dontcare)
    assert np.dtype(input_tensors(GeneratorSpec(labels))[0].dtype) == label_dtype(labels)


def test_tensors_follow_from_the_spec() -> None:
    def shapes(spec: GeneratorSpec) -> dict[str, tuple[str, tuple[int | str, ...]]]:
        return {t.name: (t.dtype, t.shape) for t in (*input_tensors(spec), *output_tensors(spec))}

    assert shapes(EDGES) == {
        LABEL: ("uint8", ("N", "H", "W")),
        INSTANCE: ("int32", ("N", "H", "W")),
        PIXELS: ("uint8", ("N", "H", "W", 3)),
        IMAGE: ("float32", ("N", 3, "H", "W")),
    }
    assert shapes(STYLED) == {
        LABEL: ("int32", ("N", 32, 32)),
        Z: ("float32", ("N", 2)),
        PIXELS: ("uint8", ("N", 32, 32, 3)),
        IMAGE: ("float32", ("N", 3, 32, 32)),
    }


def test_the_input_rule_says_what_the_label_reader_does() -> None:
    assert input_rule(EDGES)["unknown"]["id"] == 5
    assert input_rule(PLAIN)["unknown"]["id"] is None
    assert "unknown" not in input_rule(STYLED)
    assert ("edges" in input_rule(EDGES), "edges" in input_rule(PLAIN)) == (True, False)
    assert input_rule(STYLED)["size"]["dynamic"] is False
    for spec in (PLAIN, EDGES, STYLED):
        assert all(step["sentence"].endswith(".") for step in input_rule(spec).values())


def test_mismatch_names_the_tensor() -> None:
    inputs = random_inputs(EDGES)
    assert mismatch(input_tensors(EDGES), inputs) is None
    label = inputs[LABEL]
    for change, problem in (
        ({"other": label}, "other: unknown tensor; expected are label, instance"),
        ({LABEL: label.astype(np.int64)}, "label: type int64, expected uint8"),
        ({LABEL: label[0]}, "label: shape 32 x 64, expected N x H x W"),
        ({LABEL: label[:0]}, "label: shape 0 x 32 x 64 is empty"),
        ({INSTANCE: inputs[INSTANCE][:1]}, "instance: shape 1 x 32 x 64: N is 1, but 2 in label"),
        ({INSTANCE: inputs[INSTANCE][:, :, :32]}, "instance: shape 2 x 32 x 32: W is 32, but 64 in label"),
    ):
        assert mismatch(input_tensors(EDGES), {**inputs, **change}) == problem
    assert mismatch(input_tensors(EDGES), {LABEL: label}) == "instance: missing; expected are label, instance"


# --- Everything that can be wrong ------------------------------------------------------------------------------------


def test_what_is_not_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, reason in (("missing", "does not exist"), ("file", "is not a folder"), (".", "holds no manifest.json")):
        with pytest.raises(ArtifactError, match=reason) as caught:
            Artifact.open(tmp_path / name)
        assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b'"' + b"9" * 5000])
def test_a_manifest_that_is_no_json_object(artifact: Artifact, content: bytes) -> None:
    (artifact.path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: the manifest is damaged"):
        Artifact.open(artifact.path)


def test_a_newer_format_is_told_apart_from_damage(artifact: Artifact) -> None:
    def newer(value: dict[str, Any]) -> None:
        value.clear()
        value.update(format_version=FORMAT_VERSION + 1, all_else="is unknown")

    change_manifest(artifact.path, newer, digest=False)
    with pytest.raises(NewerArtifactError, match=f"format {FORMAT_VERSION + 1}; this version .* reads up to") as caught:
        Artifact.open(artifact.path)
    assert "upgrade" in (caught.value.hint or "")


@pytest.mark.parametrize("version", [None, True, 0, "1", 1.0])
def test_a_format_version_that_is_no_number(artifact: Artifact, version: Any) -> None:
    change_manifest(artifact.path, lambda value: value.update(format_version=version))
    with pytest.raises(ArtifactError, match="format_version"):
        Artifact.open(artifact.path)


def test_a_manifest_that_was_edited(artifact: Artifact) -> None:
    change_manifest(artifact.path, lambda value: value["source"].update(run="another"), digest=False)
    with pytest.raises(ArtifactError, match="the digest differs"):
        Artifact.open(artifact.path)


def test_fields_of_a_later_minor_version_are_ignored(artifact: Artifact) -> None:
    change_manifest(artifact.path, lambda value: value.update(new_fact=[1, None]))
    assert Artifact.open(artifact.path).manifest == artifact.manifest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: v.pop("graphs"), "field 'graphs' is missing"),
        (lambda v: v.update(graphs=[]), "graphs is empty"),
        (
            lambda v: v["graphs"][0].update(precision="bf16"),
            "precision bf16 is no file's; allowed are fp32, fp16, int8",
        ),
        (lambda v: v["graphs"][0].update(precision="fp8"), "precision 'fp8' is not one of fp32, fp16"),
        (lambda v: v["graphs"][0].update(file="other.onnx"), "files lacks 'other.onnx'"),
        (lambda v: v["graphs"][0].update(opset="18"), "opset: '18' is of type str, not int"),
        (lambda v: v.update(created_unix_ns=True), "created_unix_ns: True is of type bool"),
        (lambda v: v["generator"].update(kernel_size=4), "`kernel_size`: 4"),
        (lambda v: v["generator"]["labels"].update(num_labels=400), "inputs contradicts the generator"),
        (lambda v: v["generator"]["labels"].pop("num_labels"), "'num_labels' is missing"),
        (lambda v: v["inputs"].pop(), "inputs contradicts the generator"),
        (lambda v: v["outputs"][0].update(name="rgb"), "outputs contradicts the generator"),
        (lambda v: v.update(golden={"inputs": "a", "outputs": "b"}), "golden"),
        (lambda v: v["rounding"].update(max_abs=-1.0), "rounding"),
        (lambda v: v["rounding"].update(mean_abs=1e999), "Infinity is not JSON"),
        (lambda v: v["files"][GOLDEN_INPUTS].update(sha256="f" * 63), "golden/inputs.npz"),
        (lambda v: v["files"][GOLDEN_INPUTS].update(bytes=-1), "golden/inputs.npz"),
        (lambda v: v["versions"].update(torch=2), "torch: 2 is of type int"),
    ],
)
def test_fields_that_are_missing_or_wrong(
    artifact: Artifact, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    change_manifest(artifact.path, change)
    with pytest.raises(ArtifactError, match="manifest is damaged") as caught:
        Artifact.open(artifact.path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../secret",
        "golden/../../secret",
        "..",
        "a\\b",
        "C:x",
        "",
        ".hidden",
        "a//b",
        "nul\0",
        "a/b/c/d/e/f",
    ],
)
def test_names_that_leave_the_folder(artifact: Artifact, name: str) -> None:
    secret = artifact.path.parent / "secret"
    secret.write_text("x")
    change_manifest(artifact.path, lambda v: v["files"].update({name: v["files"][GOLDEN_INPUTS]}))
    with pytest.raises(ArtifactError, match="is not allowed in an artifact"):
        Artifact.open(artifact.path)


def test_links_that_leave_the_folder(artifact: Artifact) -> None:
    path = artifact.path / GOLDEN_INPUTS
    outside = artifact.path.parent / "inputs.npz"
    shutil.move(path, outside)
    path.symlink_to(outside)
    with pytest.raises(ArtifactError, match="is a link that leads out of the artifact"):
        Artifact.open(artifact.path)
    path.unlink()
    shutil.move(outside, artifact.path / "elsewhere.npz")
    path.symlink_to("../elsewhere.npz")
    assert Artifact.open(artifact.path).golden(), "a link inside the folder is harmless"
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(ArtifactError, match="is missing"):
        Artifact.open(artifact.path)


def test_the_folder_itself_may_be_a_link(artifact: Artifact) -> None:
    current = artifact.path.parent / "current"
    current.symlink_to(artifact.path, target_is_directory=True)
    assert Artifact.open(current).golden()


def test_files_that_are_missing_cut_or_changed(artifact: Artifact) -> None:
    path = artifact.path / graph_file(FP32)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=rf"{len(content) - 1} bytes, {len(content)} were written"):
        Artifact.open(artifact.path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="sha256"):
        Artifact.open(artifact.path)
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        Artifact.open(artifact.path)
    path.mkdir()
    with pytest.raises(ArtifactError, match="is not a file"):
        Artifact.open(artifact.path)


def test_files_that_may_not_be_read(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folder, "sha256_of", refuse)
    with pytest.raises(ArtifactError, match=r"cannot be read: .*Permission denied"):
        Artifact.open(artifact.path)


def test_a_manifest_of_absurd_size_is_not_read(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_JSON_BYTES", 100)
    with pytest.raises(ArtifactError, match="larger than 100 bytes, the most"):
        Artifact.open(artifact.path)


# --- Golden tensors --------------------------------------------------------------------------------------------------


def test_golden_tensors_that_do_not_fit_the_spec(artifact: Artifact) -> None:
    inputs = random_inputs(PLAIN)
    outputs = golden_outputs(PLAIN, inputs)
    for wrong_inputs, wrong_outputs, reason in (
        ({**inputs, "other": inputs[LABEL]}, outputs, "it holds .*label"),
        ({LABEL: inputs[LABEL].astype(np.int64)}, outputs, "label: type int64"),
        (inputs, {**outputs, IMAGE: outputs[IMAGE][:1]}, "image: shape 1 x 3 x 64 x 32: N is 1, but 2 in label"),
        (inputs, {**outputs, PIXELS: outputs[PIXELS][:, :32]}, "pixels: shape 2 x 32 x 32 x 3: H is 32"),
    ):
        write_golden(artifact.path, wrong_inputs, wrong_outputs)
        rehash(artifact.path)
        with pytest.raises(ArtifactError, match=reason):
            Artifact.open(artifact.path).golden()


def test_golden_tensors_are_never_unpickled(artifact: Artifact) -> None:
    with (artifact.path / GOLDEN_INPUTS).open("wb") as stream:
        np.savez(stream, label=np.array([{"a": 1}], dtype=object))
    rehash(artifact.path)
    with pytest.raises(ArtifactError, match="Python objects"):
        Artifact.open(artifact.path).golden()
    with pytest.raises(ValueError, match="pickle"):
        write_golden(artifact.path, {LABEL: np.array([{}], dtype=object)}, {})


def test_golden_tensors_that_would_unpack_to_too_much(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_file, "MAX_BYTES", 1000)
    with pytest.raises(ArtifactError, match="bytes when unpacked, 1000 are the most"):
        artifact.golden()


def test_a_shape_that_the_data_does_not_fill(artifact: Artifact) -> None:
    import zipfile

    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 99999, 9), }"
    header = header.ljust(117) + b"\n"
    with zipfile.ZipFile(artifact.path / GOLDEN_INPUTS, "w") as archive:
        archive.writestr("label.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 16)
    rehash(artifact.path)
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact.open(artifact.path).golden()


# --- Fuzz: a package error or a sound artifact, never another exception ----------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return stand_in_artifact(tmp_path_factory.mktemp("fuzz") / "artifact", EDGES)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += paths_in(child, (*path, key))
    return found


@FUZZ
@given(data=st.data())
def test_fuzz_manifest_values(sound: Artifact, data: st.DataObject) -> None:
    original = (sound.path / MANIFEST).read_bytes()
    value = json.loads(original)
    *parents, last = data.draw(st.sampled_from(paths_in(value)))
    target = value
    for key in parents:
        target = target[key]
    target[last] = data.draw(JSON_VALUES)
    if data.draw(st.booleans()):
        value["manifest_sha256"] = manifest_digest(value)
    try:
        (sound.path / MANIFEST).write_text(json.dumps(value))
        opened = Artifact.open(sound.path)
        assert opened.golden().inputs[LABEL].shape == (2, 32, 64)
    except SpadeError:
        pass
    finally:
        (sound.path / MANIFEST).write_bytes(original)


@FUZZ
@given(data=st.data(), name=st.sampled_from([MANIFEST, GOLDEN_INPUTS, GOLDEN_OUTPUTS]), with_digest=st.booleans())
def test_fuzz_bytes(sound: Artifact, data: st.DataObject, name: str, with_digest: bool) -> None:
    path = sound.path / name
    manifest_bytes, original = (sound.path / MANIFEST).read_bytes(), path.read_bytes()
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    try:
        path.write_bytes(content)
        if with_digest and name != MANIFEST:
            rehash(sound.path)
        Artifact.open(sound.path).golden()
    except SpadeError:
        pass
    else:
        assert with_digest or bytes(content) == original or name == MANIFEST
    finally:
        path.write_bytes(original)
        (sound.path / MANIFEST).write_bytes(manifest_bytes)


def test_manifests_compare_by_value(artifact: Artifact) -> None:
    assert replace(artifact.manifest, created_unix_ns=1) != artifact.manifest
    assert Artifact.open(artifact.path).manifest == artifact.manifest


def test_an_engine_manifest_that_was_never_finished_is_none(tmp_path: Path) -> None:
    """A killed build leaves a hidden file that ends in .json, too: nothing may read it as a manifest."""
    artifact = stand_in_artifact(tmp_path / "artifact")
    (tmp_path / "artifact" / "engines").mkdir()
    (tmp_path / "artifact" / "engines" / ".fp32.json.05e670f9-1-1-b6ff0000.tmp.json").touch()
    assert list_engines(artifact) == ()


def test_an_engine_is_the_one_that_its_manifest_vouches_for(tmp_path: Path) -> None:
    artifact = stand_in_artifact(tmp_path / "artifact")
    paths = [write_engine(artifact, name, name.encode(), key={}, proof={}, seconds=1.0) for name in ("one", "two")]
    one, two = list_engines(artifact)
    assert [read_engine(artifact, entry) for entry in (one, two)] == [b"one", b"two"]
    paths[1].write_bytes(b"TWO")
    with pytest.raises(ArtifactError, match=r"two.engine: its sha256 is not the one in its manifest"):
        read_engine(artifact, two)
    paths[1].with_suffix(".json").write_bytes(paths[0].with_suffix(".json").read_bytes())
    with pytest.raises(ArtifactError, match=r"two.json is the engine manifest of 'one'"):
        list_engines(artifact)
    assert whole_engines(artifact) == (one,)
