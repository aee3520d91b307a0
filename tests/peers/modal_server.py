"""A server that speaks as much of Modal's protocol as the kitchen's backend asks for, to Modal's own SDK.

Functions that are called run as processes of this machine, which see what a container would: a store, and their call's
id. What the real service does besides is not known here.
"""

import asyncio
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cbor2
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from grpclib.server import Server
from modal_proto import api_grpc, api_pb2

TOKEN = ("ak-for-tests", "as-a-secret-of-the-tests")
APP, FUNCTION = "crucible-kitchen", "carry_out"

WORK = """
import os, signal, sys, time

# Also where the tests themselves run in the background, and so without this signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
from kitchen_resources.training.orders import carrying_out

order, call, held_at, go = sys.argv[1:]
step = carrying_out.OrderEvents.step

def held(self, metrics):
    step(self, metrics)
    while metrics.global_step == int(held_at) and not os.path.exists(go):
        time.sleep(0.05)

carrying_out.OrderEvents.step = held
carrying_out.SAY_S = carrying_out.LOOK_S = 0.1
carrying_out.carry_out(order, call)
"""


@dataclass
class Call:
    """A call, and the process that works on it.

    Attributes:
        order: Its argument.
        process: None while it waits.
        status: How the service says it ended; None while it doesn't.
        starts: How often it was begun.
    """

    order: str
    process: "subprocess.Popen[bytes] | None" = None
    status: int | None = None
    starts: int = 0


@dataclass
class ModalServer:
    """See the module.

    Attributes:
        folder: For what its processes write.
        env: Of its processes, beside this one's.
        refuse: Asked of each request by its name; an error to answer with, or None.
        holds_back: Whether calls wait for a machine.
        held_at: The step at whose end calls that begin now wait until `go`; 0 for none.
        calls: By id.
        requests: Names of all requests, in order.
        made: What was sent to make images and functions, in order.
    """

    folder: Path
    env: Mapping[str, str]
    refuse: Callable[[str], GRPCError | None] = lambda name: None
    holds_back: bool = False
    held_at: int = 0
    calls: dict[str, Call] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> "ModalServer":
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def serve() -> None:
            self._server = Server([_servicer(self)])
            await self._server.start("127.0.0.1", self.port)
            sockets = self._server._server.sockets  # type: ignore[union-attr]
            self.port = sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(serve())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def __exit__(self, *exc: object) -> None:
        async def close() -> None:
            self._server.close()
            await self._server.wait_closed()
            # Its connections are closed in the loop's next turns.
            await asyncio.sleep(0.1)

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
        for call in self.calls.values():
            self.end(call)

    @property
    def settings(self) -> dict[str, str]:
        """What a client's environment says."""
        return {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{self.port}",
            "MODAL_TOKEN_ID": TOKEN[0],
            "MODAL_TOKEN_SECRET": TOKEN[1],
        }

    # What happens to calls.

    def begin(self, name: str) -> None:
        """Give a call a machine."""
        call = self.calls[name]
        call.starts += 1
        with (self.folder / f"{name}.log").open("ab") as log:
            call.process = subprocess.Popen(
                [sys.executable, "-c", WORK, call.order, name, str(self.held_at), str(self.folder / "go")],
                env={**os.environ, **self.env},
                stdout=log,
                stderr=log,
            )

    def go(self) -> None:
        """Let the calls that are held go on; what begins from now on isn't held."""
        self.held_at = 0
        (self.folder / "go").touch()

    def end(self, call: Call, status: int | None = None) -> None:
        """End a call's process, if it is still at work."""
        if call.process is not None:
            call.process.kill()
            call.process.wait()
        if call.status is None:
            call.status = status

    def status_of(self, call: Call) -> int | None:
        """How it ended."""
        if call.status is None and call.process is not None and (code := call.process.poll()) is not None:
            result = api_pb2.GenericResult
            call.status = result.GENERIC_STATUS_SUCCESS if code == 0 else result.GENERIC_STATUS_INTERNAL_FAILURE
        return call.status


