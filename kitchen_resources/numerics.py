"""Leaving a process's random numbers and threads as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def preserved_numerics() -> Iterator[None]:
    """Restore the random states of Python, numpy and torch, and torch's threads and defaults, on the way out."""
    import numpy
    import torch

    python_state = random.getstate()
    numpy_state = numpy.random.get_state()
    torch_state = torch.random.get_rng_state()
    cuda_states = torch.cuda.random.get_rng_state_all() if torch.cuda.is_available() else []
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
        torch.random.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.random.set_rng_state_all(cuda_states)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, cudnn
