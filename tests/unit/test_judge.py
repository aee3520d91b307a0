"""A language model as the scorer, on an endpoint of OpenAI's chat API that does what endpoints have been seen to do."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.errors import ConfigError, EvaluationError
from kitchen_resources.evaluation import local
from kitchen_resources.evaluation.judge import judge, parse_grade, wrong_judge_options
from kitchen_resources.evaluation.port import EvaluationTask, Question
from kitchen_resources.evaluation.scorers import find_scorer, wrong_options

KEY = "sk-this-is-never-shown"


@dataclass
class Endpoint:
    """A server whose replies are written beforehand: texts, or HTTP statuses."""

    url: str = ""
    replies: list[Any] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    found = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with found.lock:
                found.asked.append(asked)
                found.keys.add(self.headers["Authorization"])
                reply = found.replies.pop(0) if len(found.replies) > 1 else found.replies[0]
            if isinstance(reply, int):
                self._answer(reply, {"error": {"message": f"no: {self.headers['Authorization']}"}})
                return
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
            choices = [] if reply is None else [choice]
            self._answer(
                200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
            )

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            # What a server may ask for, so that the client's own pauses aren't waited.
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ('{"grade": 4}', 4.0),
        ('Sure!\n```json\n{"grade": "3"}\n```', 3.0),
        ('{"reason": "short", "score": 2.5}', 2.5),
        ("Grade: 3", 3.0),
        ("The facts are right. First I thought grade 2. **Score: 4**", 4.0),
        ("4/5", 4.0),
        ("I give it 5 out of 10.", 3.0),
        ("5", 5.0),
        (" **2** ", 2.0),
        ("", None),
        ("I can't grade this.", None),
        ("There are 3 mistakes in it", None),
        ('{"grade": 9}', None),
        ('{"grade": true}', None),
        ('{"grade": null}', None),
        ("grade: -1", None),
        ("4/0", None),
    ],
)
def test_what_a_reply_says(reply: str, grade: float | None) -> None:
    assert parse_grade(reply, 1, 5) == grade


def test_a_grade_becomes_a_score(endpoint: Endpoint) -> None:
    endpoint.replies = ['{"grade": 4}']
    score = judge("Paris", "Paris, France", question="Capital of France?", model="m", base_url=endpoint.url)
    assert (score.score, score.passed) == (0.75, True)
    assert score.details == {"grades": [4.0], "replies": ['{"grade": 4}']}
    (asked,) = endpoint.asked
    assert (asked["model"], asked["temperature"]) == ("m", 0.0)
    text = asked["messages"][0]["content"]
    for part in ("Capital of France?", "Paris, France", "from 1 (worst) to 5 (best)"):
        assert part in text
    assert endpoint.keys == {f"Bearer {KEY}"}


def test_several_gradings_are_asked_one_by_one(endpoint: Endpoint) -> None:
    endpoint.replies = ["2", "3", "4"]
    score = judge("a", "b", model="m", base_url=endpoint.url, samples=3, lowest=0, highest=10, passes=0.25)
    assert (score.score, score.passed) == (pytest.approx(0.3), True)
    assert [asked["temperature"] for asked in endpoint.asked] == [0.0, 1.0, 1.0]
    assert all("n" not in asked for asked in endpoint.asked)


def test_a_reply_without_a_grade_is_asked_again_and_then_given_up(endpoint: Endpoint) -> None:
    endpoint.replies = ["Well.", None, '{"grade": 1}']
    assert judge("a", "b", model="m", base_url=endpoint.url).score == 0.0
    endpoint.replies = ["As a language model I don't grade."]
    with pytest.raises(EvaluationError, match=r"gave no grade from 1 to 5 in 3 replies, the last one .As a language"):
        judge("a", "b", model="m", base_url=endpoint.url)


def test_what_passes_is_repeated_and_what_does_not_is_said_without_the_key(endpoint: Endpoint) -> None:
    endpoint.replies = [503, 429, '{"grade": 5}']
    assert judge("a", "b", model="m", base_url=endpoint.url).score == 1.0
    endpoint.replies = [401]
    with pytest.raises(EvaluationError) as failed:
        judge("a", "b", model="m", base_url=endpoint.url)
    assert "the judge m failed: AuthenticationError" in str(failed.value)
    assert KEY not in str(failed.value)
    assert failed.value.__cause__ is None, "the SDK's own error quotes the request"


def _task(scorer_args: dict[str, Any], rows: int) -> EvaluationTask:
    questions = [Question(f"line {n}", [1], f"right {n}", f"question {n}") for n in range(rows)]
    return EvaluationTask(
        name="judged",
        digest="d",
        questions=questions,
        scored=None,
        scorer="judge",
        scorer_args=scorer_args,
        max_tokens=4,
        batch_size=4,
        stop_token_ids=(),
        stop_strings=(),
        pad_token_id=0,
    )


def test_rows_are_graded_several_at_a_time_and_in_order(endpoint: Endpoint) -> None:
    endpoint.replies = ['{"grade": 3}']
    task = _task({"model": "m", "base_url": endpoint.url}, 20)
    scores = local._score(find_scorer("judge"), task, [f"answer {n}" for n in range(20)])
    assert [score.score for score in scores] == [0.5] * 20
    texts = [asked["messages"][0]["content"] for asked in endpoint.asked]
    for n in range(20):
        (text,) = [text for text in texts if f"answer {n}\n" in text]
        assert f"question {n}\n" in text
        assert f"right {n}\n" in text


def test_a_row_that_cannot_be_graded_is_named(endpoint: Endpoint) -> None:
    endpoint.replies = ["no"]
    task = _task({"model": "m", "base_url": endpoint.url}, 1)
    with pytest.raises(EvaluationError, match="evaluation judged, line 0: the judge m gave no grade"):
        local._score(find_scorer("judge"), task, ["answer"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "needs the option 'model'"),
        ({"model": "m", "question": "q"}, "has no option 'question'"),
        ({"model": "m", "lowest": 5, "highest": 5}, "must be below highest"),
        ({"model": "m", "samples": 0}, "samples must be at least 1"),
        (
            {"model": "m", "base_url": "https://elsewhere.example/v1"},
            "not an endpoint that credentials may be sent to",
        ),
    ],
)
def test_wrong_options_are_refused_before_any_work(options: dict[str, Any], problem: str, endpoint: Endpoint) -> None:
    assert problem in (wrong_options("judge", options) or "")
    assert endpoint.asked == []


def test_without_a_key_it_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "OPENAI_API_KEY isn't set" in (wrong_judge_options({"model": "m"}) or "")
    with pytest.raises(ConfigError):
        judge("a", "b", model="other", base_url="http://127.0.0.1:9/v1")


def test_no_other_module_knows_the_sdk() -> None:
    root = Path(__file__).parents[2]
    for package in ("kitchen_resources", "kitchen_assets"):
        for path in (root / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "import openai" not in text or path.name == "judge.py", path
            assert "import tinker" not in text or path.parent.name == "tinker", path
