"""The models that are measured, at their true shapes: what their config.json says on the hub."""

QWEN3 = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
}
QWEN2 = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "use_sliding_window": False,
}
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
}
MODELS = {"qwen3-0.6b": QWEN3, "qwen2.5-0.5b": QWEN2, "smollm2-135m": LLAMA}

# The same architectures in a size for any machine: enough to try the scripts, not to measure.
SMALL = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Large enough for all that the decode kernel does with rows: of 132 blocks most warps have several, in two segments.
SEVERAL_ROWS = SMALL | {
    "vocab_size": 4096,
    "hidden_size": 1280,
    "intermediate_size": 2560,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
}


def config(name, tiny=False):
    """The configuration of a model at its true shape, at the tiny one, or at another that `tiny` is."""
    out = dict(MODELS[name])
    if tiny:
        out |= SMALL if tiny is True else tiny
        if "head_dim" in out:
            out["head_dim"] = 64
    return out


def head_dim(c):
    return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


def bytes_per_token(c, weight_bytes, context):
    """Bytes that one decoded token must read: every weight once, and the bf16 keys and values of the context."""
    cache = 2 * 2 * c["num_hidden_layers"] * c["num_key_value_heads"] * head_dim(c) * context
    return weight_bytes + cache
