"""Messages are for a terminal: short, in one encoding, without codes."""

from __future__ import annotations

import os

from spade_deploy.errors import SpadeError, quoted, reason_of
from spade_deploy.printable import printable


def test_a_message_can_be_printed_anywhere() -> None:
    error = SpadeError("a\x1b[31m\ud800\u202eb\nc", hint="\x9bd\udcff")
    assert error.message == str(error) == "a\\x1b[31m\\ud800\\u202eb\nc"
    assert error.hint == "\\x9bd\\xff"
    assert printable("Straße 道路 \u3000.") == "Straße 道路 \u3000."


def test_a_value_is_cut() -> None:
    assert quoted("abc") == "'abc'"
    for value in ("y" * 5000, 10**400, ["z" * 500] * 500, {"k" * 500: {"a": [1]}}, [[[[[[1]]]]]], "\ud800\x1b\n"):
        text = quoted(value)
        assert len(text) <= 80
        text.encode()
        assert text.isprintable()


def test_a_reason_is_one_line() -> None:
    assert reason_of(ValueError("\x1b[1mdo those steps\x1b[0m.\n\t(1) In PyTorch")) == "do those steps."
    assert reason_of(FileNotFoundError(2, os.strerror(2), "x")) == "No such file or directory"
    assert reason_of(KeyError()) == "KeyError"
    assert len(reason_of(ValueError("x" * 5000))) == 240


def test_the_reason_of_tensors_that_do_not_fit_names_the_first_one() -> None:
    error = RuntimeError("Error(s) in loading state_dict for Net:\n\tsize mismatch for a.weight: " + "x" * 5000)
    said = reason_of(error)
    assert said.startswith("Error(s) in loading state_dict for Net: size mismatch for a.weight: x")
    assert len(said) == 240
