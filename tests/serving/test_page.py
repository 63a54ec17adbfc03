"""The paint page in a real browser: what one draws becomes the right photo, whatever one draws it with."""

from __future__ import annotations

import base64
import io
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("fastapi", reason="pip install 'spade-deploy[serve]'")

from spade_deploy.artifact import LABEL
from spade_deploy.images.image_file import ImageBytes
from spade_deploy.inference import encode_photo
from spade_deploy.labels.palettes import effective_palette
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.page_files import PAGE_FOLDER
from spade_deploy.serving.runner import QueueFullError, Runner
from tests.support.browser import axe_script, browser
from tests.support.page import Page, Server, drawn, png_pixels
from tests.support.served import png, right_pixels, served_models, some_map
from tests.support.stand_in import EDGES, PLAIN, STYLED, with_directions, with_stand_in_encoder

TOKEN = "a-token-of-many-letters"
EMPTY = np.zeros((PLAIN.height, PLAIN.width), np.uint8)
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServedModel]:
    return served_models(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def server(models: dict[str, ServedModel], chromium: Any) -> Iterator[Server]:
    found = Server(models, max_pixels=64 * 64)
    yield found
    found.stop()


IS_READY = """() => document.querySelector("#stage.has-photo, dialog[open]")
  || !document.getElementById("notice").hidden"""
"""The page shows its first photo, a question, or what is wrong; before that nothing listens to the mouse."""


@pytest.fixture
def open_page(chromium: Any, server: Server) -> Iterator[Open]:
    """Opens the page; at the end it must have complained of nothing: no error, and nothing that its policy forbids."""
    opened: list[Page] = []

    def found(url: str | None = None, **how: Any) -> Page:
        opened.append(Page(chromium, url or server.url, **how))
        opened[-1].tab.wait_for_function(IS_READY)
        return opened[-1]

    yield found
    complaints = [said for page in opened for said in page.complaints if "WebSocket connection" not in said]
    for page in opened:
        page.close()
    assert complaints == []


def colors_of(model: ServedModel) -> NDArray[np.uint8]:
    return np.array(effective_palette(model.spec.labels), np.uint8)


def disc(label: NDArray[Any], x: int, y: int, size: int, value: int) -> NDArray[Any]:
    """The map with a round dab: the pixels whose middle is at most half of `size` from that of the brush."""
    rows, columns = np.mgrid[: label.shape[0], : label.shape[1]]
    shift = (size - 1) / 2 - (size - 1) // 2
    inside = (columns - x - shift) ** 2 + (rows - y - shift) ** 2 <= (size / 2) ** 2
    return np.where(inside, value, label)


def uploaded(page: Page, content: bytes, field: str = "upload-map", name: str = "map.png") -> None:
    page.tab.click("#new")
    page.tab.set_input_files(f"#{field}", {"name": name, "mimeType": "image/png", "buffer": content})


def test_what_is_drawn_becomes_the_right_photo(open_page: Open, models: dict[str, ServedModel]) -> None:
    page = open_page()
    page.wait_for_photo(right_pixels(PLAIN, EMPTY))
    label = EMPTY.copy()
    page.pick(3)
    page.tool("rectangle")
    page.drag((4, 10), (12, 20), (20, 30))
    label[10:31, 4:21] = 3
    page.wait_for_photo(right_pixels(PLAIN, label))
    np.testing.assert_array_equal(drawn(page, colors_of(models["plain"])), label)

    page.pick(2)
    page.tool("fill")
    page.drag((0, 0))
    label[label == 0] = 2
    page.wait_for_photo(right_pixels(PLAIN, label))

    page.pick(1)
    page.tool("brush")
    page.tab.locator("#size").fill("47")  # of 100, on a scale of logarithms: 64^0.47 = 7 pixels
    assert page.text("size-shown") == "7 px"
    page.drag((16, 40))
    dabbed = disc(label, 16, 40, 7, 1)
    page.wait_for_photo(right_pixels(PLAIN, dabbed))
    page.tab.locator("[data-shape=square]").click()
    page.drag((16, 52), (16, 56))
    dabbed[49:60, 13:20] = 1
    page.wait_for_photo(right_pixels(PLAIN, dabbed))

    page.tab.keyboard.press("Control+z")
    page.tab.keyboard.press("Control+z")
    page.wait_for_photo(right_pixels(PLAIN, label))
    page.tab.keyboard.press("Control+z")
    page.tab.click("#undo")
    page.wait_for_photo(right_pixels(PLAIN, EMPTY))
    for _ in range(4):
        page.tab.keyboard.press("Control+Shift+z")
    page.wait_for_photo(right_pixels(PLAIN, dabbed))
    page.tab.reload()  # which loses nothing
    page.wait_for_photo(right_pixels(PLAIN, dabbed))


SPY = """() => {
  const send = WebSocket.prototype.send;
  window.sent = [];
  WebSocket.prototype.send = function (data) {
    const end = data.indexOf(10);
    window.sent.push([JSON.parse(new TextDecoder().decode(data.subarray(0, end))), [...data.subarray(end + 1)]]);
    return send.call(this, data);
  };
}"""


def test_a_small_stroke_sends_what_changed_and_a_409_the_whole_map(open_page: Open, server: Server) -> None:
    page = open_page()
    label = some_map(PLAIN, 5)
    uploaded(page, png(label))
    page.wait_for_photo(right_pixels(PLAIN, label))
    page.wait_for_text("state-text", "Live")
    page.tab.evaluate(SPY)
    page.tab.locator("#size").fill("0")  # a brush of one pixel
    drawings = server.app.state.serving.drawings
    for x, is_forgotten in ((5, False), (9, True), (13, False)):
        if is_forgotten:
            for key in list(drawings._held):
                drawings.drop(key)
        label[6, x] = (label[6, x] + 1) % 5
        page.pick(int(label[6, x]))
        page.drag((x, 6))
        page.wait_for_photo(right_pixels(PLAIN, label))
        page.wait_for_text("state-text", "Live")
        sent = page.tab.evaluate("window.sent.splice(0)")
        patch = {"x": x, "y": 6, "width": 1, "height": 1, "runs": [int(label[6, x]), 1]}
        assert [(head["patches"], rest) for head, rest in sent if head.get("patches")] == [([patch], [])]
        whole = [rest for head, rest in sent if "base" not in head]
        assert len(whole) == is_forgotten
        for content in whole:
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(bytes(content)))), label)


