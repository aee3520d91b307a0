"""The local blob store between processes: races, and processes killed in the middle of a write."""

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import kitchen_resources
from kitchen_resources.blobs.flocks import locked
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.digests import digest_bytes

PREAMBLE = """
import os, random, resource, signal, sys
from pathlib import Path
from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.digests import digest_bytes
def say(text): sys.stdout.write(text + "\\n"); sys.stdout.flush()
"""


@contextmanager
def running(script: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A Python process that runs the script; it is killed at the end."""
    project = str(Path(kitchen_resources.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": project},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def race(script: str, processes: int, root: Path) -> list[str]:
    """The last word of each process; all are let go when all are ready. Their number is `sys.argv[2]`."""
    with ExitStack() as stack:
        started = [stack.enter_context(running(script, root, number)) for number in range(processes)]
        assert [line(process) for process in started] == ["ready"] * processes
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = [line(process) for process in started]
        assert [process.wait() for process in started] == [0] * processes
    return said


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


INCREMENT = """
blobs = LocalBlobs(Path(sys.argv[1]))
say("ready"); sys.stdin.readline()
done = 0
while done < 50:
    stored = blobs.get("runs/counter")
    value = int(stored.data) if stored else 0
    if blobs.compare_and_swap("runs/counter", stored.version if stored else None, str(value + 1).encode()):
        done += 1
say("done")
"""


def test_racing_processes_lose_no_swap(root: Path) -> None:
    assert race(INCREMENT, 4, root) == ["done"] * 4
    assert (root / "runs/counter").read_bytes() == b"200"


CREATE = """
say("ready"); sys.stdin.readline()
blobs = LocalBlobs(Path(sys.argv[1]))
say("".join(str(int(blobs.put_if_absent(f"new/{turn}", sys.argv[2].encode()))) for turn in range(20)))
"""


def test_racing_processes_create_each_object_once(root: Path) -> None:
    # All six open the new store at once, too.
    won = race(CREATE, 6, root)
    assert [len(turns) for turns in won] == [20] * 6
    for turn in range(20):
        assert [turns[turn] for turns in won].count("1") == 1
        winner = int((root / f"new/{turn}").read_bytes())
        assert won[winner][turn] == "1"
    assert os.listdir(root / ".temp") == []


WRITE = """
root, chance = Path(sys.argv[1]), random.Random(sys.argv[2])
blobs = LocalBlobs(root)
stored = blobs.get("head")
version = stored.version if stored else None
for number in range(10 ** 6):
    data = chance.randbytes(chance.randrange(300_000))
    digest = digest_bytes(data)
    say(str(number))
    blobs.put_if_absent(f"made/{digest[:2]}/{digest}", data)
    version = blobs.compare_and_swap("head", version, digest.encode() + data)
    source = blobs.scratch() / digest
    source.write_bytes(data)
    blobs.put_file(f"taken/{digest}", source)
    source.unlink()
    if number % 3 == 2:
        blobs.delete(f"taken/{digest}")
"""


def check_whole(blobs: LocalBlobs) -> int:
    """Objects in the store, each found to hold the bytes that its name tells."""
    keys = list(blobs.list(""))
    for key in keys:
        stored = blobs.get(key)
        assert stored is not None
        if key == "head":
            assert digest_bytes(stored.data[64:]).encode() == stored.data[:64]
        else:
            assert digest_bytes(stored.data) == key.rpartition("/")[2]
    return len(keys)


def test_writers_killed_at_random_leave_only_whole_objects(root: Path) -> None:
    chance = random.Random(0)
    for turn in range(20):
        with running(WRITE, root, turn) as process:
            for _ in range(chance.randint(1, 12)):
                assert line(process).isdigit()
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert check_whole(LocalBlobs(root)) > 0
        assert os.listdir(root / ".temp") == []


# Runs every verb in a fresh store and dies before system call 1, then in another before call 2, and so on.
EVERY_CALL = """
import fcntl, shutil
base = Path(sys.argv[1])
os.fsync = lambda fd: None  # a kill loses nothing that was written
CALLS = [(os, name) for name in (
    "open", "close", "write", "fsync", "fchmod", "link", "replace", "unlink", "mkdir", "stat", "fstat",
)] + [(fcntl, "flock")]

def dying(last):
    made = 0
    def wrap(call):
        def counted(*arguments, **options):
            nonlocal made
            made += 1
            if made == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return counted
    for module, name in CALLS:
        setattr(module, name, wrap(getattr(module, name)))

def work(root, report):
    blobs = LocalBlobs(root)
    tell = lambda word: report(word.encode())
    source = root / ".scratch" / "source"; source.write_bytes(b"taken")
    tell("0"); blobs.put_if_absent("deep/new/made", b"made" * 1000)
    tell("1"); version = blobs.compare_and_swap("deep/head", None, b"one")
    tell("2"); blobs.compare_and_swap("deep/head", version, b"two")
    tell("3"); blobs.put_file("taken", source)
    tell("4"); blobs.get_file("taken", root / ".scratch" / "given")
    tell("5"); blobs.delete("taken")
    tell("6")

def read(blobs, key):
    stored = blobs.get(key)
    return stored and stored.data

# What may be found when the process died in step n.
MADE = [(None, b"made" * 1000)] + [(b"made" * 1000,)] * 6
HEAD = [(None,), (None, b"one"), (b"one", b"two")] + [(b"two",)] * 4
TAKEN = [(None,)] * 3 + [(None, b"taken"), (b"taken",), (b"taken", None), (None,)]

last, steps = 0, set()
while True:
    last += 1
    root = base / str(last)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        write = os.write
        dying(last)
        work(root, lambda word: write(writer, word))
        os._exit(0)
    os.close(writer)
    status = os.waitpid(child, 0)[1]
    told = os.read(reader, 100).decode(); os.close(reader)
    step = int(told[-1:] or 0)
    blobs = LocalBlobs(root)
    found = read(blobs, "deep/new/made"), read(blobs, "deep/head"), read(blobs, "taken")
    assert found[0] in MADE[step] and found[1] in HEAD[step] and found[2] in TAKEN[step], (last, step, found)
    assert os.listdir(root / ".temp") == [], last
    assert blobs.compare_and_swap("deep/other", None, b"free") is not None
    stored = blobs.get("deep/head")
    if stored:
        assert blobs.compare_and_swap("deep/head", stored.version, b"free") is not None
    if step < 3:
        again = LocalBlobs(root)
        assert again.put_if_absent("deep/new/made", b"made" * 1000) == (found[0] is None)
    shutil.rmtree(root)
    steps.add(step)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
assert steps == set(range(7)), steps
say(str(last))
"""


def test_a_writer_killed_before_any_of_its_system_calls_leaves_nothing_or_all(tmp_path: Path) -> None:
    with running(EVERY_CALL, tmp_path) as process:
        said = line(process)
        assert process.wait() == 0
    assert int(said) > 150


LIVE_WRITER = """
from kitchen_resources.blobs.temporary import temporary_file
with temporary_file(Path(sys.argv[1])) as new:
    new.write(b"half")
    say(new.name)
    sys.stdin.readline()
"""


def test_the_file_of_a_live_writer_in_another_process_stays(root: Path) -> None:
    LocalBlobs(root)
    with running(LIVE_WRITER, root) as process:
        name = line(process)
        LocalBlobs(root)
        assert os.listdir(root / ".temp") == [name]
        process.kill()
        process.wait()
        assert os.listdir(root / ".temp") == [name]
        LocalBlobs(root)
        assert os.listdir(root / ".temp") == []


FORKING_HOLDER = """
from kitchen_resources.blobs.flocks import locked
folder = os.open(sys.argv[1], os.O_RDONLY)
with locked("sidecar", os.O_RDONLY | os.O_CREAT, folder=folder):
    if os.fork() == 0:
        say("child")
        sys.stdin.readline()
        os._exit(0)
    signal.pause()
"""


def test_a_child_does_not_go_on_holding_the_lock_of_its_killed_parent(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with running(FORKING_HOLDER, tmp_path) as process:
            assert line(process) == "child"
            with (
                pytest.raises(BlockingIOError),
                locked("sidecar", os.O_RDONLY, folder=folder, wait=False),
            ):
                pass
            process.kill()
            process.wait()
            # The child still waits for its line.
            with locked("sidecar", os.O_RDONLY, folder=folder, wait=False):
                pass
    finally:
        os.close(folder)


LIMITED = """
from kitchen_resources.errors import BlobError
root = Path(sys.argv[1])
blobs = LocalBlobs(root)
source = root.parent / "source"
source.write_bytes(b"x" * 100_000)
link = os.link
def inside_only(*names, src_dir_fd=None, dst_dir_fd=None, **options):
    if src_dir_fd is None: raise OSError(18, "Invalid cross-device link")
    link(*names, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **options)
os.link = inside_only
version = blobs.compare_and_swap("head", None, b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for verb in (
    lambda: blobs.put_if_absent("a/b", b"x" * 100_000),
    lambda: blobs.compare_and_swap("head", version, b"x" * 100_000),
    lambda: blobs.put_file("a/c", source),
):
    try:
        verb()
    except BlobError as error:
        say(str(error).splitlines()[0])
"""


def test_an_object_that_cannot_be_written_to_its_end_is_not_there(root: Path) -> None:
    with running(LIMITED, root) as process:
        said = [line(process) for _ in range(3)]
        assert process.wait() == 0
    assert said == [f"{root}/{key}: the storage failed: [Errno 27] File too large" for key in ("a/b", "head", "a/c")]
    assert list(LocalBlobs(root).list("")) == ["head"]
    assert (root / "head").read_bytes() == b"old"
    assert os.listdir(root / ".temp") == []


READ_ONLY = """
from kitchen_resources.errors import BlobError
import kitchen_resources.blobs.local
if os.geteuid() == 0:
    os.seteuid(65534)  # root may write anywhere
try:
    LocalBlobs(Path(sys.argv[1]))
except BlobError as error:
    say(str(error).replace("\\n", " "))
"""


@pytest.mark.parametrize("made", [True, False], ids=["a store", "an empty folder"])
def test_a_root_that_may_not_be_written_is_refused(made: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve() / "store"
        root.mkdir()
        if made:
            LocalBlobs(root)
        folders = [root, *(path for path in root.iterdir() if path.is_dir())]
        root.parent.chmod(0o755)
        for folder in folders:
            folder.chmod(0o555)
        with running(READ_ONLY, root) as process:
            said = line(process)
            assert process.wait() == 0
        for folder in folders:
            folder.chmod(0o755)
    assert said.startswith(f"{root}: the storage failed: [Errno 13] Permission denied")
    assert "set KITCHEN_STORE to a writable folder" in said
