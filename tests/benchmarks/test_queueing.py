"""The simulation against what is known of queues in closed form."""

from __future__ import annotations

import random

import pytest

from tests.support.bench_model import load_script

queueing = load_script("queueing")
Clock, Event, Station, together = queueing.Clock, queueing.Event, queueing.Station, queueing.together


def waiting_time(load: float, *, is_constant: bool, people: int = 20_000) -> float:
    """The mean time in the queue of one server that takes a second each on average; people come at random."""
    clock, rng = Clock(), random.Random(1)
    server, waits = Station(clock, 1), []

    def person() -> object:
        came = clock.now
        yield server
        waits.append(clock.now - came)
        yield 1.0 if is_constant else rng.expovariate(1.0)
        server.leave()

    time = 0.0
    for _ in range(people):
        time += rng.expovariate(load)
        clock.start(person(), time)
    clock.run()
    assert server.busy == pytest.approx(load, rel=0.02)
    return sum(waits) / len(waits)


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_one_server_waits_as_pollaczek_and_khinchin_say(load: float) -> None:
    """M/D/1: load / (2 (1 - load)) services; M/M/1 is twice that."""
    constant = load / (2 * (1 - load))
    assert waiting_time(load, is_constant=True) == pytest.approx(constant, rel=0.05)
    assert waiting_time(load, is_constant=False) == pytest.approx(2 * constant, rel=0.15)


def line(times: tuple[tuple[int, float], ...], window: int, images: int) -> tuple[float, list[float]]:
    """Images a second of stations in a row (servers, seconds), and how busy each is; `window` images are in flight."""
    clock = Clock()
    stations = [Station(clock, servers) for servers, _ in times]
    left = iter(range(images))

    def go() -> object:
        for _ in left:
            for station, (_, seconds) in zip(stations, times, strict=True):
                yield from station.use(seconds)

    for _ in range(window):
        clock.start(go())
    clock.run()
    return images / clock.now, [station.busy for station in stations]


@pytest.mark.parametrize("window", [1, 2, 5, 40])
def test_a_line_is_as_fast_as_its_narrowest_station_or_its_window(window: int) -> None:
    """Constant times: the least of servers / seconds, and of window / the sum of the seconds."""
    times = ((4, 2.0), (1, 0.8), (2, 1.4))
    wanted = min(window / 4.2, 1 / 0.8)
    rate, busy = line(times, window, 1000)
    assert rate == pytest.approx(wanted, rel=0.005)
    assert busy == pytest.approx([wanted * seconds / servers for servers, seconds in times], rel=0.01)


def test_what_goes_on_together_takes_as_long_as_the_longest() -> None:
    clock, cores = Clock(), None
    cores = Station(clock, 2)
    ends = []

    def job() -> object:
        yield from together(clock, [cores.use(3.0), cores.use(1.0), cores.use(1.5)])
        ends.append(clock.now)

    clock.start(job())
    clock.run()
    assert ends == [3.0]
    happened = Event(clock)
    happened.happen()
    clock.start(iter([happened, 0.5]))
    clock.run()
    assert clock.now == 3.5
