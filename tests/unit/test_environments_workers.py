"""Worker processes: what they are made of, that none is left behind, and how one that can't start is told."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kitchen_resources.environments import registry
from kitchen_resources.environments.pool import EnvironmentPool
from kitchen_resources.environments.port import Action, EnvironmentSpec, RewardSpec, StepResult, Turn
from kitchen_resources.errors import CapabilityError, ConfigError
from tests.unit.misbehaving_environments import obedient

GROUPS = [("g", {"question": "a"}, [1, 2]), ("f", {"question": "b"}, [3])]
GONE_MS = 60_000


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone when it is over."""
    monkeypatch.setattr(registry, "_environments", {})
    monkeypatch.setattr(registry, "_rewards", {})


@pytest.fixture
def ends() -> Iterator[Callable[[int], Callable[[], bool]]]:
    """For a process that runs: whether it ends, waiting for that. A zombie has ended."""
    opened: list[int] = []

    def of(pid: int) -> Callable[[], bool]:
        handle = os.pidfd_open(pid)
        opened.append(handle)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return lambda: bool(poll.poll(GONE_MS))

    yield of
    for handle in opened:
        os.close(handle)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], EnvironmentSpec]:
    """The environment `Made` of a module with the given source."""

    def write(source: str) -> EnvironmentSpec:
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "module_of_a_user.py").write_text("class Made:\n    version = 1\n")
        monkeypatch.delitem(sys.modules, "module_of_a_user", raising=False)
        made = __import__("module_of_a_user").Made
        # What is imported here was fine; what a worker imports later is not.
        (tmp_path / "module_of_a_user.py").write_text(source)
        registry.register_environment("made", made)
        return EnvironmentSpec("made")

    return write


def observation(pool: EnvironmentPool, text: str) -> str:
    told = pool.step({("g", 0): Action(text)})["g", 0]
    assert isinstance(told, StepResult)
    return told.observation


def test_a_worker_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-P", "-m", "kitchen_resources.environments.worker"]
    told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stderr
    imported = {line.split("|")[-1].strip().split(".")[0] for line in told.splitlines()}
    assert "kitchen_resources" in imported
    assert imported.isdisjoint({"torch", "dagster", "pandas", "numpy", "pyarrow", "transformers", "pydantic", "yaml"})


def test_workers_start_when_needed_and_stay() -> None:
    before = psutil.Process().children()
    with EnvironmentPool(obedient(), workers=3, time_limit_s=60.0) as pool:
        assert psutil.Process().children() == before
        pool.open(GROUPS)
        started = set(psutil.Process().children()) - set(before)
        assert len(started) == 2
        pool.release(["g"])
        pool.open(GROUPS[:1])
        pool.step({("g", 0): Action("x"), ("f", 0): Action("x")})
        assert len(set(psutil.Process().children()) - set(before)) == 3
    assert psutil.Process().children() == before


def test_hashes_of_texts_are_the_same_in_every_worker() -> None:
    with EnvironmentPool(obedient(), workers=2, time_limit_s=60.0) as pool:
        pool.open(GROUPS)
        told = pool.step({("g", 0): Action("hash"), ("f", 0): Action("hash"), ("g", 1): Action("pid")})
        pid = pool.step({("f", 0): Action("pid")})["f", 0]
    assert told["g", 0] == told["f", 0]
    assert told["g", 1] != pid


def test_what_user_code_starts_ends_with_the_pool(ends: Callable[[int], Callable[[], bool]]) -> None:
    with EnvironmentPool(obedient(), workers=1, time_limit_s=60.0) as pool:
        pool.open(GROUPS)
        grandchild = ends(int(observation(pool, "child")))
    assert grandchild()


def test_what_user_code_starts_ends_with_a_lost_worker(ends: Callable[[int], Callable[[], bool]]) -> None:
    with EnvironmentPool(obedient(), workers=1, time_limit_s=60.0) as pool:
        pool.open(GROUPS)
        grandchild = ends(int(observation(pool, "child")))
        pool.step({("g", 0): Action("exit")})
        assert grandchild()


