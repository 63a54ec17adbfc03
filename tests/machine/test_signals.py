"""Signals that arrive while a library is imported."""

import signal
from typing import Any

import pytest

from spade_deploy.engines.openvino import library
from spade_deploy.engines.ort.session import load_onnxruntime
from spade_deploy.machine.signals import end_as_ctrl_c, interrupts_wait

pytestmark = pytest.mark.usefixtures("usual_signals")


def test_ctrl_c_waits_for_the_end_of_the_block_and_is_not_lost() -> None:
    done = []

    def interrupted() -> None:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            done.append("after the signal")
        done.append("after the block")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["after the signal"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_takes_the_place_of_an_error_that_the_block_raises() -> None:
    def failing() -> None:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            raise ImportError("initialization failed")

    with pytest.raises(KeyboardInterrupt):
        failing()


def test_sigterm_waits_once_it_means_ctrl_c() -> None:
    end_as_ctrl_c()
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_as_ctrl_c()
    with interrupts_wait():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.parametrize("load", [load_onnxruntime, library.load_openvino])
def test_an_interrupted_import_does_not_look_like_a_missing_package(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension module turns the interrupt into an ImportError, as pybind11 does."""

    def importing(*_: Any) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("builtins.__import__", importing)
    with pytest.raises(KeyboardInterrupt):
        load()
