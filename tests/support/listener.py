"""A listener that remembers what a job told it."""

from spade_deploy.progress import NO_FIGURES, Figures, Silent


class Listener(Silent):
    """What was told, in order: steps, counts as (what, done, total) with their figures, notes."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.counts: list[tuple[str, int, int]] = []
        self.figures: list[Figures] = []
        self.notes: list[str] = []

    def step(self, what: str) -> None:
        self.steps.append(what)

    def count(self, what: str, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        self.counts.append((what, done, total))
        self.figures.append(figures)

    def note(self, text: str) -> None:
        self.notes.append(text)