def test_a_worker_ends_with_the_process_that_started_it(ends: Callable[[int], Callable[[], bool]]) -> None:
    program = (
        "import psutil\n"
        "from kitchen_resources.environments.pool import EnvironmentPool\n"
        "from tests.unit.misbehaving_environments import obedient\n"
        "pool = EnvironmentPool(obedient(), workers=1, time_limit_s=60.0)\n"
        "pool.start()\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "input()\n"
    )
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=surroundings
    ) as parent:
        assert parent.stdout is not None
        worker = ends(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    assert worker()


def test_a_worker_that_ended_while_idle_is_no_sample_s_fault() -> None:
    before = psutil.Process().children()
    with EnvironmentPool(obedient(), workers=1, time_limit_s=60.0) as pool:
        pool.open(GROUPS)
        assert observation(pool, "x") == "1 x"
        (worker,) = set(psutil.Process().children()) - set(before)
        handle = os.pidfd_open(worker.pid)
        worker.kill()
        select.select([handle], [], [], GONE_MS / 1000)
        os.close(handle)
        assert observation(pool, "y") == "1 x y"


def test_a_closed_pool_starts_nothing() -> None:
    pool = EnvironmentPool(obedient(), workers=1, time_limit_s=60.0)
    pool.close()
    with pytest.raises(RuntimeError, match="the environments are closed"):
        pool.start()


@pytest.mark.parametrize("trusted", [False, True])
def test_options_that_the_builder_refuses_are_told_at_the_start(trusted: bool) -> None:
    before = psutil.Process().children()
    with EnvironmentPool(obedient(count=-1), workers=1, time_limit_s=60.0, trusted=trusted) as pool:
        with pytest.raises(ConfigError) as refused:
            pool.start()
        assert psutil.Process().children() == before
    assert str(refused.value).startswith(
        "environment obedient: ValueError: less than none (misbehaving_environments.py"
    )


def test_an_error_of_the_kitchen_stays_one(module: Callable[[str], EnvironmentSpec]) -> None:
    source = (
        "from kitchen_resources.errors import CapabilityError\n\n\n"
        "class Made:\n"
        "    def __init__(self):\n"
        '        raise CapabilityError("it needs a compiler", where="environment.name", fix="apt-get install gcc")\n'
    )
    with (
        EnvironmentPool(module(source), workers=1, time_limit_s=60.0) as pool,
        pytest.raises(CapabilityError) as refused,
    ):
        pool.start()
    assert str(refused.value) == "environment.name: it needs a compiler\n  fix: apt-get install gcc"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            "import nothing_of_that_name",
            "ModuleNotFoundError: No module named 'nothing_of_that_name' (module_of_a_user",
        ),
        ("another = 1", "AttributeError: module 'module_of_a_user' has no attribute 'Made'"),
        ("import os\nos._exit(9)", "its worker process didn't start: its process ended with exit code 9"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told(
    module: Callable[[str], EnvironmentSpec], source: str, why: str
) -> None:
    with EnvironmentPool(module(source), workers=2, time_limit_s=60.0) as pool, pytest.raises(ConfigError) as refused:
        pool.open([("g", {}, [1]), ("f", {}, [1])])
    assert refused.value.where == "environment made"
    assert refused.value.what.startswith(why)


def test_a_reward_s_options_reach_it() -> None:
    spec = obedient(RewardSpec("obeyed", 2.0, {"factor": 3.0}), RewardSpec("ended"))
    turn: Turn = {"text": "x", "ended": True, "observation": ""}
    with EnvironmentPool(spec, workers=1, time_limit_s=60.0) as pool:
        # Without their weights: those are the rollouts'.
        assert pool.score([({}, [turn, turn])]) == [{"obeyed": 6.0, "ended": 1.0}]
