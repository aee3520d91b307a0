"""Seeds that follow from a run's seed and where in the run they are used."""

import hashlib


def derived_seed(seed: int, *places: int | str) -> int:
    """A seed of 32 bits, which every random generator takes.

    Args:
        seed: Of the run.
        places: Where it is used, such as a step and a turn; others give unrelated seeds.
    """
    digest = hashlib.sha256("/".join(map(str, (seed, *places))).encode()).digest()
    return int.from_bytes(digest[:4], "big")
