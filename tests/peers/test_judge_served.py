"""The judge with the real client, on a real server: `transformers serve` with the embedded model.

Such a model grades nothing. That the transport works, that replies without a grade are told, and that a text which holds
one would be read, is what is shown.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kitchen_resources.errors import EvaluationError
from kitchen_resources.evaluation import judge as module
from kitchen_resources.evaluation.judge import judge
from tests.peers.skyrl import ENVIRONMENT

_UP_S = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "cache").mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder / "cache")}
    command = [str(ENVIRONMENT / "bin" / "transformers"), "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    for _ in range(_UP_S * 10):
        assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models"):
            break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/v1"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_replies_come_from_the_server_and_one_without_a_grade_is_told(
    server: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with pytest.raises(EvaluationError, match=r"gave no grade from 1 to 5 in 3 replies, the last one '.+'"):
        judge("Paris", "Paris", model=str(base), base_url=server, max_tokens=8)
    # The same reply, where it would say something.
    monkeypatch.setattr(module, "parse_grade", lambda reply, lowest, highest: 4.0 if reply else None)
    score = judge("Paris", "Paris", model=str(base), base_url=server, max_tokens=8, samples=2)
    assert score.score == 0.75
    assert len(score.details["replies"]) == 2


def test_a_model_that_isn_t_served_is_told(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with pytest.raises(EvaluationError, match="the judge no/such failed"):
        judge("Paris", "Paris", model="no/such", base_url=server, max_tokens=8)