def test_lines_polygons_moves_and_picked_classes(open_page: Open) -> None:
    page = open_page()
    label = EMPTY.copy()
    page.tab.locator("#size").fill("0")
    page.pick(4)
    page.tool("line")
    page.drag((2, 2), (29, 2))
    label[2, 2:30] = 4
    page.wait_for_photo(right_pixels(PLAIN, label))
    page.tool("polygon")
    for corner in ((5, 10), (25, 10), (25, 30), (5, 30)):
        page.drag(corner)
    page.tab.keyboard.press("Enter")
    label[10:31, 5:26] = 4
    page.wait_for_photo(right_pixels(PLAIN, label))
    page.tool("move")
    page.drag((10, 15), (10, 25), (12, 45))
    label[10:31, 5:26] = 0
    label[40:61, 7:28] = 4
    page.wait_for_photo(right_pixels(PLAIN, label))
    page.pick(1)
    page.tool("eyedropper")
    page.drag((12, 45))
    assert page.tab.locator("#classes [aria-checked=true]").get_attribute("data-id") == "4"
    page.tool("eraser")
    page.drag((2, 2), (29, 2))
    label[2, 2:30] = 0
    page.wait_for_photo(right_pixels(PLAIN, label))
    page.tool("pan")
    page.drag((10, 20), (14, 24))
    page.tab.keyboard.press("+")
    page.tool("rectangle")
    page.drag((10, 20), (14, 24))  # where the view was moved and zoomed to
    label[20:25, 10:15] = 4
    page.wait_for_photo(right_pixels(PLAIN, label))


