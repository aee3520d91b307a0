"""A handler of its own thread: what waits for a network holds no training up."""

import queue
import threading

from kitchen_resources.telemetry.port import Event, Handler

_END_S = 30.0


class Behind(RuntimeError):
    """Events were dropped, because the handler is slower than they come."""


class Background:
    """Another handler's events, handed over in order by a thread.

    What it raises is raised by the next call of `handle` or `close`. Events that find `room` of them waiting are dropped.

    Args:
        handler: The handler.
        room: Events that may wait.
        end_s: How long `close` waits for those that are left, in seconds.
    """

    def __init__(self, handler: Handler, *, room: int = 10_000, end_s: float = _END_S) -> None:
        self._handler = handler
        self._end_s = end_s
        self._waiting: queue.Queue[Event | None] = queue.Queue(room)
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._dropped = 0

    @property
    def handler(self) -> Handler:
        """Whose events they are."""
        return self._handler

    def handle(self, event: Event) -> None:
        """See `Handler.handle`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self._dropped += 1
            raise Behind(f"{self._dropped} events were dropped: {self._waiting.maxsize} are waiting") from None
        self._raise()

    def close(self) -> None:
        """See `Handler.close`; may be called twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._waiting.put(None, timeout=self._end_s)
        except queue.Full:
            raise Behind(f"{self._waiting.qsize()} events were left when the run was over") from None
        thread.join(self._end_s)
        if thread.is_alive():
            raise Behind(f"{self._waiting.qsize()} events were left when the run was over")
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while (event := self._waiting.get()) is not None:
            try:
                self._handler.handle(event)
            except Exception as error:  # noqa: BLE001  (told to whoever hands events over)
                self._error = error
        try:
            self._handler.close()
        except Exception as error:  # noqa: BLE001  (told to whoever closes)
            self._error = error
