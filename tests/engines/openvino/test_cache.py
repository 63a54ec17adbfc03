"""The compiled models on the disk: loaded at the next start, never where they are damaged or another's."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import IMAGE, Artifact, Graph
from spade_deploy.engines.openvino import cache as caching
from spade_deploy.engines.openvino import library, models
from spade_deploy.engines.openvino.cache import ModelCache, open_cache
from spade_deploy.engines.openvino.cut import Part
from spade_deploy.engines.openvino.models import KEPT_SIZES, settings_of
from spade_deploy.engines.openvino.runtime import OpenVinoRuntime
from spade_deploy.spec import Precision
from tests.support.stand_in import EDGES, PLAIN, expected, random_inputs, stand_in_artifact

INPUTS = random_inputs(EDGES, 1)
RIGHT = expected(EDGES, INPUTS)[IMAGE]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return stand_in_artifact(tmp_path / "artifact", EDGES)


def image_of(artifact: Artifact) -> np.ndarray:
    with OpenVinoRuntime(artifact, Precision.FP32, threads=1) as runtime:
        return runtime.run(INPUTS, [IMAGE])[IMAGE]


def test_the_next_start_neither_reads_nor_compiles(
    artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = image_of(artifact)
    assert [path.suffix for path in cache.iterdir()] == [".blob"]
    monkeypatch.setattr(models.SizedModels, "_read", lambda *_: pytest.fail("the graph was read"))
    monkeypatch.setattr(models.SizedModels, "_compile", lambda *_: pytest.fail("it was compiled"))
    np.testing.assert_array_equal(image_of(artifact), first)
    np.testing.assert_allclose(first, RIGHT, rtol=0, atol=2.5e-7)
    if hasattr(os, "getuid"):
        assert cache.stat().st_mode & 0o077 == 0, "it is the owner's alone"
    assert not cache.is_relative_to(artifact.path)


def test_a_model_that_was_compiled_runs_from_the_file_that_keeps_it(artifact: Artifact) -> None:
    """So it holds no weights as they were in the graph. What is let go of the file is read again where it is needed."""
    with OpenVinoRuntime(artifact, Precision.FP32, threads=1) as runtime:
        first = runtime.run(INPUTS, [IMAGE])[IMAGE]
        assert runtime._models is not None
        (ready,) = runtime._models._ready.values()
        assert ready.stored is not None
        ready.stored.release()
        np.testing.assert_array_equal(runtime.run(INPUTS, [IMAGE])[IMAGE], first)
    np.testing.assert_allclose(first, RIGHT, rtol=0, atol=2.5e-7)


def flip(position: Callable[[int], int]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        at = position(len(content))
        return content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]

    return change


def rehashed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flip(lambda size: 0), "it is damaged"),
        (flip(lambda size: size // 2), "it is damaged"),
        (flip(lambda size: size - 33), "it is damaged"),
        (flip(lambda size: size - 1), "it is damaged"),
        (lambda content: content[: len(content) // 3], "it is damaged"),
        (lambda content: content + b"x", "it is damaged"),
        (lambda content: content[:7], "it is damaged"),
        (lambda content: b"", ""),
        # Files with the right digest that are no models, as another program could leave them.
        (lambda content: rehashed(b""), ""),
        (lambda content: rehashed(b"no model at all" * 99), ""),
        (lambda content: rehashed(content[: len(content) // 3]), ""),
    ],
    ids=["head", "middle", "end", "digest", "cut", "longer", "short", "empty", "nothing", "garbage", "half"],
)
def test_a_damaged_file_is_told_and_made_again(
    artifact: Artifact,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
    why: str,
) -> None:
    first = image_of(artifact)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(image_of(artifact), first)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"{path} is not used: {why}")
    assert said.endswith("the model is compiled again")
    assert hashlib.sha256(path.read_bytes()[:-32]).digest() == path.read_bytes()[-32:], "a whole one is there again"
    caplog.clear()
    np.testing.assert_array_equal(image_of(artifact), first)
    assert not caplog.records


def test_a_model_of_another_graph_is_refused_whatever_its_name_says(
    artifact: Artifact, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = image_of(artifact)
    (path,) = cache.iterdir()
    other = stand_in_artifact(tmp_path / "other", replace(EDGES, z_dim=2))
    with OpenVinoRuntime(other, Precision.FP32) as runtime:
        runtime.run(random_inputs(other.manifest.generator, 1))
    (foreign,) = set(cache.iterdir()) - {path}
    path.write_bytes(foreign.read_bytes())
    np.testing.assert_array_equal(image_of(artifact), first)
    assert "its inputs are" in caplog.text


def test_the_name_says_all_that_a_model_depends_on(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (graph,) = artifact.manifest.graphs
    settings = settings_of(Precision.FP32, 1)

    def key(
        of: Artifact = artifact, graph: Graph = graph, told: dict[str, Any] = settings, part: Part = Part.WHOLE
    ) -> str:
        found = open_cache(of, graph, told, part)
        assert found is not None
        return found.key

    keys = [key(), key(told=settings_of(Precision.BF16, 1))]
    keys.append(key(stand_in_artifact(tmp_path / "b", PLAIN)))
    assert key(stand_in_artifact(tmp_path / "same", EDGES)) == keys[0], "the folder's name is no part of it"
    assert key(told=settings_of(Precision.FP32, 2)) == keys[0], "the threads are no part of it"
    keys.append(key(graph=replace(graph, file="generator.other.onnx")))
    keys += [key(part=Part.LABELS), key(part=Part.IMAGE)]
    with monkeypatch.context() as patch:
        patch.setattr(caching, "capabilities", lambda: frozenset({"FP32"}))
        keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(caching, "CHANGES", caching.CHANGES + 1)
        keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(caching, "all_instruction_sets", lambda: ("avx2",))
        keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(library.load_openvino(), "__version__", "2031.1")
        keys.append(key())
    assert len(set(keys)) == len(keys)


def test_it_is_bounded_and_what_was_used_lately_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "MOST_BYTES", 400)
    kept = ModelCache(cache, "k" * 64)
    for number in range(1, 4):
        kept.store((1, number, 1), lambda stream: stream.write(b"x" * 100))
        os.utime(kept.file((1, number, 1)), (number, number))
    assert kept.load((1, 1, 1)) is not None  # it was used now: the second is the oldest
    kept.store((1, 9, 1), lambda stream: stream.write(b"x" * 100))
    assert {path.name.rpartition("-")[2] for path in cache.iterdir()} == {"1x1x1.blob", "1x3x1.blob", "1x9x1.blob"}
    kept.store((1, 5, 1), lambda stream: stream.write(b"x" * 1000))
    assert [path.name.rpartition("-")[2] for path in cache.iterdir()] == ["1x5x1.blob"], "the newest always stays"


def test_a_process_keeps_its_first_sizes_alone(artifact: Artifact, cache: Path) -> None:
    with OpenVinoRuntime(artifact, Precision.FP32, threads=1) as runtime:
        for number in range(1, KEPT_SIZES + 3):
            runtime.run(random_inputs(EDGES, 1, (32 * number, 32)))
    assert len(list(cache.iterdir())) == KEPT_SIZES


def test_a_cache_that_cannot_be_written_costs_time_alone(
    artifact: Artifact, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file where the folder should be")
    np.testing.assert_allclose(image_of(artifact), RIGHT, rtol=0, atol=2.5e-7)
    assert "compiled models are not stored: $SPADE_CACHE_DIR: " in caplog.text
    assert "cannot be made" in caplog.text


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system has no owners of files to check")
def test_a_folder_that_others_may_write_to_is_neither_read_nor_written(
    artifact: Artifact, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = image_of(artifact)
    (path,) = cache.iterdir()
    path.write_bytes(b"planted")
    cache.chmod(0o777)
    monkeypatch.setattr(ModelCache, "load", lambda *_: pytest.fail("it was read"))
    np.testing.assert_array_equal(image_of(artifact), first)
    assert f"compiled models are not stored: $SPADE_CACHE_DIR: other users may write to {cache}" in caplog.text
    assert path.read_bytes() == b"planted"


def test_a_model_that_cannot_be_exported_runs_all_the_same(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("Exception from src/core.cpp:1:\nno export on this device")

    ModelCache(cache, "k" * 64).store((1, 1, 1), fail)
    assert caplog.messages[0].endswith("so the next start compiles the model again: no export on this device")
    assert list(cache.iterdir()) == []


RUN = """
import sys
from spade_deploy.artifact import Artifact, IMAGE
from spade_deploy.engines.openvino.runtime import OpenVinoRuntime
from spade_deploy.spec import Precision
from tests.support.stand_in import EDGES, expected, random_inputs
inputs = random_inputs(EDGES, 1)
for _ in range(5):
    with OpenVinoRuntime(Artifact.open(sys.argv[1]), Precision.FP32, threads=1) as runtime:
        assert abs(runtime.run(inputs)[IMAGE] - expected(EDGES, inputs)[IMAGE]).max() < 2.5e-7
"""


def test_several_processes_use_it_at_once(artifact: Artifact, cache: Path) -> None:
    arguments = [sys.executable, "-c", RUN, str(artifact.path)]
    processes = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        said = process.communicate(timeout=300)[1]
        assert (process.returncode, said) == (0, "")
    assert len(list(cache.iterdir())) == 1