def test_files_are_read_by_their_numbers_and_pictures_by_their_colours(
    open_page: Open, models: dict[str, ServedModel]
) -> None:
    page = open_page()
    label = some_map(PLAIN, 7)
    uploaded(page, png(label))
    page.wait_for_photo(right_pixels(PLAIN, label))
    page.tab.keyboard.press("Control+z")
    page.wait_for_photo(right_pixels(PLAIN, EMPTY))

    stream = io.BytesIO()
    palette_file = Image.frombytes("P", (PLAIN.width, PLAIN.height), label.tobytes())
    palette_file.putpalette(colors_of(models["plain"]).tobytes())
    palette_file.save(stream, "PNG", bits=4)
    uploaded(page, stream.getvalue())
    page.wait_for_photo(right_pixels(PLAIN, label))

    near = np.clip(colors_of(models["plain"])[some_map(PLAIN, 8)].astype(int) + 9, 0, 255)
    uploaded(page, png_of(near.astype(np.uint8)), "upload-colours")
    page.wait_for_photo(right_pixels(PLAIN, some_map(PLAIN, 8)))

    uploaded(page, png(np.full((64, 32), 9)))
    page.wait_for_text("toast", r"map.png cannot be read: 2048 pixels have the id 9, and the model knows 0 to 4")
    page.tab.keyboard.press("Escape")
    uploaded(page, b"no picture", name="x.png")
    page.wait_for_text("toast", "x.png cannot be read: it is no PNG")
    page.tab.keyboard.press("Escape")
    page.wait_for_photo(right_pixels(PLAIN, some_map(PLAIN, 8)))

    page.tab.click("#new")
    page.tab.locator("#samples .card").nth(1).click()
    sample = models["plain"].artifact.golden().inputs[LABEL][1]
    page.wait_for_photo(right_pixels(PLAIN, sample))

    page.choose("edges")  # borders between the classes stand for the instances
    page.tab.wait_for_selector('#classes [data-id="5"]')
    page.pick(3)
    page.tool("rectangle")
    page.drag((4, 4), (40, 20))
    ground = np.full((EDGES.height, EDGES.width), 5)
    ground[4:21, 4:41] = 3
    page.wait_for_photo(right_pixels(EDGES, ground, ground))
    page.choose("plain")
    page.wait_for_photo(right_pixels(PLAIN, sample))


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_styles_and_ids_beyond_255(open_page: Open, server: Server) -> None:
    page = open_page()
    page.choose("styled")
    label = np.arange(32 * 32).reshape(32, 32) % 300
    stream = io.BytesIO()
    Image.fromarray(label.astype(np.uint16)).save(stream, "PNG")
    uploaded(page, stream.getvalue())
    page.wait_for_photo(right_pixels(STYLED, label))
    page.tab.click("#style")
    assert page.tab.locator("#style-photo-row").is_hidden(), "this model has no encoder"
    page.tab.fill("#seed", "7")
    style = np.random.default_rng(7).standard_normal((1, 2), np.float32)[0]
    page.wait_for_photo(right_pixels(STYLED, label, style=style))
    page.tab.keyboard.press("Escape")
    saved = np.asarray(Image.open(io.BytesIO(page.download("save-map"))))
    np.testing.assert_array_equal(saved, label)
    np.testing.assert_array_equal(png_pixels(page.download("save-photo")), right_pixels(STYLED, label, style=style))
    page.tab.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.tab.click("#save-link")
    page.wait_for_text("save-said", "The link is copied")
    other = open_page(page.tab.evaluate("window.copied"))
    other.wait_for_photo(right_pixels(STYLED, label, style=style))
    assert other.tab.evaluate("location.hash") == "", "the drawing does not stay in the address"


