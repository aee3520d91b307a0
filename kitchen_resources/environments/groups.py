"""Groups of episodes on a worker, and how they come back when it was lost."""

from collections.abc import Mapping, Sequence

from kitchen_resources.environments.port import Action, EnvironmentFailure, Problem, StepResult
from kitchen_resources.environments.seats import Seat
from kitchen_resources.environments.serving import Wire


class SeatedGroup:
    """A group of episodes on a seat's worker, with what is needed to bring it back on the next one.

    Args:
        number: Of the group, unique in its pool.
        problem: What is asked.
        seeds: One an episode. Shape [group].
        seat: Where it lives.

    Attributes:
        failures: Of each sample that failed.
    """

    def __init__(self, number: int, problem: Problem, seeds: Sequence[int], seat: Seat) -> None:
        self.number = number
        self.seat = seat
        self.failures: dict[int, EnvironmentFailure] = {}
        self._problem, self._seeds = dict(problem), list(seeds)
        self._over: set[int] = set()
        self._past: list[list[tuple[Wire, Wire]]] = [[] for _ in seeds]
        self._life = 0

    def open(self) -> None:
        """Have every sample that goes on at the worker, where its actions left it."""
        while self._going_on() and not (self.seat.occupied and self._life == self.seat.lives):
            self._build()
            self._replay()

    def step(self, actions: Mapping[int, Action]) -> dict[int, StepResult | EnvironmentFailure]:
        """Take an action in each of some samples.

        Raises:
            ValueError: An episode is over already.
        """
        if done := sorted(self._over & actions.keys()):
            raise ValueError(f"the episode of sample {done[0]} is over, and takes no further action")
        results: dict[int, StepResult] = {}
        while waiting := [sample for sample in sorted(actions) if sample not in results | self.failures]:
            self.open()
            parts = [_part(sample, actions[sample]) for sample in waiting if sample not in self.failures]
            for part, answer in zip(parts, self._ask("step", parts), strict=False):
                if not self._failed(part["sample"], answer):
                    self._past[part["sample"]].append((part, answer))
                    results[part["sample"]] = StepResult(**answer)
                    self._over |= {part["sample"]} if answer["done"] else set()
        return {sample: results.get(sample) or self.failures[sample] for sample in sorted(actions)}

    def release(self) -> None:
        """Let the worker forget the group."""
        if self.seat.occupied and self._life == self.seat.lives:
            self.seat.worker().ask({"op": "release", "groups": [self.number]}, 1)

    def _going_on(self) -> list[int]:
        return [sample for sample in range(len(self._seeds)) if sample not in self._over | self.failures.keys()]

    def _build(self) -> None:
        samples = self._going_on()
        worker = self.seat.worker()
        self._life = self.seat.lives
        request = {"op": "open", "problem": self._problem, "seeds": self._seeds, "samples": samples}
        built, *opened = worker.ask({**request, "group": self.number}, 1 + len(samples))
        # When the group itself can't be made, none of its samples is more to blame than another.
        answers = [built] * len(samples) if "failure" in built else opened
        for sample, answer in zip(samples, answers, strict=False):
            self._failed(sample, answer)

    def _replay(self) -> None:
        steps = [step for sample in self._going_on() for step in self._past[sample]]
        if not self.seat.occupied:
            return
        for (part, before), answer in zip(steps, self._ask("step", [part for part, _ in steps]), strict=False):
            if answer != before and not self._failed(part["sample"], answer):
                told = f"the same actions led to {answer}, and before to {before}; take all chance from the seed"
                self.failures.setdefault(part["sample"], EnvironmentFailure("error", f"not deterministic: {told}"))

    def _ask(self, op: str, parts: Sequence[Wire]) -> list[Wire]:
        worker = self.seat.worker()
        # A worker that ended while it had nothing to do is no sample's fault: the group is brought to the new one first.
        if not parts or self._life != self.seat.lives:
            return []
        return worker.ask({"op": op, "group": self.number, "parts": parts}, len(parts))

    def _failed(self, sample: int, answer: Wire) -> bool:
        if "failure" in answer:
            self.failures.setdefault(sample, EnvironmentFailure(**answer["failure"]))
        return "failure" in answer


def _part(sample: int, action: Action) -> Wire:
    return {"sample": sample, "text": action.text, "ended": action.ended}
