"""Find out whether a result exists already: whole, cut short, or something else in its place."""

from __future__ import annotations

import os
from pathlib import Path

from spade_deploy.errors import LabelMapError
from spade_deploy.files.reading import open_regular
from spade_deploy.files.temporary import NAME_MAX_BYTES

_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


def is_done(result: Path, *, overwrite: bool) -> bool:
    """Whether the result exists and need not be made. An empty file or one that was cut short is made again.

    Raises LabelMapError if no result can be written there: a folder or a device has its name, the name is too long for
    file systems, or, unless `overwrite`, the file there is no image of that kind.
    """
    length = len(os.fsencode(result.name))
    if length > NAME_MAX_BYTES:
        raise LabelMapError(
            f"its result would have a name of {length} bytes, {result.name[:40]}...; file systems allow"
            f" {NAME_MAX_BYTES}",
            hint="give the label map a shorter name",
        )
    if not os.path.lexists(result) or (result.is_symlink() and not result.exists()):
        return False
    try:
        with open_regular(result) as stream:
            size = os.fstat(stream.fileno()).st_size
            begin = stream.read(len(_PNG))
            stream.seek(max(0, size - len(_PNG_END)))
            end = stream.read()
    except OSError as error:
        raise LabelMapError(
            f"its result cannot be written there: {result} {error.strerror}", hint="remove it, or choose another folder"
        ) from error
    if overwrite or size == 0:
        return False
    head, tail = (_PNG, _PNG_END) if result.suffix.lower() == ".png" else (_JPEG, _JPEG_END)
    if not begin.startswith(head[: max(1, min(size, len(head)))]):
        kind = "PNG" if head == _PNG else "JPEG"
        raise LabelMapError(
            f"{result} is there already, and is no {kind}: it may be another file of yours",
            hint="`overwrite` replaces it",
        )
    return size > len(head) + len(tail) and end.endswith(tail)
