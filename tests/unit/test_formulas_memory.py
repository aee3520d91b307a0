"""Estimates of memory and disk, worked out by hand from the formulas they cite."""

from typing import Any

import pytest

from kitchen_resources.formulas.memory import state_bytes, training_bytes

# Korthikanti et al. 2022, eq. 1: s·b·h·(34 + 5·a·s/h) bytes a layer at two bytes a number. Here s·b·h is 32,768 and
# 5·a·s/h is 40, so 2,424,832 bytes a layer.
MODEL: dict[str, Any] = {
    "parameters": 1_000_000,
    "trained_parameters": 1_000_000,
    "weight_bytes": 2,
    "hidden_size": 64,
    "layers": 3,
    "batch_size": 4,
    "max_length": 128,
    "heads": 4,
    "activation_bytes": 2,
    "gradient_checkpointing": False,
}
LAYER = 2_424_832
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
        # 34 + 5·8·128/64 = 114 instead of 74.
        ({"heads": 8}, STATE + 3 * 32_768 * 114),
        # Twice the tokens, and 114 instead of 74: attention grows with the square.
        ({"max_length": 256}, STATE + 3 * 65_536 * 114),
        # 34 + 5·4·128/128 = 54 at twice the width.
        ({"hidden_size": 128}, STATE + 3 * 65_536 * 54),
        # Recomputed: 2·s·b·h a layer is kept, and one layer is there in full.
        ({"gradient_checkpointing": True}, STATE + 3 * 65_536 + LAYER),
        ({"gradient_checkpointing": True, "activation_bytes": 4}, STATE + 3 * 131_072 + 2 * LAYER),
    ],
)
def test_training_bytes(changed: dict[str, Any], expected: int) -> None:
    assert training_bytes(**{**MODEL, **changed}) == expected


def test_activations_of_a_model_of_the_size_of_gpt3() -> None:
    # 96 layers of 12,288 with 96 heads, 2,048 tokens, one row: 34 + 5·96·2048/12288 = 114 bytes for each of 2048·12288
    # numbers, so 2.87 GB a layer and 275 GB in all.
    size = {"hidden_size": 12_288, "heads": 96, "max_length": 2_048, "batch_size": 1, "layers": 96}
    kept = training_bytes(**{**MODEL, **size, "parameters": 0, "trained_parameters": 0})
    assert kept == 96 * 2_048 * 12_288 * 114 == 275_414_777_856


def test_state_bytes() -> None:
    assert state_bytes(trained_parameters=1_000, stored_weight_bytes=4) == 12_000
    assert state_bytes(trained_parameters=1_000, stored_weight_bytes=2, moments=2) == 10_000
    assert state_bytes(trained_parameters=1_000, stored_weight_bytes=4, moments=0) == 4_000
    assert state_bytes(trained_parameters=3, stored_weight_bytes=0.5, moments=1) == 13
    assert state_bytes(trained_parameters=0, stored_weight_bytes=4) == 0
