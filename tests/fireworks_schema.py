"""What goes over the wire between Fireworks' own SDK and a server of the tests, and what it may be.

Fields, wire names, types and what is required are read from the SDK when asked for; what a data set's lines are is
written down from the documentation. Faults are put in here too.
"""

import importlib
import json
import re
import socket
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any, Literal, Required, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl, unquote, urlsplit

from typing_extensions import is_typeddict

GRPC = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 413: 8, 422: 3, 429: 8, 500: 13, 501: 12, 503: 14, 504: 4}
FAILED_PRECONDITION = 9

QUERY_OF_CREATES = {
    "supervised_fine_tuning_job_create": "supervised_fine_tuning_job_id",
    "dpo_job_create": "dpo_job_id",
}
ROLES = ("system", "user", "assistant", "tool")
MESSAGE = {"role", "content", "weight", "tool_calls", "tool_call_id", "name", "reasoning_content"}


def problems(value: Any, kind: Any, where: str = "") -> list[str]:
    """What keeps a JSON value from being of a type: a TypedDict or a model of the SDK, or what their fields are."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any or kind is object:
        return []
    if origin in (Annotated, Required):
        return problems(value, args[0], where)
    if origin in (Union, types.UnionType):
        found = [problems(value, arg, where) for arg in args]
        return [] if [] in found else found[0]
    if origin is Literal:
        return [] if value in args else [f"{where}: {value!r} is none of {', '.join(map(str, args))}"]
    if origin is dict or kind is dict:
        return _of_dict(value, args, where)
    if origin is list:
        return _of_list(value, args[0], where)
    if is_typeddict(kind) or hasattr(kind, "model_fields"):
        return _of_fields(value, fields_of(kind), where)
    return [] if _is_plain(value, kind) else [f"{where}: {value!r} is no {getattr(kind, '__name__', kind)}"]


def fields_of(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Type of each field and whether it is required, by the name it has on the wire."""
    if hasattr(kind, "model_fields"):
        return {
            (field.alias or name): (field.annotation, field.is_required())
            for name, field in kind.model_fields.items()
        }
    hints = get_type_hints(kind, include_extras=True)
    return {_wire_name(name, hint): (hint, get_origin(hint) is Required) for name, hint in hints.items()}


def request_problems(call: str, body: Any, query: Mapping[str, str]) -> list[str]:
    """What is wrong with a request.

    Args:
        call: The SDK's name of the parameters, such as `dpo_job_create`.
        body: The JSON body; None for a request that has none.
        query: The parameters in the URL.
    """
    params = _params(call)
    fields = {name: field for name, field in fields_of(params).items() if name != "account_id"} if params else {}
    in_query = _names_in_query(call, params, body)
    found = _of_query(query, {name: field for name, field in fields.items() if name in in_query})
    if body is None:
        return found
    if "body" in fields:
        return found + problems(body, dict, "body")
    return found + _of_fields(body, {name: field for name, field in fields.items() if name not in in_query}, "")


def account_said(account: str, path: str) -> dict[str, Any] | None:
    """What the account, and the list of those that a key belongs to, are answered with; None for any other path."""
    said = {"name": f"accounts/{account}", "email": "tests@localhost", "state": "READY"}
    if path == "/v1/accounts":
        return {"accounts": [checked("Account", said)], "totalSize": 1}
    return checked("Account", said) if path == f"/v1/accounts/{account}" else None


def checked(model: str, answer: dict[str, Any], but: str = "") -> dict[str, Any]:
    """An answer that the SDK's model of it knows whole.

    Args:
        model: The model's name in `fireworks.types`.
        answer: What is to be answered.
        but: A field that isn't looked at.

    Raises:
        AssertionError: The test's server would say what the SDK has no field for.
    """
    found = problems({name: value for name, value in answer.items() if name != but}, _sdk_type(model), "")
    assert not found, f"the server's own answer is no {model}: {'; '.join(found)}"
    return answer


def _sdk_type(name: str) -> Any:
    return getattr(importlib.import_module("fireworks.types"), name)


def _params(call: str) -> Any:
    name = "".join(part.capitalize() for part in call.split("_")) + "Params"
    try:
        return getattr(importlib.import_module(f"fireworks.types.{call}_params"), name)
    except ModuleNotFoundError:
        return None


def _names_in_query(call: str, params: Any, body: Any) -> set[str]:
    if params is None:
        return set()
    if body is None:
        return set(fields_of(params))
    hints = get_type_hints(params, include_extras=True)
    return {_wire_name(name, hints[name]) for name in hints if name == QUERY_OF_CREATES.get(call)}


