"""The tests' own Fireworks server, asked by the vendor's SDK."""

import json
from collections.abc import Iterator
from typing import Any

import fireworks
import httpx
import pytest

from tests.fireworks_schema import Lost, checked
from tests.fireworks_server import FireworksServer, Moment, fireworks_server

BASE = "accounts/fireworks/models/qwen3-8b"
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2", "weight": 1}]
}
PAIR = {
    "input": {"messages": CHAT["messages"][:1]},
    "preferred_output": [{"role": "assistant", "content": "2"}],
    "non_preferred_output": [{"role": "assistant", "content": "3"}],
}


@pytest.fixture
def server() -> Iterator[FireworksServer]:
    with fireworks_server() as server:
        yield server


@pytest.fixture
def client(server: FireworksServer) -> Iterator[Any]:
    with client_of(server) as client:
        yield client


def client_of(server: FireworksServer, key: str = "") -> Any:
    return fireworks.Fireworks(
        api_key=key or server.key, account_id=server.account, base_url=server.url, max_retries=0
    )


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def uploaded(client: Any, name: str = "sums", row: Any = CHAT) -> str:
    """A data set that is ready."""
    client.datasets.create(dataset_id=name, dataset={"user_uploaded": {}, "example_count": "3"})
    client.datasets.upload(name, file=("rows.jsonl", lines(row, row, row)))
    assert [client.datasets.get(name).state for _ in range(2)] == ["UPLOADING", "READY"]
    return name


def supervised(client: Any, **more: Any) -> Any:
    return client.supervised_fine_tuning_jobs.create(
        **{"supervised_fine_tuning_job_id": "a-job", "dataset": "sums", "base_model": BASE, **more}
    )


def looks(jobs: Any, times: int, name: str = "a-job") -> list[str]:
    return [jobs.get(name).state.removeprefix("JOB_STATE_") for _ in range(times)]


def test_unknown_fields_and_wrong_types_are_named(client: Any) -> None:
    uploaded(client)
    with pytest.raises(fireworks.UnprocessableEntityError, match="warmth: unknown field"):
        supervised(client, extra_body={"warmth": 3})
    with pytest.raises(fireworks.UnprocessableEntityError, match="epochs: 'two' is no int"):
        supervised(client, epochs="two")
    with pytest.raises(fireworks.UnprocessableEntityError, match=r"wandbConfig\.projekt: unknown field"):
        supervised(client, wandb_config={"projekt": "sums"})
    with pytest.raises(fireworks.UnprocessableEntityError, match="region: 'MARS_1' is none of"):
        supervised(client, region="MARS_1")
    with pytest.raises(fireworks.UnprocessableEntityError, match="jobId: unknown parameter"):
        supervised(client, extra_query={"jobId": "b-job"})
    with pytest.raises(fireworks.UnprocessableEntityError, match=r"dataset: .* is no str"):
        supervised(client, dataset=["sums"])
    with pytest.raises(fireworks.UnprocessableEntityError, match="dataset: required"):
        client.post("/v1/accounts/kitchen-tests/dpoJobs", cast_to=object, body={})


def test_what_exists_is_refused(client: Any) -> None:
    uploaded(client)
    with pytest.raises(fireworks.ConflictError) as refused:
        client.datasets.create(dataset_id="sums", dataset={})
    assert refused.value.body == {"code": 6, "message": "dataset sums already exists", "details": []}
    supervised(client)
    with pytest.raises(fireworks.ConflictError):
        supervised(client)