def test_the_style_of_a_photo(open_page: Open, tmp_path: Path) -> None:
    found = served_models(tmp_path)["styled"]
    artifact = with_stand_in_encoder(found.artifact.path, STYLED)
    photo = png_of(np.zeros((40, 50, 3), np.uint8) + np.uint8([0, 1, 0]))  # its mean, a third, is the style
    style = encode_photo(artifact, ImageBytes("photo", photo))[0][0]
    np.testing.assert_allclose(style, 1 / 3, rtol=1e-6)
    server = Server({"styled": replace(found, artifact=artifact)})
    try:
        page = open_page(server.url)
        empty = np.zeros((32, 32), int)
        page.wait_for_photo(right_pixels(STYLED, empty))
        page.tab.click("#style")
        page.tab.set_input_files("#style-photo", {"name": "a.png", "mimeType": "image/png", "buffer": photo})
        page.wait_for_photo(right_pixels(STYLED, empty, style=style))
        page.tab.set_input_files("#style-photo", {"name": "b.png", "mimeType": "image/png", "buffer": b"no photo"})
        page.wait_for_text("style-photo-name", "not an image file")
        page.wait_for_photo(right_pixels(STYLED, empty))
        page.complaints.clear()  # the browser logs the answer 422
    finally:
        page.close()
        server.stop()


def test_sliders_move_the_style(open_page: Open, models: dict[str, ServedModel], tmp_path: Path) -> None:
    artifact = with_directions(served_models(tmp_path)["styled"].artifact.path)
    server = Server({"styled": replace(models["styled"], artifact=artifact)})
    try:
        page = open_page(server.url)
        empty = np.zeros((32, 32), int)
        page.wait_for_photo(right_pixels(STYLED, empty))
        page.tab.click("#style")
        page.tab.locator("#style-directions input").nth(1).fill("-1.5")
        page.wait_for_photo(right_pixels(STYLED, empty, style=np.float32([1.2, -0.9])))
        page.tab.fill("#seed", "7")
        random = np.random.default_rng(7).standard_normal((1, 2), np.float32)[0]
        both = right_pixels(STYLED, empty, style=random + np.float32([1.2, -0.9]))
        page.wait_for_photo(both)
        page.tab.keyboard.press("Escape")
        np.testing.assert_array_equal(png_pixels(page.download("save-photo")), both)
        page.tab.keyboard.press("Escape")
        page.tab.reload()  # the style is kept, too
        page.wait_for_photo(both)
        page.tab.click("#style")
        page.tab.click("#style-level")
        page.wait_for_photo(right_pixels(STYLED, empty, style=random))
    finally:
        page.close()
        server.stop()


def test_a_brush_that_is_flat_and_turned(open_page: Open) -> None:
    page = open_page()
    page.wait_for_photo(right_pixels(PLAIN, EMPTY))
    page.pick(3)
    page.tab.locator("[data-shape=square]").click()
    page.tab.locator("#size").fill("65")  # 64^0.65 = 15 pixels
    assert page.text("size-shown") == "15 px"
    page.tab.click("#brush-more summary")
    page.tab.locator("#flatness").fill("80")
    page.drag((16, 20))
    label = EMPTY.copy()
    label[19:22, 9:24] = 3
    page.wait_for_photo(right_pixels(PLAIN, label))
    page.tab.locator("#angle").fill("90")
    page.drag((16, 45))
    label[38:53, 15:18] = 3
    page.wait_for_photo(right_pixels(PLAIN, label))
    page.tab.locator("#angle").fill("45")  # from the lower left to the upper right
    page.tab.locator("#flatness").fill("95")
    page.drag((6, 10))
    page.wait_for_text("state-text", "Live")
    end = np.argwhere(drawn_label(page)[:18] == 3)
    assert {tuple(at) for at in end} >= {(10 - k, 6 + k) for k in range(-5, 6)}
    assert (np.abs(end.sum(axis=1) - 16) <= 1).all()


def drawn_label(page: Page) -> NDArray[np.int64]:
    return drawn(page, np.array(effective_palette(PLAIN.labels), np.uint8))


def test_undo_ends_where_its_memory_does(open_page: Open) -> None:
    page = open_page()
    found = page.tab.evaluate("""async () => {
      const main = document.querySelector("script[type=module]").src;
      const {Drawing} = await import(main.replace("main.js", "drawing.js"));
      const drawing = new Drawing(40, 40, undefined, 10_000);
      for (let k = 1; k <= 100; k++) {
        drawing.begin();
        drawing.paint((map) => { map.ids[k] = k; return {x0: 0, y0: 0, x1: 40, y1: 40}; });
        drawing.commit();
      }
      let steps = 0;
      while (drawing.undo()) steps++;
      const left = [...drawing.ids].filter((id) => id).length;
      while (drawing.redo());
      return [steps, left, [...drawing.ids].filter((id) => id).length];
    }""")
    steps, left, again = found
    assert 2 <= steps <= 40
    assert left == 100 - steps
    assert again == 100


