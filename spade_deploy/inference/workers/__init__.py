"""Several processes on one machine that make the images of one run."""

from spade_deploy.inference.workers.crew import LocalWorkers

__all__ = ["LocalWorkers"]
