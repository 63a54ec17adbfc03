"""The body of a form (multipart/form-data) -> its texts and files. Nothing is written to the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from spade_deploy.errors import ConfigError
from spade_deploy.serving.maps import FIELDS, FILES, shown_name
from spade_deploy.serving.problems import HttpError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


def form_of(content: bytes, content_type: str) -> tuple[dict[str, str], dict[str, bytes]]:
    """The texts and the files of a form, by name. content_type: the request's header, which names the boundary.

    Raises HttpError for what is no form, and ConfigError for parts that a request does not have.
    """
    try:
        _, options = parse_options_header(content_type)
        parts = _Parts()
        MultipartParser(options[b"boundary"], parts.callbacks()).write(content)
    except (FormParserError, KeyError, ValueError) as error:
        said = "the header Content-Type has no boundary" if isinstance(error, KeyError) else str(error)[:200]
        raise HttpError(400, f"the form cannot be read: {said}") from error
    if not parts.is_whole:
        raise HttpError(400, "the form cannot be read: it has no end")
    if wrong := sorted(set(parts.files) - FILES):
        raise ConfigError(f"`{wrong[0]}` was sent as a file, but it has to be a text")
    if wrong := sorted(set(parts.texts) & FILES):
        raise ConfigError(f"`{wrong[0]}` was sent as a text, but it has to be a file", hint=f"-F {wrong[0]}=@FILE")
    return parts.texts, parts.files


class _Parts:
    """Takes the parts of a form from the parser."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.is_whole = False
        self._header, self._value, self._disposition = b"", b"", b""
        self._name, self._is_file = "", False
        self._content: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers,
            "on_part_data": lambda data, start, end: self._content.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._on_end,
        }

    def _begin(self) -> None:
        self._disposition, self._content = b"", []

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise HttpError(400, "the form cannot be read: a part has no name")
        name = options[b"name"].decode("utf-8", "replace")
        if name not in FIELDS or name in self.texts or name in self.files:
            why = "is there twice" if name in FIELDS else "is not a field of a request"
            raise ConfigError(f"`{shown_name(name)}` {why}", hint=f"the fields are {', '.join(sorted(FIELDS))}")
        self._name, self._is_file = name, b"filename" in options

    def _end(self) -> None:
        content = b"".join(self._content)
        if self._is_file:
            self.files[self._name] = content
        else:
            self.texts[self._name] = content.decode("utf-8")

    def _on_end(self) -> None:
        self.is_whole = True
