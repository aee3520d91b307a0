"""8- and 4-bit bases with the real bitsandbytes, on a CPU: train a LoRA, resume exactly, export merged."""

from pathlib import Path
from typing import Any

import pytest
from plain import weights_digest

from kitchen_resources.errors import BackendError
from tests.workflows.conftest import Bench, bench  # noqa: F401

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_lora_on_a_quantized_base_resumes_with_the_bits_of_one_go(bench: Bench, bits: str) -> None:  # noqa: F811
    config: dict[str, Any] = {
        "max_rows": 90,
        "epochs": 2,
        "quantization": bits,
        "precision": "bf16",
        "lora": {"rank": 4},
    }
    whole = bench.run(config)
    assert whole.optimizer_steps == 12
    plain = bench.run({**config, "quantization": "none"})
    assert plain.fingerprint != whole.fingerprint
    ours = weights_digest(bench.weights(whole.fingerprint))
    assert ours != weights_digest(bench.weights(plain.fingerprint))

    other = Bench(bench.folder / "split", bench.folder / "s", bench.instance)
    _stop_after_first_epoch(other, config)
    assert other.run(config).optimizer_steps == 6
    assert weights_digest(other.weights(whole.fingerprint)) == ours
    assert whole.model_path
    assert (Path(whole.model_path) / "model.safetensors").is_file()


def _stop_after_first_epoch(bench: Bench, config: dict[str, Any]) -> None:  # noqa: F811
    from kitchen_resources.training.trl.session import TrlSession

    real = TrlSession.train_epoch

    def only_first(self: Any, epoch: int, *args: Any) -> Any:
        if epoch > 1:
            raise BackendError("stopped here")
        return real(self, epoch, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrlSession, "train_epoch", only_first)
        with pytest.raises(BackendError, match="stopped here"):
            bench.run(config)
