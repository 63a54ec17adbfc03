"""Places that fsspec reads: s3://, gs://, hf:// and the like. Passwords and signatures never reach a message."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

from spade_deploy.errors import LabelMapError, MissingDependencyError, SpadeError, reason_of

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])")
_SECRET_NAMES = re.compile(r"secret|token|password|passwd|api_?key|access_key|credential", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]*")
_SHORTEST_SECRET = 6
_CLOUD = "'spade-deploy[cloud]'"
_PACKAGES = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    "hf": "huggingface_hub",
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    "oss": "ossfs",
}
"""The package that reads URLs of a scheme, beside fsspec."""


class PlaceError(SpadeError):
    """A place cannot be reached, or forbids everything: no other job could be done either."""

    usual_hint = "see that the address and your rights are right; the same command continues where this one stopped"


def place_of(text: str) -> Path | str:
    """A path for a local file, folder or pattern, else the URL itself. Windows' C:/ is a path; file:// becomes one."""
    match = _SCHEME.match(text)
    if match is None:
        return Path(text.removeprefix("file://")) if text.startswith("file://") else Path(text)
    return f"{match[1]}://{text[match.end() :]}"


def as_place(place: Path | str) -> Path | str:
    """The same for what a caller gives as a path or a text; a Path has lost one slash of s3://."""
    return place_of(str(place)) if isinstance(place, str) or _SCHEME.match(str(place)) else place


def is_url(place: Path | str) -> bool:
    """Whether fsspec reads it."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def shown(place: Path | str) -> str:
    """What messages call a place."""
    return without_secrets(str(place))


def without_secrets(text: str) -> str:
    """A text without the users, passwords and queries of URLs, and without the secrets of the environment."""
    text = _QUERY.sub(r"\1", _USER.sub("", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAMES.search(name) and value in text:
            text = text.replace(value, "***")
    return text


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it. Raises SpadeError."""
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{shown(url)}: fsspec is not installed, which reads URLs", hint=f"pip install {_CLOUD}"
        ) from error
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise MissingDependencyError(
            f"{shown(url)}: a package is missing: {without_secrets(str(error))}",
            hint=f"pip install {_PACKAGES.get(url.partition('://')[0], _CLOUD)}",
        ) from error
    except Exception as error:
        raise PlaceError(f"{shown(url)}: {without_secrets(reason_of(error))}") from error
    return found


def read_url(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of an object, or a part of them. Raises LabelMapError, and PlaceError if the place fails."""
    fs, path = filesystem(url)
    try:
        content: bytes = fs.cat_file(path, start=start, end=end)
    except Exception as error:
        raise url_error(error, url, "read") from error
    return content


def url_error(error: Exception, url: str, doing: str) -> SpadeError:
    """The error for an object that cannot be read or written: LabelMapError if it concerns that object alone."""
    name = shown(url)
    if isinstance(error, SpadeError):
        return error
    text = without_secrets(reason_of(error))
    if isinstance(error, FileNotFoundError) and "bucket" not in text.lower():
        return LabelMapError(f"{name}: there is no such object")
    if isinstance(error, (IsADirectoryError, NotADirectoryError)):
        return LabelMapError(f"{name}: it is no file")
    if isinstance(error, PermissionError) and doing == "read":
        return LabelMapError(f"{name}: it may not be read: {text}", hint="see that your account may read it")
    if isinstance(error, PermissionError) or getattr(error, "errno", None) in (errno.EACCES, errno.EROFS):
        return PlaceError(f"{name} cannot be written: {text}", hint="see that your account may write there")
    return PlaceError(f"{name} cannot be {'read' if doing == 'read' else 'written'}: {text}")
