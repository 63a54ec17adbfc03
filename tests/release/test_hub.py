"""Uploads to the Hugging Face Hub: the real huggingface_hub against a local server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from spade_deploy.artifact import REPORT_JSON, Artifact, rewrite_manifest, write_engine
from spade_deploy.cli import app
from spade_deploy.errors import ArtifactError, ConfigError, HubError, MissingDependencyError, ValidationFailedError
from spade_deploy.files.atomic import write_json
from spade_deploy.metrics.tolerances import Tolerance
from spade_deploy.release.hub import push_to_hub, require_hub
from spade_deploy.release.request import HubRequest
from spade_deploy.runs import checkpoint_folder, new_run
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.spec import LabelSpec, Precision
from spade_deploy.validation import validate as validation
from tests.support.generators import build_generator
from tests.support.hub import Hub, running_hub
from tests.support.stand_in import stand_in_artifact

constants = pytest.importorskip("huggingface_hub.constants", reason="needs huggingface_hub")

# huggingface_hub 2.4 itself sends large files in a way that its httpx2 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        # huggingface_hub has read these variables when it was imported.
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield found


def artifact_in(
    folder: Path,
    *precisions: Precision,
    report: dict[str, object] | None = None,
    card: str = "---\nlicense: mit\n---\n",
) -> Artifact:
    made = stand_in_artifact(folder, precisions=precisions or (Precision.FP32,))
    (folder / "README.md").write_text(card)
    if report is not None:
        write_json(folder / REPORT_JSON, report)
    return Artifact(folder, rewrite_manifest(folder, made.manifest))


def uploaded(hub: Hub, name: str) -> dict[str, bytes]:
    """The files of a repository that are the artifact's."""
    return {path: content for path, content in hub.repositories[name].items() if path != ".gitattributes"}


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {name: (artifact.path / name).read_bytes() for name in ("manifest.json", *artifact.manifest.files)}


