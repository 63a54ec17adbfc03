"""What reads requests, on any input: a map of the right shape and type, or a documented problem. Never another
exception, never a map that differs from what was sent, never more memory than the limits stand for."""

from __future__ import annotations

import base64
import ctypes
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from spade_deploy.artifact import INSTANCE, LABEL, Z
from spade_deploy.errors import SpadeError
from spade_deploy.images.image_file import ImageBytes
from tests.support import png_writer
from tests.support.png_writer import CHANNELS, GREY, LEGAL, PALETTE, RGB_ALPHA, chunk
from tests.support.served import png, served_models, some_map
from tests.support.stand_in import EDGES, PLAIN

pytest.importorskip("fastapi", reason="pip install 'spade-deploy[serve]'")
from spade_deploy.serving.app import make_app
from spade_deploy.serving.maps import Asked, RunLengths, asked_beside, asked_of_json, inputs_of
from spade_deploy.serving.pictures import MEDIA_TYPES, encode, parse_format, parse_quality
from spade_deploy.serving.problems import status_of
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.routes import json_of

testclient = pytest.importorskip("starlette.testclient", reason="pip install httpx")

LIMIT = 64 * 64
"""Pixels that are read here."""
REFUSALS = {400, 413, 415, 422}
HEADS = (
    png_writer.png(np.zeros((1, 1, 1), np.int64), GREY, 8)[:33],
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"RIFF",
    b"\xff\xd8\xff",
)


