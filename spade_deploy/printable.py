"""Make text that others wrote, such as names of files, safe for a terminal or a page.

A file name may hold anything but a slash: escape sequences that move the cursor or change the window's title,
characters that reverse the direction of text, bytes that are no UTF-8. They are shown as escapes, such as \\x1b, and
never sent to the terminal.
"""

from __future__ import annotations

import re

# Control characters (C0 without tab and newline, DEL, C1), line and paragraph separators, characters that change the
# direction of text, byte order marks, tags, and halves of surrogate pairs, which stand for bytes that are no UTF-8.
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_BREAKS = re.compile(r"[\t\n]")


def printable(text: str) -> str:
    """The text, with escapes for characters that control a terminal or cannot be shown; line breaks and tabs stay."""
    return _UNFIT.sub(_escape, text)


def one_line(text: object) -> str:
    """A name or a value as `printable` text in one line: its line breaks and tabs are escaped, too."""
    return _BREAKS.sub(lambda match: {"\t": "\\t", "\n": "\\n"}[match[0]], printable(str(text)))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte of a file name
    if code < 0x100:
        return "\\r" if code == 0x0D else f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
