"""A language model as the scorer, over any endpoint with OpenAI's chat API; no other module imports its SDK.

What such endpoints promise and what they do differ: JSON modes and several answers a request are ignored by some. So the
judge is asked in plain words, once for each answer, and whatever it says is parsed defensively.
"""

import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from kitchen_resources.endpoints import check_endpoint
from kitchen_resources.errors import CapabilityError, ConfigError, EvaluationError
from kitchen_resources.formulas.scoring import Score

KEY_VARIABLE = "OPENAI_API_KEY"
DEFAULT_ENDPOINT = "https://api.openai.com/v1"

_ATTEMPTS = 3
_SHOWN = 200

_INSTRUCTION = """You grade the answer of an assistant.

Question:
{question}

Reference answer:
{expected}

Answer to grade:
{answer}

{criterion}
Grade from {lowest} (worst) to {highest} (best). Reply with one line of JSON and nothing else: {{"grade": NUMBER}}"""

_CRITERION = "Is the answer as correct and as complete as the reference answer?"

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_NAMED = re.compile(rf"\b(?:grade|score|rating)\b[\s\"'*:=]*({_NUMBER})", re.IGNORECASE)
_OUT_OF = re.compile(rf"({_NUMBER})\s*(?:/|out of)\s*({_NUMBER})", re.IGNORECASE)
_ALONE = re.compile(rf"\s*[*\"'(]*({_NUMBER})[*\"').]*\s*\Z")


def judge(
    prediction: str,
    expected: str,
    *,
    question: str = "",
    model: str,
    base_url: str = DEFAULT_ENDPOINT,
    criterion: str = _CRITERION,
    lowest: float = 1,
    highest: float = 5,
    passes: float = 0.5,
    samples: int = 1,
    max_tokens: int = 64,
    timeout_s: float = 60.0,
) -> Score:
    """The grade that a language model gives an answer, brought to 0 to 1; the mean over `samples` gradings.

    Args:
        prediction: The answer.
        expected: The row's right one.
        question: What was asked.
        model: The judge, by its endpoint's name.
        base_url: Endpoint with OpenAI's chat API. Any but OpenAI's own and this machine's must be allowed by whoever
            runs the location (`KITCHEN_ALLOWED_ENDPOINTS`).
        criterion: What to look for, in a sentence.
        lowest: The worst grade.
        highest: The best grade.
        passes: From which score on an answer counts as right.
        samples: How often to ask; more than once at a temperature of 1.
        max_tokens: Longest reply.
        timeout_s: How long to wait for one, in seconds.

    Raises:
        ConfigError: An option is wrong, or there is no key.
        CapabilityError: The SDK isn't installed.
        EvaluationError: The endpoint fails, or its replies hold no grade.
    """
    asked = _INSTRUCTION.format(
        question=question,
        expected=expected,
        answer=prediction,
        criterion=criterion,
        lowest=f"{lowest:g}",
        highest=f"{highest:g}",
    )
    client = _client(base_url, timeout_s)
    grades, replies = [], []
    for number in range(samples):
        grade, reply = _graded(client, model, asked, lowest, highest, max_tokens, first_temperature=float(number > 0))
        grades.append(grade)
        replies.append(reply)
    score = (sum(grades) / samples - lowest) / (highest - lowest)
    return Score(score, score >= passes, {"grades": grades, "replies": replies})


judge.concurrency = 8  # type: ignore[attr-defined]
"""Answers graded at a time: all that is done here is waiting."""


def wrong_judge_options(options: Mapping[str, Any]) -> str | None:
    """What is wrong with a judge's options, or None; nothing is asked of anybody."""
    lowest, highest, samples = options.get("lowest", 1), options.get("highest", 5), options.get("samples", 1)
    if not isinstance(options.get("model"), str) or not options["model"]:
        return "judge needs the option 'model'"
    if not all(isinstance(value, int | float) for value in (lowest, highest)) or not lowest < highest:
        return f"judge: lowest ({lowest}) must be below highest ({highest})"
    if not isinstance(samples, int) or samples < 1:
        return f"judge: samples must be at least 1, got {samples}"
    try:
        check_endpoint(options.get("base_url", DEFAULT_ENDPOINT), DEFAULT_ENDPOINT, where="judge, base_url")
        _require_key()
        _require_sdk()
    except (ConfigError, CapabilityError) as error:
        return f"judge: {error.what}; {error.fix}"
    return None


def parse_grade(reply: str, lowest: float, highest: float) -> float | None:
    """The grade in a judge's reply; None where it holds none, or one beyond the scale.

    In this order: a JSON object with `grade` or `score`, "grade: 4", "4/5" (of any maximum), a number alone.
    """
    found = _of_json(reply)
    if found is None and (named := _NAMED.findall(reply)):
        # What it ends with, where it thinks aloud first.
        found = float(named[-1])
    if found is None and (parts := _OUT_OF.findall(reply)):
        value, maximum = map(float, parts[-1])
        found = value if maximum == highest else lowest + (highest - lowest) * value / maximum if maximum else None
    if found is None and (alone := _ALONE.match(reply)):
        found = float(alone[1])
    return found if found is not None and lowest <= found <= highest else None


def _of_json(reply: str) -> float | None:
    for text in re.findall(r"\{[^{}]*\}", reply):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        for name in ("grade", "score", "rating"):
            number = value.get(name)
            if isinstance(number, str) and re.fullmatch(_NUMBER, number.strip()):
                number = float(number)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return float(number)
    return None


def _graded(
    client: Any, model: str, asked: str, lowest: float, highest: float, max_tokens: int, *, first_temperature: float
) -> tuple[float, str]:
    """One grading; asked again, warmer, where the reply holds no grade."""
    import openai

    reply = ""
    for attempt in range(_ATTEMPTS):
        try:
            done = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": asked}],
                temperature=first_temperature if attempt == 0 else 1.0,
                max_tokens=max_tokens,
            )
        except openai.OpenAIError as error:
            raise EvaluationError(
                f"the judge {model} failed: {_quoted(error)}", fix="look at its endpoint; then run it again"
            ) from None
        reply = (done.choices[0].message.content or "") if done.choices else ""
        grade = parse_grade(reply, lowest, highest)
        if grade is not None:
            return grade, reply
    raise EvaluationError(
        f"the judge {model} gave no grade from {lowest:g} to {highest:g} in {_ATTEMPTS} replies, the last one "
        f"{reply[:_SHOWN]!r}",
        fix="choose a model that follows instructions, or raise scorer_args.max_tokens",
    )


@lru_cache(maxsize=8)
def _client(base_url: str, timeout_s: float) -> Any:
    """The SDK's client, which repeats what passes (429, 5xx, lost connections) itself."""
    _require_sdk()
    import openai

    endpoint = check_endpoint(base_url, DEFAULT_ENDPOINT, where="judge, base_url")
    return openai.OpenAI(api_key=_require_key(), base_url=endpoint, timeout=timeout_s, max_retries=4)


def _require_sdk() -> None:
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise CapabilityError(
            "needs the package openai, which isn't installed",
            where="scorer judge",
            fix="pip install 'crucible-kitchen[judge]'",
        ) from error


def _require_key() -> str:
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        raise ConfigError(
            f"{KEY_VARIABLE} isn't set",
            where="scorer judge",
            fix=f"export {KEY_VARIABLE}=… where Dagster runs (any text, for an endpoint that wants none)",
        )
    return key


def _quoted(error: Exception) -> str:
    said = str(error).replace(os.environ.get(KEY_VARIABLE) or "\0", "***")
    return f"{type(error).__name__}: {said[:_SHOWN]}"