FRAMES_OF_FILM = """async (content) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const video = document.createElement("video");
  video.muted = true;
  video.src = URL.createObjectURL(new Blob([bytes], {type: "video/webm"}));
  await new Promise((done, failed) => {
    video.onloadeddata = done;
    video.onerror = () => failed(video.error.message);
  });
  const canvas = new OffscreenCanvas(64, 64);
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const shown = () => {
    pen.drawImage(video, 0, 0, 64, 64);
    const {data} = pen.getImageData(0, 0, 32, 64);
    return Array.from({length: 32 * 64}, (_, k) => [...data.subarray(4 * k, 4 * k + 3)]);
  };
  const first = shown();
  const ended = new Promise((done) => { video.onended = done; });
  video.playbackRate = 4;
  await video.play();
  await ended;
  return [[video.videoWidth, video.videoHeight], first, shown()];
}"""


def test_what_is_saved(open_page: Open, models: dict[str, ServedModel]) -> None:
    page = open_page()
    label = some_map(PLAIN, 3)
    uploaded(page, png(label))
    right = right_pixels(PLAIN, label)
    page.wait_for_photo(right)
    np.testing.assert_array_equal(png_pixels(page.download("save-photo")), right)
    saved = Image.open(io.BytesIO(page.download("save-map")))
    assert saved.mode == "P"
    np.testing.assert_array_equal(np.asarray(saved), label)
    both = png_pixels(page.download("save-both"))
    scale = both.shape[0] // PLAIN.height
    assert both.shape == (PLAIN.height * scale, 2 * PLAIN.width * scale, 3)
    middle = scale // 2
    np.testing.assert_array_equal(both[middle::scale, middle : PLAIN.width * scale : scale], page.pixels("drawing"))
    film = page.download("save-film")
    size, first, last = page.tab.evaluate(FRAMES_OF_FILM, base64.b64encode(film).decode())
    assert size == [2 * 256, 512]
    colors = colors_of(models["plain"]).astype(int)
    for corner, ids in ((first, EMPTY), (last, label)):
        for x, y in ((4, 4), (12, 30), (25, 60)):
            shown = np.array(corner[y * 32 + x], int)
            assert np.abs(shown - colors[ids[y, x]]).max() < 60, (x, y, shown, colors[ids[y, x]])


def test_a_phone(open_page: Open) -> None:
    page = open_page(is_phone=True)
    page.wait_for_photo(right_pixels(PLAIN, EMPTY))
    page.pick(4)
    page.tool("fill")
    page.tab.touchscreen.tap(*page.place(10, 10))
    page.wait_for_photo(right_pixels(PLAIN, np.full_like(EMPTY, 4)))
    small = page.tab.evaluate("""() => [...document.querySelectorAll("button, select, input")].filter((one) => {
      const {width, height} = one.getBoundingClientRect();
      return one.type !== "file" && width && Math.min(width, height) < 43.9;
    }).map((one) => one.id || one.className)""")
    assert small == []
    assert page.tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
        390,
        844,
    ]


def test_nothing_is_cut_off_at_any_width(open_page: Open) -> None:
    page = open_page()
    page.tab.click("#brush-more summary")
    page.tab.fill("#search", "no such class")
    for width in (390, 800, 1024, 1440, 2560):
        page.tab.set_viewport_size({"width": width, "height": 844})
        cut = page.tab.evaluate("""() => [...document.querySelectorAll("button, select, input, output, summary")]
          .filter((one) => one.type !== "file" && one.getBoundingClientRect().width && !one.closest(".tools, .recent"))
          .filter((one) => one.getBoundingClientRect().left < 0 || one.getBoundingClientRect().right > innerWidth + .5)
          .map((one) => one.id || one.className)""")
        assert cut == [], width
        search, said = (page.tab.locator(name).bounding_box() for name in ("#search", "#no-class"))
        assert said["y"] - (search["y"] + search["height"]) < 120, width  # below the recent ones, not at the page's end