def test_lines_are_read(client: Any) -> None:
    client.datasets.create(dataset_id="sums", dataset={"user_uploaded": {}})
    for row, why in (
        ({"messages": CHAT["messages"][:1]}, "none is the assistant's"),
        ({"messages": [{**CHAT["messages"][1], "weight": 0.5}]}, "weight"),
        ({**PAIR, "preferred_output": "2"}, "preferred_output"),
        (PAIR, "its format is preference"),
    ):
        with pytest.raises(fireworks.BadRequestError, match=f"line 2: .*{why}"):
            client.datasets.upload("sums", file=("rows.jsonl", lines(CHAT, row, CHAT)))
        assert (client.datasets.get("sums").state, client.datasets.get("sums").status.code) == (
            "UPLOADING",
            "INVALID_ARGUMENT",
        )
    with pytest.raises(fireworks.BadRequestError, match="2 examples are too few"):
        client.datasets.upload("sums", file=("rows.jsonl", lines(CHAT, CHAT)))
    with pytest.raises(fireworks.BadRequestError, match="isn't ready"):
        supervised(client)


def test_large_files_go_to_signed_urls(client: Any, server: FireworksServer) -> None:
    server.upload_limit = 100
    content = lines(PAIR, PAIR, PAIR)
    client.datasets.create(dataset_id="pairs", dataset={"user_uploaded": {}})
    with pytest.raises(fireworks.APIStatusError) as refused:
        client.datasets.upload("pairs", file=("rows.jsonl", content))
    assert refused.value.status_code == 413
    sizes = {"rows.jsonl": str(len(content))}
    url = client.datasets.get_upload_endpoint("pairs", filename_to_size=sizes).filename_to_signed_urls["rows.jsonl"]
    signed = {
        "Content-Type": "application/octet-stream",
        "X-Goog-Content-Length-Range": f"{len(content)},{len(content)}",
    }
    with pytest.raises(fireworks.BadRequestError, match="not uploaded"):
        client.datasets.validate_upload("pairs", body={})
    assert httpx.put(url, content=content, headers={**signed, "Authorization": "Bearer x"}).status_code == 400
    assert httpx.put(url, content=content).status_code == 403
    assert httpx.put(url, content=iter([content[:9], content[9:]]), headers=signed).status_code == 200
    client.datasets.validate_upload("pairs", body={})
    assert [client.datasets.get("pairs").state for _ in range(2)] == ["UPLOADING", "READY"]
    with pytest.raises(fireworks.BadRequestError, match="preference lines, not chat lines"):
        supervised(client, dataset="pairs")


def test_a_job_goes_its_way_and_leaves_a_model(client: Any, server: FireworksServer) -> None:
    uploaded(client)
    assert supervised(client, output_model="adder", lora_rank=4).state == "JOB_STATE_CREATING"
    jobs = client.supervised_fine_tuning_jobs
    assert looks(jobs, 3) == ["CREATING", "VALIDATING", "PENDING"]
    assert [(job.job_progress.epoch, job.job_progress.percent) for job in (jobs.get("a-job") for _ in range(3))] == [
        (0, 0),
        (0, 50),
        (1, 100),
    ]
    with pytest.raises(fireworks.NotFoundError):
        client.models.get("adder")
    assert looks(jobs, 3) == ["WRITING_RESULTS", "COMPLETED", "COMPLETED"]
    done = jobs.get("a-job")
    assert (done.output_model, done.estimated_cost.units) == ("accounts/kitchen-tests/models/adder", "1")
    assert client.models.get("adder").peft_details.r == 4
    assert [job.name for job in jobs.list()] == [done.name]
    with pytest.raises(fireworks.BadRequestError, match="model adder already exists"):
        supervised(client, supervised_fine_tuning_job_id="b-job", output_model="adder")


def test_a_model_is_downloaded_without_the_key(client: Any, server: FireworksServer) -> None:
    uploaded(client, "pairs", PAIR)
    client.dpo_jobs.create(
        dataset="pairs", dpo_job_id="a-job", training_config={"base_model": BASE}, loss_config={"method": "DPO"}
    )
    assert looks(client.dpo_jobs, 8)[-1] == "COMPLETED"
    server.adapter_files = lambda job: {"adapter_model.safetensors": job["name"].encode()}
    server.hostile = True
    urls = client.models.get_download_endpoint("a-job").filename_to_signed_urls
    assert set(urls) == {"adapter_model.safetensors", "../evil"}
    url = urls["adapter_model.safetensors"]
    assert httpx.get(url).content == b"accounts/kitchen-tests/dpoJobs/a-job"
    assert httpx.get(url, headers={"Authorization": f"Bearer {server.key}"}).status_code == 400
    server.fault("GET /signed/", Lost.HALFWAY)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url)
    server.expire_urls()
    assert httpx.get(url).status_code == 403


