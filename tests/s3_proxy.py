"""A proxy on loopback between an S3 client and its server: counts what passes, and puts in faults by rule.

Requests and answers pass byte for byte, with the client's own Host header, so signatures hold. A connection of the
client has one of its own to the server.
"""

import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import BinaryIO
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.object_store import CREDENTIALS


@dataclass(frozen=True)
class Message:
    """A request or an answer, as it came over the wire."""

    start: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def method(self) -> str:
        return self.start.split(" ")[0]

    @property
    def path(self) -> str:
        return self.start.split(" ")[1]

    @property
    def kind(self) -> str:
        """`PUT`, `POST ?uploads`, `PUT ?partNumber`: the method, and the first name in the query where it has one."""
        query = urlsplit(self.path).query
        return f"{self.method} ?{re.split('[=&]', query)[0]}" if query else self.method

    @property
    def is_repeat(self) -> bool:
        """Whether botocore sends it again, as it says itself: `attempt=2; max=4`."""
        return bool(re.match(r"attempt=(?!1\b)", self.header("amz-sdk-request")))

    def header(self, name: str) -> str:
        """A header's value; empty when it isn't there."""
        return {key.lower(): value for key, value in self.headers}.get(name.lower(), "")

    def without(self, *names: str) -> "Message":
        gone = {name.lower() for name in names}
        return replace(self, headers=tuple(item for item in self.headers if item[0].lower() not in gone))

    def encoded(self) -> bytes:
        lines = [self.start, *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1") + self.body


@dataclass
class Exchange:
    """What a rule acts on: a request, the client's connection, and the way to the server."""

    request: Message
    client: socket.socket
    ask: Callable[[Message], Message]
    stopped: threading.Event

    def answer(self, message: Message) -> None:
        self.client.sendall(message.encoded())


Act = Callable[[Exchange], bool]
"""Does something about a request; whether the client's connection goes on."""


@dataclass
class Rule:
    """What happens to requests whose method and path match, so many times."""

    pattern: str
    act: Act
    times: int
    done: int = 0


@dataclass
class S3Proxy:
    """The proxy, its rules, and the record of what passed.

    Attributes:
        server: Port of the server on loopback.
        endpoint: Where clients find the proxy.
        requests: All requests, in the order in which they were read whole.
        bytes_up: Bytes of bodies by kind of request, on the way up.
        bytes_down: The same, on the way down.
    """

    server: int
    endpoint: str = ""
    rules: list[Rule] = field(default_factory=list)
    requests: list[Message] = field(default_factory=list)
    bytes_up: Counter[str] = field(default_factory=Counter)
    bytes_down: Counter[str] = field(default_factory=Counter)
    _clients: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def fault(self, pattern: str, act: Act, times: int = 10**6) -> Rule:
        """Let something happen to requests whose `<method> <path>` matches a pattern."""
        rule = Rule(pattern, act, times)
        self.rules.append(rule)
        return rule

    @property
    def kinds(self) -> Counter[str]:
        """How many requests of each kind there were, without the client's repeats of one whose answer was late."""
        return Counter(request.kind for request in self.requests if not request.is_repeat)

    def forget(self) -> None:
        """Start the record anew."""
        self.requests.clear()
        self.bytes_up.clear()
        self.bytes_down.clear()

    def _serve(self, client: socket.socket) -> None:
        self._clients.add(client)
        with client, suppress(OSError), client.makefile("rb") as incoming, self._upstream() as ask:
            while (request := _read_request(incoming, client)) is not None:
                if not self._record(request)(Exchange(request, client, ask, self._stopped)):
                    return

    def _record(self, request: Message) -> Act:
        with self._lock:
            self.requests.append(request)
            self.bytes_up[request.kind] += len(request.body)
            for rule in self.rules:
                if rule.done < rule.times and re.search(rule.pattern, f"{request.method} {request.path}"):
                    rule.done += 1
                    return rule.act
        return passed_on

    @contextmanager
    def _upstream(self) -> Iterator[Callable[[Message], Message]]:
        with (
            socket.create_connection(("127.0.0.1", self.server)) as server,
            server.makefile("rb") as answers,
        ):
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def ask(request: Message) -> Message:
                server.sendall(request.encoded())
                answer = _read_answer(answers, request.method)
                with self._lock:
                    self.bytes_down[request.kind] += len(answer.body)
                return answer

            yield ask


@contextmanager
def s3_proxy(server: int) -> Iterator[S3Proxy]:
    """A running proxy before a server on loopback."""
    proxy = S3Proxy(server)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        proxy.endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=proxy._serve, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy._stopped.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in proxy._clients:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)


