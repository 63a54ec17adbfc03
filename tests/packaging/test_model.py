"""packaging/model.py as Triton's Python back end runs it: pixels of `spade infer`, and errors for single requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from spade_deploy.artifact import IMAGE, INSTANCE, LABEL, PIXELS, Artifact, Z
from spade_deploy.engines.base import GraphChoice
from spade_deploy.engines.open import open_runtime
from spade_deploy.inference.infer import infer
from spade_deploy.inference.request import InferRequest
from spade_deploy.spec import Backend
from tests.packaging.conftest import blocks
from tests.support.triton import LocalTriton, TritonError

EDGES, STYLED = "tiny-001-lookup", "styled-lookup"


def inputs_of(count: int, seed: int, size: tuple[int, int] = (64, 64)) -> dict[str, np.ndarray]:
    label = blocks(count, 8, size, seed).astype(np.uint8)
    return {LABEL: label, INSTANCE: blocks(count, 9, size, seed + 1).astype(np.int32)}


def noise(size: tuple[int, int] = (64, 64)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {LABEL: rng.integers(0, 8, (1, *size)).astype(np.uint8), INSTANCE: np.zeros((1, *size), np.int32)}


def of_infer(artifact: Artifact, inputs: dict[str, np.ndarray], graph: str, *names: str) -> dict[str, np.ndarray]:
    with open_runtime(artifact, backend="cpu", threads=1, graph=graph) as runtime:
        return runtime.run(inputs, list(names) or [PIXELS])


def test_files_become_the_photos_of_infer(edges: Artifact, edges_triton: LocalTriton, tmp_path: Path) -> None:
    """By the command's own code, from files: maps with few patterns, and one of noise, which the dense graph runs."""
    cases = [inputs_of(1, seed) for seed in range(3)] + [noise()]
    unknown = edges.manifest.generator.labels.unknown_id
    for number, case in enumerate(cases):
        for name in (LABEL, INSTANCE):
            (tmp_path / name).mkdir(exist_ok=True)
            values = np.where(case[name][0] == unknown, 255, case[name][0]) if name == LABEL else case[name][0]
            Image.fromarray(values.astype(np.uint8)).save(tmp_path / name / f"{number}.png")
    asked = InferRequest(
        tmp_path / LABEL, tmp_path / "out", instances=tmp_path / INSTANCE, backend=Backend.CPU, threads=1
    )
    assert not infer(edges, asked).failures
    edges_triton.calls.clear()
    for number, case in enumerate(cases):
        photo = np.asarray(Image.open(tmp_path / "out" / f"{number}.png"))
        np.testing.assert_array_equal(edges_triton.infer(EDGES, case)[PIXELS][0], photo)
    assert edges_triton.calls == [f"{EDGES}-graph"] * 3 + ["tiny-001"]


def test_a_batch_is_that_of_the_runtime(edges: Artifact, edges_triton: LocalTriton) -> None:
    """Requests that are joined, some of several maps, share their patterns, and each gets its own images."""
    cases = [inputs_of(count, 10 + count) for count in (1, 3, 2)]
    edges_triton.calls.clear()
    responses = edges_triton.models[EDGES].execute([edges_triton.request(case, [IMAGE, PIXELS]) for case in cases])
    assert edges_triton.calls == [f"{EDGES}-graph"]
    joined = {name: np.concatenate([case[name] for case in cases]) for name in cases[0]}
    expected = of_infer(edges, joined, GraphChoice.LOOKUP, PIXELS, IMAGE)
    start = 0
    for case, response in zip(cases, responses, strict=True):
        made = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        assert list(made) == [IMAGE, PIXELS], "as they were asked for"
        for name, array in made.items():
            np.testing.assert_array_equal(array, expected[name][start : start + len(case[LABEL])])
        start += len(case[LABEL])


def test_sizes_are_not_mixed(edges: Artifact, edges_triton: LocalTriton) -> None:
    sizes = ((64, 64), (32, 96), (64, 96), (64, 64))
    cases = [inputs_of(1, number, size) for number, size in enumerate(sizes, 1)]
    edges_triton.calls.clear()
    responses = edges_triton.models[EDGES].execute([edges_triton.request(case) for case in cases])
    assert len(edges_triton.calls) == 3
    for case, response in zip(cases, responses, strict=True):
        (tensor,) = response.output_tensors()
        found = tensor.as_numpy().astype(int)
        flips = np.abs(found - of_infer(edges, case, GraphChoice.LOOKUP)[PIXELS])
        # More rows in a product may round differently: one step of a byte, where the value stood at its edge.
        assert flips.max() <= 1
        assert (flips > 0).mean() < 1e-3
    assert np.abs(found - of_infer(edges, cases[0], GraphChoice.LOOKUP)[PIXELS]).max() > 10, "the counter-test"


