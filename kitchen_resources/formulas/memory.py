"""Estimates of memory and disk, to refuse what can't fit before it starts. Rough by nature: within about a half."""


def training_bytes(
    *,
    parameters: int,
    trained_parameters: int,
    weight_bytes: float,
    hidden_size: int,
    layers: int,
    batch_size: int,
    max_length: int,
    heads: int,
    activation_bytes: int,
    gradient_checkpointing: bool,
    moments: int = 2,
) -> int:
    """Peak memory of a training step, in bytes: weights, gradients, optimiser moments, activations.

    Activations by Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", eq. 1:
    `s·b·h·(34 + 5·a·s/h)` bytes a layer at two bytes a number; with recomputation of whole layers `2·s·b·h` a layer
    and one layer in full.

    Args:
        parameters: Weights in the model.
        trained_parameters: Weights that get gradients.
        weight_bytes: Bytes a weight is held in.
        hidden_size: h.
        layers: Number of layers.
        batch_size: b, rows in one forward pass.
        max_length: s, tokens of the longest row.
        heads: a, attention heads.
        activation_bytes: Bytes a number of the forward pass is held in.
        gradient_checkpointing: Whether layers are recomputed.
        moments: Numbers that the optimiser keeps for each trained weight.
    """
    tokens = batch_size * max_length
    layer = tokens * hidden_size * (34 + 5 * heads * max_length / max(hidden_size, 1)) * activation_bytes / 2
    kept = tokens * hidden_size * activation_bytes * layers + layer if gradient_checkpointing else layer * layers
    state = parameters * weight_bytes + trained_parameters * 4 * (1 + moments)
    return int(state + kept)


def state_bytes(*, trained_parameters: int, stored_weight_bytes: float, moments: int = 2) -> int:
    """Size of a checkpoint: the trained weights as stored, and the optimiser's moments in fp32, in bytes."""
    return int(trained_parameters * (stored_weight_bytes + 4 * moments))
