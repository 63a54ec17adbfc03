"""The paint page in a browser: what a test does with it, and what it sees there."""

from __future__ import annotations

import base64
import re
import socket
import threading
import time
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray

from spade_deploy.serving.app import make_app
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.run import _config
from tests.support.served import pixels_of

_WAIT_S = 15.0
_START_S = 60.0
_TWO_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
_PIXELS = """(id) => {
  const canvas = document.getElementById(id);
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let letters = "";
  for (let k = 0; k < data.length; k += 8192) letters += String.fromCharCode(...data.subarray(k, k + 8192));
  return [canvas.height, canvas.width, btoa(letters)];
}"""


class Server:
    """A server in a thread of this process, which can be stopped and started again on its port."""

    def __init__(self, models: Any, token: str = "", **asked: Any) -> None:
        self._models, self._token, self._asked = models, token, ServeRequest(**asked)
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        self.app = make_app(self._models, self._asked, self._token)
        config = _config(self.app, self._asked)
        config.timeout_graceful_shutdown = 1
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()
        end = time.monotonic() + _START_S
        while not self._server.started:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(_WAIT_S)
        assert not self._thread.is_alive()


class Page:
    """The page, open in a browser. What it writes to the console, or throws, is kept in `complaints`."""

    def __init__(self, browser: Any, url: str, *, is_phone: bool = False, **context: Any) -> None:
        size = {"width": 390, "height": 844} if is_phone else {"width": 1200, "height": 800}
        self.context = browser.new_context(viewport=size, has_touch=is_phone, accept_downloads=True, **context)
        self.context.set_default_timeout(_WAIT_S * 1000)
        self.complaints: list[str] = []
        self.tab = self.context.new_page()
        self.tab.on("console", lambda message: self._heard(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.goto(url)

    def _heard(self, text: str) -> None:
        if not text.startswith("Canvas2D: Multiple readback"):  # that is `pixels`
            self.complaints.append(text)

    def close(self) -> None:
        self.context.close()

    def pixels(self, canvas: str) -> NDArray[np.uint8]:
        """H x W x 3 of the canvas `drawing` or `photo`, at its own size."""
        height, width, text = self.tab.evaluate(_PIXELS, canvas)
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[..., :3]

    def wait_for_photo(self, right: NDArray[np.uint8]) -> None:
        """Until the photo has exactly these pixels."""
        end = time.monotonic() + _WAIT_S
        while time.monotonic() < end:
            found = self.pixels("photo")
            if found.shape == right.shape and np.array_equal(found, right):
                return
            self.tab.wait_for_timeout(25)
        np.testing.assert_array_equal(self.pixels("photo"), right)

    def choose(self, model: str) -> None:
        self.tab.select_option("#model", model)

    def place(self, x: int, y: int) -> tuple[float, float]:
        """Where the middle of a pixel of the map is on the screen."""
        box = self.tab.locator("#drawing").bounding_box()
        width, height = self.tab.evaluate("[document.all.drawing.width, document.all.drawing.height]")
        return box["x"] + (x + 0.5) * box["width"] / width, box["y"] + (y + 0.5) * box["height"] / height

    def drag(self, *points: tuple[int, int]) -> None:
        """Press at the first pixel of the map, move over the others, and let go at the last one."""
        self.tab.mouse.move(*self.place(*points[0]))
        self.tab.mouse.down()
        for point in points[1:]:
            self.tab.mouse.move(*self.place(*point))
        self.tab.mouse.up()

    def pick(self, label: int) -> None:
        """Choose a class of the palette."""
        self.tab.locator(f'#classes [data-id="{label}"]').click()

    def tool(self, name: str) -> None:
        self.tab.locator(f'[data-tool="{name}"]').click()

    def text(self, element: str) -> str:
        return str(self.tab.locator(f"#{element}").inner_text())

    def wait_for_text(self, element: str, pattern: str) -> None:
        end = time.monotonic() + _WAIT_S
        while not re.search(pattern, found := self.tab.locator(f"#{element}").text_content() or "", re.DOTALL):
            assert time.monotonic() < end, f"{element} says {found!r}, not {pattern!r}"
            self.tab.wait_for_timeout(25)

    def download(self, button: str) -> bytes:
        """The bytes of the file that a button of the dialog "Save or share" gives."""
        if not self.tab.locator("#save-dialog").is_visible():
            self.tab.click("#save")
        with self.tab.expect_download() as caught:
            self.tab.click(f"#{button}")
        content: bytes = caught.value.path().read_bytes()
        return content


def drawn(page: Page, colors: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The ids that the drawing shows, H x W, by the colours of the classes, K x 3."""
    page.tab.evaluate(_TWO_FRAMES)  # the page draws in the next frame
    pixels = page.pixels("drawing").astype(np.int64)
    keys = pixels @ [1 << 16, 1 << 8, 1]
    known = {int(key): number for number, key in enumerate(colors.astype(np.int64) @ [1 << 16, 1 << 8, 1])}
    return np.vectorize(known.__getitem__, otypes=[np.int64])(keys)


def png_pixels(content: bytes) -> NDArray[np.uint8]:
    """The bytes of a file that the page saved -> H x W x 3."""
    return pixels_of(content)