def _servicer(server: ModalServer) -> Any:
    """The service's methods; whatever isn't here is answered as unimplemented."""
    handle = api_pb2.FunctionHandleMetadata(
        function_name=FUNCTION, function_type=api_pb2.Function.FUNCTION_TYPE_FUNCTION
    )
    data = api_pb2.FunctionData(function_name=FUNCTION, ranked_functions=[api_pb2.FunctionData.RankedFunction()])

    async def client_hello(request: Any) -> Any:
        return api_pb2.ClientHelloResponse()

    async def function_get(request: Any) -> Any:
        if (request.app_name, request.object_tag) != (APP, FUNCTION):
            raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found")
        return api_pb2.FunctionGetResponse(function_id="fu-1", handle_metadata=handle, function=data)

    async def function_map(request: Any) -> Any:
        from modal._serialization import deserialize

        (item,) = request.pipelined_inputs
        (order,), _ = deserialize(item.input.args, None)
        name = f"fc-{uuid.uuid4().hex[:12]}"
        server.calls[name] = Call(order)
        if not server.holds_back:
            server.begin(name)
        answer = api_pb2.FunctionMapResponse(function_call_id=name)
        answer.pipelined_inputs.add(input_id=f"in-{name}", idx=0)
        return answer

    async def function_get_outputs(request: Any) -> Any:
        call = server.calls.get(request.function_call_id)
        if call is None:
            raise GRPCError(Status.NOT_FOUND, f"Function call {request.function_call_id} not found")
        status = server.status_of(call)
        if status is None:
            return api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=1)
        answer = api_pb2.FunctionGetOutputsResponse()
        item = answer.outputs.add(data_format=api_pb2.DATA_FORMAT_CBOR)
        item.result.status = status
        if status == api_pb2.GenericResult.GENERIC_STATUS_SUCCESS:
            item.result.data = cbor2.dumps(None)
        else:
            item.result.exception = "the container is gone"
        return answer

    async def function_call_cancel(request: Any) -> Any:
        call = server.calls.get(request.function_call_id)
        if call is None:
            raise GRPCError(Status.NOT_FOUND, f"Function call {request.function_call_id} not found")
        server.end(call, api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)
        return Empty()

    async def image_get_or_create(request: Any) -> Any:
        server.made.append(request.image)
        answer = api_pb2.ImageGetOrCreateResponse(image_id=f"im-{len(server.made)}")
        answer.result.status = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
        return answer

    async def function_create(request: Any) -> Any:
        server.made.append(request.function)
        return api_pb2.FunctionCreateResponse(
            function_id="fu-1", handle_metadata=handle, function=request.function, function_data=data
        )

    async def environment_get_or_create(request: Any) -> Any:
        answer = api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1")
        answer.metadata.name, answer.metadata.settings.image_builder_version = "main", "2025.06"
        return answer

    def always(answer: Any) -> Any:
        async def given(request: Any) -> Any:
            return answer

        return given

    deploying = {
        "AppGetByDeploymentName": always(api_pb2.AppGetByDeploymentNameResponse()),
        "AppClientDisconnect": always(Empty()),
        "AppCreate": always(api_pb2.AppCreateResponse(app_id="ap-1")),
        "AppHeartbeat": always(Empty()),
        "AppPublish": always(api_pb2.AppPublishResponse(url="https://modal.com/apps/ap-1")),
        "EnvironmentGetOrCreate": environment_get_or_create,
        "FunctionCreate": function_create,
        "FunctionPrecreate": always(api_pb2.FunctionPrecreateResponse(function_id="fu-1", handle_metadata=handle)),
        "ImageGetOrCreate": image_get_or_create,
        "MountBatchedCheckExistence": always(api_pb2.MountBatchedCheckExistenceResponse()),
        "MountGetOrCreate": always(api_pb2.MountGetOrCreateResponse(mount_id="mo-1")),
        "MountPutFile": always(api_pb2.MountPutFileResponse(exists=True)),
        "SecretGetOrCreate": always(api_pb2.SecretGetOrCreateResponse(secret_id="st-1")),
    }
    known = {
        **deploying,
        "ClientHello": client_hello,
        "FunctionGet": function_get,
        "FunctionMap": function_map,
        "FunctionGetOutputs": function_get_outputs,
        "FunctionCallCancel": function_call_cancel,
    }

    def method(name: str) -> Any:
        async def answer(self: Any, stream: Any) -> None:
            server.requests.append(name)
            headers = dict(stream.metadata)
            if (headers.get("x-modal-token-id"), headers.get("x-modal-token-secret")) != TOKEN:
                raise GRPCError(Status.UNAUTHENTICATED, "Token validation failed")
            if (error := server.refuse(name)) is not None:
                raise error
            if name not in known:
                raise GRPCError(Status.UNIMPLEMENTED, name)
            await stream.send_message(await known[name](await stream.recv_message()))

        return answer

    names = api_grpc.ModalClientBase.__abstractmethods__
    return type("Servicer", (api_grpc.ModalClientBase,), {name: method(name) for name in names})()
