"""A sample of the fuzz; the whole one is `python -m tests.fuzz --cases 10000 --seed 0 --jobs 2`."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spade_deploy.artifact import engines
from spade_deploy.errors import LabelMapError, SpadeError
from spade_deploy.labels import files as label_map

from .corpus import Corpus, open_corpus
from .image_damage import EVERY_KIND, good_png
from .png import GREY, PngError, chunk, read_png, write_png
from .readers import READERS, make_outside, run_case
from .run import ROOT, run_cases
from .watch import Watch, text_problem

CASES = 300
SEED = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return open_corpus(tmp_path_factory.mktemp("fuzz") / "corpus")


@pytest.fixture
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case changes both, the working folder and TMPDIR; those of the tests come back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_sample_of_every_reader_holds(corpus: Corpus) -> None:
    summary = run_cases(list(range(CASES)), SEED, corpus.root.parent, jobs=2)
    assert summary.passed, f"\n{summary.table()}\nfailing inputs: {corpus.root.parent / 'failures'}"
    assert sum(summary.cases.values()) == CASES
    assert set(summary.cases) == set(READERS), "the sample leaves a reader out"
    assert all(summary.accepted[name] + summary.refused[name] for name in READERS)


@pytest.mark.usefixtures("in_its_own_folder")
def test_a_case_is_the_same_each_time(corpus: Corpus, tmp_path: Path) -> None:
    make_outside(tmp_path)
    for name in ("label-map", "manifest.json", "graph", "best.json"):
        first, second = (run_case(3, 5, tmp_path, corpus, [name]) for _ in range(2))
        assert (first.damages, first.accepted, first.refused) == (second.damages, second.accepted, second.refused)


# --- What the watch sees ---------------------------------------------------------------------------------------------


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    for name in ("in", "out", "tmp"):
        (tmp_path / name).mkdir()
    return Watch(tmp_path, (tmp_path / "out", tmp_path / "tmp"))


def _unescaped(message: str) -> SpadeError:
    """What no constructor makes: it escapes what a terminal would obey."""
    error = SpadeError("")
    error.message = message
    return error


def _raises(error: Exception) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("attempt", "kind"),
    [
        (_raises(ValueError("x")), "traceback"),
        (_raises(SpadeError("x" * 1000)), "message"),
        (_raises(_unescaped("a\x1b[31mb")), "message"),
        (_raises(_unescaped("\ud800")), "message"),
        (_raises(SpadeError("x", hint="y" * 1000)), "message"),
    ],
)
def test_the_watch_sees_what_is_raised(watch: Watch, attempt: Callable[[], None], kind: str) -> None:
    watch.call("attempt", attempt)
    assert [failure.kind for failure in watch.failures] == [kind]


def test_the_watch_sees_writes_and_what_is_left(watch: Watch, tmp_path: Path) -> None:
    watch.call("good", (tmp_path / "out" / "a.png").write_bytes, b"x")
    watch.call("refused", _raises(SpadeError("an error for people")))
    assert not watch.failures
    watch.call("outside", (tmp_path / "in" / "a.png").write_bytes, b"x")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "in")
    watch.call("through a link", (tmp_path / "out" / "link" / "b").write_bytes, b"x")
    watch.call("renamed", (tmp_path / "out" / "a.png").rename, tmp_path / "in" / "c.png")
    assert [failure.kind for failure in watch.failures] == ["write"] * 3
    watch.failures.clear()
    watch.call("left", (tmp_path / "out" / ".a.png.x.tmp.png").write_bytes, b"x")
    watch.call("left in TMPDIR", (tmp_path / "tmp" / "x").write_bytes, b"x")
    assert {failure.kind for failure in watch.failures} == {"leftover"}


def test_the_watch_sees_what_waits_and_what_takes_memory(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import threading

    from . import watch as watching

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is read from /proc")
    monkeypatch.setattr(watching, "BLOCKED_LIMIT_S", 1.0)
    monkeypatch.setattr(watching, "IDLE_SHARE", 0.1)
    monkeypatch.setattr(watching, "TICK_S", 0.2)
    monkeypatch.setattr(watching, "MAX_GROWTH_BYTES", 50 << 20)
    watch.call("waiting", threading.Event().wait, 30)
    assert [failure.kind for failure in watch.failures] == ["hang"]
    watch.failures.clear()
    watch.call("memory", lambda: len(os.urandom(1) * (200 << 20)))
    assert [failure.kind for failure in watch.failures] == ["memory"]


def test_a_result_that_should_not_be_is_seen(watch: Watch) -> None:
    watch.call("accepted", lambda: 1, must_fail="it is damaged")
    watch.command("--version", must_fail="it is damaged")
    assert [failure.kind for failure in watch.failures] == ["wrong", "wrong"]


def test_what_is_no_text_for_people() -> None:
    assert text_problem("é 名 'quoted'\n second line") == ""
    assert "control" in text_problem("\x9b31m")
    assert "control" in text_problem("\u202e")
    assert "letters" in text_problem("x" * 1000)
    assert "UTF-8" in text_problem("\udcff")


# --- Defects on purpose: the fuzz finds them -------------------------------------------------------------------------


def _cases(corpus: Corpus, work: Path, reader: str, count: int) -> list[Any]:
    make_outside(work)
    return [failure for index in range(count) for failure in run_case(1, index, work, corpus, [reader]).failures]


@pytest.mark.usefixtures("in_its_own_folder")
def test_a_reader_that_lets_an_error_through_is_found(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(path: Path, labels: Any, size: Any = None) -> Any:
        with Image.open(path) as image:
            return np.array(image)

    monkeypatch.setattr("fuzz.label_readers.read_label_map", careless)
    found = _cases(corpus, tmp_path, "label-map", 12)
    assert "traceback" in {failure.kind for failure in found}


@pytest.mark.usefixtures("in_its_own_folder")
def test_a_reader_that_gives_other_ids_is_found(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(path: Path, labels: Any, size: Any = None) -> Any:
        return label_map.read_label_map(path, labels, size)[::-1]

    monkeypatch.setattr("fuzz.label_readers.read_label_map", turned)
    found = _cases(corpus, tmp_path, "label-map", 25)
    assert any("differ from a second reading" in failure.where for failure in found)


@pytest.mark.usefixtures("in_its_own_folder")
def test_an_engine_that_is_not_compared_with_its_digest_is_found(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fuzz.artifact_readers.read_engine", lambda artifact, entry: engines.engine_path(artifact, entry).read_bytes()
    )
    found = _cases(corpus, tmp_path, "engine", 40)
    assert "wrong" in {failure.kind for failure in found}


# --- The second reading of PNG files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_the_second_reading_is_that_of_pillow(seed: int, tmp_path: Path) -> None:
    content, what = good_png(random.Random(seed), 255, EVERY_KIND)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    png = read_png(content)
    with Image.open(path) as image:
        shown = np.asarray(image.convert("RGBA") if png.color_type == 6 and png.depth == 8 else image)
    if png.depth in (1, 8) or (png.depth == 16 and png.color_type == GREY):
        expected = png.samples[..., 0] if shown.ndim == 2 else png.samples
        assert shown.shape[:2] == expected.shape[:2], what
        if shown.shape == expected.shape:
            np.testing.assert_array_equal(shown, expected, err_msg=what)


@pytest.mark.parametrize("filtered", range(5))
def test_the_second_reading_undoes_filters_as_pillow_does(filtered: int, tmp_path: Path) -> None:
    import struct
    import zlib

    rng = random.Random(filtered)
    raw = b"".join(bytes([filtered]) + rng.randbytes(9) for _ in range(7))
    header = struct.pack(">IIBBBBB", 3, 7, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), read_png(content).samples)


def test_the_second_reading_refuses_what_is_not_whole() -> None:
    good = write_png(np.zeros((4, 4, 1), np.int64), GREY, 8, interlaced=False)
    for damaged in (
        good[:-20],
        good[:40],
        good.replace(b"IDAT", b"IDAU"),
        good[:50] + bytes([good[50] ^ 1]) + good[51:],
    ):
        with pytest.raises(PngError):
            read_png(damaged)


def test_a_good_file_is_read_by_both(tmp_path: Path) -> None:
    ids = np.arange(16).reshape(4, 4) % 5
    (tmp_path / "a.png").write_bytes(write_png(ids[..., None], GREY, 8, interlaced=True))
    np.testing.assert_array_equal(label_map.read_label_map(tmp_path / "a.png", label_map.LabelSpec(5)), ids)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(LabelMapError):
        label_map.read_label_map(tmp_path / "b.png", label_map.LabelSpec(5))


def test_the_command_line_of_the_fuzz(tmp_path: Path, corpus: Corpus) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz",
            "--cases",
            "6",
            "--reader",
            "golden",
            "--jobs",
            "1",
            "--work",
            corpus.root.parent,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "golden" in done.stdout
