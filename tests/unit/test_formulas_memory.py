"""Estimates of memory and disk, worked out by hand from the formulas they cite."""

from typing import Any

import pytest

from kitchen_resources.formulas.memory import state_bytes, training_bytes

# A token of a layer keeps 20·64 + 4·128 numbers, and with its scores 2.5·4·128 more: 1,792 + 1,280 = 3,072. There are
# 512 tokens and two bytes a number, so 3,145,728 bytes a layer, of which 1,310,720 are scores.
MODEL: dict[str, Any] = {
    "parameters": 1_000_000,
    "trained_parameters": 1_000_000,
    "weight_bytes": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "layers": 3,
    "batch_size": 4,
    "max_length": 128,
    "heads": 4,
    "attention_scores": True,
    "activation_bytes": 2,
    "gradient_checkpointing": False,
}
LAYER = 3_145_728
# Weights in two bytes, gradients and two moments in four each.
STATE = 2_000_000 + 12_000_000


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, STATE + 3 * LAYER),
        ({"weight_bytes": 4}, STATE + 2_000_000 + 3 * LAYER),
        ({"weight_bytes": 0.5}, STATE - 1_500_000 + 3 * LAYER),
        ({"moments": 0}, STATE - 8_000_000 + 3 * LAYER),
        ({"trained_parameters": 1_000}, 2_000_000 + 12_000 + 3 * LAYER),
        ({"activation_bytes": 4}, STATE + 6 * LAYER),
        ({"layers": 1}, STATE + LAYER),
        ({"batch_size": 8}, STATE + 6 * LAYER),
        ({"attention_scores": False}, STATE + 3 * (LAYER - 1_310_720)),
        # Twice the scores.
        ({"heads": 8}, STATE + 3 * (LAYER + 1_310_720)),
        # Twice the tokens, each with twice the scores: attention grows with the square.
        ({"max_length": 256}, STATE + 3 * 2 * (LAYER + 1_310_720)),
        # 20·64 more numbers a token.
        ({"hidden_size": 128}, STATE + 3 * (LAYER + 512 * 1_280 * 2)),
        # 4·64 fewer.
        ({"intermediate_size": 64}, STATE + 3 * (LAYER - 512 * 256 * 2)),
        # Recomputed: 64 numbers a token and layer are kept, and one layer is there in full.
        ({"gradient_checkpointing": True}, STATE + 3 * 65_536 + LAYER),
        ({"gradient_checkpointing": True, "activation_bytes": 4}, STATE + 3 * 131_072 + 2 * LAYER),
    ],
)
def test_training_bytes(changed: dict[str, Any], expected: int) -> None:
    assert training_bytes(**{**MODEL, **changed}) == expected


def test_scores_are_those_of_the_paper() -> None:
    # Korthikanti et al. 2022, eq. 1, GPT-3: 5·a·s bytes a token and layer at two bytes a number, with 96 heads, 2,048
    # tokens and 96 layers.
    size = {"hidden_size": 12_288, "heads": 96, "max_length": 2_048, "batch_size": 1, "layers": 96}
    with_scores, without = (
        training_bytes(**{**MODEL, **size, "attention_scores": scores}) for scores in (True, False)
    )
    assert with_scores - without == 96 * 2_048 * 5 * 96 * 2_048 == 193_273_528_320


def test_state_bytes() -> None:
    assert state_bytes(trained_parameters=1_000, stored_weight_bytes=4) == 12_000
    assert state_bytes(trained_parameters=1_000, stored_weight_bytes=2, moments=2) == 10_000
    assert state_bytes(trained_parameters=1_000, stored_weight_bytes=4, moments=0) == 4_000
    assert state_bytes(trained_parameters=3, stored_weight_bytes=0.5, moments=1) == 13
    assert state_bytes(trained_parameters=0, stored_weight_bytes=4) == 0
