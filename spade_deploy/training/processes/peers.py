"""Every process learns at once if a peer is lost, and which one.

Process 0 has a connection to each of its peers. The operating system closes the connections of a process that ends,
however it ends, and keep-alive probes find within a minute a host that lost its power. Process 0 then tells the other
processes who was lost. PyTorch alone would notice it late: gloo when it next sends to the dead peer, and nccl after its
timeout, in a call that nothing interrupts.
"""

from __future__ import annotations

import atexit
import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing, suppress

from spade_deploy.errors import TrainingError, reason_of

GRACE_S = 20.0
"""How long a process may take to end by itself after a peer is lost; after that it is ended."""

_BYE, _LOST = b"bye", b"lost "
_MESSAGE_BYTES = 4096
_TOKEN_BYTES, _RANK_BYTES = 16, 8
_KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds of silence before a probe, seconds between probes, probes without an answer."""

_had_peers = threading.Event()


def remember_peers() -> None:
    """Remember that this process has trained together with others: `end_process` ends it from now on."""
    _had_peers.set()


def end_process(code: int, defect: BaseException | None = None) -> None:
    """End this process at once with the exit code `code` if it has trained together with others; otherwise return.

    defect: an exception that nobody expected, whose traceback is printed first, as Python's usual end does.

    PyTorch's threads may still wait for a lost process, or not have ended after the group was taken down. Python's
    usual end destroys what these threads use, and then C++ sometimes ends the process with SIGABRT instead of its exit
    code; both were seen on a busy machine.
    """
    if not _had_peers.is_set():
        return
    if defect is not None:
        sys.excepthook(type(defect), defect, defect.__traceback__)
    atexit._run_exitfuncs()  # stops workers and removes temporary files, as a usual end does
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class PeerWatch:
    """This process's connections to its peers, watched by a thread; `peers` has one for each rank.

    final_message: returns what to print, beside who was lost, when this process has to be ended.
    all_are_stopping: whether the processes have agreed to stop; the others already know of an error raised after that.
    """

    def __init__(self, peers: Mapping[int, socket.socket], rank: int, size: int) -> None:
        self.final_message: Callable[[], str] = str
        self.all_are_stopping = False
        self._rank, self._size = rank, size
        self._peers = dict(peers)
        self._reason = ""
        self._lost, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peer watch", daemon=True)
        self._thread.start()

    def lost_peer(self, wait_s: float = 0.0) -> str:
        """Who was lost and how, a sentence without its full stop; empty if nobody is lost within `wait_s` seconds."""
        self._lost.wait(wait_s)
        return self._reason

    def close(self, failure: str = "") -> None:
        """Leave the group. failure: why this process fails, if its peers do not know; it makes them stop, too."""
        self._over.set()
        self._tell(_LOST + f"{_name(self._rank, self._size)} failed: {failure}".encode() if failure else _BYE)
        for peer in self._peers.values():
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)  # the thread's call returns
        self._thread.join()
        for peer in self._peers.values():
            peer.close()

    def _tell(self, message: bytes) -> None:
        for peer in self._peers.values():
            with suppress(OSError):  # that peer has ended, too
                peer.sendall(message[:_MESSAGE_BYTES])

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    said = _received(self._peers[key.data])
                    if self._over.is_set():
                        return
                    if said != _BYE:
                        self._report(key.data, said)
                        return
                    selector.unregister(key.fileobj)

    def _report(self, rank: int, said: bytes) -> None:
        if said.startswith(_LOST):
            self._reason = said.removeprefix(_LOST).decode(errors="replace")
        else:
            name = _name(rank, self._size)
            self._reason = f"{name} ended without an error message: it was killed, or its host is down"
        if self._rank == 0:
            self._tell(_LOST + self._reason.encode())
        self._lost.set()
        if not self._over.wait(GRACE_S):
            # The main thread is in a call that waits for the lost process: no exception reaches it there.
            print(f"error: {self._reason}. {self.final_message()}", file=sys.stderr, flush=True)
            os._exit(TrainingError.exit_code)


def connect(rank: int, size: int, host: str, timeout_s: float, share: Callable[[str], str]) -> PeerWatch:
    """Connect this process to its peers; every process of the group calls it.

    host: where process 0 is. share: returns in every process the text that process 0 calls it with.
    Raises TrainingError where they do not reach each other within `timeout_s` seconds.
    """
    try:
        if rank == 0:
            return PeerWatch(_accepted(size, timeout_s, share), rank, size)
        port, token = share("").split()
        peer = socket.create_connection((host, int(port)), timeout_s)
        peer.sendall(f"{token}{rank:0{_RANK_BYTES}d}".encode())
        return PeerWatch({0: _kept_alive(peer)}, rank, size)
    except OSError as error:
        raise TrainingError(
            f"{_name(rank, size)} cannot connect to process 0 on {host} ({reason_of(error)})",
            hint="the hosts must reach each other on every port; MASTER_ADDR is the host of process 0",
        ) from error


def _accepted(size: int, timeout_s: float, share: Callable[[str], str]) -> dict[int, socket.socket]:
    """The connections of process 0 to all other ranks."""
    token = secrets.token_hex(_TOKEN_BYTES)
    peers: dict[int, socket.socket] = {}
    with closing(_server(size)) as server:
        server.settimeout(timeout_s)
        share(f"{server.getsockname()[1]} {token}")
        while len(peers) < size - 1:
            peer, _ = server.accept()
            peer.settimeout(timeout_s)
            said = peer.recv(len(token) + _RANK_BYTES, socket.MSG_WAITALL)
            if said.startswith(token.encode()):
                peers[int(said[len(token) :])] = _kept_alive(peer)
            else:  # not a peer, for example a port scanner
                peer.close()
    return peers


def _server(size: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # the host has switched IPv6 off
            return socket.create_server(("", 0), family=socket.AF_INET6, backlog=size, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=size)


def _kept_alive(peer: socket.socket) -> socket.socket:
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):  # some systems lack it
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer


def _received(peer: socket.socket) -> bytes:
    """The last message of a peer; empty if its connection was closed without one."""
    try:
        return peer.recv(_MESSAGE_BYTES)
    except OSError:
        return b""


def _name(rank: int, size: int) -> str:
    return f"process {rank} of {size}"