def test_the_keyboard_alone(open_page: Open) -> None:
    page = open_page()
    page.wait_for_photo(right_pixels(PLAIN, EMPTY))
    keys = page.tab.keyboard
    keys.press("Tab")
    keys.press("Enter")  # the link to the drawing
    assert page.tab.evaluate("document.activeElement.id") == "drawing"
    keys.press("/")
    keys.type("label 3")
    keys.press("Enter")
    keys.press("Escape")
    for key in ("[",) * 12:
        keys.press(key)
    assert page.text("size-shown") == "1 px"
    keys.press("ArrowLeft")  # the pen appears in the middle
    keys.press("Enter")
    keys.press("ArrowDown")
    keys.press("Shift+ArrowRight")
    keys.press("Enter")
    label = EMPTY.copy()
    label[32, 16] = 3
    label[33, 16:25] = 3
    page.wait_for_photo(right_pixels(PLAIN, label))
    page.wait_for_text("said", "24, 33: label 3|Stroke ended|The photo is new")
    keys.press("r")
    keys.press("Enter")
    keys.press("Shift+ArrowDown")
    keys.press("Enter")
    label[33:42, 24] = 3
    page.wait_for_photo(right_pixels(PLAIN, label))
    keys.press("Control+z")
    keys.press("b")
    keys.press(" ")
    label[34:42, 24] = 0
    label[41, 24] = 3
    page.wait_for_photo(right_pixels(PLAIN, label))
    keys.press("?")
    assert page.tab.locator("#help-dialog").is_visible()
    keys.press("Escape")
    assert page.tab.locator("#help-dialog").is_hidden()


