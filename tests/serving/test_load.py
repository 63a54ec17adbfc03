"""`spade serve` under load, of which 5 % is hostile: no request is lost, each answer is right, and nothing piles up."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tests.support.bench_model import load_script
from tests.support.stand_in import PLAIN, stand_in_artifact

pytest.importorskip("fastapi", reason="pip install 'spade-deploy[serve]'")


@pytest.mark.parametrize("requests", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_hostile_clients_take_nothing_from_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], requests: int
) -> None:
    script, client = load_script("serving_load"), load_script("load_client")
    stand_in_artifact(tmp_path / "artifact", PLAIN)
    out = tmp_path / "result.json"
    arguments = ["--artifact", tmp_path / "artifact", "--requests", requests, "--rounds", 2, "--images", 10]
    arguments += ["--threads", 1, "--timeout", 2, "--out", out]
    code = script.main([str(part) for part in arguments])
    assert code == 0, capsys.readouterr().err
    result = json.loads(out.read_text(encoding="utf-8"))
    load = result["load"]
    assert (load["requests"], load["hostile"], load["right_images"]) == (requests, requests // 20, requests * 19 // 20)
    assert load["statuses"].pop("as it should be") == {"200": requests * 19 // 20}
    kinds = client.hostile_requests(PLAIN, 1, 1, b"x" * 50)
    assert set(load["statuses"]) == {one.name for one in kinds}
    for one in kinds:
        assert set(load["statuses"][one.name]) == {str(one.status)}, one.name
    assert sum(sum(counts.values()) for counts in load["statuses"].values()) == requests // 20
    assert result["throughput"]["ratio"] > 0
    assert result["latency"]["overhead_p50_ms"] == pytest.approx(
        result["latency"]["served"]["p50_ms"] - result["latency"]["bare"]["p50_ms"]
    )
    for name, value, said in (
        ("right_images", load["right_images"] - 1, "got"),
        ("images_of_the_server", requests * 2, "the server made"),
        ("server_after", {**load["server_after"], "files": 10**6}, "files of the server grew"),
        ("server_after", {**load["server_after"], "rss_bytes": 10**12}, "rss_bytes of the server grew"),
    ):
        changed = {**copy.deepcopy(load), name: value}
        (fault,) = script.faults(changed)
        assert said in fault
