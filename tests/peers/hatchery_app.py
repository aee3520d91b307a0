"""Fireworks' trainers and account, as far as the Training SDK needs them: Hatchery behind the vendor's paths.

What trains is Hatchery, a server of the same wire, on PyTorch. What it lacks stands here, as the SDK's own source shows it:
ids of sessions, the account that a key belongs to, checkpoints that are made models, and signed links to a model's files.

python -m tests.peers.hatchery_app FOLDER MODEL PORT
"""

import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

SITE = Path(__file__).parents[2] / ".venv" / "peers" / "hatchery"
KEY = "fw_a-key-for-the-tests"
ACCOUNT = "kitchen-tests"
MODEL = "accounts/fireworks/models/tiny"
TRAINERS = "/training/v1/serverless"


def adapter_files(folder: Path) -> dict[str, bytes]:
    """A checkpoint of Hatchery's as an adapter of peft's."""
    import torch
    from safetensors.torch import save

    found = torch.load(folder / "lora_weights.pt", map_location="cpu", weights_only=True)["state"]
    tensors = {name: value.float().contiguous() for name, value in found.items()}
    (rank,) = {value.shape[0] for name, value in tensors.items() if "lora_A" in name}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        # Its own choice, whatever is asked for.
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": None,
        "base_model_name_or_path": None,
    }
    return {
        "adapter_model.safetensors": save(tensors),
        "adapter_config.json": json.dumps(config).encode(),
        "README.md": b"",
    }


class Account:
    """What the account holds besides what trains."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sessions = 0
        self.models: dict[str, dict[str, bytes]] = {}
        self.samplers: dict[str, Path] = {}

    def note(self, path: str, body: bytes) -> None:
        """See a request for a trainer. A sampler's weights are those of the state that was saved under the same name."""
        if path.endswith("/save_weights"):
            # It saves again what it has saved of a session before, and not what has been trained since.
            for name in ("lora_weights.pt", "optimizer_state.pt", "grad_accum.pt", "session_meta.json"):
                (self.root / "sessions" / json.loads(body)["model_id"] / "live_state" / name).unlink(missing_ok=True)
        if path.endswith("/save_weights_for_sampler"):
            asked = json.loads(body)
            states = (self.root / "sessions" / asked["model_id"] / "checkpoints").iterdir()
            self.samplers[asked["path"]] = next(state for state in states if asked["path"].startswith(state.name))


