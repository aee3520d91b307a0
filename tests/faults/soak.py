"""Random SIGKILLs on real training, for as long as one likes: `python -m tests.faults.soak --kills 100`."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.faults.trl_kills import VARIANTS, campaign, import_everything


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import_everything()
    bad = 0
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            each = -(-given.kills // len(VARIANTS))
            tally = campaign(Path(folder), variant, each, random.Random(f"{given.seed} {variant}"))
        print(f"{variant}: {tally.line()}", flush=True)
        bad += len(tally.mismatches)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
