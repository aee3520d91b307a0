"""The embedded model: a two-layer Qwen3 with random weights, the same bytes on every machine."""

import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitchen_resources.digests import digest_bytes, digest_json
from kitchen_resources.embedded.tokenizer import MAX_LENGTH, PAD_ID, TURN_END_ID, VOCAB_SIZE, tokenizer_files
from kitchen_resources.errors import ConfigError

# Qwen3 for its normalised queries and keys: they take the luck out of a hard task. Sums were right in 0.84 to 0.93 by
# seed with them, in 0.11 to 0.94 without. The output head is not tied: each parameter is one tensor under its own name.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "dtype": "float32",
    "eos_token_id": TURN_END_ID,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": MAX_LENGTH,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "pad_token_id": PAD_ID,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}
"""config.json. It names no library version: that would change the digest with every upgrade."""

GENERATION_CONFIG: dict[str, Any] = {"do_sample": False, "eos_token_id": TURN_END_ID, "pad_token_id": PAD_ID}


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its name in model.safetensors; (out, in) for linear layers."""
    hidden, inner, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * head, CONFIG["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCAB_SIZE, hidden),
        "model.embed_tokens.weight": (VOCAB_SIZE, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        of_layer = {
            "input_layernorm": (hidden,),
            "mlp.down_proj": (hidden, inner),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "post_attention_layernorm": (hidden,),
            "self_attn.k_norm": (head,),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "self_attn.q_norm": (head,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.v_proj": (keys, hidden),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    return shapes


def initial_weights(shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random weights for named parameters: uniform with standard deviation 0.02, norms one, biases zero.

    torch's normal sampling gives other bits on other CPUs. Here a weight is made of a raw word of PCG64,
    whose stream numpy promises to keep, by arithmetic that IEEE 754 fixes: (word >> 11) / 2^53 is uniform in
    [0, 1).

    Args:
        shapes: Shape of each parameter by name. Names are drawn in sorted order.
        seed: Other seeds give other weights; at least 0.

    Returns:
        float32 arrays, by name in sorted order.
    """
    words = np.random.PCG64(seed)
    bound = CONFIG["initializer_range"] * math.sqrt(3.0)
    weights: dict[str, NDArray[np.float32]] = {}
    for name, shape in sorted(shapes.items()):
        if len(shape) == 1:
            weights[name] = np.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=np.float32)
            continue
        raw: NDArray[np.uint64] = words.random_raw(math.prod(shape))
        uniform = (raw >> np.uint64(11)) * 2.0**-53
        weights[name] = ((uniform * 2.0 - 1.0) * bound).astype(np.float32).reshape(shape)
    return weights


def model_files(*, seed: int = 0) -> dict[str, bytes]:
    """Every file of the model's folder, by name: config, weights in float32, tokenizer and chat template."""
    from safetensors.numpy import save

    return {
        "config.json": _json(CONFIG),
        "generation_config.json": _json(GENERATION_CONFIG),
        "model.safetensors": save(initial_weights(parameter_shapes(), seed=seed), metadata={"format": "pt"}),
        **tokenizer_files(),
    }


def model_digest(*, seed: int = 0) -> str:
    """Digest over every file of the model's folder.

    A cache does well to name the folder by it: then the model of another version of the kitchen lies beside this one
    and isn't taken for it.
    """
    return digest_json({name: digest_bytes(data) for name, data in model_files(seed=seed).items()})


def write_model(folder: Path, *, seed: int = 0) -> None:
    """Write the model as a folder that `from_pretrained` loads, whole or not at all.

    Several processes may write one folder at once: each writes a hidden one beside it and renames that, and
    the first to do so wins. A folder that already holds this model is left as it is.

    Args:
        folder: Where to write; its parents are made.
        seed: Seed of the weights; at least 0.

    Raises:
        ConfigError: The folder holds something else.
    """
    files = model_files(seed=seed)
    if not folder.exists() or not any(folder.iterdir()):
        _publish(files, folder)
    _require_files(files, folder)


def _publish(files: Mapping[str, bytes], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkdtemp: it makes folders that only their owner may read.
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        for name, data in files.items():
            with (draft / name).open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        _sync_folder(draft)
        try:
            draft.rename(folder)
        except OSError:
            # Another process was first; what it wrote is compared with ours next.
            if not folder.is_dir():
                raise
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _require_files(files: Mapping[str, bytes], folder: Path) -> None:
    found = {path.name for path in folder.iterdir()}
    wrong = sorted(found ^ files.keys())
    wrong += sorted(name for name in found & files.keys() if (folder / name).read_bytes() != files[name])
    if wrong:
        raise ConfigError(
            f"the folder isn't the embedded model: {', '.join(wrong)} missing, added or changed",
            where=str(folder),
            fix=f"rm -r {folder}",
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
