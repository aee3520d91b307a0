"""Managed jobs of Fireworks: the vendor's own client against a server on loopback that keeps what the vendor would.

What it checks requests by is the client's own types; how the real service behaves beyond them is known from its
documentation alone.
"""

import json
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.errors import BackendError, CapabilityError, ConfigError
from kitchen_resources.registry.store import StoreRegistry
from kitchen_resources.training.fireworks.account import Account, Refused
from tests.fireworks_server import FireworksServer, Lost, Moment
from tests.peers.hatchery_app import KEY
from tests.peers.jobs_bench import ACCOUNT, JOB, MODEL, SUPERVISED, asked, at_state, made
from tests.peers.service_bench import ServiceBench
from tests.tiny_models import load_plain

# All goes well.


def test_a_run_is_one_job_and_what_it_made_is_like_any_other(
    job_bench: ServiceBench, job_server: FireworksServer, adapter: dict[str, bytes]
) -> None:
    job_server.hostile = True
    result = job_bench.run(JOB)
    (request,) = made(job_server)
    (dataset,) = job_server.datasets
    name = f"kitchen-{result.fingerprint[:16]}-1"
    assert request.query == {"supervisedFineTuningJobId": name}
    assert request.body == {
        "baseModel": MODEL,
        "dataset": f"accounts/{ACCOUNT}/datasets/{dataset}",
        "epochs": 3,
        "learningRate": 1.0e-3,
        "learningRateWarmupSteps": 1,
        "loraRank": 8,
        "batchSizeSamples": 8,
        "optimizerWeightDecay": 0.0,
        "maxContextLength": 96,
        "outputModel": name,
    }
    (sent,) = job_server.datasets[dataset].files.values()
    lines = [json.loads(line) for line in sent.splitlines()]
    assert len(lines) == 32
    assert all(line["messages"][-1]["weight"] == 1 for line in lines)

    (entry,) = job_bench.head().entries()
    assert (entry.epoch, entry.epoch_complete, entry.step) == (1, True, 12)
    manifest = job_bench.store.manifest(entry)
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors", "fireworks_jobs.json"}
    folder = job_bench.store.checkout(result.fingerprint, entry, job_bench.folder / "checkout").folder
    assert (folder / "adapter_model.safetensors").read_bytes() == adapter["adapter_model.safetensors"]
    told = json.loads((folder / "fireworks_jobs.json").read_bytes())
    assert told["model"] == f"accounts/{ACCOUNT}/models/{name}"
    assert manifest.metrics["cost_usd"] == 1.25
    assert manifest.metrics["tokens"] > 0
    assert "loss" not in manifest.metrics
    # What is measured here is of that adapter, and the model that is made of it loads.
    assert result.evaluation is not None
    assert sum(weight.numel() for weight in load_plain(Path(result.model_path)).parameters()) > 100_000
    lines = [json.loads(line) for line in (job_bench.folder / "events.jsonl").read_text().splitlines()]
    (epoch,) = [line["measurements"] for line in lines if line["event"] == "training.epoch"]
    assert (epoch["cost_usd"], "loss" in epoch) == (1.25, False)
    registry = StoreRegistry(LocalBlobs(job_bench.folder / "store"))
    assert registry.get("supervised", 1).cost["usd"] == 1.25

    before = len(job_server.record)
    again = job_bench.run(JOB)
    assert (again.fingerprint, again.optimizer_steps) == (result.fingerprint, 0)
    assert not [request for request in job_server.record[before:] if request.method == "POST"]


