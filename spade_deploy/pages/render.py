"""Write HTML pages. Each page is one file that holds its pictures and can be opened without a server."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.errors import MissingDependencyError
from spade_deploy.printable import printable
from spade_deploy.spec import LabelSpec, Rgb

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Picture:
    """A picture with its caption."""

    caption: str
    """The text under the picture."""
    uri: str
    """A data URI that holds the PNG itself."""
    is_ids: bool = False
    """Whether it is a label map, which is shown without smoothing."""


@dataclass(frozen=True)
class LegendEntry:
    """A class and its colour."""

    name: str
    """The name of the class."""
    color: str
    """Its colour in CSS."""


def render(template: str, **context: Any) -> str:
    """Fill in a template of `templates/`. All values are escaped."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            "jinja2 is not installed, which writes the HTML pages", hint="pip install 'spade-deploy[export]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters.update(sci=scientific, db=decibel, percent=percent)
    return environment.get_template(template).render(**context)


def picture(caption: str, pixels: NDArray[np.uint8], *, is_ids: bool = False) -> Picture:
    """A picture of pixels, H x W x 3 uint8."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return Picture(caption, _uri(stream.getvalue()), is_ids)


def drawing(svg: str) -> Any:
    """An SVG element that stands in the page as it is: its text has the page's colours, in dark mode too.

    It must come from this package: nothing in it is escaped. Its namespaces go, as HTML knows them: a page that stands
    alone names no address.
    """
    import markupsafe  # jinja2 brings it

    return markupsafe.Markup(re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg))


def legend(labels: LabelSpec, palette: Iterable[Rgb], present: Iterable[int]) -> list[LegendEntry]:
    """The classes that occur, in the order of their ids."""
    colors = list(palette)
    return [
        LegendEntry(labels.name_of(label_id), "#{:02x}{:02x}{:02x}".format(*colors[label_id]))
        for label_id in sorted(set(present))
    ]


def scientific(value: float) -> str:
    """0.00123 -> '1.2e-03'."""
    return "0" if value == 0 else f"{value:.1e}"


def decibel(value: float | None) -> str:
    """A PSNR in words; None stands for an infinite ratio, which means no difference at all."""
    return "identical" if value is None else f"{value:.1f} dB"


def short_time(seconds: float) -> str:
    """The time of an image in words: '40.3 ms', '1.11 s'."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def percent(value: float) -> str:
    """0.0123 -> '1.23 %'; a small share that is not zero is never shown as zero."""
    if value == 0:
        return "0 %"
    return f"{100 * value:.2f} %" if value >= 5e-5 else "< 0.01 %"


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
