"""The queues of `spade infer`: what each image waits for on one machine with cores, and on many with cards."""

from __future__ import annotations

from dataclasses import dataclass

from queueing import Clock, Process, Station, together

SLICE_S = 0.01
"""How long a core works for one process before it turns to another."""


@dataclass(frozen=True)
class CoreTimes:
    """Measured seconds of the parts of an image on cores, each alone."""

    decode_s: float
    """A label file -> the inputs, on one core."""
    run_s: dict[int, float]
    """Inputs -> pixels, by the number of cores that work on it together."""
    encode_s: float
    """Pixels -> a file, on one core."""
    write_wait_s: float
    """The time that a thread waits for the disk, and no core is needed."""
    count_s: float
    """What the process that plans does for each image, on one core."""
    start_s: float
    """Starting a worker until it has loaded the model, on one core."""


def on_cores(times: CoreTimes, workers: int, cores: int, images: int, batch_size: int = 1) -> float:
    """Images a second of `workers` processes on a machine with `cores` cores, from the first worker's readiness on.

    One worker has all cores; several have their share of them, and one more than there are cores shares a core.
    """
    clock = Clock()
    share = max(1, cores // workers)
    places = [Station(clock, share) for _ in range(cores // share)]
    left = iter(range(images))
    ended = [0.0]

    def on(core: Station, seconds: float) -> Process:
        while seconds > 0:
            yield from core.use(min(seconds, SLICE_S))
            seconds -= SLICE_S

    def worker(number: int) -> Process:
        core, threads = places[number % len(places)], max(1, min(4, share // 2))
        ahead = 2 * batch_size + threads
        decoders, encoders = Station(clock, threads), Station(clock, threads)
        room, writes, runner = Station(clock, ahead), Station(clock, ahead), Station(clock, 1)

        def image() -> Process:
            for _ in left:
                yield room
                yield decoders
                yield from on(core, times.decode_s)
                decoders.leave()
                yield runner
                yield from together(clock, [on(core, times.run_s[share]) for _ in range(share)])
                yield writes
                runner.leave()
                room.leave()
                yield encoders
                yield from on(core, times.encode_s)
                yield times.write_wait_s
                encoders.leave()
                writes.leave()
                yield from on(core, times.count_s)
                ended[0] = clock.now

        if number:
            yield from on(core, times.start_s)
        for _ in range(2 * ahead):
            clock.start(image())

    for number in range(workers):
        clock.start(worker(number))
    clock.run()
    return images / ended[0]


@dataclass(frozen=True)
class CardTimes:
    """Seconds of the parts of an image where a card runs the model."""

    decode_s: float
    """A label file -> the inputs, on one core."""
    patterns_s: float
    """Finding the patterns of a label map, on one core; 0 for the dense graph."""
    run_s: float
    """The card's time, an image's share of a batch."""
    copy_s: float
    """The copies to the card and back, an image's share."""
    encode_s: float
    """Pixels -> a file, on one core."""
    count_s: float
    """What the process that plans does for each image."""
    label_bytes: float
    """The size of a label file."""
    photo_bytes: float
    """The size of the file of an image."""


@dataclass(frozen=True)
class Fleet:
    """Machines with cards, and where the files lie."""

    cards: int
    """All cards."""
    cards_per_node: int
    """Cards in a machine."""
    cores_per_card: int
    """Cores of a machine for each of its cards."""
    workers_per_card: int
    """Processes that share a card."""
    threads: int
    """Threads of a worker that decode, and as many that encode; all wait for the store as well."""
    ahead: int
    """Images that a worker has read ahead, and as many that are being written."""
    get_s: float
    """How long a read waits for its first byte."""
    put_s: float
    """How long a write waits for its confirmation."""
    gets_per_s: float
    """Reads that the store answers in a second, all together."""
    puts_per_s: float
    """Writes that the store takes in a second, all together."""
    node_bytes_per_s: float
    """The network of a machine."""

    @property
    def nodes(self) -> int:
        return -(-self.cards // self.cards_per_node)


def capacities(times: CardTimes, fleet: Fleet) -> dict[str, float]:
    """The images a second that each part could do if it were the only one. The least of them is the bottleneck."""
    workers, cores = fleet.cards * fleet.workers_per_card, fleet.cards * fleet.cores_per_card
    on_network = (times.label_bytes + times.photo_bytes) / fleet.node_bytes_per_s
    reading = fleet.get_s + times.decode_s + times.label_bytes / fleet.node_bytes_per_s
    writing = fleet.put_s + times.encode_s + times.photo_bytes / fleet.node_bytes_per_s
    found = {
        "card": fleet.cards / (times.run_s + times.copy_s),
        "worker, patterns and card in turn": workers / (times.patterns_s + times.copy_s + times.run_s),
        "cores": cores / (times.decode_s + times.patterns_s + times.encode_s),
        "threads that read": workers * fleet.threads / reading,
        "threads that write": workers * fleet.threads / writing,
        "network": min(fleet.nodes, fleet.cards) / on_network,
        "store, reads": fleet.gets_per_s,
        "store, writes": fleet.puts_per_s,
        "process that plans": 1 / times.count_s,
    }
    if not times.patterns_s:
        del found["worker, patterns and card in turn"]
    return found


def on_cards(times: CardTimes, fleet: Fleet, images_per_card: int = 250) -> float:
    """Images a second of the fleet, without the beginning and the end of the run."""
    clock = Clock()
    images = images_per_card * fleet.cards
    left = iter(range(images))
    ends: list[float] = []
    planner, gets, puts = Station(clock, 1), Station(clock, 1), Station(clock, 1)
    per_node = min(fleet.cards, fleet.cards_per_node)
    cores = [Station(clock, per_node * fleet.cores_per_card) for _ in range(fleet.nodes)]
    networks = [Station(clock, 1) for _ in range(fleet.nodes)]
    cards = [Station(clock, 1) for _ in range(fleet.cards)]

    def start(number: int) -> None:
        card = cards[number % fleet.cards]
        node = (number % fleet.cards) // fleet.cards_per_node
        core, network = cores[node], networks[node]
        decoders, encoders = Station(clock, fleet.threads), Station(clock, fleet.threads)
        room, writes, runner = Station(clock, fleet.ahead), Station(clock, fleet.ahead), Station(clock, 1)

        def image() -> Process:
            for _ in left:
                yield room
                yield decoders
                yield from gets.use(1 / fleet.gets_per_s)
                yield fleet.get_s
                yield from network.use(times.label_bytes / fleet.node_bytes_per_s)
                yield from core.use(times.decode_s)
                decoders.leave()
                yield runner
                if times.patterns_s:
                    yield from core.use(times.patterns_s)
                yield from card.use(times.copy_s + times.run_s)
                yield writes
                runner.leave()
                room.leave()
                yield encoders
                yield from core.use(times.encode_s)
                yield from network.use(times.photo_bytes / fleet.node_bytes_per_s)
                yield from puts.use(1 / fleet.puts_per_s)
                yield fleet.put_s
                encoders.leave()
                writes.leave()
                yield from planner.use(times.count_s)
                ends.append(clock.now)

        for _ in range(2 * fleet.ahead):
            clock.start(image())

    for number in range(fleet.cards * fleet.workers_per_card):
        start(number)
    clock.run()
    first, last = images // 5, images - images // 5 - 1
    return (last - first) / (ends[last] - ends[first])