def test_a_preference_run(job_bench: ServiceBench, job_server: FireworksServer) -> None:
    pairs = {"dataset": "embedded:date_pairs", "max_rows": 24, "learning_rate": 1.0e-4, "epochs": 2, "held_out": "0"}
    job_bench.run(
        {**pairs, "eval_every": 0, "beta": 0.2, "loss_type": ["sigmoid"], "loss_weights": None}, recipe="preference"
    )
    (request,) = asked(job_server, "POST", "dpoJobs")
    assert request.body["lossConfig"] == {"method": "DPO", "dpo": {"beta": 0.2}}
    assert request.body["trainingConfig"]["epochs"] == 2
    (dataset,) = job_server.datasets.values()
    (sent,) = dataset.files.values()
    assert {tuple(json.loads(line)) for line in sent.splitlines()} == {
        ("input", "preferred_output", "non_preferred_output")
    }
    (entry,) = job_bench.head().entries()
    assert "cost_usd" not in job_bench.store.manifest(entry).metrics, "a job of this kind says no cost"


def test_what_nobody_tells_is_not_called_right(job_bench: ServiceBench) -> None:
    with dg.DagsterInstance.ephemeral(tempdir=str(job_bench.folder)) as instance:
        result = kitchen.run("supervised", job_bench.config(JOB), job_bench.resources(), instance=instance)
        checks = [
            event.asset_check_evaluation_data
            for event in (
                record.event_log_entry.dagster_event for record in instance.get_records_for_run(result.run_id).records
            )
            if event is not None and event.event_type_value == "ASSET_CHECK_EVALUATION"
        ]
    (check,) = [check for check in checks if check.check_name == "every_row_once_per_epoch"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "not known" in (check.description or "")


def test_two_runs_on_the_same_rows_upload_them_once(job_bench: ServiceBench, job_server: FireworksServer) -> None:
    job_bench.run(JOB)
    job_bench.run({**JOB, "learning_rate": 2.0e-3})
    assert len(made(job_server)) == 2
    assert len(asked(job_server, "POST", ":upload")) == 1


def test_a_large_data_set_goes_to_a_signed_link_without_the_key(
    job_bench: ServiceBench, job_server: FireworksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kitchen_resources.training.fireworks.jobs.BY_REQUEST", 100)
    job_server.upload_limit = 100
    job_bench.run(JOB)
    (sent,) = [request for request in job_server.record if request.method == "PUT"]
    assert sent.key is None
    (dataset,) = job_server.datasets.values()
    assert len(next(iter(dataset.files.values())).splitlines()) == 32


@pytest.mark.parametrize("full", [True, False])
def test_the_name_of_what_is_made_may_be_whole_or_not(
    job_bench: ServiceBench, job_server: FireworksServer, full: bool
) -> None:
    job_server.full_names = full
    assert job_bench.run(JOB).evaluation is not None


def test_a_state_that_nobody_knows_is_looked_at_on_and_told(
    job_bench: ServiceBench, job_server: FireworksServer
) -> None:
    job_server.script = [
        Moment("PENDING"),
        Moment("QUANTUM_LEAP"),
        Moment("RUNNING"),
        Moment("PAUSED"),
        Moment("EARLY_STOPPED"),
    ]
    said = logged(job_bench)
    assert any("is QUANTUM_LEAP, which this version doesn't know; it goes on looking" in line for line in said)
    assert any("is PAUSED" in line for line in said)
    assert [entry.step for entry in job_bench.head().entries()] == [12]


def logged(bench: ServiceBench, fields: dict[str, Any] = JOB) -> list[str]:
    """Run, and what it said."""
    with dg.DagsterInstance.ephemeral(tempdir=str(bench.folder)) as instance:
        result = kitchen.run("supervised", bench.config(fields), bench.resources(), instance=instance)
        return [record.event_log_entry.user_message for record in instance.get_records_for_run(result.run_id).records]


# What fails.


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("GET .*Jobs/", {"status": 503, "times": 6}),
        ("GET .*Jobs/", {"status": 429, "times": 2, "headers": {"Retry-After": "1"}}),
        ("GET .*Jobs/", {"status": 200, "times": 2, "body": "<html>back soon</html>"}),
        ("GET .*Jobs/", {"status": 404}),
        ("POST .*datasets", {"status": Lost.ANSWER}),
        ("POST .*:upload", {"status": Lost.ANSWER}),
        ("POST .*Jobs", {"status": Lost.ANSWER}),
        ("POST .*Jobs", {"status": 500, "times": 3}),
        ("GET .*getDownloadEndpoint", {"status": Lost.HALFWAY}),
        ("GET /signed", {"status": Lost.HALFWAY}),
        ("GET /signed", {"status": 503, "times": 2}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_passes_is_waited_for_and_one_job_is_made(
    job_bench: ServiceBench, job_server: FireworksServer, pattern: str, fault: dict[str, Any]
) -> None:
    waiting = job_server.fault(pattern, **fault)
    assert job_bench.run(JOB).evaluation is not None
    assert waiting.done == waiting.times
    assert len(job_server.jobs[SUPERVISED]) == 1
    assert len(job_bench.head().entries()) == 1


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("POST .*:getUploadEndpoint", {"status": Lost.ANSWER}),
        ("PUT /signed", {"status": 503}),
        ("PUT /signed", {"status": Lost.REQUEST}),
        ("PUT /signed", {"status": Lost.ANSWER}),
        ("POST .*:validateUpload", {"status": Lost.ANSWER}),
        ("POST .*:validateUpload", {"status": 400}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_nor_does_a_signed_upload_fail_for_what_passes(
    job_bench: ServiceBench,
    job_server: FireworksServer,
    monkeypatch: pytest.MonkeyPatch,
    pattern: str,
    fault: dict[str, Any],
) -> None:
    monkeypatch.setattr("kitchen_resources.training.fireworks.jobs.BY_REQUEST", 100)
    job_server.upload_limit = 100
    waiting = job_server.fault(pattern, **fault)
    assert job_bench.run(JOB).evaluation is not None
    assert (waiting.done, len(job_server.jobs[SUPERVISED])) == (1, 1)
    (dataset,) = job_server.datasets.values()
    assert len(next(iter(dataset.files.values())).splitlines()) == 32


@pytest.mark.parametrize("verb", ["resume", "cancel"])
@pytest.mark.parametrize("status", [503, Lost.REQUEST, Lost.ANSWER], ids=str)
def test_a_job_is_resumed_or_called_off_though_the_answer_is_late(
    job_bench: ServiceBench, job_server: FireworksServer, verb: str, status: Any
) -> None:
    waiting = job_server.fault(f"POST .*:{verb}", status)
    if verb == "resume":
        job_server.script = [
            Moment("RUNNING"),
            Moment("FAILED", status={"code": "INTERNAL", "message": "a node was lost"}),
        ]
        assert job_bench.run(JOB).evaluation is not None
        assert len(made(job_server)) == 1
    else:
        job_server.script = [Moment("PENDING")]
        with pytest.raises(BackendError, match="and is called off"):
            job_bench.run(JOB, start_deadline_s=0.3)
        (job,) = job_server.jobs[SUPERVISED].values()
        assert job.now.state in ("CANCELLING", "CANCELLED")
    assert waiting.done == 1


def test_a_data_set_that_is_broken_there_is_uploaded_anew(
    job_bench: ServiceBench, job_server: FireworksServer
) -> None:
    taken = FireworksServer._dataset_said

    def broken(self: FireworksServer, name: str) -> dict[str, Any]:
        return {**taken(self, name), "state": "UPLOADING", "status": {"code": "INTERNAL", "message": "lost"}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FireworksServer, "_dataset_said", broken)
        with pytest.raises(BackendError, match="INTERNAL: lost") as told:
            job_bench.run(JOB, silence_s=0.01)
    assert told.value.mendable
    assert job_server.datasets == {}
    assert job_bench.run(JOB).evaluation is not None


@pytest.mark.parametrize(
    ("pattern", "status", "fix"),
    [
        ("GET .*Jobs/", 401, "to a valid key"),
        ("POST .*Jobs", 402, "billing"),
        ("POST .*Jobs", 412, "trains the same recipe"),
        ("POST .*Jobs", 400, "trains the same recipe"),
        ("POST .*Jobs", 501, "trains the same recipe"),
        ("POST .*datasets", 403, "trains the same recipe"),
    ],
)
def test_what_does_not_pass_ends_the_run_at_once_and_says_what_to_do(
    job_bench: ServiceBench, job_server: FireworksServer, pattern: str, status: int, fix: str
) -> None:
    waiting = job_server.fault(pattern, status, times=10**6)
    with pytest.raises(BackendError, match=fix) as told:
        job_bench.run(JOB)
    assert not told.value.mendable
    assert waiting.done == 1
    job_server._faults.waiting.clear()
    assert job_bench.run(JOB).evaluation is not None
    assert len(job_server.jobs[SUPERVISED]) == 1


def test_a_key_that_has_expired_in_the_middle(job_bench: ServiceBench, job_server: FireworksServer) -> None:
    job_server.hold_at("RUNNING")
    with (
        at_state(job_server, "RUNNING", lambda: setattr(job_server._listener, "key", "another")),
        pytest.raises(BackendError) as told,
    ):
        job_bench.run(JOB)
    assert "FIREWORKS_API_KEY to a valid key" in str(told.value)
    job_server._listener.key = KEY
    job_server.release()
    assert job_bench.run(JOB).evaluation is not None
    assert len(made(job_server)) == 1


def test_another_account(job_bench: ServiceBench, job_server: FireworksServer) -> None:
    with pytest.raises(BackendError, match="404"):
        job_bench.run(JOB, account="somebody")
    assert not job_server.jobs[SUPERVISED]


def test_an_account_that_vanishes_in_the_middle(job_bench: ServiceBench, job_server: FireworksServer) -> None:
    job_server.hold_at("RUNNING")
    with (
        at_state(job_server, "RUNNING", lambda: setattr(job_server, "account", "gone")),
        pytest.raises(BackendError) as told,
    ):
        job_bench.run(JOB)
    assert "the account" in str(told.value)
    assert not told.value.mendable
    job_server.account = ACCOUNT
    job_server.release()
    # The job was not taken for one that is gone.
    assert job_bench.run(JOB).evaluation is not None
    assert len(made(job_server)) == 1


def test_a_job_that_fails_for_good_is_not_made_again_until_it_is_launched(
    job_bench: ServiceBench, job_server: FireworksServer
) -> None:
    job_server.script = [
        Moment("RUNNING"),
        Moment("FAILED", status={"code": "INVALID_ARGUMENT", "message": "row 3 is too long"}),
    ]
    with pytest.raises(BackendError, match="ended as FAILED: INVALID_ARGUMENT: row 3 is too long") as told:
        job_bench.run(JOB)
    assert not told.value.mendable
    assert len(made(job_server)) == 1
    job_server.script = None
    assert job_bench.run(JOB).evaluation is not None
    assert len(made(job_server)) == 2


def test_a_job_that_fails_in_passing_is_resumed(job_bench: ServiceBench, job_server: FireworksServer) -> None:
    job_server.script = [
        Moment("RUNNING"),
        Moment("FAILED", status={"code": "INTERNAL", "message": "a node was lost"}),
    ]
    assert job_bench.run(JOB).evaluation is not None
    assert len(made(job_server)) == 1
    assert len(asked(job_server, "POST", ":resume")) == 1


def test_a_service_that_resumes_nothing_gets_another_job(
    job_bench: ServiceBench, job_server: FireworksServer
) -> None:
    job_server.script = [Moment("FAILED", status={"code": "INTERNAL", "message": "a node was lost"})]
    waiting = job_server.fault("POST .*:resume", 501, times=10**6)
    with pytest.raises(BackendError, match="a node was lost") as told:
        job_bench.run(JOB)
    assert told.value.mendable
    assert waiting.done == 2
    # The first, and those that a run tries again by itself.
    assert len(made(job_server)) == 3


def test_a_job_that_never_begins_is_called_off(job_bench: ServiceBench, job_server: FireworksServer) -> None:
    job_server.script = [Moment("PENDING")]
    with pytest.raises(BackendError, match=r"has not begun in 0\.3 s: it is PENDING, and is called off"):
        job_bench.run(JOB, start_deadline_s=0.3)
    assert len(asked(job_server, "POST", ":cancel")) == 1


def test_how_long_the_service_asks_to_wait_is_heard(job_server: FireworksServer) -> None:
    account = Account("fireworks_jobs", job_server.url, ACCOUNT)
    job_server.fault("GET .*models", 429, headers={"Retry-After": "7"})
    with pytest.raises(Refused) as told:
        account.require_model(MODEL)
    assert (told.value.status, told.value.retry_after_s, told.value.mendable) == (429, 7.0, True)


@pytest.mark.parametrize("state", ["RE_QUEUEING", "PAUSED", "IDLE", "QUANTUM_LEAP"])
def test_a_job_that_may_have_trained_is_not_called_off(
    job_bench: ServiceBench, job_server: FireworksServer, state: str
) -> None:
    job_server.script = [*[Moment(state)] * 10, Moment("COMPLETED")]
    assert job_bench.run(JOB, start_deadline_s=0.05).evaluation is not None
    assert not asked(job_server, "POST", ":cancel")


def test_a_job_that_somebody_deletes(job_bench: ServiceBench, job_server: FireworksServer) -> None:
    job_server.hold_at("RUNNING")
    with (
        at_state(job_server, "RUNNING", job_server.jobs[SUPERVISED].clear),
        pytest.raises(BackendError, match="has it no more"),
    ):
        job_bench.run(JOB)


def test_the_network_is_gone_for_a_while(job_bench: ServiceBench, job_server: FireworksServer) -> None:
    job_server.hold_at("RUNNING")

    def away() -> None:
        job_server.stop()
        time.sleep(2)
        job_server.start()
        job_server.release()

    with at_state(job_server, "RUNNING", away):
        assert job_bench.run(JOB).evaluation is not None
    assert len(made(job_server)) == 1


def test_a_service_that_stays_away_leaves_a_job_that_is_found_again(
    job_bench: ServiceBench, job_server: FireworksServer
) -> None:
    job_server.hold_at("RUNNING")
    with at_state(job_server, "RUNNING", job_server.stop), pytest.raises(BackendError) as told:
        job_bench.run(JOB, silence_s=0.5)
    assert told.value.mendable
    job_server.start()
    job_server.release()
    assert job_bench.run(JOB).evaluation is not None
    assert len(made(job_server)) == 1


# What is refused before any work.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": None}, "doesn't train the whole model"),
        ({"lora": {"rank": 8, "alpha": 16}}, "lora.alpha: is the service's own affair"),
        ({"lr_schedule": "cosine"}, "lr_schedule: is the service's own affair"),
        ({"max_steps": 5}, "max_steps: is the service's own affair"),
        ({"precision": "bf16"}, "precision: is the service's own affair"),
        ({"train_on": "all_tokens"}, "train_on: all_tokens can't be told"),
        ({"packing": True}, "packing: is the service's own affair"),
        ({"checkpoint_steps": 2}, "can't resume supervised exactly from inside an epoch"),
        ({"early_stop_patience": 1}, "early_stop_patience: isn't offered"),
    ],
)
def test_what_a_job_cannot_be_told_is_refused(
    job_bench: ServiceBench, job_server: FireworksServer, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises((CapabilityError, ConfigError), match=message):
        job_bench.run({**JOB, **fields})
    assert not [request for request in job_server.record if request.method == "POST"]


def test_a_base_that_the_service_has_not_is_refused(job_bench: ServiceBench) -> None:
    with pytest.raises(CapabilityError, match="no base model 'accounts/fireworks/models/none-such'"):
        job_bench.run(JOB, base_model="accounts/fireworks/models/none-such")