def test_a_bad_request_fails_alone(edges: Artifact, edges_triton: LocalTriton) -> None:
    good = inputs_of(1, 5)
    bad = [
        ({**good, LABEL: np.full((1, 64, 64), 8, np.uint8)}, "id 8 is out of range; allowed are 0..7"),
        ({**good, LABEL: good[LABEL][:, :48], INSTANCE: good[INSTANCE][:, :48]}, "height 48 is not a multiple of 32"),
        ({**good, INSTANCE: good[INSTANCE][:, :32]}, "instance: shape 1 x 32 x 64: H is 32, but 64 in label"),
    ]
    requests = [good, bad[0][0], inputs_of(1, 6), bad[1][0], bad[2][0]]
    asked = [edges_triton.request(case) for case in requests] + [edges_triton.request(good, is_cancelled=True)]
    edges_triton.calls.clear()
    responses = edges_triton.models[EDGES].execute(asked)
    assert [response.has_error() for response in responses] == [False, True, False, True, True, True]
    assert edges_triton.calls == [f"{EDGES}-graph"]
    for number, (_, said) in zip((1, 3, 4), bad, strict=True):
        assert said in responses[number].error().message()
        assert responses[number].error().code() == TritonError.INVALID_ARG
    assert responses[5].error().code() == TritonError.CANCELLED
    expected = of_infer(edges, {name: np.concatenate([good[name], requests[2][name]]) for name in good}, "lookup")
    for number, image in zip((0, 2), expected[PIXELS], strict=True):
        np.testing.assert_array_equal(responses[number].output_tensors()[0].as_numpy()[0], image)


def test_where_a_graph_fails_the_requests_are_tried_alone(edges_triton: LocalTriton) -> None:
    """As where a batch needs more memory than there is. Noise still gets its image, by the dense graph."""
    edges_triton.broken.add(f"{EDGES}-graph")
    edges_triton.calls.clear()
    try:
        asked = [edges_triton.request(case) for case in (inputs_of(1, 1), inputs_of(1, 2), noise((32, 96)))]
        responses = edges_triton.models[EDGES].execute(asked)
    finally:
        edges_triton.broken.clear()
    assert [response.has_error() for response in responses] == [True, True, False]
    error = responses[0].error()
    assert (error.message(), error.code()) == (f"{EDGES}-graph: out of memory", TritonError.INTERNAL)
    assert edges_triton.calls == [f"{EDGES}-graph"] * 3 + ["tiny-001"]


def test_what_is_left_out_of_a_request(edges_triton: LocalTriton, styled: Artifact, styled_triton: LocalTriton) -> None:
    """Without an instance map each map is one object; without a style it is the mean style."""
    case = inputs_of(1, 3)
    alone = edges_triton.infer(EDGES, {LABEL: case[LABEL]})[PIXELS]
    blank = edges_triton.infer(EDGES, {**case, INSTANCE: np.zeros_like(case[INSTANCE])})[PIXELS]
    np.testing.assert_array_equal(alone, blank)
    assert np.abs(alone.astype(int) - edges_triton.infer(EDGES, case)[PIXELS]).max() > 3, "instances count"
    label = blocks(2, 300, seed=4).astype(np.int32)
    style = np.random.default_rng(0).standard_normal((2, 4), np.float32)
    for inputs, z in (({LABEL: label}, np.zeros_like(style)), ({LABEL: label, Z: style}, style)):
        made = styled_triton.infer(STYLED, inputs)[PIXELS]
        expected = of_infer(styled, {LABEL: label, Z: z}, GraphChoice.LOOKUP)[PIXELS]
        np.testing.assert_array_equal(made, expected)


def test_without_a_measured_share_every_map_is_looked_up(styled_triton: LocalTriton) -> None:
    styled_triton.calls.clear()
    rng = np.random.default_rng(0)
    styled_triton.infer(STYLED, {LABEL: rng.integers(0, 300, (1, 64, 64)).astype(np.int32)})
    assert styled_triton.calls == [f"{STYLED}-graph"]


def test_the_file_in_the_repository_is_the_packages(edges_triton: LocalTriton) -> None:
    from tests.support.paths import ROOT

    own = ROOT / "spade_deploy" / "packaging" / "model.py"
    assert (edges_triton.models[EDGES].version / "model.py").read_bytes() == own.read_bytes()
