"""A process that is gone is noticed by the others, and it is named."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from spade_deploy.errors import TrainingError
from spade_deploy.training.processes import peers
from spade_deploy.training.processes.peers import PeerWatch
from spade_deploy.training.processes.world import World
from tests.support.two_processes import free_port

ROOT = Path(__file__).resolve().parents[3]


class TestLosing:
    """The connections between the processes, without their networks."""

    @pytest.fixture
    def watches(self) -> Iterator[list[PeerWatch]]:
        """Those of three processes."""
        pairs = [socket.socketpair(), socket.socketpair()]
        watches = [PeerWatch({1: pairs[0][0], 2: pairs[1][0]}, 0, 3)]
        watches += [PeerWatch({0: pairs[0][1]}, 1, 3), PeerWatch({0: pairs[1][1]}, 2, 3)]
        yield watches
        for watch in watches:
            watch.close()

    def test_who_leaves_well_is_not_missed(self, watches: list[PeerWatch]) -> None:
        watches[2].close()
        watches[0].close()
        assert [watch.lost_peer(0.2) for watch in watches] == ["", "", ""]

    def test_everyone_learns_who_failed_and_why(self, watches: list[PeerWatch]) -> None:
        watches[2].close("the disk is gone")
        assert [watch.lost_peer(60) for watch in watches[:2]] == ["process 2 of 3 failed: the disk is gone"] * 2

    def test_everyone_learns_who_ended_without_a_word(self, watches: list[PeerWatch]) -> None:
        watches[1]._peers[0].shutdown(socket.SHUT_WR)  # as the system does when a process is killed
        sentence = "process 1 of 3 ended without an error message: it was killed, or its host is down"
        assert watches[0].lost_peer(60) == watches[2].lost_peer(60) == sentence

    def test_the_loss_is_what_the_error_is_about(self, watches: list[PeerWatch]) -> None:
        world = World(0, 3, 0, watches[0])
        with (
            pytest.raises(RuntimeError, match="a bug"),
            world.noticing_lost_peers(lambda: ("Step 3 is saved", "go on")),
        ):
            raise torch.OutOfMemoryError("a bug of our own, and nobody is lost")
        watches[1].close("it is broken")
        with pytest.raises(TrainingError) as caught, world.noticing_lost_peers(lambda: ("Step 3 is saved", "go on")):
            raise RuntimeError("Connection closed by peer")
        assert (caught.value.message, caught.value.hint) == (
            "process 1 of 3 failed: it is broken. Step 3 is saved",
            "go on",
        )

    def test_a_process_that_waits_for_something_else_is_ended(self) -> None:
        """As in a call of nccl: no exception reaches it."""
        ours, theirs = socket.socketpair()
        code = (
            "import socket, sys, time\n"
            "from spade_deploy.training.processes import peers\n"
            "peers.GRACE_S = 0.1\n"
            "watch = peers.PeerWatch({1: socket.socket(fileno=int(sys.argv[1]))}, 0, 2)\n"
            "watch.final_message = lambda: 'Step 3 is saved'\n"
            "time.sleep(100)\n"
        )
        arguments = [sys.executable, "-c", code, str(theirs.fileno())]
        with (
            ours,
            subprocess.Popen(arguments, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True) as waiting,
        ):
            theirs.close()
            ours.shutdown(socket.SHUT_RDWR)
            said = waiting.communicate(timeout=60)[1]
        assert said == (
            "error: process 1 of 2 ended without an error message: it was killed, or its host is down. Step 3 is"
            " saved\n"
        )
        assert waiting.returncode == 1

    def test_they_meet_by_what_process_0_shares(self) -> None:
        told: queue.Queue[str] = queue.Queue()

        def share(text: str) -> str:
            for _ in range(2):
                told.put(text)
            return text

        with ThreadPoolExecutor(3) as pool:
            main = pool.submit(peers.connect, 0, 3, "127.0.0.1", 60, share)
            port, token = told.get(timeout=60).split()
            with socket.create_connection(("127.0.0.1", int(port))) as stranger:
                stranger.sendall(b"x" * 40)  # is not let in
                first = pool.submit(peers.connect, 1, 3, "127.0.0.1", 60, lambda _: told.get(timeout=60))
                second = pool.submit(peers.connect, 2, 3, "127.0.0.1", 60, lambda _: f"{port} {token}")
                watches = [future.result(60) for future in (main, first, second)]
        watches[2].close("as a test")
        assert watches[0].lost_peer(60) == watches[1].lost_peer(60) == "process 2 of 3 failed: as a test"
        for watch in watches[:2]:
            watch.close()

    def test_a_host_that_cannot_be_reached_is_named(self) -> None:
        with pytest.raises(TrainingError, match=r"process 1 of 2 cannot connect to process 0 on 127\.0\.0\.1"):
            peers.connect(1, 2, "127.0.0.1", 5, lambda _: f"{free_port()} token")


ENDS = """
import sys
import spade_deploy.cli as cli
from spade_deploy.training.processes import peers
from tests.support.two_processes import LEFT_OVER, AbortsWhenDestroyed

def app():
    {ending}

if sys.argv[1:] == ["together"]:
    LEFT_OVER.append(AbortsWhenDestroyed())
    peers.remember_peers()
cli.app = app
cli.main()
"""


@pytest.mark.parametrize("trained", ["together", "alone"])
@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("raise ValueError('nobody expected this')", 1, "ValueError: nobody expected this"),
        ("raise SystemExit(2)", 2, ""),
        ("raise SystemExit('no number')", 1, "no number"),
        ("raise SystemExit", 0, ""),
    ],
)
def test_the_command_line_ends_with_its_own_code(ending: str, code: int, said: str, trained: str) -> None:
    """Also where Python's usual end would destroy what PyTorch's threads still use."""
    command = [sys.executable, "-c", ENDS.format(ending=ending), trained]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    if said == "no number" and trained == "together":
        return  # no command ends so
    assert done.stderr.count(said) == 1 if said else done.stderr == ""
