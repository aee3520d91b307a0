"""Counting: which number comes next."""

from collections.abc import Iterator, Sequence

from kitchen_resources.environments.port import Problem
from kitchen_resources.environments.single_turn import SingleTurn, verdict


class Counting:
    """Asks for the number after one of one digit."""

    version = 1

    def problems(self) -> Iterator[Problem]:
        """See `EnvironmentGroupBuilder.problems`."""
        yield from ({"number": number} for number in range(9))

    def group(self, problem: Problem, seeds: Sequence[int]) -> Sequence[SingleTurn]:
        """See `EnvironmentGroupBuilder.group`."""
        asked, wanted = str(problem["number"]), str(problem["number"] + 1)
        return [
            SingleTurn(
                [{"role": "user", "content": asked}],
                lambda action: verdict(correct=action.text.strip() == wanted, well_formed=True, format_coef=0.0),
            )
            for _ in seeds
        ]