# What can happen to a request.


def passed_on(exchange: Exchange) -> bool:
    exchange.answer(exchange.ask(exchange.request))
    return True


def refused(status: int, code: str = "") -> Act:
    """Answers with a status of the service's own, without asking it."""
    body = f"<Error><Code>{code}</Code><Message>put in by the test</Message></Error>".encode() if code else b""

    def act(exchange: Exchange) -> bool:
        body_sent = b"" if exchange.request.method == "HEAD" else body
        headers = (("Content-Type", "application/xml"), ("Content-Length", str(len(body_sent))))
        exchange.answer(Message(f"HTTP/1.1 {status} Said", headers, body_sent))
        return True

    return act


def cut_off(exchange: Exchange) -> bool:
    """Closes the connection before anything was done, as when it breaks while the body goes up."""
    return False


def cut_down(exchange: Exchange) -> bool:
    """Closes the connection in the middle of the answer's body."""
    answer = exchange.ask(exchange.request)
    exchange.answer(replace(answer, body=answer.body[: len(answer.body) // 2]))
    return False


def silent(exchange: Exchange) -> bool:
    """Does nothing and says nothing."""
    exchange.stopped.wait()
    return False


def answer_lost(exchange: Exchange) -> bool:
    """Lets the server do it, and closes the connection without the answer."""
    exchange.ask(exchange.request)
    return False


def damaged_up(exchange: Exchange) -> bool:
    """Flips a bit of the body on its way up."""
    exchange.answer(exchange.ask(replace(exchange.request, body=_flipped(exchange.request.body))))
    return True


def damaged_up_where_only_a_checksum_tells(exchange: Exchange) -> bool:
    """Flips a bit of the body on its way up, signed anew, as by whoever encrypts the connection."""
    exchange.answer(exchange.ask(signed(replace(exchange.request, body=_flipped(exchange.request.body)))))
    return True


def damaged_down(exchange: Exchange) -> bool:
    """Flips a bit of the body on its way down."""
    answer = exchange.ask(exchange.request)
    exchange.answer(replace(answer, body=_flipped(answer.body)))
    return True


def unconditional(*names: str) -> Act:
    """Does as a server that doesn't know these headers."""

    def act(exchange: Exchange) -> bool:
        exchange.answer(exchange.ask(signed(exchange.request.without(*names))))
        return True

    return act


def after(work: Callable[[], object]) -> Act:
    """Does something else first, then passes the request on."""

    def act(exchange: Exchange) -> bool:
        work()
        return passed_on(exchange)

    return act


def signed(message: Message) -> Message:
    """A request as its client would have signed it."""
    message = message.without("Authorization", "X-Amz-Date", "X-Amz-Content-SHA256", "Expect", "User-Agent")
    url = f"http://{message.header('Host')}{message.path}"
    sent = AWSRequest(message.method, url, dict(message.headers), message.body)
    keys = Credentials(CREDENTIALS["AWS_ACCESS_KEY_ID"], CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
    S3SigV4Auth(keys, "s3", CREDENTIALS["AWS_DEFAULT_REGION"]).add_auth(sent)
    return replace(message, headers=tuple((name, str(value)) for name, value in sent.headers.items()))


def _flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


# HTTP, as far as the client and the server use it.


def _read_request(stream: BinaryIO, client: socket.socket) -> Message | None:
    message = _read_head(stream)
    if message is None:
        return None
    if message.header("Expect"):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    return replace(message, body=_read_body(stream, message))


def _read_answer(stream: BinaryIO, method: str) -> Message:
    while True:
        message = _read_head(stream)
        if message is None:
            raise ConnectionResetError("the server closed the connection")
        status = int(message.start.split(" ")[1])
        if status >= 200:
            break
    bodiless = method == "HEAD" or status in (204, 304)
    return message if bodiless else replace(message, body=_read_body(stream, message))


def _read_head(stream: BinaryIO) -> Message | None:
    lines = []
    while (line := stream.readline()) not in (b"\r\n", b""):
        lines.append(line.decode("latin-1").rstrip("\r\n"))
    if not lines:
        return None
    headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:]))
    return Message(lines[0], headers, b"")


def _read_body(stream: BinaryIO, message: Message) -> bytes:
    if message.header("Transfer-Encoding") == "chunked":
        raw = b""
        while True:
            line = stream.readline()
            raw += line + stream.read(int(line.split(b";")[0], 16) + 2)
            if line.strip() == b"0":
                return raw
    size = int(message.header("Content-Length") or 0)
    body = stream.read(size)
    if len(body) < size:
        raise ConnectionResetError("the connection was closed in the middle of a body")
    return body
