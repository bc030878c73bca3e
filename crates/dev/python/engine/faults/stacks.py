"""Faults that are planted together: each must be found behind the other. Titles; those of one line share a model."""

STACKS = (
    ("qkv-bias-missing", "kernel-strides-ignored.weight"),
    ("qkv-bias-missing.k", "kernel-partial-vector-load.four"),
    ("qkv-bias-missing", "act-wrong-fn"),
    ("qkv-bias-added-twice", "final-norm-missing"),
    ("pos-decode-offset-wrong", "weight-fused-qkv-layout.qwen2"),
    ("embedding-gather-tail", "attn-scale-twice"),
    ("parallel-residual-norm-crossed.names", "kernel-int32-offset.logits"),
    ("rope-table-layout-mismatch", "uninit-kv-nan-masked"),
    ("rope-theta-wrong", "dispatch-threshold-batch.rows"),
    ("rope-pairing-interleaved-vs-half", "mlp-gate-up-swapped.loader"),
    ("qk-norm-missing", "mask-causal-missing"),
    ("qk-norm-missing.k", "attn-scale-wrong-dim"),
    ("qk-norm-wrong-axis", "attn-output-not-written.step"),
    ("kv-quant-scale-missing.decode", "weights-not-loaded.random"),
    ("gqa-tile-vs-repeat.4-heads", "residual-from-normed.attention"),
    ("rope-pairing-interleaved-vs-half.llama", "norm-mean-subtract"),
    ("rope-theta-wrong.500000", "inplace-aliasing"),
    ("embed-scale-missing", "lm-head-tied-by-mistake"),
    ("norm-unit-offset-double", "matmul-partial-reduction"),
    ("attn-scale-missing", "parallel-residual-norm-crossed"),
    ("qk-weight-permutation", "kernel-strides-ignored"),
    ("kv-slot-mapping", "logit-scale-missing"),
    ("graph-stale-args", "dispatch-threshold-batch"),
    ("softmax-online-rescale-missing", "mlp-gate-up-swapped"),
    ("attn-output-not-written", "weights-not-loaded"),
    ("kernel-int32-offset", "race-cross-block-visibility.fresh"),
)
# Both inside attention: module outputs show them as one.
INSIDE = (
    ("rope-theta-wrong", "race-cross-block-visibility"),
    ("attn-scale-missing", "mask-off-by-one"),
)
