"""What `GET /metrics` tells Prometheus. With several processes prometheus-client sums up what each has written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from spade_deploy.serving.runner import Made, Runner

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus-client looks for the folder that the processes share."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Figures:
    """The counters and histograms of one process."""

    def __init__(self, runner: Runner) -> None:
        self._registry = CollectorRegistry()
        about: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("spade_requests", "Requests by path and status", ["path", "status"], **about)
        self.images = Counter("spade_images", "Images made, by model", ["model"], **about)
        self._stages = Histogram(
            "spade_stage_seconds", "Seconds by model and stage", ["model", "stage"], buckets=_SECONDS, **about
        )
        self._batches = Histogram("spade_batch_images", "Batch sizes", ["model"], buckets=(1, 2, 4, 8, 16), **about)
        self._waiting = Gauge("spade_queue_waiting", "Requests in the queue", multiprocess_mode="livesum", **about)
        self._running = Gauge("spade_running", "Images being made", multiprocess_mode="livesum", **about)
        self._runner = runner

    def answered(self, path: str, status: int) -> None:
        """Count an answer. path: that of the endpoint, with the names of its parameters; `other` if there is none."""
        self._requests.labels(path, str(status)).inc()

    def made(self, model: str, made: Made, decode_s: float, encode_s: float) -> None:
        """Count an image and the seconds of its stages."""
        self.images.labels(model).inc()
        for stage, seconds in made.stages_s(decode_s, encode_s).items():
            self._stages.labels(model, stage).observe(seconds)
        self._batches.labels(model).observe(made.batch)
        self.look()

    def look(self) -> None:
        """Note how many wait and run now."""
        self._waiting.set(self._runner.waiting)
        self._running.set(self._runner.running)

    def text(self) -> tuple[bytes, str]:
        """What is told, and its media type."""
        self.look()
        registry = self._registry
        if os.environ.get(MULTIPROCESS):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


def forget_process(pid: int, folder: Path) -> None:
    """Take out of the figures how many requests a process that ended had waiting and running; its counts stay.

    folder: that of `MULTIPROCESS`.
    """
    multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
