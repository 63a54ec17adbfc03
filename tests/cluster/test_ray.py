"""A cluster of three Ray nodes on this machine, on which replicas, training processes and whole nodes are killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import helper, numpy_helper

pytest.importorskip("ray", reason="pip install 'spade-deploy[ray]'")

from spade_deploy.artifact import LABEL
from spade_deploy.inference import InferRequest, infer
from spade_deploy.inference.maker import artifact_digest
from spade_deploy.inference.places.store import LOG
from spade_deploy.serving.client import Client, ServerError
from spade_deploy.spec import GeneratorSpec
from tests.support.paths import ROOT
from tests.support.ray_cluster import PROGRAMS, SmallCluster, environment, kill, small_cluster, wait_for
from tests.support.served import pixels_of, png, right_pixels, some_map
from tests.support.stand_in import PLAIN, STYLED, stand_in_artifact, stand_in_graph
from tests.support.training_runs import equal, weights

pytestmark = pytest.mark.slow  # it starts some thirty processes, each of which imports Ray

REPLICA, WORKER = "ray::ServeReplica", "ray::MapWorker"


@pytest.fixture(scope="module")
def cluster() -> Iterator[SmallCluster]:
    with small_cluster(2) as made:
        yield made


def spade(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `spade` to its end."""
    return subprocess.run(
        [PROGRAMS / "spade", *map(str, words)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


TOKEN = "a-token-of-the-tests"


class Service:
    """`serve run` of the application of deploy/kubernetes/ray, with paths, port and sizes of this machine."""

    def __init__(self, cluster: SmallCluster, folder: Path, **arguments: float) -> None:
        self.artifact = stand_in_artifact(folder / "one", PLAIN)
        self.log = folder / "log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        (folder / "token").write_text(TOKEN)
        example = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "ray" / "rayservice.yaml").read_text())
        config = yaml.safe_load(example["spec"]["serveConfigV2"])
        (application,) = config["applications"]
        here = {"artifacts": [str(self.artifact.path)], "token_file": str(folder / "token"), "num_cpus": 1}
        application["args"] |= {**here, "backend": "cpu", **arguments}
        config["http_options"]["port"] = port
        config["proxy_location"] = "HeadOnly"  # all nodes are one machine here, which has each port once
        (folder / "service.yaml").write_text(json.dumps(config))
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [PROGRAMS / "serve", "run", "--address", cluster.address, folder / "service.yaml"],
                env=environment(),
                cwd=folder,
                stdout=out,
                stderr=out,
            )

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
            return bool(json.loads(answer.read())["status"] == "ready")
        return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # SIGTERM would leave the replicas, and the CPUs that they hold
        self.process.wait(60)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_replicas_come_with_load_and_die_without_a_wrong_answer(cluster: SmallCluster, tmp_path: Path) -> None:
    """Each request gets the pixels that `spade infer` writes, however many replicas die while it is asked for."""
    label = some_map(PLAIN)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "map.png").write_bytes(png(label))
    scale = {"max_replicas": 2, "target_ongoing_requests": 1, "max_ongoing_requests": 4, "upscale_delay_s": 0.1}
    service = Service(cluster, tmp_path, **scale, queue=100)
    try:
        infer(service.artifact, InferRequest(tmp_path / "labels", tmp_path / "out", backend="cpu"))
        wanted = pixels_of((tmp_path / "out" / "map.png").read_bytes())
        wait_for(service.is_ready, 180)
        over, right, statuses = threading.Event(), [0] * 7, []

        def ask(number: int) -> None:
            client = Client(service.url, TOKEN, tries=60 if number == 0 else 1)
            while not over.is_set():
                try:
                    assert np.array_equal(pixels_of(client.synthesize(png(label))), wanted)
                    right[number] += 1
                except ServerError as error:  # what a client sees that does not ask again by itself
                    statuses.append(error.status)
                    time.sleep(0.1)

        with ThreadPoolExecutor(len(right)) as pool:
            asking = [pool.submit(ask, number) for number in range(len(right))]
            try:
                wait_for(lambda: len(replicas_that_answered(cluster)) == 2, 240)
                for replica in cluster.workers(REPLICA):
                    kill(replica)
                before = list(right)
                wait_for(lambda: all(now > then + 2 for now, then in zip(right, before, strict=True)), 240)
            finally:
                over.set()
            for one in asking:
                one.result()
        assert set(statuses) == {503}, "the kill went unnoticed, or was told in another way"
    finally:
        service.stop()
        print(service.log.read_text()[-4000:])


