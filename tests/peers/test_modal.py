"""Whole runs through Modal's own SDK and a server of its protocol, on a real bucket: bits, losses of every side, refusals."""

import importlib.metadata
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import modal
import pytest
from grpclib import GRPCError, Status
from modal_proto import api_pb2

import kitchen_assets as kitchen
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.blobs.resource import open_store
from kitchen_resources.checkpoints.head import Head
from kitchen_resources.checkpoints.store import CheckpointStore
from kitchen_resources.errors import BackendError, CapabilityError, ConfigError
from kitchen_resources.training.orders import following
from kitchen_resources.training.orders.order import Order, orders_of
from tests.faults import test_torchrun as torchrun
from tests.object_store import ObjectStore
from tests.peers.modal_server import TOKEN, ModalServer

SMALL: Mapping[str, Any] = {**torchrun.SMALL, "max_rows": 32, "lora": {"rank": 4, "dropout": 0.2}}
"""Two epochs of four steps, saved at every second one."""

QUICK = {"look": 0.1, "ask": 0.5}
ON_MODAL: Mapping[str, Any] = {"modal": {"device": "cpu", "threads": 1}}
_names = itertools.count()


class Bench:
    """A store in a bucket, a server, and runs by it."""

    def __init__(self, folder: Path, store: ObjectStore, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.uri = f"s3://kitchen-tests/modal-{os.getpid()}-{next(_names)}"
        self._store = store
        self._patch = patch
        for name, value in {**store.env, "KITCHEN_STORE": self.uri}.items():
            patch.setenv(name, value)
        patch.setenv("KITCHEN_SCRATCH", str(folder / "scratch"))
        made = following.Patience
        patch.setattr(following, "Patience", lambda **how: made(**{**QUICK, **how}))
        calls = folder / "calls"
        calls.mkdir()
        env = {
            **store.env,
            "KITCHEN_STORE": self.uri,
            "KITCHEN_SCRATCH": str(folder / "there"),
            "OMP_NUM_THREADS": "1",
        }
        self.server = ModalServer(calls, env)

    @property
    def blobs(self) -> BlobStore:
        return open_store(self.uri)

    def use_server(self) -> None:
        """What a client's environment says; its connection to another server is given up."""
        for name, value in self.server.settings.items():
            self._patch.setenv(name, value)
        self._patch.setattr(modal.client._Client, "_client_from_env", None)

    def resources(self, backend: Mapping[str, Any] = ON_MODAL) -> dict[str, Any]:
        return {
            "telemetry": {"console": False, "jsonl": str(self.folder / "events.jsonl")},
            "trainer": {"backend": {name: dict(value) for name, value in backend.items()}},
        }

    def run(
        self, backend: Mapping[str, Any] = ON_MODAL, **fields: Any
    ) -> tuple[kitchen.RunResult, dg.DagsterInstance]:
        home = self.folder / "dagster"
        home.mkdir(exist_ok=True)
        instance = dg.DagsterInstance.ephemeral(tempdir=str(home))
        return kitchen.run("supervised", {**SMALL, **fields}, self.resources(backend), instance=instance), instance

    def start(self) -> "subprocess.Popen[bytes]":
        """A run in a process of its own."""
        program = (
            "import json, sys, kitchen_assets as kitchen\n"
            "from kitchen_resources.training.orders import following\n"
            "config, resources, quick = json.loads(sys.argv[1])\n"
            "made = following.Patience\n"
            "following.Patience = lambda **how: made(**{**quick, **how})\n"
            "kitchen.run('supervised', config, resources)\n"
        )
        given = json.dumps([dict(SMALL), self.resources(), QUICK])
        (self.folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        return subprocess.Popen(
            [sys.executable, "-c", program, given],
            env={**os.environ, "DAGSTER_HOME": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Also where the tests themselves run in the background, and so without this signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def head(self) -> Head | None:
        store = CheckpointStore(self.blobs)
        found = store.find("")
        return store.head(found[0]) if found else None

    def digests(self) -> dict[int, str]:
        head = self.head()
        return {entry.step: entry.state_digest for entry in head.entries()} if head else {}

    def steps(self) -> list[int]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [event["metadata"]["step"] for event in events if event["event"] == "training.step"]

    def messages(self) -> str:
        """What a run of a process of its own told its log."""
        with dg.DagsterInstance.from_config(str(self.folder)) as instance:
            (run,) = instance.get_runs()
            return "\n".join(entry.message for entry in instance.all_logs(run.run_id))

    def said(self) -> str:
        """What the processes of the calls wrote."""
        return "\n".join(path.read_text() for path in sorted(self.server.folder.glob("*.log")))


@pytest.fixture
def bench(tmp_path: Path, s3_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path, s3_server, monkeypatch)
    with made.server:
        made.use_server()
        yield made


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The states of the run by `trl` in this process."""
    folder = tmp_path_factory.mktemp("alone")
    resources = {
        "blobs": {"store": {"local": {"path": str(folder / "store")}}},
        "telemetry": {"console": False},
        "trainer": {"backend": {"trl": {"device": "cpu", "threads": 1}}},
    }
    (folder / "dagster").mkdir()
    result = kitchen.run(
        "supervised", dict(SMALL), resources, instance=dg.DagsterInstance.ephemeral(tempdir=str(folder / "dagster"))
    )
    store = CheckpointStore(open_store(str(folder / "store")))
    return {entry.step: entry.state_digest for entry in store.head(result.fingerprint).entries()}


def until(holds: Callable[[], Any], process: "subprocess.Popen[bytes]") -> None:
    while not holds():
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.05)


def held_in_its_first_epoch(bench: Bench) -> "subprocess.Popen[bytes]":
    """A run of a process of its own, whose call has published step 2 and is held at step 3."""
    bench.server.held_at = 3
    process = bench.start()
    until(lambda: bench.digests(), process)
    return process


def test_a_run_has_the_bits_of_trl_and_nothing_stays_but_what_it_made(
    bench: Bench, expected: Mapping[int, str]
) -> None:
    result, instance = bench.run()
    assert bench.digests() == expected, bench.said()
    assert bench.steps() == list(range(1, 9))
    assert len(bench.server.calls) == 2
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags["kitchen/modal_call"] == list(bench.server.calls)[-1]
    orders = orders_of(bench.blobs, result.fingerprint)
    assert [order.get("over") for order in orders] == [{"how": "done"}] * 2
    assert [order.get("claim") for order in orders] == [{"call": call} for call in bench.server.calls]
    assert all(order.get("order") is None and not list(order.said(0)) for order in orders)
    assert result.optimizer_steps == 8
    assert result.model_path
    assert (Path(result.model_path) / "model.safetensors").is_file()
    # As a launcher leaves it that dies when it has published the last epoch.
    left = Order(bench.blobs, result.fingerprint, 3)
    left.put("order", {"epoch": 2})
    again, _ = bench.run()
    assert (again.optimizer_steps, len(bench.server.calls)) == (0, 2)
    assert left.get("over") == {"how": "the run is trained"}
    assert left.get("order") is None
    for path in bench.folder.rglob("*"):
        if path.is_file():
            assert not any(part.encode() in path.read_bytes() for part in TOKEN), path
    for key in bench.blobs.list(""):
        stored = bench.blobs.get(key)
        assert stored is None or not any(part.encode() in stored.data for part in TOKEN), key


def test_an_order_of_a_lost_launcher_is_followed_and_no_second_call_is_made(
    bench: Bench, expected: Mapping[int, str]
) -> None:
    process = held_in_its_first_epoch(bench)
    process.kill()
    process.wait()
    (first,) = bench.server.calls
    assert bench.server.status_of(bench.server.calls[first]) is None, "it goes on without its launcher"
    before = bench.digests()
    bench.server.go()
    bench.run()
    assert bench.digests() == expected, bench.said()
    assert expected.items() >= before.items()
    assert next(iter(bench.server.calls)) == first
    assert [call.starts for call in bench.server.calls.values()] == [1, 1]
    assert sorted(set(bench.steps())) == list(range(1, 9))


def test_of_two_calls_of_an_order_one_carries_it_out(bench: Bench, expected: Mapping[int, str]) -> None:
    spawned = following.Orderer.order

    def twice(self: Any, *given: Any) -> Any:
        # As when the launcher died before it had noted the id: the order is called for a second time.
        value = spawned(self, *given)
        fingerprint = self._job.fingerprint
        number = max((order.number for order in orders_of(bench.blobs, fingerprint)), default=0) + 1
        from tests.peers.modal_server import Call

        name = f"fc-lost-{number}"
        bench.server.calls[name] = Call(f"orders/{fingerprint}/{number:06d}/")
        lost.append(name)
        return value

    lost: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following.Orderer, "order", twice)
        real = following._Following._make_call

        def after_the_lost_one(self: Any) -> None:
            bench.server.begin(lost[-1])
            real(self)

        patch.setattr(following._Following, "_make_call", after_the_lost_one)
        result, _ = bench.run()
    assert bench.digests() == expected, bench.said()
    orders = orders_of(bench.blobs, result.fingerprint)
    for order in orders:
        claim, call = order.get("claim"), order.get("call")
        assert claim is not None
        assert call is not None
    assert len(bench.server.calls) == 4
    assert len(bench.steps()) == 8, "each step was made once"


def test_a_lost_machine_is_gone_on_from(bench: Bench, expected: Mapping[int, str]) -> None:
    process = held_in_its_first_epoch(bench)
    (first,) = bench.server.calls
    bench.server.held_at = 0
    bench.server.end(bench.server.calls[first], api_pb2.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said[-3000:]
    assert bench.digests() == expected, bench.said()
    assert len(bench.server.calls) == 3
    assert "trying again from the last checkpoint" in bench.messages()


def test_a_machine_that_is_taken_away_says_so_and_is_gone_on_from(bench: Bench, expected: Mapping[int, str]) -> None:
    process = held_in_its_first_epoch(bench)
    (first,) = bench.server.calls
    bench.server.held_at = 0
    # As a function of Modal hears that its machine is wanted elsewhere.
    bench.server.calls[first].process.send_signal(signal.SIGINT)  # type: ignore[union-attr]
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said[-3000:]
    assert "the machine of the call was lost, which was interrupted" in bench.messages()
    assert bench.digests() == expected, bench.said()
    assert len(bench.server.calls) == 3


def test_a_call_that_is_begun_again_says_so_and_another_takes_its_place(
    bench: Bench, expected: Mapping[int, str]
) -> None:
    process = held_in_its_first_epoch(bench)
    (first,) = bench.server.calls
    bench.server.held_at = 0
    call = bench.server.calls[first]
    bench.server.end(call)
    # As the service does it when a machine is taken away.
    bench.server.begin(first)
    said = process.communicate(timeout=300)[0].decode()
    assert process.returncode == 0, said[-3000:]
    assert "the machine of the call was lost" in bench.messages()
    assert bench.digests() == expected, bench.said()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_canceled_run_publishes_its_step_and_leaves_no_call(
    bench: Bench, expected: Mapping[int, str], number: int
) -> None:
    process = held_in_its_first_epoch(bench)
    process.send_signal(number)
    (fingerprint,) = CheckpointStore(bench.blobs).find("")
    (order,) = orders_of(bench.blobs, fingerprint)
    until(lambda: order.get("stop") is not None, process)
    bench.server.go()
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode != 0, said[-3000:]
    head = bench.head()
    assert head is not None
    assert (head.holder, head.end) == (None, None)
    assert bench.steps() == list(range(1, head.entries()[-1].step + 1)), "published where it stopped"
    (call,) = bench.server.calls.values()
    assert bench.server.status_of(call) is not None
    bench.run()
    assert expected.items() <= bench.digests().items()
    assert sorted(bench.steps()) == list(range(1, 9)), "no step was made twice"


def test_a_service_that_stays_away_for_a_while_is_waited_for(bench: Bench, expected: Mapping[int, str]) -> None:
    bench.server.held_at = 3
    away = itertools.count()

    def refuse(name: str) -> GRPCError | None:
        if name == "FunctionGetOutputs" and next(away) < 8:
            return GRPCError(Status.UNAVAILABLE, "upstream connect error")
        if name == "FunctionGetOutputs":
            bench.server.go()
        return None

    bench.server.refuse = refuse
    bench.run()
    assert next(away) > 8
    assert bench.digests() == expected, bench.said()
    assert len(bench.server.calls) == 2


REFUSALS: Mapping[str, tuple[str, Status, str, bool]] = {
    "an expired token": ("", Status.UNAUTHENTICATED, "Modal refuses the token: Token validation failed", False),
    "a vanished workspace": ("", Status.PERMISSION_DENIED, "Modal refuses the token", False),
    "a function that isn't deployed": ("FunctionGet", Status.NOT_FOUND, "there is no function carry_out", False),
    "no quota left": ("FunctionMap", Status.RESOURCE_EXHAUSTED, "Modal takes no more at the moment", True),
    "a service that is away": ("FunctionGet", Status.UNAVAILABLE, "Modal can't be reached", True),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_service_refuses_is_told_with_what_to_do(bench: Bench, case: str) -> None:
    name, status, message, mendable = REFUSALS[case]
    said = "Token validation failed" if "token" in case else "no"
    bench.server.refuse = lambda asked: GRPCError(status, said) if asked == name or not name else None
    with pytest.raises((BackendError, CapabilityError), match=message) as refused:
        bench.run()
    assert refused.value.mendable is mendable
    assert refused.value.fix
    assert not any(part in str(refused.value) for part in TOKEN)
    assert bench.server.calls == {}
    assert bench.digests() == {}


def test_a_call_that_never_begins_is_called_off(bench: Bench) -> None:
    bench.server.holds_back = True
    with pytest.raises(BackendError, match=r"has not begun in 1 s\n.*raise start_deadline_s") as never:
        bench.run({"modal": {**ON_MODAL["modal"], "start_deadline_s": 1.0}})
    assert never.value.mendable
    result = api_pb2.GenericResult
    assert {call.status for call in bench.server.calls.values()} == {result.GENERIC_STATUS_TERMINATED}
    (fingerprint,) = CheckpointStore(bench.blobs).find("")
    assert all(order.get("over") for order in orders_of(bench.blobs, fingerprint))


def test_what_goes_wrong_there_is_raised_here(bench: Bench) -> None:
    with pytest.raises(Exception, match="the loss is nan") as diverged:
        bench.run(learning_rate=1.0e30, max_grad_norm=0.0)
    assert type(diverged.value).__name__ == "TrainingDiverged"
    assert len(bench.server.calls) == 1


def test_another_library_there_is_refused_before_a_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from kitchen_resources.training.pytorch import machine

    known = machine.environment
    monkeypatch.setattr(machine, "environment", lambda *given, **how: {**known(*given, **how), "trl": "1.0.0"})
    with pytest.raises(CapabilityError, match=r"the function's image: has trl .*, and the launcher 1\.0\.0"):
        bench.run()
    assert bench.digests() == {}


def test_a_store_that_only_this_machine_sees_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="its workers can't reach the store file://"):
        kitchen.run(
            "supervised",
            dict(SMALL),
            {**bench.resources(), "blobs": {"store": {"local": {"path": str(tmp_path / "store")}}}},
            instance=dg.DagsterInstance.ephemeral(tempdir=str(bench.folder)),
        )
    assert bench.server.requests == []


def test_the_example_is_deployed_with_the_versions_that_are_installed_here(bench: Bench) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modal", "deploy", "examples/modal/app.py"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "KITCHEN_MODAL_GPU": "A100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *images, function = bench.server.made
    (installs,) = [line for image in images for line in image.dockerfile_commands if "pip install acc" in line]
    for name in ("dagster-aws", "peft", "safetensors", "tokenizers", "transformers", "trl"):
        assert f" {name}=={importlib.metadata.version(name)} " in f"{installs} "
    torch = importlib.metadata.version("torch").partition("+")[0]
    assert f" torch=={torch} " in installs, "without the build for CPUs alone"
    assert (function.function_name, function.retry_policy.retries) == ("carry_out", 0)
    assert function.resources.gpu_config.gpu_type == "A100"
    assert list(function.supported_output_formats) == [api_pb2.DATA_FORMAT_CBOR], "no pickle comes back"


def test_settings_that_mean_nothing_are_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.backend\.modal\.start_deadline_s: must be above 0, got 0"):
        bench.run({"modal": {"start_deadline_s": 0.0}})