def often(count: int) -> settings:
    """The same examples in each run, so that a test never fails by chance."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return dict(served_models(tmp_path_factory.mktemp("decoder")))


@pytest.fixture(scope="module")
def client(models: dict[str, Any]) -> Iterator[Any]:
    app = make_app(models, ServeRequest(max_bytes=1 << 20, max_pixels=LIMIT))
    with testclient.TestClient(app, base_url="http://127.0.0.1:8000") as found:
        yield found


def outcome(make: Callable[[], Any]) -> Any:
    """What a reader makes, or None for a documented refusal; any other exception fails the test."""
    try:
        return make()
    except SpadeError as error:
        refused = error
    assert status_of(refused) in REFUSALS, refused
    assert refused.message
    assert len(refused.message) < 1000
    refused.message.encode()  # it can be sent
    return None


def image_of(models: dict[str, Any], content: bytes, name: str = "plain") -> NDArray[Any] | None:
    """The label map that the model would be fed, or None where the bytes are refused."""
    asked = Asked(ImageBytes("`label`", content, LIMIT), keep_size=True)
    inputs = outcome(lambda: inputs_of(models[name], asked, LIMIT))
    if inputs is None:
        return None
    label: NDArray[Any] = inputs[LABEL]
    spec = models[name].spec
    assert label.dtype == spec.labels.id_type
    assert label.ndim == 3
    assert 0 <= label.min() <= label.max() < spec.labels.num_ids
    assert label.size <= LIMIT
    return label[0]


# --- bytes of an image file


@often(300)
@given(head=st.sampled_from((b"", *HEADS)), rest=st.binary(max_size=400))
def test_any_bytes_are_a_map_or_a_problem(models: dict[str, Any], head: bytes, rest: bytes) -> None:
    image_of(models, head + rest)


@st.composite
def maps(draw: st.DrawFn) -> NDArray[np.int64]:
    """Ids of the plain model, of a size that it takes."""
    height, width = draw(st.sampled_from([(32, 32), (64, 32), (32, 64), (64, 64)]))
    return np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 5, (height, width))


@often(60)
@given(values=maps(), kind=st.sampled_from(LEGAL), is_interlaced=st.booleans())
def test_every_kind_of_png_gives_its_own_numbers_or_is_refused(
    models: dict[str, Any], values: NDArray[np.int64], kind: tuple[int, int], is_interlaced: bool
) -> None:
    color_type, depth = kind
    values = values % 2**depth
    samples = np.repeat(values[..., None], CHANNELS[color_type], 2)
    colors = [(index * 37 % 256, 5, 9) for index in range(min(2**depth, 256))] if color_type == PALETTE else ()
    content = png_writer.png(samples, color_type, depth, is_interlaced=is_interlaced, palette=colors)
    found = image_of(models, content)
    if color_type in (GREY, PALETTE):
        np.testing.assert_array_equal(found, values)
    else:
        assert found is None, "a colour image is no label map"


@often(300)
@given(
    values=maps(),
    is_interlaced=st.booleans(),
    what=st.sampled_from(["flip", "cut", "insert", "drop"]),
    where=st.floats(0, 1, exclude_max=True),
    bits=st.integers(1, 255),
)
def test_a_damaged_png_is_refused_or_gives_what_was_sent(
    models: dict[str, Any], values: NDArray[np.int64], is_interlaced: bool, what: str, where: float, bits: int
) -> None:
    whole = png_writer.png(values[..., None], GREY, 8, is_interlaced=is_interlaced)
    at = int(where * len(whole))
    content = {
        "flip": whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :],
        "cut": whole[:at],
        "insert": whole[:at] + bytes([bits]) + whole[at:],
        "drop": whole[:at] + whole[at + 1 :],
    }[what]
    found = image_of(models, content)
    if found is not None:
        np.testing.assert_array_equal(found, values)


@often(40)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([(1, 1), (1, 64), (33, 7), (64, 64)]))
def test_pixels_come_back_from_a_png(seed: int, size: tuple[int, int]) -> None:
    from tests.support.served import pixels_of

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    np.testing.assert_array_equal(pixels_of(encode(pixels, "png")), pixels)


# --- run lengths


def runs_of(values: NDArray[Any]) -> list[int]:
    """[value, length, ...] of a map, row by row, by the plainest loop."""
    found: list[int] = []
    for value in values.ravel().tolist():
        if found and found[-2] == value:
            found[-1] += 1
        else:
            found += [value, 1]
    return found


@often(100)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    ids=st.sampled_from([1, 2, 5, 300, 2**31 - 1]),
)
def test_a_map_comes_back_from_its_run_lengths(seed: int, height: int, width: int, ids: int) -> None:
    values = np.random.default_rng(seed).integers(0, ids, (height, width))
    body = json.dumps({"label": {"height": height, "width": width, "runs": runs_of(values)}})
    source = asked_of_json(json_of(body.encode()), LIMIT).label
    assert isinstance(source, RunLengths)
    found = source.values(LIMIT)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, values)


numbers = st.one_of(st.integers(-3, 70), st.integers(-(2**70), 2**70), st.just(2**31 - 1), st.just(10**4299))


@often(300)
@given(height=numbers, width=numbers, runs=st.lists(numbers, max_size=8))
@example(2, 2, [0, 3, 0, 2**31 - 1])
@example(10**4299, 10**4299, [0, 1])
def test_any_run_lengths_are_a_map_or_a_problem(
    models: dict[str, Any], height: int, width: int, runs: list[int]
) -> None:
    body = {"label": {"height": height, "width": width, "runs": runs}, "size": "keep"}
    inputs = outcome(lambda: inputs_of(models["plain"], asked_of_json(body, LIMIT), LIMIT))
    if inputs is not None:
        assert inputs[LABEL].shape == (1, height, width)
        assert sum(runs[1::2]) == height * width


# --- JSON, base64 and forms

leaves = st.one_of(
    st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=8), st.sampled_from(["keep", "64x32", "\ud800"])
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)
GOOD_LABEL = {"height": 64, "width": 32, "runs": [0, 2048]}


@often(400)
@given(
    fields=st.dictionaries(
        st.sampled_from(["instance", "model", "seed", "style", "style_photo", "size", "format", "quality", "\ud800x"]),
        anything,
        max_size=3,
    ),
    label=st.just(GOOD_LABEL) | anything,
    name=st.sampled_from(["plain", "edges", "styled"]),
)
@example({"style": [10**400, 1]}, GOOD_LABEL, "styled")
@example({"style": [1e39, 1]}, GOOD_LABEL, "styled")
@example({"style": [float("nan"), 1]}, GOOD_LABEL, "styled")
@example({"quality": 10**4299}, GOOD_LABEL, "plain")
def test_any_json_is_a_request_or_a_problem(
    models: dict[str, Any], fields: dict[str, Any], label: Any, name: str
) -> None:
    def made() -> Any:
        asked = asked_of_json({**fields, "label": label}, LIMIT)
        parse_quality(fields.get("quality"))
        return inputs_of(models[name], asked, LIMIT)

    inputs = outcome(made)
    if inputs is not None:
        spec = models[name].spec
        assert inputs[LABEL].dtype == spec.labels.id_type
        assert (INSTANCE in inputs, Z in inputs) == (spec.labels.has_edges, spec.z_dim is not None)
        assert all(np.isfinite(array).all() for array in inputs.values())
    outcome(lambda: asked_beside(fields, ImageBytes("`label`", b"", LIMIT), LIMIT))


@often(200)
@given(content=st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"[" * 5000)
@example(b'{"label":' * 5000)
@example(b"1" * 5000)
def test_any_body_is_json_or_a_problem(content: bytes) -> None:
    outcome(lambda: asked_of_json(json_of(content), LIMIT))


@often(100)
@given(content=st.binary(max_size=60), text=st.text(max_size=30))
def test_base64_gives_its_bytes_or_a_problem(content: bytes, text: str) -> None:
    encoded = base64.b64encode(content).decode()
    for sent in (encoded, f"data:image/png;base64,{encoded}"):
        source = asked_of_json({"label": sent}, LIMIT).label
        assert isinstance(source, ImageBytes)
        assert source.content == content
    outcome(lambda: asked_of_json({"label": text}, LIMIT))


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="label"; filename="a.png"\r\n\r\n'
    + png(some_map(PLAIN))
    + b'\r\n--x\r\nContent-Disposition: form-data; name="format"\r\n\r\npng\r\n--x--\r\n'
)


@often(150)
@given(
    what=st.sampled_from(["flip", "cut", "insert", "replace"]),
    where=st.floats(0, 1, exclude_max=True),
    part=st.binary(min_size=1, max_size=30),
    charset=st.sampled_from(["", "; charset=idna", "; charset=zlib", "; charset=punycode", "; charset=undefined"]),
)
@example("replace", 0.999, b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff..\r\n', "; charset=idna")
def test_any_form_is_an_image_or_a_problem(client: Any, what: str, where: float, part: bytes, charset: str) -> None:
    at = int(where * len(FORM))
    content = {
        "flip": FORM[:at] + bytes([FORM[at] ^ (part[0] or 1)]) + FORM[at + 1 :],
        "cut": FORM[:at],
        "insert": FORM[:at] + part + FORM[at:],
        "replace": FORM[: FORM.rfind(b"--x--")] + part + b"--x--\r\n",
    }[what]
    headers = {"content-type": f"multipart/form-data; boundary=x{charset}"}
    answer = client.post("/v1/synthesize", content=content, headers=headers)
    assert answer.status_code in {200, 404, *REFUSALS}, answer.text
    is_image = answer.status_code == 200
    assert answer.headers["content-type"] in (MEDIA_TYPES.values() if is_image else ("application/problem+json",))


@often(100)
@given(name=st.none() | st.text(max_size=10), accept=st.text(max_size=30), quality=anything)
def test_any_format_and_quality_are_known_or_a_problem(name: str | None, accept: str, quality: Any) -> None:
    assert outcome(lambda: parse_format(name, accept)) in (None, *MEDIA_TYPES)
    assert outcome(lambda: parse_quality(quality)) in (None, *range(1, 101))


# --- memory

_ZEROS = zlib.compress(bytes(64 << 20))
_HEADER = chunk(b"IHDR", b"\0\0\0\x20\0\0\0\x40\x08\0\0\0\0")
_PIXELS = chunk(b"IDAT", zlib.compress(bytes(64 * 33)))
_END = chunk(b"IEND", b"")
BOMBS = {
    "pixels beyond the header's size": _HEADER + chunk(b"IDAT", _ZEROS) + _END,
    "a compressed text": _HEADER + chunk(b"zTXt", b"a\0\0" + _ZEROS) + _PIXELS + _END,
    "an international text": _HEADER + chunk(b"iTXt", b"a\0\1\0\0\0" + _ZEROS) + _PIXELS + _END,
    "a colour profile": _HEADER + chunk(b"iCCP", b"a\0\0" + _ZEROS) + _PIXELS + _END,
    "a header of 900 million pixels": chunk(b"IHDR", b"\0\0\x75\x30\0\0\x75\x30\x01\0\0\0\0") + _PIXELS + _END,
    "a header of two billion columns": chunk(b"IHDR", b"\x7f\xff\xff\xff\0\0\0\x01\x01\0\0\0\0") + _PIXELS + _END,
}
_MOST_GROWTH = 16 << 20
"""Bytes, a quarter of the 64 MiB that a bomb holds; the counter-test shows that inflating one is seen."""


def growth_of(action: Callable[[], object]) -> int:
    """How far the peak of this process's memory rises above what it holds now, in bytes."""
    process, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def of(name: str) -> int:
        return next(int(line.split()[1]) << 10 for line in process.read_text().splitlines() if line.startswith(name))

    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # what was freed before would be taken again, and no growth be seen
        ctypes.CDLL(None).malloc_trim(0)
    try:
        reset.write_text("5")  # the peak is counted from now on
    except OSError:
        pytest.skip("this system does not tell the peak of a process's memory")
    before = of("VmRSS:")
    action()
    return of("VmHWM:") - before


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_memory(models: dict[str, Any], name: str) -> None:
    content = b"\x89PNG\r\n\x1a\n" + BOMBS[name]
    assert len(content) < 70_000
    assert growth_of(lambda: image_of(models, content)) < _MOST_GROWTH
    assert growth_of(lambda: zlib.decompress(_ZEROS)) > _MOST_GROWTH, "the measurement sees what a bomb would take"


@pytest.mark.parametrize("part", [b"[],", b"{},", b'"ab",', b'{"a":'])
def test_json_of_many_small_parts_takes_no_memory(part: bytes) -> None:
    content = b"[" + part * ((1 << 20) // len(part))
    assert growth_of(lambda: outcome(lambda: asked_of_json(json_of(content), LIMIT))) < _MOST_GROWTH


def test_the_largest_images_take_what_their_pixels_need(models: dict[str, Any]) -> None:
    """16 bits and four channels are the most expensive kind: about 50 bytes a pixel."""
    pixels = 512 * 512
    content = png_writer.png(np.zeros((512, 512, 4), np.int64), RGB_ALPHA, 16)
    asked = Asked(ImageBytes("`label`", content, pixels))
    assert growth_of(lambda: outcome(lambda: inputs_of(models["plain"], asked, pixels))) < 80 * pixels
    edges = Asked(ImageBytes("`label`", png(some_map(EDGES)), LIMIT), ImageBytes("`instance`", content, LIMIT))
    assert outcome(lambda: inputs_of(models["edges"], edges, LIMIT)) is None