def slow_graph(spec: GeneratorSpec) -> bytes:
    """The stand-in's graph, with a product of large matrices whose result changes nothing: some 300 ms an image."""
    model = onnx.load_from_string(stand_in_graph(spec))
    cast = next(node for node in model.graph.node if list(node.input) == [LABEL])
    ids, cast.output[0] = cast.output[0], "fast_ids"
    constants = {"side": np.array([2048, 2048], np.int64), "nothing": np.zeros((), np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes = [
        helper.make_node("ReduceMean", ["fast_ids"], ["slow_mean"], keepdims=0),
        helper.make_node("Expand", ["slow_mean", "side"], ["square"]),
        helper.make_node("MatMul", ["square", "square"], ["product"]),
        helper.make_node("ReduceMin", ["product"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "nothing"], ["added"]),
        helper.make_node("Add", ["fast_ids", "added"], [ids]),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(1, node)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def replicas_that_answered(cluster: SmallCluster) -> list[Path]:
    """The logs of the replicas that have made a photo."""
    logs = (cluster.folder / "session_latest/logs/serve").glob("replica_*.log")
    return [log for log in logs if "POST /v1/synthesize 200" in log.read_text()]


class TestInfer:
    COUNT = 48

    @pytest.fixture
    def labels(self, tmp_path: Path) -> Path:
        """Label maps that are all different, and one that is broken."""
        folder = tmp_path / "labels"
        folder.mkdir()
        for number in range(self.COUNT):
            (folder / f"map-{number:03d}.png").write_bytes(png(some_map(STYLED, number)))
        (folder / "broken.png").write_bytes(b"no picture")
        return folder

    def check(self, out: Path) -> None:
        """Every image is there and right, and nothing else is."""
        style = np.random.default_rng(3).standard_normal((1, 2), np.float32)
        found = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        assert found == {LOG, *(f"map-{number:03d}.png" for number in range(self.COUNT))}
        for number in range(self.COUNT):
            made = pixels_of((out / f"map-{number:03d}.png").read_bytes())
            assert np.array_equal(made, right_pixels(STYLED, some_map(STYLED, number), style=style[0])), number

    def test_a_node_that_dies_midway_loses_no_image(self, cluster: SmallCluster, tmp_path: Path, labels: Path) -> None:
        artifact, out = stand_in_artifact(tmp_path / "one", STYLED, graph=slow_graph(STYLED)), tmp_path / "out"
        doomed = cluster.add()
        words = ("infer", labels, out, "--artifact", artifact.path, "--backend", "cpu", "--seed", "3", "--json")
        process = subprocess.Popen(
            [PROGRAMS / "spade", *words, "--ray", cluster.address],
            env=environment(),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for(
                lambda: process.poll() is not None or (cluster.workers(WORKER, doomed) and len(images(out)) > 4), 240
            )
            cluster.kill(doomed)
        finally:
            said, errors = process.communicate(timeout=240)
        print(errors)
        report = json.loads(said)
        assert (process.returncode, report["result"]["total"], report["result"]["written"]) == (1, 49, 48)
        assert [Path(one["path"]).name for one in report["result"]["failures"]] == ["broken.png"]
        assert [one for one in report["result"]["lost"] if "is gone" in one], "the node was killed too late"
        self.check(out)
        lines = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
        assert sorted(line["id"] for line in lines) == ["broken", *(f"map-{n:03d}" for n in range(self.COUNT))]
        for line in lines:
            file = line["file"] and (out / line["file"]).read_bytes()
            assert line["sha256"] == (file and hashlib.sha256(file).hexdigest())
            assert (line["seed"], line["style"], line["artifact_sha256"]) == (3, "seed 3", artifact_digest(artifact))
            assert (line["error"] is None) == (line["id"] != "broken")
        for number in (3, 7):
            (out / f"map-{number:03d}.png").unlink()
        again = spade(*words, cwd=tmp_path)
        result = json.loads(again.stdout)["result"]
        assert (again.returncode, result["written"], result["skipped"]) == (1, 2, 46)
        self.check(out)

    def test_a_node_without_the_package_is_named_before_anything_is_made(
        self, cluster: SmallCluster, tmp_path: Path, labels: Path
    ) -> None:
        (tmp_path / "broken" / "spade_deploy").mkdir(parents=True)
        (tmp_path / "broken" / "spade_deploy" / "__init__.py").write_text("raise ImportError('it is not installed')")
        artifact, bare = stand_in_artifact(tmp_path / "one", PLAIN), cluster.add(PYTHONPATH=str(tmp_path / "broken"))
        try:
            words = ("infer", labels, tmp_path / "out", "--artifact", artifact.path, "--ray", cluster.address)
            done = spade(*words, cwd=tmp_path)
        finally:
            cluster.kill(bare)
        assert done.returncode == 2
        assert "there is 1 node of the cluster without spade-deploy: " in done.stderr
        assert "next: pip install 'spade-deploy[cpu,ray]' there" in done.stderr
        assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock"}


def images(folder: Path) -> list[Path]:
    return list(folder.glob("*.png"))


OPTIONS = ("--size", "32x32", "--load-size", "32x32", "--base-channels", "2", "--hidden-channels", "2")
OPTIONS += ("--steps", "10", "--batch-size", "2", "--save-every", "2", "--sample-every", "1000", "--workers", "0")


def train_alone(folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start the same training in two processes as torchrun would, without Ray and unbroken."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = [PROGRAMS / "spade", "train", "--name", "unbroken", "--device", "cpu", *OPTIONS]
    return [
        subprocess.Popen(command, env=environment(**place, RANK=str(rank)), cwd=folder, stdout=subprocess.DEVNULL)
        for rank in range(2)
    ]


def test_a_training_goes_on_when_a_worker_is_killed(cluster: SmallCluster, tmp_path: Path) -> None:
    """Ray starts it again from the newest checkpoint: the weights are those of an unbroken training, bit by bit."""
    command = [PROGRAMS / "spade", "train", "--ray", cluster.address, "--ray-workers", "2", "--name", "job"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--json", *OPTIONS],
            env=environment(),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    checkpoints = tmp_path / "runs" / "job" / "checkpoints"
    try:
        wait_for(lambda: process.poll() is not None or sorted(checkpoints.glob("step_*4")), 240)
        child = cluster.workers("-m spade_deploy train")[-1]
        for one in (child.parent(), child):
            kill(one)
        said, _ = process.communicate(timeout=250)
    finally:
        process.kill()
        print((tmp_path / "log").read_text()[-6000:])
    unbroken = train_alone(tmp_path)
    assert process.returncode == 0
    report = json.loads(said)["result"]
    assert (report["step"], Path(report["run"]).name) == (10, "job")
    assert "resumed from step_" in report["described"]
    assert [one.wait(120) for one in unbroken] == [0, 0]
    last = "checkpoints/step_00000010"
    assert equal(weights(tmp_path / "runs" / "job" / last), weights(tmp_path / "runs" / "unbroken" / last))
    assert not equal(weights(tmp_path / "runs" / "job" / last), weights(sorted(checkpoints.iterdir())[-2]))
    assert not list((tmp_path / "runs" / "job").glob(".ray*"))
