"""Classes of the catalogue that no fault stands for, by reason."""

ABSENT = {
    "no family with partial or proportional rotation": (
        "rope-partial-ignored", "rope-proportional-vs-leading"),
    "longrope is refused": (
        "rope-longrope-switch",),
    "no family with latent attention": (
        "yarn-mscale-missing-in-softmax-scale", "attn-scale-mla-absorbed-dim", "mla-kv-row-layout"),
    "no family with gated attention, shared keys and values, or temperature tuning": (
        "attn-gate-split-layout", "v-from-processed-k", "attn-temperature-tuning-missing", "kv-shared-layer-ignored",
        "kv-per-layer-head-dim"),
    "no family with soft caps, sinks or ALiBi": (
        "attn-softcap-missing", "softcap-after-mask", "softcap-formula-wrong", "final-softcap-missing", "sink-ignored",
        "sink-head-index-wrong", "alibi-missing", "alibi-slopes-off-by-one", "alibi-slopes-non-pow2"),
    "no images": (
        "mask-from-wrong-positions", "pos-mrope-wrong"),
    "no embedding scale to round": (
        "embed-scale-rounding",),
    "no clamp in the gate": (
        "mlp-swiglu-clamp-missing", "mlp-swiglu-clamp-asymmetry"),
    "no experts": (
        "moe-raw-logits-as-weights", "moe-norm-topk-missing", "moe-norm-topk-extra", "moe-normalise-wrong-dim",
        "moe-weights-not-applied", "moe-score-func-wrong", "moe-bias-in-combine-weights", "moe-bias-low-precision",
        "moe-group-score-wrong", "moe-shared-gate-missing", "moe-shared-expert-dropped", "expert-index-wrong"),
    "no recurrent layers": (
        "norm-gated-order", "recurrent-state-not-carried", "recurrent-stale-state", "recurrent-pad-updates-state",
        "recurrent-state-slot-mixup"),
    "formats with zero points or an order of groups are not read": (
        "quant-zero-point-wrap", "quant-gidx-ignored"),
    "adapters are not read": (
        "lora-scale-wrong",),
    "a trace cannot say that cached rows were moved": (
        "kv-shift-wrong-rope", "kv-shift-stale-position"),
    "rounding, not a fault": (
        "batch-variance",),
}  # fmt: skip
