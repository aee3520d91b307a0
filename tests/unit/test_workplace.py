"""Work in progress: a folder that goes with its worker, also when that one was killed."""

import signal
from pathlib import Path

from kitchen_resources.blobs.workplace import Workplace, remove_abandoned, workplace
from tests.faults.forked import Say, forked


def test_a_workplace_is_there_while_it_is_needed(tmp_path: Path) -> None:
    with workplace(tmp_path, "export") as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path / "work"
        assert folder.name.startswith("export-")
        remove_abandoned(tmp_path)
        assert (folder / "file").read_text() == "x"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_worker_left_is_removed_and_a_living_one_left_alone(tmp_path: Path) -> None:
    def work(say: Say) -> None:
        place = Workplace(tmp_path / "runs" / "fingerprint" / "attempt")
        place.open()
        (place.path / "state").write_text("x")
        with workplace(tmp_path, "prepare") as folder:
            (folder / "rows").write_text("x")
            say("working")
            signal.pause()

    with forked(work) as child:
        assert child.line() == "working"
        remove_abandoned(tmp_path)
        assert (tmp_path / "runs" / "fingerprint" / "attempt" / "state").exists()
        assert len(list((tmp_path / "work").glob("prepare-*/rows"))) == 1
        child.kill()
        assert child.wait() == -signal.SIGKILL
    with workplace(tmp_path, "other"):
        assert not (tmp_path / "runs" / "fingerprint").exists()
        assert list((tmp_path / "work").glob("prepare-*")) == []