def test_a_job_is_cancelled_and_resumed(client: Any, server: FireworksServer) -> None:
    uploaded(client)
    supervised(client)
    jobs = client.supervised_fine_tuning_jobs
    server.hold_at("RUNNING")
    assert looks(jobs, 6)[3:] == ["RUNNING"] * 3
    with pytest.raises(fireworks.BadRequestError, match="can't be resumed"):
        jobs.resume("a-job", body={})
    server.release()
    jobs.cancel("a-job", body={})
    assert looks(jobs, 3) == ["CANCELLING", "CANCELLED", "CANCELLED"]
    with pytest.raises(fireworks.BadRequestError, match="can't be cancelled") as refused:
        jobs.cancel("a-job", body={})
    assert refused.value.body["code"] == 9
    assert jobs.resume("a-job", body={}).state == "JOB_STATE_PENDING"
    assert looks(jobs, 5) == ["RUNNING", "RUNNING", "RUNNING", "WRITING_RESULTS", "COMPLETED"]
    jobs.delete("a-job")
    with pytest.raises(fireworks.NotFoundError):
        jobs.get("a-job")


def test_a_script_says_what_looks_see(client: Any, server: FireworksServer) -> None:
    uploaded(client)
    why = {"code": "INTERNAL", "message": "the node is gone"}
    server.script = [Moment("QUANTUM_LEAP"), Moment("JOB_STATE_FAILED", status=why)]
    supervised(client)
    jobs = client.supervised_fine_tuning_jobs
    assert looks(jobs, 3) == ["QUANTUM_LEAP", "FAILED", "FAILED"]
    assert jobs.get("a-job").status.message == "the node is gone"
    with pytest.raises(AssertionError, match="jobProgress: unknown field"):
        checked("DpoJob", {"dataset": "sums", "jobProgress": {}})


def test_faults_are_put_in(client: Any, server: FireworksServer) -> None:
    uploaded(client)
    server.fault("POST .*FineTuningJobs$", 429, headers={"Retry-After": "7"})
    with pytest.raises(fireworks.RateLimitError) as refused:
        supervised(client)
    assert refused.value.response.headers["Retry-After"] == "7"
    server.fault("POST .*FineTuningJobs$", Lost.REQUEST)
    with pytest.raises(fireworks.APIConnectionError):
        supervised(client)
    assert not server.jobs["supervisedFineTuningJobs"]
    server.fault("POST .*FineTuningJobs$", Lost.ANSWER)
    with pytest.raises(fireworks.APIConnectionError):
        supervised(client)
    with pytest.raises(fireworks.ConflictError):
        supervised(client)


def test_a_server_that_was_away_knows_what_it_knew(client: Any, server: FireworksServer) -> None:
    uploaded(client)
    port = server.port
    server.stop()
    with pytest.raises(fireworks.APIConnectionError):
        supervised(client)
    server.start()
    assert server.port == port
    assert supervised(client).name == "accounts/kitchen-tests/supervisedFineTuningJobs/a-job"


def test_keys_and_accounts_are_checked(client: Any, server: FireworksServer) -> None:
    with client_of(server, "another") as stranger, pytest.raises(fireworks.AuthenticationError):
        stranger.models.get("qwen3-8b", account_id="fireworks")
    assert (server.record[-1].key, "another" in str(server.record[-1])) == (False, False)
    with pytest.raises(fireworks.NotFoundError):
        client.datasets.get("sums", account_id="others")
    assert client.models.get("qwen3-8b", account_id="fireworks").tunable
    with pytest.raises(fireworks.NotFoundError):
        client.models.get("qwen3-9b", account_id="fireworks")
    assert server.record[-1].key