def _wire_name(name: str, hint: Any) -> str:
    """A parameter's alias, where it has one."""
    if get_origin(hint) is Required:
        return _wire_name(name, get_args(hint)[0])
    aliases = [alias for note in getattr(hint, "__metadata__", ()) if (alias := getattr(note, "alias", None))]
    return aliases[0] if aliases else name


def _of_fields(value: Any, fields: Mapping[str, tuple[Any, bool]], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where or 'body'}: {value!r} is no object"]
    dot = f"{where}." if where else ""
    found = [f"{dot}{name}: unknown field" for name in value if name not in fields]
    found += [f"{dot}{name}: required" for name, (_, required) in fields.items() if required and name not in value]
    for name in (name for name in value if name in fields):
        found += problems(value[name], fields[name][0], f"{dot}{name}")
    return found


def _of_dict(value: Any, args: tuple[Any, ...], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is no object"]
    return [found for name in value for found in problems(value[name], args[1] if args else Any, f"{where}.{name}")]


def _of_list(value: Any, item: Any, where: str) -> list[str]:
    if not isinstance(value, list):
        return [f"{where}: {value!r} is no list"]
    return [found for index, one in enumerate(value) for found in problems(one, item, f"{where}[{index}]")]


def _of_query(query: Mapping[str, str], fields: Mapping[str, tuple[Any, bool]]) -> list[str]:
    found = [f"{name}: unknown parameter" for name in query if name not in fields]
    for name in (name for name in query if name in fields):
        kind = fields[name][0]
        while get_origin(kind) in (Annotated, Required):
            kind = get_args(kind)[0]
        if (kind is int and not query[name].isdigit()) or (kind is bool and query[name] not in ("true", "false")):
            found.append(f"{name}: {query[name]!r} is no {kind.__name__}")
    return found


def _is_plain(value: Any, kind: Any) -> bool:
    if kind is datetime:
        return isinstance(value, str) and _is_time(value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _is_time(value: str) -> bool:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


# The lines of a data set.


def format_of(content: bytes, fewest: int) -> tuple[str, int]:
    """Which format a file's lines have, `chat` or `preference`, and how many there are.

    Raises:
        ValueError: There are too few, a line is neither, or not all are the same; it says which line.
    """
    formats = [_format_of_line(line, f"line {number}") for number, line in enumerate(_lines(content), 1)]
    for number, name in enumerate(formats, 1):
        if name != formats[0]:
            raise ValueError(f"line {number}: its format is {name}, the first line's is {formats[0]}")
    if len(formats) < max(fewest, 1):
        raise ValueError(f"{len(formats)} examples are too few, it takes {fewest}")
    return formats[0], len(formats)


def _lines(content: bytes) -> Iterator[bytes]:
    yield from content.removesuffix(b"\n").split(b"\n") if content else ()


def _format_of_line(line: bytes, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: it is no JSON: {error}") from error
    name = "preference" if isinstance(row, dict) and "input" in row else "chat"
    found = _of_preference(row) if name == "preference" else _of_chat(row, "messages", asked=True)
    if found:
        raise ValueError(f"{where}: {'; '.join(found)}")
    return name


def _of_chat(row: Any, where: str, asked: bool) -> list[str]:
    """What is wrong with messages and tools.

    Args:
        row: The object that has them.
        where: What the messages are called.
        asked: Whether there must be a message of the assistant.
    """
    if not isinstance(row, dict) or not isinstance(messages := row.get("messages"), list) or not messages:
        return [f"{where}: a list of messages is missing"]
    found = [f"{name}: unknown field" for name in row if name not in ("messages", "tools")]
    found += problems(row.get("tools", []), list[dict[str, Any]], "tools")
    found += [
        one for index, message in enumerate(messages) for one in _of_message(message, f"{where}[{index}]", index)
    ]
    if asked and not found and not any(message["role"] == "assistant" for message in messages):
        found.append(f"{where}: none is the assistant's")
    return found


def _of_message(message: Any, where: str, index: int) -> list[str]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        return [f"{where}.role: none of {', '.join(ROLES)}"]
    found = [f"{where}.{name}: unknown field" for name in message if name not in MESSAGE]
    if message["role"] == "system" and index:
        found.append(f"{where}.role: the system's message isn't the first")
    if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
        found.append(f"{where}.content: it is no text")
    if "weight" in message and (message["weight"] not in (0, 1) or not _is_plain(message["weight"], int)):
        found.append(f"{where}.weight: neither 0 nor 1")
    return found


def _of_preference(row: dict[str, Any]) -> list[str]:
    outputs = ("preferred_output", "non_preferred_output")
    found = [f"{name}: unknown field" for name in row if name not in ("input", *outputs)]
    found += _of_chat(row["input"], "input.messages", asked=False)
    for name in outputs:
        messages = row.get(name)
        if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
            found.append(f"{name}: it isn't a list of one message")
        elif messages[0].get("role") != "assistant":
            found.append(f"{name}: it isn't the assistant's")
        else:
            found += _of_message(messages[0], f"{name}[0]", 0)
    return found


# Requests, answers and faults.


@dataclass(frozen=True)
class Request:
    """A request as it came.

    Attributes:
        headers: By names in small letters, without Authorization.
        key: Whether the right key came; None where none did.
        body: JSON, `{"file": (name, bytes)}` of a form, or bytes; None where there is none.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    key: bool | None
    body: Any


@dataclass(frozen=True)
class Answer:
    """What goes back; `cut` where it breaks off in the middle."""

    status: int
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


class Refusal(Exception):
    """An answer that is an error, in the gateway's shape."""

    def __init__(self, status: int, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, GRPC.get(status, 2) if code is None else code

    @property
    def answer(self) -> Answer:
        return Answer(self.status, json.dumps({"code": self.code, "message": str(self), "details": []}).encode())


class Lost(Enum):
    """What can get lost, as a fault."""

    REQUEST = "the connection closes before anything is done"
    ANSWER = "it is done, and the connection closes without an answer"
    HALFWAY = "it is done, and the connection closes in the middle of the answer's body"


@dataclass
class Fault:
    """What happens to requests whose method and path match, so many times."""

    pattern: str
    status: int | Lost
    times: int
    headers: Mapping[str, str]
    body: Any
    done: int = 0


@dataclass
class Faults:
    """Faults that wait for their requests."""

    waiting: list[Fault] = field(default_factory=list)

    def answer(self, request: Request, do: Callable[[Request], Answer]) -> Answer | None:
        """What a request gets; None for no answer."""
        fault = self._next(request)
        if fault is None:
            return do(request)
        if isinstance(fault.status, int):
            error = Refusal(fault.status, "put in by the test").answer
            body = error.body if fault.body is None else json.dumps(fault.body).encode()
            return replace(error, headers=fault.headers, body=body)
        if fault.status is Lost.REQUEST:
            return None
        done = do(request)
        return replace(done, cut=True) if fault.status is Lost.HALFWAY else None

    def _next(self, request: Request) -> Fault | None:
        for fault in self.waiting:
            if fault.done < fault.times and re.search(fault.pattern, f"{request.method} {request.path}"):
                fault.done += 1
                return fault
        return None


def resource_id(name: str) -> str:
    if not re.fullmatch("[a-z0-9-]{1,63}", name):
        raise Refusal(400, f"{name!r} is no id: up to 63 of a-z, 0-9 and -")
    return name


def storage_error(status: int, code: str, message: str) -> Answer:
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


# HTTP.


class Listener(ThreadingHTTPServer):
    """Reads requests, and sends the answers to them; its own errors are kept."""

    daemon_threads = False

    def __init__(
        self, port: int, key: str, answer: Callable[[Request], Answer | None], errors: list[BaseException]
    ) -> None:
        self.key, self.answer, self.errors = key, answer, errors
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.errors.append(error)

    def end(self) -> None:
        """Close the port and all connections, and wait until their threads are gone."""
        self.shutdown()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def _serve(self) -> None:
        answer = self.server.answer(self._request(self._read()))
        self.close_connection = self.close_connection or answer is None or answer.cut
        if answer is None:
            return
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        raw = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            raw += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return raw

    def _request(self, raw: bytes) -> Request:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        secret = headers.pop("authorization", None)
        key = None if secret is None else secret == f"Bearer {self.server.key}"
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        body = _body(headers.get("content-type", ""), raw)
        return Request(self.command, unquote(parts.path), query, headers, key, body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


def _body(content_type: str, raw: bytes) -> Any:
    if not raw:
        return None
    if found := re.match(r'multipart/form-data; *boundary="?([^";]+)', content_type):
        return dict(_parts(raw.split(b"--" + found[1].encode())[1:-1]))
    if content_type.startswith("application/json"):
        with suppress(ValueError):
            return json.loads(raw)
    return raw


def _parts(parts: Sequence[bytes]) -> Iterator[tuple[str, tuple[str, bytes]]]:
    for part in parts:
        head, _, content = part.partition(b"\r\n\r\n")
        names = dict(re.findall(r'[; ](name|filename)="([^"]*)"', head.decode()))
        yield names.get("name", ""), (names.get("filename", ""), content.removesuffix(b"\r\n"))
