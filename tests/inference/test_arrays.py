"""Arrays in, images out: the same pixels as the graph's own, and a refusal for what the model does not take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from spade_deploy.artifact import INSTANCE, LABEL, PIXELS, Z
from spade_deploy.engines.base import Backend, Runtime
from spade_deploy.engines.open import open_runtime
from spade_deploy.errors import ConfigError, InputRefusedError
from spade_deploy.inference.arrays import make_images
from spade_deploy.spec import GeneratorSpec
from tests.support.stand_in import EDGES, PLAIN, STYLED, expected, random_inputs, stand_in_artifact


@pytest.fixture
def runtime_of(tmp_path: Path) -> Iterator[Callable[[GeneratorSpec], Runtime]]:
    with ExitStack() as stack:
        opened: list[Runtime] = []

        def open_one(spec: GeneratorSpec) -> Runtime:
            artifact = stand_in_artifact(tmp_path / str(len(opened)), spec)
            opened.append(stack.enter_context(open_runtime(artifact, backend=Backend.CPU)))
            return opened[-1]

        yield open_one


@pytest.mark.parametrize("spec", [PLAIN, EDGES, STYLED])
@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
def test_the_pixels_are_the_graphs_own(
    spec: GeneratorSpec, dtype: type, runtime_of: Callable[[GeneratorSpec], Runtime]
) -> None:
    inputs = random_inputs(spec, 3)
    found = make_images(runtime_of(spec), inputs[LABEL].astype(dtype), inputs.get(INSTANCE), inputs.get(Z))
    np.testing.assert_array_equal(found, expected(spec, inputs)[PIXELS])


@pytest.mark.parametrize("spec", [PLAIN, EDGES, STYLED])
def test_one_map_as_lists_gives_one_image(spec: GeneratorSpec, runtime_of: Callable[[GeneratorSpec], Runtime]) -> None:
    inputs = random_inputs(spec, 1)
    found = make_images(
        runtime_of(spec), *(inputs[name][0].tolist() if name in inputs else None for name in (LABEL, INSTANCE, Z))
    )
    np.testing.assert_array_equal(found, expected(spec, inputs)[PIXELS][0])


def test_without_instances_and_styles_a_map_is_one_object_of_the_mean_style(
    runtime_of: Callable[[GeneratorSpec], Runtime],
) -> None:
    for spec, name in ((EDGES, INSTANCE), (STYLED, Z)):
        inputs = random_inputs(spec, 2)
        inputs[name] = np.zeros_like(inputs[name])
        np.testing.assert_array_equal(make_images(runtime_of(spec), inputs[LABEL]), expected(spec, inputs)[PIXELS])


def test_what_the_model_does_not_take_is_refused(runtime_of: Callable[[GeneratorSpec], Runtime]) -> None:
    plain, edges = runtime_of(PLAIN), runtime_of(EDGES)
    fine = np.zeros((64, 32), np.int64)
    for label, said in (
        (fine + 5, r"input label: id 5 is out of range; allowed are 0\.\.4"),
        (fine + 261, "`labels`: 261 is out of range"),  # as a byte it would be 5
        (fine - 1, "`labels`: -1 is out of range"),  # as a byte it would be 255
        (fine + 0.5, "`labels` holds float64"),
        (fine[0], r"`labels` is of shape \(32,\)"),
        (np.zeros((64, 33), np.int64), "input label: width 33 is not a multiple of"),
    ):
        with pytest.raises(InputRefusedError, match=said):
            make_images(plain, label)
    with pytest.raises(ConfigError, match="`instances`: this model has no edges"):
        make_images(plain, fine, fine)
    with pytest.raises(ConfigError, match="`styles`: this model has no style vector"):
        make_images(plain, fine, styles=np.zeros((1, 2)))
    with pytest.raises(InputRefusedError, match=r"`instances` is of shape \(1, 32, 64\), `labels` of \(32, 64\)"):
        make_images(edges, np.zeros((32, 64), np.uint8), np.zeros((1, 32, 64), np.int32))
    with pytest.raises(InputRefusedError, match="`instances`: 2147483648 is out of range"):
        make_images(edges, np.zeros((32, 64), np.uint8), np.full((32, 64), 1 << 31))
