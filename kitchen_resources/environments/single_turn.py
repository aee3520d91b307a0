"""Episodes of one turn: a question, an answer, a verdict."""

from collections.abc import Callable, Sequence

from kitchen_resources.environments.port import Action, Message, StepResult


class SingleTurn:
    """An episode that is over when its question was answered.

    Args:
        conversation: What asks the question.
        judge: What an answer is worth.
    """

    def __init__(self, conversation: Sequence[Message], judge: Callable[[Action], StepResult]) -> None:
        self._conversation, self._judge = conversation, judge

    def initial_observation(self) -> Sequence[Message]:
        """See `Environment.initial_observation`."""
        return self._conversation

    def step(self, action: Action) -> StepResult:
        """See `Environment.step`."""
        return self._judge(action)


def verdict(*, correct: bool, well_formed: bool, format_coef: float) -> StepResult:
    """The end of an episode whose reward is `format_coef * (format - 1) + correct`, as in tinker-cookbook's ProblemEnv.

    Args:
        correct: Whether the answer is right.
        well_formed: Whether it has the form of an answer, and its turn was not cut.
        format_coef: What a lack of form costs.
    """
    metrics = {"correct": float(correct), "format": float(well_formed)}
    reward = format_coef * (metrics["format"] - 1.0) + metrics["correct"]
    return StepResult(reward=reward, done=True, solved=correct, metrics=metrics)