def spade(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_what_lies_there_is_the_artifact_byte_by_byte(hub: Hub, tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path / "a", Precision.FP32, Precision.FP16, report={"passed": True})
    write_engine(artifact, "fp32.dense.abc", b"machine code", key={}, proof={}, seconds=1.0)
    (artifact.path / "notes.txt").write_text("mine")
    made = push_to_hub(artifact, "earth")
    assert (made.repository, made.url, made.commit) == ("ann/earth", f"{hub.url}/ann/earth", "1" * 40)
    found = uploaded(hub, "ann/earth")
    assert found == contents(artifact)
    assert set(found) >= {"manifest.json", "README.md", "report.json", "generator.fp16.onnx", "golden/inputs.npz"}
    assert hub.stored, "ONNX files took the way of large files"
    assert made.bytes == sum(map(len, contents(artifact).values())) - len(found["manifest.json"])
    assert hub.private == {"ann/earth": True}
    assert hub.messages[0].startswith("Upload tiny-001, step 40, exported by spade-deploy ")


def test_another_upload_removes_what_the_new_artifact_has_not(hub: Hub, tmp_path: Path) -> None:
    """A graph that was left there would be one of an older model."""
    push_to_hub(artifact_in(tmp_path / "a", Precision.FP32, Precision.FP16, report={"passed": True}), "team/earth")
    hub.repositories["team/earth"] |= {"LICENSE": b"theirs", "images/generator.png": b"theirs"}
    second = artifact_in(tmp_path / "b", report={"passed": True}, card="---\nlicense: cc0-1.0\n---\n")
    push_to_hub(second, "team/earth", public=True)
    assert uploaded(hub, "team/earth") == {
        **contents(second),
        "LICENSE": b"theirs",
        "images/generator.png": b"theirs",
    }
    assert hub.private == {"team/earth": True}, "a repository that was there stays private"


@pytest.mark.parametrize(
    ("report", "kind", "said"),
    [
        ({"passed": False}, ValidationFailedError, "failed its validation, so it is not uploaded"),
        ({}, ValidationFailedError, "failed its validation"),
        (None, ArtifactError, "has no report of a validation"),
    ],
)
def test_an_artifact_that_did_not_pass_is_never_uploaded(
    hub: Hub, tmp_path: Path, report: dict[str, object] | None, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        push_to_hub(artifact_in(tmp_path / "a", report=report), "earth")
    assert hub.repositories == {}


def test_an_artifact_that_is_exported_again_meanwhile(hub: Hub, tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path / "a", report={"passed": True})
    hub.at_a_commit = lambda: artifact_in(tmp_path / "a", report={"passed": True}, card="another")
    with pytest.raises(HubError, match="was exported again while it was uploaded"):
        push_to_hub(artifact, "earth")


def test_the_command_exports_and_uploads(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First with a validation that fails: nothing of it may be uploaded."""
    monkeypatch.chdir(tmp_path)
    folder = checkpoint_folder(new_run(Path("runs"), "tiny"), 0)
    save_checkpoint(folder, build_generator(labels=LabelSpec(3), base_channels=2), step=0, origin="import")
    line = ("export", "--graph", "dense", "--push-to-hub", "earth", "--hub-public", "--json")
    with monkeypatch.context() as failing:
        failing.setattr(validation, "tolerance_for", lambda *_: Tolerance(min_ssim=2.0))
        failed = spade(*line)
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["error"]["type"] == "ValidationFailedError"
    assert hub.repositories == {}
    refused = spade("export", "runs/tiny/artifact.failed", "--push-to-hub", "earth")
    assert (refused.exit_code, hub.repositories) == (1, {})
    assert "artifact.failed failed its validation" in refused.stderr
    done = spade(*line)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)["result"]
    assert told["hub"]["url"] == f"{hub.url}/ann/earth"
    assert told["validation"]["passed"] is True
    assert uploaded(hub, "ann/earth") == contents(Artifact.open("runs/tiny/artifact"))
    assert hub.private == {"ann/earth": False}
    # An upload that fails leaves the artifact, and the next step uploads it without another export.
    hub.refuse_commits = True
    late = spade("export", "runs/tiny/artifact", "--push-to-hub", "ann/second")
    assert late.exit_code == 1
    assert f"error: --push-to-hub: {hub.url} refuses this token" in late.stderr
    assert "runs/tiny/artifact itself is complete" in late.stderr
    assert "`spade export runs/tiny/artifact --push-to-hub ann/second` uploads it" in late.stderr
    hub.refuse_commits = False
    assert spade("export", "runs/tiny/artifact", "--push-to-hub", "ann/second").exit_code == 0
    assert uploaded(hub, "ann/second") == contents(Artifact.open("runs/tiny/artifact"))
    other = spade("export", "runs/tiny/artifact", "--fp16", "--push-to-hub", "ann/second")
    assert other.exit_code == 2
    assert "--fp16: belongs to the export of a checkpoint" in other.stderr


class TestBeforeTheExport:
    """What cannot be uploaded is refused at once, not after an export of minutes."""

    def test_a_good_name_and_token_pass(self, hub: Hub) -> None:
        require_hub("ann/earth")
        assert hub.repositories == {}

    @pytest.mark.parametrize("name", ["a/b/c", "ann/", "-x", "a--b", "ann/ea rth", "ann/x.git", ""])
    def test_a_name_that_is_none(self, name: str, hub: Hub) -> None:
        with pytest.raises(ConfigError, match="is not the name of a repository, such as user/earth-model"):
            require_hub(name)

    def test_without_a_token(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(HubError, match="no token of the Hugging Face Hub") as caught:
            require_hub("earth")
        assert "`hf auth login`" in str(caught.value.hint)

    def test_a_token_that_is_wrong(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_bad")
        with pytest.raises(HubError, match="refuses this token") as caught:
            require_hub("earth")
        assert "hf_bad" not in caught.value.message
        assert "a token that may write to earth" in str(caught.value.hint)

    def test_without_a_network(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        done = spade("export", "--push-to-hub", "earth")
        assert done.exit_code == 1
        assert "error: --push-to-hub: http://127.0.0.1:9 cannot be used: " in done.stderr
        assert "nothing was exported yet" in done.stderr
        assert "export without --push-to-hub, and upload the artifact later" in done.stderr

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(MissingDependencyError) as caught:
            require_hub("earth")
        assert caught.value.hint == "pip install 'spade-deploy[hub]'"

    def test_public_belongs_to_it(self) -> None:
        with pytest.raises(ConfigError, match="`hub_public`: belongs to `push_to_hub`"):
            HubRequest(hub_public=True)
