"""Estimates of memory and disk, to refuse what can't fit before it starts. Rough by nature: within about a half."""


def training_bytes(
    *,
    parameters: int,
    trained_parameters: int,
    weight_bytes: float,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    batch_size: int,
    max_length: int,
    heads: int,
    attention_scores: bool,
    activation_bytes: int,
    gradient_checkpointing: bool,
    moments: int = 2,
) -> int:
    """Peak memory of a training step, in bytes: weights, gradients, optimiser moments, activations.

    A layer keeps about `20 h + 4 i` numbers a token for the backward pass: what its norms, projections and its gated
    feed-forward block read. Where the attention's scores are held they are `2.5 a s` more (Korthikanti et al. 2022,
    "Reducing Activation Recomputation in Large Transformer Models", eq. 1; kernels such as sdpa's don't hold them).
    With recomputation of whole layers it is h a layer, and one layer in full. The constants are measured ones:
    docs/decisions/0029-on-gpus.md.

    Args:
        parameters: Weights in the model.
        trained_parameters: Weights that get gradients.
        weight_bytes: Bytes a weight is held in.
        hidden_size: h.
        intermediate_size: i, width of the feed-forward block.
        layers: Number of layers.
        batch_size: Rows in one forward pass.
        max_length: s, tokens of the longest row.
        heads: a, attention heads.
        attention_scores: Whether the attention kernel holds its scores for all pairs of tokens.
        activation_bytes: Bytes a number of the forward pass is held in.
        gradient_checkpointing: Whether layers are recomputed.
        moments: Numbers that the optimiser keeps for each trained weight.
    """
    tokens = batch_size * max_length
    scores = 2.5 * heads * max_length if attention_scores else 0.0
    layer = tokens * (20 * hidden_size + 4 * intermediate_size + scores) * activation_bytes
    kept = tokens * hidden_size * activation_bytes * layers + layer if gradient_checkpointing else layer * layers
    state = parameters * weight_bytes + trained_parameters * 4 * (1 + moments)
    return int(state + kept)


def state_bytes(*, trained_parameters: int, stored_weight_bytes: float, moments: int = 2) -> int:
    """Size of a checkpoint: the trained weights as stored, and the optimiser's moments in fp32, in bytes."""
    return int(trained_parameters * (stored_weight_bytes + 4 * moments))