def application(folder: Path, model: Path) -> Any:
    """The ASGI application."""
    from hatchery.core import unified
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Mount, Route

    made = unified.build_unified_config
    account = Account(folder)

    def with_key(**how: Any) -> Any:
        config = made(**how)
        config.auth.add_key(KEY, "tests", max_concurrent_sessions=100)
        return config

    unified.build_unified_config = with_key
    hatchery = unified.create_unified_app(base_model=str(model), device="cpu", root=str(folder))

    def known(work: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            # Its REST client says it one way, its Training SDK the other.
            if KEY not in (
                request.headers.get("authorization", "").removeprefix("Bearer "),
                request.headers.get("x-api-key"),
            ):
                return JSONResponse({"code": 16, "message": "unauthorized"}, 401)
            return work(request)

        return answer

    async def create_session(request: Request) -> Response:
        account.sessions += 1
        return JSONResponse(
            {
                "session_id": f"ts-{account.sessions:032x}",
                "info_message": None,
                "warning_message": None,
                "error_message": None,
            }
        )

    def accounts(request: Request) -> Response:
        return JSONResponse(
            {"accounts": [{"name": f"accounts/{ACCOUNT}", "email": "tests@localhost"}], "totalSize": 1}
        )

    def checkpoints(request: Request) -> Response:
        session = request.path_params["session"]
        rows = [
            {"name": f"accounts/{ACCOUNT}/trainingSessions/{session}/checkpoints/{name}", "promotable": True}
            for name in account.samplers
        ]
        return JSONResponse({"checkpoints": rows, "trainingSessionCheckpoints": rows})

    async def promote(request: Request) -> Response:
        body = await request.json()
        wanted = request.path_params["checkpoint"].removesuffix(":promote")
        found = account.samplers.get(wanted)
        if found is None or set(body) != {"output_model", "base_model"} or body["base_model"] != MODEL:
            return JSONResponse({"code": 3, "message": f"no {wanted}, or {body}"}, 400)
        account.models[body["output_model"].rpartition("/")[2]] = adapter_files(found)
        return JSONResponse({"model": {"name": body["output_model"], "state": "READY", "kind": "HF_PEFT_ADDON"}})

    def models(request: Request) -> Response:
        owner, name = request.path_params["account"], request.path_params["model"]
        if f"accounts/{owner}/models/{name}" == MODEL:
            return JSONResponse({"name": MODEL, "state": "READY", "kind": "HF_BASE_MODEL"})
        bare, _, verb = name.partition(":")
        if owner != ACCOUNT or bare not in account.models:
            return JSONResponse({"code": 5, "message": f"no model {name}"}, 404)
        if request.method == "DELETE":
            del account.models[bare]
            return JSONResponse({})
        if verb == "getDownloadEndpoint":
            base = str(request.base_url).rstrip("/")
            urls = {f"{bare}/{file}": f"{base}/signed/{bare}/{file}" for file in account.models[bare]}
            return JSONResponse({"filenameToSignedUrls": urls})
        return JSONResponse({"name": f"accounts/{owner}/models/{bare}", "state": "READY", "kind": "HF_PEFT_ADDON"})

    def signed(request: Request) -> Response:
        if "authorization" in request.headers or "x-api-key" in request.headers:
            return Response("the key is no business of this place", 400)
        return Response(account.models[request.path_params["model"]][request.path_params["file"]])

    def count(request: Request) -> Response:
        return JSONResponse({"models": sorted(account.models), "sessions": account.sessions})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with hatchery.router.lifespan_context(hatchery):
            yield

    inner = Starlette(
        lifespan=lifespan,
        routes=[
            Route(f"{TRAINERS}/api/v1/create_session", create_session, methods=["POST"]),
            Mount(TRAINERS, app=hatchery),
            Route("/v1/accounts", known(accounts)),
            Route("/v1/accounts/{account}/trainingSessions/{session}/checkpoints", known(checkpoints)),
            Route(
                "/v1/accounts/{account}/trainingSessions/{session}/checkpoints/{checkpoint}",
                promote,
                methods=["POST"],
            ),
            Route("/v1/accounts/{account}/models/{model}", known(models), methods=["GET", "DELETE"]),
            Route("/signed/{model}/{file}", signed),
            Route("/count", count),
        ],
    )
    return renamed(inner, account, str(model))


def asked_as_hatchery_does(body: bytes, model: str) -> bytes:
    """A request for a trainer, with the names of base and states that Hatchery has."""
    body = re.sub(rb"%s/run-([0-9a-f]{32})/" % ACCOUNT.encode(), rb"mdl_\1/checkpoints/", body)
    return body.replace(MODEL.encode(), model.encode())


def answered_as_fireworks_does(body: bytes) -> bytes:
    """A trainer's answer, with the names of states that the SDK takes: account, run, and what they were called."""
    return re.sub(
        rb"tinker://mdl_([0-9a-f]{32})/(?:checkpoints|sampler_weights)/", rb"%s/run-\1/" % ACCOUNT.encode(), body
    )


def renamed(app: Any, account: Account, model: str) -> Any:
    """The application, with the vendor's names outside and Hatchery's inside."""

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(TRAINERS):
            await app(scope, receive, send)
            return
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = asked_as_hatchery_does(b"".join(parts), model)
        account.note(scope["path"], body)
        sent = [{"type": "http.request", "body": body, "more_body": False}]
        answer: list[Any] = []

        async def again() -> Any:
            return sent.pop() if sent else await receive()

        async def keep(message: Any) -> None:
            answer.append(message)

        await app({**scope, "headers": _long(scope["headers"], body)}, again, keep)
        start = next(message for message in answer if message["type"] == "http.response.start")
        told = answered_as_fireworks_does(b"".join(message.get("body", b"") for message in answer))
        await send({**start, "headers": _long(start["headers"], told)})
        await send({"type": "http.response.body", "body": told})

    return outer


def _long(headers: Any, body: bytes) -> list[tuple[bytes, bytes]]:
    """Headers, with the length that the body has now."""
    others = [(key, value) for key, value in headers if key.lower() != b"content-length"]
    return [*others, (b"content-length", str(len(body)).encode())]


if __name__ == "__main__":
    # Last, so that what this environment has is used as it is.
    sys.path.append(str(SITE))
    import uvicorn

    uvicorn.run(
        application(Path(sys.argv[1]), Path(sys.argv[2])),
        host="127.0.0.1",
        port=int(sys.argv[3]),
        log_level="warning",
    )
