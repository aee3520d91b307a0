"""The worker process: environments and rewards run here, with a time limit that the process which started it keeps.

`python -m kitchen_resources.environments.worker` reads one JSON line a request from stdin and writes one JSON line for
each of its parts to stdout, as soon as it is done: a hang is known to be of the part that has no line. It imports
nothing heavy: the time to start it is the time to replace it.
"""

import faulthandler
import json
import os
import signal
from typing import Any, BinaryIO

from kitchen_resources.environments.serving import Containment, Host, refusal

# Who started this process kills it when a part takes too long. When that process is gone it can't, and no thread here
# could either while user code holds the interpreter's lock; faulthandler's timer runs without it.
_GRACE_S = 5.0
_STDERR = 2


def main() -> None:
    """Serve requests until stdin is closed."""
    faulthandler.enable(file=_STDERR)
    # Writes the stack, and then does what the signal does by default: it ends the process.
    faulthandler.register(signal.SIGUSR1, file=_STDERR, all_threads=False, chain=True)
    requests, answers = _take_streams()
    setup = json.loads(requests.readline() or b"null")
    if setup is None:
        return
    faulthandler.dump_traceback_later(setup["start_limit_s"] + _GRACE_S, exit=True, file=_STDERR)
    with Containment() as containment:
        host = Host(setup)
    if containment.error is not None:
        _write(answers, refusal(containment.error))
        return
    _write(answers, {"ready": True})
    _serve(host, requests, answers, setup["time_limit_s"] + _GRACE_S)
    # Left running while the interpreter ends, which a thread of the user's may not let it.
    faulthandler.dump_traceback_later(_GRACE_S, exit=True, file=_STDERR)


def _serve(host: Host, requests: BinaryIO, answers: BinaryIO, limit_s: float) -> None:
    faulthandler.cancel_dump_traceback_later()
    for line in requests:
        parts = host.answers(json.loads(line))
        while True:
            faulthandler.dump_traceback_later(limit_s, exit=True, file=_STDERR)
            answer = next(parts, None)
            faulthandler.cancel_dump_traceback_later()
            if answer is None:
                break
            _write(answers, answer)


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout for the protocol alone: user code that reads finds nothing, and what it prints goes to stderr."""
    # The end of stdout is the end of this process: it stays open while the interpreter shuts down.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", closefd=False)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(_STDERR, 1)
    return requests, answers


def _write(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer, allow_nan=False).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
