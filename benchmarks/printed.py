"""A listener that prints the steps of a long job, a line each."""

from spade_deploy.progress import Silent


class Printed(Silent):
    def step(self, what: str) -> None:
        print(f"  {what}", flush=True)
