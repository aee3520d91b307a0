r"""What the built-in environments and rewards read of a problem: its question and its answer."""

from collections.abc import Iterator, Sequence
from typing import Any

from kitchen_resources.environments.port import Message, Problem
from kitchen_resources.errors import DataError

_QUESTIONS = ("question", "problem", "prompt")
_ANSWERS = ("answer", "solution")
_FINAL = "####"


def conversation_of(problem: Problem, *, suffix: str = "") -> list[Message]:
    """The conversation that asks a problem.

    Args:
        problem: Its `question`, `problem` or `prompt` is a text, or the messages up to the answer.
        suffix: Added to what the user says last.

    Raises:
        DataError: There is no question.
    """
    asked = next((problem[key] for key in _QUESTIONS if problem.get(key)), None)
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else _messages(asked)
    if not messages:
        raise DataError("the problem has no question", where="problem", fix=f"give it as {' or '.join(_QUESTIONS)}")
    last = messages[-1]
    return [*messages[:-1], {**last, "content": last["content"] + suffix}]


def answer_of(problem: Problem) -> str:
    """The right answer to a problem, as its `answer` or `solution` gives it.

    Of a worked solution that ends in a line `#### 1,234`, as GSM8K has them, the answer is `1234`.

    Raises:
        DataError: There is no answer.
    """
    given = next((problem[key] for key in _ANSWERS if problem.get(key) not in (None, "")), None)
    # bool is an int to Python, and no answer that a policy would write.
    if not isinstance(given, (str, int, float)) or isinstance(given, bool):
        raise DataError("the problem has no answer", where="problem", fix=f"give it as {' or '.join(_ANSWERS)}")
    text = str(given).strip()
    return next(_final_lines(text), text)


def _final_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.strip().startswith(_FINAL):
            yield line.strip().removeprefix(_FINAL).replace(",", "").strip()


def _messages(asked: Any) -> list[Message]:
    if not isinstance(asked, Sequence):
        return []
    return [{"role": str(message["role"]), "content": str(message["content"])} for message in asked]
