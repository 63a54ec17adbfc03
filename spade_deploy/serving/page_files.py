"""The files of the paint page, and its Content-Security-Policy: `spade serve` and the web folder share them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

PAGE_FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
"""The media type of each kind of file of the page."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy: nothing from elsewhere, no script or style inside the page, no frame around it."""


@cache
def page_files() -> Mapping[str, bytes]:
    """The page's files by name. Nothing is read from the disk once the server runs."""
    found = {path.name: path.read_bytes() for path in sorted(PAGE_FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}
    return MappingProxyType(found)


@cache
def page_digest() -> str:
    """16 hexadecimal digits that change whenever one of the files does."""
    return digest_of(page_files())


def digest_of(files: Mapping[str, bytes]) -> str:
    """16 hexadecimal digits of files by name, which change whenever a name or a byte does."""
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()[:16]
