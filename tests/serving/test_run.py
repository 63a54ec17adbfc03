"""`spade serve` as a process: what slow and vanishing clients do to it, how it ends, and what a killed worker loses."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import spade
from tests.support.served import ServedProcess, pixels_of, png, right_pixels, some_map
from tests.support.stand_in import PLAIN

pytest.importorskip("fastapi", reason="pip install 'spade-deploy[serve]'")

from prometheus_client.mmap_dict import MmapedDict

from spade_deploy.serving import run
from spade_deploy.serving.client import Client, ServerError
from spade_deploy.serving.figures import MULTIPROCESS
from spade_deploy.serving.request import ServeRequest
from spade_deploy.serving.run import _listening


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    folder = tmp_path_factory.mktemp("run")
    settings = folder / "serve.yaml"
    settings.write_text("json_logs: true\nmax_bytes: 100000\ntimeout: 50\nmax_pixels: 4096\n", encoding="utf-8")
    found = ServedProcess(folder, "--config", str(settings), "--timeout", "3")
    yield found
    found.process.kill()
    found.process.wait()


def test_many_clients_get_their_own_images(served: ServedProcess) -> None:
    maps = [some_map(PLAIN, seed) for seed in range(60)]
    asking = Client(served.url)
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(asking.synthesize, map(png, maps)))
    for label, image in zip(maps, images, strict=True):
        np.testing.assert_array_equal(pixels_of(image), right_pixels(PLAIN, label))


def test_connections_that_never_send_and_bodies_that_break_off_hold_up_nobody(served: ServedProcess) -> None:
    idle = [socket.create_connection(served.address, timeout=30) for _ in range(100)]
    half = socket.create_connection(served.address, timeout=30)
    half.sendall(
        b"POST /v1/synthesize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n{"
    )
    gone = socket.create_connection(served.address, timeout=30)
    gone.sendall(b"POST /v1/synthesize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\nxx")
    gone.close()
    label = some_map(PLAIN, 1)
    np.testing.assert_array_equal(pixels_of(Client(served.url).synthesize(png(label))), right_pixels(PLAIN, label))
    idle[0].settimeout(30)
    assert idle[0].recv(1) == b"", "the server closes what sends no request"
    answer = b""
    while b"request_id" not in answer and (part := half.recv(65536)):
        answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 3 s" in answer
    for one in (*idle, half):
        one.close()


def test_a_large_body_is_refused_and_the_log_has_its_id(served: ServedProcess) -> None:
    with pytest.raises(ServerError, match="at most 100,000 are allowed") as caught:
        Client(served.url).synthesize(b"x" * 200_000)
    assert caught.value.status == 413
    served.wait_for(caught.value.problem["request_id"])  # the log's line follows the answer


def test_the_settings_of_a_file_hold_and_a_flag_goes_before_them(served: ServedProcess) -> None:
    """The other tests have max_bytes and json_logs of the file, and the flag's timeout: 3 seconds, not 50."""
    with pytest.raises(ServerError, match="exceeds the limit of 4096 pixels") as caught:
        Client(served.url).synthesize(png(some_map(PLAIN)), size="128x64")
    assert caught.value.status == 413


def test_a_setting_of_a_file_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    settings = tmp_path / "serve.yaml"
    for text, said in (("max_bites: 5\n", "max_bites"), ("queue: 0\n", "queue")):
        settings.write_text(text, encoding="utf-8")
        found = spade("serve", "nothing", "--config", settings, cwd=tmp_path)
        assert found.returncode == 2
        assert said in found.stderr
        assert "Traceback" not in found.stderr


