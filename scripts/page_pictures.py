"""Pictures of the paint page: of every state of it, and those that README.md and docs/serving.md show.

usage: python scripts/page_pictures.py states OUT ARTIFACT [ARTIFACT ...]
       python scripts/page_pictures.py readme docs/images ARTIFACT

states: every state at 390, 1024, 1440 and 2560 pixels, light and dark, as PNG files. A model with styles among the
artifacts adds the dialog of styles. readme: paint.png and paint.webp, an island that is drawn. It needs playwright,
and chromium in the PATH.
"""

import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, WebSocketRoute, sync_playwright

SIZES = {390: 844, 1024: 768, 1440: 900, 2560: 1440}
README_SIZE = {"width": 960, "height": 560}
README_SCALE = 1
FRAME_MS, LAST_FRAME_MS = 110, 2600
MOST_README_BYTES = 2_000_000
PROBLEMS = {
    "refused": {
        "status": 422,
        "detail": "`label`: the map is 96 x 192 pixels; this model runs at 128 x 128 alone",
        "hint": "choose the size of the model in “New drawing”",
    },
    "full": {"status": 429, "detail": "32 requests wait already", "hint": "send it again a little later"},
}


@contextmanager
def served(artifacts: list[str]) -> Iterator[str]:
    """`spade serve` in a process of its own; its address."""
    command = [sys.executable, "-m", "spade_deploy", "serve", *artifacts, "--port", "0", "--backend", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = ""
    try:
        for line in process.stdout:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found[0]
                return
        raise SystemExit(said)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser, without a window."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("there is no chromium: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--force-color-profile=srgb"])
        yield browser
        browser.close()


@dataclass
class Line:
    """What stands between the page and the server's WebSocket. `mode` says what becomes of the page's messages."""

    mode: str = "live"
    """live, silent, gone, or one of PROBLEMS."""
    sockets: list[WebSocketRoute] = field(default_factory=list)
    """Those that the page opened."""

    def opened(self, socket: WebSocketRoute) -> None:
        """A socket of the page: the server's answers reach it."""
        if self.mode == "gone":
            socket.close()
            return
        self.sockets.append(socket)
        server = socket.connect_to_server()

        def sent(message: str | bytes) -> None:
            if self.mode == "live":
                server.send(message)
            elif self.mode in PROBLEMS:
                assert isinstance(message, bytes)
                number = json.loads(message.partition(b"\n")[0])["id"]
                socket.send(json.dumps({"id": number, **PROBLEMS[self.mode]}))

        socket.on_message(sent)

    def break_off(self) -> None:
        """The server goes, and does not come back."""
        self.mode = "gone"
        for socket in self.sockets:
            socket.close()


def place(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a place of the map, 0..1 across and down, is on the screen."""
    box = page.locator("#drawing").bounding_box()
    assert box is not None
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def stroke(page: Page, *points: tuple[float, float], seen: Callable[[], None] = lambda: None) -> None:
    """Draw through places of the map. seen: called after every few pixels of the way."""
    page.mouse.move(*place(page, *points[0]))
    page.mouse.down()
    for start, end in itertools.pairwise(points):
        for k in range(1, 5):
            page.mouse.move(*place(page, *(a + (b - a) * k / 4 for a, b in zip(start, end, strict=True))))
            seen()
    page.mouse.up()


def pick(page: Page, name: str) -> None:
    """Choose a class by its name, or the second one where the model has no such class."""
    found = page.locator("#classes button", has_text=re.compile(f"^{name}$"))
    (found if found.count() else page.locator("#classes button").nth(1)).first.click()


def save_states(out: Path, url: str, browser: Any, width: int, scheme: str) -> None:
    """Every state at one width in one theme."""
    line = Line()
    is_phone = width < 720
    context = browser.new_context(
        viewport={"width": width, "height": SIZES[width]}, color_scheme=scheme, has_touch=is_phone
    )
    page = context.new_page()
    page.on("pageerror", lambda error: print(f"{width} {scheme}: {error}", file=sys.stderr))
    page.route_web_socket(re.compile("/v1/live"), line.opened)

    def shot(name: str, wait_ms: int = 250) -> None:
        page.wait_for_timeout(wait_ms)
        page.screenshot(path=out / f"{width}-{scheme}-{name}.png")

    def answered(status: int, body: str) -> None:
        page.route("**/v1/models", lambda route: route.fulfill(status=status, body=body))
        page.goto(url)

    page.route("**/v1/models", lambda route: None)
    page.goto(url)
    shot("loading")
    page.unroute_all()
    answered(401, '{"detail": "a token is needed"}')
    shot("token")
    page.unroute_all()
    answered(503, '{"detail": "the server is going down", "hint": "send it again a little later"}')
    shot("no-models")
    page.unroute_all()
    line.mode = "silent"
    page.goto(url)
    shot("empty-busy", 600)
    line.mode = "live"
    page.reload()
    page.wait_for_selector(".has-photo")
    pick(page, "mixed forest")
    stroke(page, (0.3, 0.4), (0.5, 0.5), (0.7, 0.55))
    page.wait_for_timeout(1200)
    page.mouse.move(0, 0)
    shot("drawn")
    save_views(page, shot)
    for name in PROBLEMS:
        line.mode = name
        stroke(page, (0.5, 0.3), (0.6, 0.4))
        shot(name)
    line.break_off()
    shot("gone")
    context.close()


def save_views(page: Page, shot: Callable[..., None]) -> None:
    """The views, the tools and the dialogs, with the model's photo behind them."""
    for view in ("blend", "photo", "drawing"):
        page.click(f"[data-view={view}]")
        shot(view)
    page.click("[data-view=split]")
    page.click("[data-tool=polygon]")
    for x, y in ((0.3, 0.6), (0.6, 0.6), (0.6, 0.8)):
        page.mouse.click(*place(page, x, y))
    shot("polygon")
    page.keyboard.press("Escape")
    page.click("[data-tool=brush]")
    page.click("#brush-more summary")
    page.locator("#flatness").fill("75")
    page.locator("#angle").fill("45")
    shot("brush")
    page.click("#brush-more summary")
    page.fill("#search", "for")
    shot("search")
    page.fill("#search", "no such class")
    shot("search-nothing")
    page.fill("#search", "")
    for dialog in ("new", "save", "help"):
        page.click(f"#{dialog}")
        shot(f"dialog-{dialog}", 900)
        page.keyboard.press("Escape")
    models = page.evaluate("[...document.querySelectorAll('#model option')].map((one) => one.value)")
    if len(models) < 2:
        return
    for model in models:
        page.select_option("#model", model)
        page.wait_for_timeout(600)
        if page.locator("#style").is_visible():
            page.click("#style")
            shot("dialog-style")
            page.keyboard.press("Escape")
    page.select_option("#model", models[0])
    page.wait_for_timeout(600)


ISLAND = (
    ("grassland", 0.34, (0.34, 0.42), (0.46, 0.36), (0.6, 0.42), (0.66, 0.55), (0.56, 0.66), (0.42, 0.62)),
    ("evergreen broadleaf forest", 0.16, (0.36, 0.36), (0.48, 0.3), (0.6, 0.34), (0.7, 0.46)),
    ("cropland", 0.12, (0.4, 0.62), (0.5, 0.66), (0.62, 0.62)),
    ("barren", 0.1, (0.48, 0.48), (0.56, 0.5)),
    ("mixed forest", 0.06, (0.3, 0.5), (0.34, 0.62), (0.4, 0.7)),
    ("snow and ice", 0.05, (0.52, 0.49), (0.54, 0.5)),
    ("grassland", 0.07, (0.8, 0.74), (0.84, 0.78), (0.82, 0.83)),
)
"""The class, the size of the brush as a share of the map, and the way of each stroke."""


def save_readme(out: Path, url: str, browser: Any) -> None:
    """paint.webp, frame by frame as the island grows, and paint.png, its end."""
    context = browser.new_context(viewport=README_SIZE, color_scheme="dark", device_scale_factor=README_SCALE)
    page = context.new_page()
    frames: list[Image.Image] = []

    def seen() -> None:
        page.wait_for_selector("#state[data-state=ready]")
        frames.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))

    page.goto(url)
    page.wait_for_selector(".has-photo")
    page.click("#new")
    page.locator("#templates .card").last.click()
    page.wait_for_timeout(800)
    seen()
    most = max(page.evaluate("[document.getElementById('drawing').width, document.getElementById('drawing').height]"))
    for name, share, *way in ISLAND:
        pick(page, name)
        set_brush(page, max(1, round(share * most)))
        stroke(page, *way, seen=seen)
        page.wait_for_timeout(300)
        seen()
    page.mouse.move(0, 0)
    page.wait_for_timeout(800)
    seen()
    context.close()
    frames[-1].save(out / "paint.png", optimize=True)
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    path = out / "paint.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, quality=75, method=3)
    size = path.stat().st_size
    if size > MOST_README_BYTES:
        raise SystemExit(f"{path} has {size:,} bytes; the README should load at once: {MOST_README_BYTES:,} at most")
    print(f"{path}: {len(frames)} frames, {size:,} bytes")


def set_brush(page: Page, size: int) -> None:
    """The brush of about so many pixels."""
    found = min(range(101), key=lambda value: abs(shown_size(page, value) - size))
    shown_size(page, found)


def shown_size(page: Page, value: int) -> int:
    """Set the slider of the size, and read the pixels that it shows."""
    page.locator("#size").fill(str(value))
    return int(page.locator("#size-shown").inner_text().split()[0])


def main() -> None:
    """See the top."""
    if len(sys.argv) < 4 or sys.argv[1] not in ("states", "readme"):
        raise SystemExit(__doc__)
    what, out, artifacts = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    out.mkdir(parents=True, exist_ok=True)
    with served(artifacts) as url, chromium() as browser:
        if what == "readme":
            save_readme(out, url, browser)
            return
        for width in SIZES:
            for scheme in ("light", "dark"):
                save_states(out, url, browser, width, scheme)
                print(f"{width} {scheme}")


if __name__ == "__main__":
    main()