def test_axe_finds_nothing_serious(open_page: Open) -> None:
    """In both themes; the dark one has other colours and nothing else, so there only what is about colours is asked."""
    page = open_page(color_scheme="light", bypass_csp=True)
    page.wait_for_photo(right_pixels(PLAIN, EMPTY))
    page.choose("styled")
    page.tab.evaluate(axe_script())
    page.tab.wait_for_timeout(150)

    def findings(only: str) -> list[tuple[str, list[str]]]:
        found = page.tab.evaluate(f"axe.run(document, {{resultTypes: ['violations'], {only}}})")
        assert found["passes"], "some rules applied"
        return [
            (one["id"], [node["html"][:120] for node in one["nodes"]][:3])
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    def of_both_themes() -> None:
        for scheme, only in (("light", ""), ("dark", "runOnly: ['color-contrast', 'link-in-text-block']")):
            page.tab.emulate_media(color_scheme=scheme)
            page.tab.wait_for_timeout(50)
            assert findings(only) == [], scheme

    of_both_themes()
    for dialog in ("new", "style", "save", "help"):
        page.tab.evaluate(f"document.getElementById('{dialog}').click()")
        page.tab.wait_for_timeout(50)
        of_both_themes()
        page.tab.keyboard.press("Escape")


def test_the_server_goes_and_comes_back(open_page: Open, models: dict[str, ServedModel]) -> None:
    server = Server(models)
    try:
        page = open_page(server.url)
        page.wait_for_photo(right_pixels(PLAIN, EMPTY))
        server.stop()
        page.wait_for_text("state-text", "The server is gone")
        page.wait_for_text("notice", "does not answer.*drawing is safe")
        page.pick(2)
        page.tool("fill")
        page.drag((3, 3))  # one goes on drawing meanwhile
        server.start()
        page.wait_for_photo(right_pixels(PLAIN, np.full_like(EMPTY, 2)))
        page.wait_for_text("state-text", "Live")
        assert page.tab.locator("#notice").is_hidden()
    finally:
        page.close()
        server.stop()


def test_a_full_queue_is_tried_again_and_a_refusal_is_told(
    open_page: Open, monkeypatch: pytest.MonkeyPatch, models: dict[str, ServedModel]
) -> None:
    page = open_page()
    page.wait_for_photo(right_pixels(PLAIN, EMPTY))
    page.pick(1)
    page.tool("fill")
    with monkeypatch.context() as patch:

        def full(*_: Any, **__: Any) -> None:
            raise QueueFullError("32 requests are already waiting", hint="send it again a little later")

        patch.setattr(Runner, "submit", full)
        page.drag((1, 1))
        page.wait_for_text("state-text", "The server is busy")
        page.wait_for_text("notice", "sent again by itself")
    page.wait_for_photo(right_pixels(PLAIN, np.full_like(EMPTY, 1)))
    assert page.tab.locator("#notice").is_hidden()
    page.tab.click("#new")
    page.tab.select_option("#map-size", "2")  # 96 x 192 pixels, and the server takes 64 x 64
    page.tab.locator("#templates .card").first.click()
    page.wait_for_text("notice", "96 x 192 pixels")
    page.wait_for_text("state-text", "No photo")


def test_a_token_is_asked_for(open_page: Open, models: dict[str, ServedModel]) -> None:
    server = Server(models, TOKEN)
    try:
        page = open_page(server.url)
        page.tab.fill("#token", "wrong")
        page.tab.keyboard.press("Enter")
        page.wait_for_text("token-wrong", "does not take this token")
        page.tab.fill("#token", TOKEN)
        page.tab.keyboard.press("Enter")
        page.wait_for_photo(right_pixels(PLAIN, EMPTY))
        np.testing.assert_array_equal(png_pixels(page.download("save-photo")), right_pixels(PLAIN, EMPTY))
        page.tab.reload()  # the tab keeps it
        page.wait_for_photo(right_pixels(PLAIN, EMPTY))
        page.complaints.clear()  # the browser logs the answers 401
        linked = open_page(f"{server.url}#token={TOKEN}")
        linked.wait_for_photo(right_pixels(PLAIN, EMPTY))
        assert TOKEN not in linked.tab.url
    finally:
        for one in (page, linked):
            one.close()
        server.stop()


def test_a_damaged_link_is_told(open_page: Open, server: Server) -> None:
    page = open_page(f"{server.url}#d=nonsense")
    page.wait_for_text("toast", "The drawing in the link is damaged")
    page.wait_for_photo(right_pixels(PLAIN, EMPTY))


def test_every_text_stands_in_the_file_of_texts() -> None:
    """No words in the page's HTML, but its name and what is read where there is no JavaScript."""
    html = (PAGE_FOLDER / "index.html").read_text()
    words = [found.strip() for found in re.findall(r">([^<>]*[A-Za-z][^<>]*)<", html)]
    assert words == ["spade", "This page needs JavaScript."]
    assert not re.findall(r'(?:aria-label|title|placeholder)="[^"]+"', html)
    assert re.findall("<script[^>]*>", html) == ['<script type="module" src="./main.js">']


def test_what_the_page_is_served_with(server: Server, models: dict[str, ServedModel]) -> None:
    def asked(path: str, **headers: str) -> Any:
        request = urllib.request.Request(server.url + path, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=20)
        except urllib.error.HTTPError as refused:
            return refused

    page = asked("")
    assert page.headers["Cache-Control"] == "no-cache"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert asked("", **{"If-None-Match": page.headers["ETag"]}).status == 304
    digest = page.headers["ETag"].strip('"')
    assert f'src="/page/{digest}/main.js"' in page.read().decode()
    script = asked(f"page/{digest}/main.js")
    assert script.headers["Content-Type"].startswith("text/javascript")
    assert "immutable" in script.headers["Cache-Control"]
    assert script.read() == (PAGE_FOLDER / "main.js").read_bytes()
    for missing in (f"page/{digest}/..%2fapp.py", f"page/{digest}/none.js", "page/0000/main.js"):
        assert asked(missing).status == 404
    sample = asked("v1/models/styled/samples/1").read()
    right = models["styled"].artifact.golden().inputs[LABEL][1]
    assert right.max() > 255
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample))), right)
    assert asked("v1/models/styled/samples/2").status == 404
    assert asked("v1/models/none/samples/0").status == 404