def test_a_request_that_has_begun_is_finished_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    served = ServedProcess(tmp_path)
    label = some_map(PLAIN, 2)
    answers: list[bytes] = []

    def ask() -> None:
        with contextlib.suppress(OSError):
            while True:
                answers.append(Client(served.url, tries=1).synthesize(png(label)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(answers) < 8:
        time.sleep(0.01)
    assert served.stop() == 0
    for thread in threads:
        thread.join(30)
    for answer in answers:
        np.testing.assert_array_equal(pixels_of(answer), right_pixels(PLAIN, label))


class Workers:
    """The processes of a server that share its port. Skips where the system does not list them."""

    def __init__(self, served: ServedProcess) -> None:
        self._children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children")
        if not self._children.exists():
            pytest.skip("this system lists no child processes in /proc")

    def now(self) -> list[int]:
        found = []
        for pid in map(int, self._children.read_text().split()):
            with contextlib.suppress(OSError):  # it has ended
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found


def waiting_in_all(url: str) -> float:
    """How many requests wait in all processes of a server, as its figures say."""
    text = urllib.request.urlopen(f"{url}/metrics", timeout=20).read().decode()
    (line,) = (line for line in text.splitlines() if line.startswith("spade_queue_waiting "))
    return float(line.split()[1])


def let_wait(pid: int, count: int) -> None:
    """Write into the figures of a process that so many requests wait in it."""
    variables = dict(one.split(b"=", 1) for one in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if one)
    file = MmapedDict(str(Path(os.fsdecode(variables[MULTIPROCESS.encode()])) / f"gauge_livesum_{pid}.db"))
    (key,) = (key for key, *_ in file.read_all_values() if '"spade_queue_waiting"' in key)
    file.write_value(key, float(count), time.time())
    file.close()


def test_a_killed_worker_loses_only_what_it_held(tmp_path: Path) -> None:
    """Six clients ask without a pause: each has one request at most in the killed process, all others are answered.

    What waited in it stands in the figures no more.
    """
    served = ServedProcess(tmp_path, "--workers", "2")
    clients, each, answered, lost = 6, 60, [], []
    begun = threading.Semaphore(0)

    def ask(client: int) -> None:
        for number in range(each):
            label = some_map(PLAIN, client * each + number)
            try:
                image = Client(served.url, tries=1, timeout=30).synthesize(png(label))
            except OSError:  # a ServerError would fail the test: no other client may be refused
                lost.append(time.monotonic())
            else:
                answered.append((label, image))
            begun.release()

    try:
        workers = Workers(served)
        (killed, kept) = workers.now()
        with ThreadPoolExecutor(clients) as pool:
            asking = [pool.submit(ask, client) for client in range(clients)]
            for _ in range(clients * 8):
                assert begun.acquire(timeout=60)
            at = time.monotonic()
            os.kill(killed, signal.SIGKILL)
            for one in asking:
                one.result(120)
        assert len(answered) + len(lost) == clients * each
        assert len(lost) <= clients
        assert all(when >= at for when in lost), "nothing was lost before the kill"
        for label, image in answered:
            np.testing.assert_array_equal(pixels_of(image), right_pixels(PLAIN, label))
        end = time.monotonic() + 60
        while len(now := workers.now()) != 2 or killed in now:  # another process takes its place
            assert time.monotonic() < end, served.errors.read_text()
            time.sleep(0.1)
        assert kept in now, "the other process went on"
        text = urllib.request.urlopen(f"{served.url}/metrics", timeout=20).read().decode()
        assert "spade_images_total" in text
        let_wait(kept, 7)
        os.kill(kept, signal.SIGSTOP)  # so that the other one answers
        assert waiting_in_all(served.url) == 7
        os.kill(kept, signal.SIGKILL)
        while waiting_in_all(served.url) > 0:
            assert time.monotonic() < end, "the requests of the killed process still count"
            time.sleep(0.1)
    finally:
        served.stop()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--host", "0.0.0.0"), "--host: everyone who can reach 0.0.0.0 could use the server"),
        (("--cors", "example.org"), "--cors: 'example.org' is not an origin"),
        (("--cors", "https://Example.org:443/"), "next: browsers send https://example.org\n"),
        (("--host", "192.0.2.1", "--insecure"), "--host: 192.0.2.1:8000 cannot be opened"),
        (("--queue", "0"), "--queue"),
        (("--token-file", "none"), "--token-file: none cannot be read"),
    ],
)
def test_what_cannot_be_served_is_told_at_once(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-m", "spade_deploy", "serve", "nothing", *flags]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert found.returncode == 2
    assert said in found.stderr
    assert "next:" in found.stderr or "--queue" in said


def test_answers_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY only for sockets that name TCP; without it every second answer is 40 ms late."""
    with _listening(ServeRequest(port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


@pytest.mark.usefixtures("usual_signals")
def test_sigterm_ends_a_server_that_still_opens_its_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of a container has no default for it: without a handler it would go on."""

    def open_slowly(*_: object) -> None:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        raise AssertionError("SIGTERM was not obeyed")

    monkeypatch.setattr(run, "open_models", open_slowly)
    monkeypatch.setattr(run, "start_log", lambda **_: None)  # it would change the log of this process
    with pytest.raises(SystemExit) as ended:
        run.serve(ServeRequest(port=0), tmp_path)
    assert ended.value.code == 0
