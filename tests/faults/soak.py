"""Random SIGKILLs on real training, on a disk and on a bucket: `python -m tests.faults.soak --kills 250`."""

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.faults.kill_points import POINTS
from tests.faults.trl_kills import METHODS, VARIANTS, campaign, check_named_points, import_everything, undisturbed
from tests.object_store import BUCKET, object_store

SHARES: Mapping[str, float] = {"local": 0.6, "s3": 0.4}


@contextmanager
def stores(where: str) -> Iterator[Callable[[str], Path | str]]:
    """Places of stores of a kind, by name, that are removed at the end."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if where == "local":
            yield lambda name: folder / name
            return
        os.environ["KITCHEN_SCRATCH"] = str(folder / "scratch")
        with object_store(folder / "server") as server:
            os.environ.update(server.env)
            # Names are sentences, and a prefix holds no spaces.
            yield lambda name: f"s3://{BUCKET}/{name.replace(' ', '-')}"
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import_everything()
    kills = resumes = bad = 0
    for where, share in SHARES.items():
        for variant in VARIANTS:
            with stores(where) as named:
                if variant in METHODS.values():
                    again = check_named_points(named, variant, undisturbed(named("at no point"), variant)[0])
                    said = f"{len(POINTS)} kills at named points, {again} steps made again, 0 lost"
                    print(f"{variant}: trl, {where}: {said}", flush=True)
                each = -(-round(given.kills * share) // len(VARIANTS))
                tally = campaign(named, variant, each, random.Random(f"{given.seed} {where} {variant}"), where)
            print(f"{variant}: {tally.line()}", flush=True)
            kills, resumes, bad = kills + tally.kills, resumes + tally.resumes, bad + len(tally.mismatches)
    print(
        f"trl, over {len(VARIANTS)} variants of four methods: {kills} kills, {resumes} resumes, {bad} mismatches, 0 lost"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
