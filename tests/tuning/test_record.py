"""The file that keeps what was measured: its key, and that nothing that happens to it ends a run."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.artifact import Artifact
from spade_deploy.files.user_cache import VARIABLE
from spade_deploy.spec import Backend, GraphChoice, GraphKind, Precision
from spade_deploy.tuning import key as keys
from spade_deploy.tuning import record as records
from spade_deploy.tuning.choice import choose, psnr_of
from spade_deploy.tuning.key import TuningKey, key_on_cpu
from spade_deploy.tuning.record import EngineChoice, GoldenCheck, Record, Session, Time, keep, read_record, record_file
from spade_deploy.tuning.wish import Wish
from tests.support.stand_in import stand_in_artifact

KEY = TuningKey("a" * 64, "cpu", "A CPU", ("amx_bf16", "avx2"), 2, 2, {"onnxruntime": "1.32.0"})
USUAL, OTHER, BF16 = (
    EngineChoice("cpu", Precision.FP32),
    EngineChoice("openvino", Precision.FP32),
    EngineChoice("openvino", Precision.BF16),
)
SESSION = Session(GraphChoice.AUTO, False, 1_700_000_000, (Time(USUAL, 20.5), Time(OTHER, 10.25, 0.5)), (BF16,))
RECORD = (
    Record(KEY)
    .with_check(GoldenCheck(OTHER, GraphKind.LOOKUP, (), 131.5))
    .with_check(GoldenCheck(BF16, GraphKind.DENSE, ("PSNR 9.0 dB is under 40.0 dB",), 9.0))
    .with_session(SESSION)
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))


def file_of(key: TuningKey = KEY) -> Path:
    path = record_file(key)
    assert path is not None
    return path


def test_what_is_kept_is_read_again() -> None:
    assert read_record(KEY) == Record(KEY)
    assert keep(RECORD) == f"kept in {file_of()}"
    assert read_record(KEY) == RECORD


@pytest.mark.parametrize(
    "change",
    [
        {"artifact_sha256": "b" * 64},
        {"device": "cuda"},
        {"device_name": "Another CPU"},
        {"instructions": ("avx2",)},
        {"cores": 4},
        {"threads": 1},
        {"versions": {"onnxruntime": "1.33.0"}},
        {"versions": {"onnxruntime": "1.32.0", "openvino": "2026.4.1"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_is_known_under_another_key(change: dict[str, Any]) -> None:
    keep(RECORD)
    other = replace(KEY, **change)
    assert file_of(other) != file_of()
    assert read_record(other) == Record(other)


def test_the_key_is_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = stand_in_artifact(tmp_path / "artifact")
    here = key_on_cpu(artifact, None)
    assert here.artifact_sha256 == json.loads((artifact.path / "manifest.json").read_text())["manifest_sha256"]
    assert here.device_name
    assert here.threads == here.cores >= 1
    assert {"spade-deploy", "onnxruntime"} <= set(here.versions)
    assert key_on_cpu(artifact, 1) == replace(here, threads=1)
    for name, value in (("processor", "Z"), ("instruction_sets", ("z",)), ("usable_cores", 64), ("installed", {})):
        with monkeypatch.context() as patch:
            patch.setattr(keys, name, lambda *_, value=value: value)
            assert key_on_cpu(artifact, 1) != replace(here, threads=1), name
    newer = Artifact(artifact.path, replace(artifact.manifest, created_unix_ns=1))
    assert key_on_cpu(newer, None).artifact_sha256 != here.artifact_sha256


DAMAGE: dict[str, Any] = {
    "empty": b"",
    "cut": json.dumps({"key": 1})[:-3].encode(),
    "no JSON": b"\x89PNG\r\n",
    "a list": b"[]",
    "huge": b" " * (records.MOST_BYTES + 2),
    "nan": b'{"key": NaN}',
    "deep": b'{"key": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_and_measured_again(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    keep(RECORD)
    file_of().write_bytes(content)
    assert read_record(KEY) == Record(KEY)
    (line,) = caplog.messages
    assert line.startswith(f"{file_of()}: what was measured cannot be read (")
    assert line.endswith("): it is measured again")
    assert len(line.splitlines()) == 1
    keep(RECORD)
    assert read_record(KEY) == RECORD


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("key", "threads"), 1, "it is of another machine, artifact or version than its name says"),
        (("format_version",), 2, "it is of format 2, not 1"),
        (("sessions", 0, "times", 0, "ms"), 0.0, "ms is 0.0, not more than 0"),
        (("sessions", 0, "times", 1, "break_even_share"), 1.5, "break_even_share is 1.5, not in 0..1"),
        (("sessions", 0, "times", 0, "candidate", "precision"), "fp8", "precision 'fp8' is not one of fp32, "),
        (("checks", 0, "failures"), "none", "'none' is of type str"),
        (("checks", 0, "secret"), 1, "unknown field 'secret'"),
    ],
)
def test_a_file_that_contradicts_itself_is_not_used(
    where: tuple[Any, ...], value: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep(RECORD)
    content = json.loads(file_of().read_text())
    place = content
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value
    file_of().write_text(json.dumps(content))
    assert read_record(KEY) == Record(KEY)
    assert said in caplog.text


def test_a_file_that_may_not_be_read_is_named(caplog: pytest.LogCaptureFixture) -> None:
    file_of().parent.mkdir(parents=True)
    file_of().mkdir()
    assert read_record(KEY) == Record(KEY)
    assert "cannot be read" in caplog.text


def test_a_folder_that_cannot_be_written_is_told_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    said = keep(RECORD)
    assert said.startswith(f"not kept: {file_of()}: ")
    assert len(said.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    assert keep(RECORD).startswith("not kept: ")


def test_a_read_only_file_system_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(records, "write_json", refuse)
    assert keep(RECORD) == f"not kept: {file_of()}: Read-only file system"


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert read_record(KEY) == Record(KEY)
    assert keep(RECORD) == "not kept: there is no home folder for a cache; SPADE_CACHE_DIR names another place"
    assert caplog.text == ""


def test_writers_at_the_same_time_leave_a_whole_file(caplog: pytest.LogCaptureFixture) -> None:
    """Readers beside them see one of the records, never half of one."""
    versions = [replace(RECORD, sessions=(replace(SESSION, unix_s=number),)) for number in range(4)]
    seen: list[Record] = []
    keep(versions[0])

    def write(record: Record) -> None:
        for _ in range(10):
            keep(record)
            seen.append(read_record(KEY))

    threads = [threading.Thread(target=write, args=(record,)) for record in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 40
    assert all(one in versions for one in seen)
    assert caplog.text == ""
    assert [path.name for path in file_of().parent.iterdir()] == [file_of().name], "no temporary file is left"


def test_the_folder_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_FILES", 3)
    written = [replace(KEY, threads=number) for number in range(1, 6)]
    for number, key in enumerate(written):
        keep(Record(key))
        os.utime(file_of(key), (number, number))
    keep(RECORD)
    assert len(list(file_of().parent.iterdir())) == 3
    assert file_of().exists()
    assert not file_of(written[0]).exists()


def test_a_session_says_the_fastest_only_of_what_it_measured() -> None:
    assert RECORD.session_for(GraphChoice.AUTO, [USUAL, OTHER]) == SESSION
    assert RECORD.session_for(GraphChoice.AUTO, [USUAL, BF16]) == SESSION, "what was left out is known, too"
    assert RECORD.session_for(GraphChoice.DENSE, [USUAL, OTHER]) is None
    assert RECORD.session_for(GraphChoice.AUTO, [USUAL, EngineChoice("cpu", Precision.INT8)]) is None
    nothing = replace(SESSION, times=(), left_out=(USUAL, OTHER))
    assert Record(KEY).with_session(nothing).session_for(GraphChoice.AUTO, [USUAL, OTHER]) is None


def test_a_careful_session_goes_before_a_newer_one() -> None:
    careful = replace(SESSION, is_careful=True, unix_s=1)
    record = RECORD.with_session(careful)
    assert record.sessions == (careful,), "the other says nothing beyond it"
    newer = replace(SESSION, unix_s=2)
    assert record.with_session(newer).session_for(GraphChoice.AUTO, [USUAL]) == careful
    again = replace(careful, unix_s=3)
    assert record.with_session(newer).with_session(again).sessions == (again,)


def test_a_new_check_takes_the_place_of_the_old_one() -> None:
    right = GoldenCheck(BF16, GraphKind.DENSE, (), 50.0)
    assert RECORD.failures_of(BF16) == ("dense graph: PSNR 9.0 dB is under 40.0 dB",)
    assert RECORD.with_check(right).failures_of(BF16) == ()
    assert RECORD.with_check(right).check_of(BF16, GraphKind.DENSE) == right
    assert len(RECORD.with_check(right).checks) == len(RECORD.checks)


def test_a_candidate_is_as_good_as_the_worse_of_its_graphs(tmp_path: Path) -> None:
    record = RECORD.with_check(GoldenCheck(OTHER, GraphKind.DENSE, (), 60.0))
    assert record.check_of(OTHER, GraphKind.LOOKUP) == GoldenCheck(OTHER, GraphKind.LOOKUP, (), 131.5)
    assert psnr_of(record, OTHER) == 60
    artifact = stand_in_artifact(tmp_path / "artifact")

    def ranked(record: Record, least: float | None = None) -> list[EngineChoice]:
        wish = Wish(artifact, None, least, Backend.AUTO, 1, GraphChoice.AUTO, None)
        return [one.candidate for one in choose(wish, record, SESSION).ranked]

    assert ranked(record) == [OTHER, USUAL], "the fastest first"
    assert ranked(record, 60) == [OTHER, USUAL]
    assert ranked(record, 61) == [USUAL], "its images are those of the reference"
    assert ranked(record.with_check(GoldenCheck(OTHER, GraphKind.DENSE, ("wrong",), 60.0))) == [USUAL]
