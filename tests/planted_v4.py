"""What each fault planted in DeepSeek-V4 must look like: the first wrong tap, and in which layers."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Callable

import bugs_v4 as bugs
import firstdiff.transformers
from recording import generate
from tiny_v4 import LAYERS, C, S

ALL = tuple(range(len(LAYERS)))
COMPRESSED = tuple(i for i, kind in enumerate(LAYERS) if kind != S)
SPARSE = tuple(i for i, kind in enumerate(LAYERS) if kind == C)
SLIDING = tuple(i for i, kind in enumerate(LAYERS) if kind == S)
HASHED, SCORED = (0, 1), (2, 3, 4)

# What module outputs do not show, and the first module output that follows from it.
HIDDEN = {
    "hc_attn_pre": "hc_attn_in",
    "hc_ffn_pre": "hc_ffn_in",
    "hc_head_pre": "hc_head",
    "q_rope": "attn_unrotated",
    "kv_rope": "attn_unrotated",
    "visible_keys": "attn_unrotated",
    "attn_probs": "attn_unrotated",
}
ROTATED = ("q_rope", "kv_rope", "kv_entry", "index_q", "index_entry", "attn_unrotated")


@dataclass(frozen=True)
class Bug:
    """`tap` is the first wrong one when all is recorded; `also` are wrong in their own right by the same mistake."""

    plant: Callable
    tap: str
    layers: tuple = ALL
    also: tuple = ()
    model: str = "v4"
    cause: str = ""
    faint: bool = False  # shows in some layers only, and not first where it is planted first

    @property
    def name(self):
        return self.plant.__name__

    @property
    def after(self):
        return self.plant in bugs.AFTER

    def first(self, modules_only):
        """Where it may show first. The order of operations decides among taps that are wrong in their own right."""
        return self.taps(modules_only) if modules_only or self.faint else {self.tap}

    def taps(self, modules_only):
        taps = {self.tap, *self.also}
        return {HIDDEN.get(tap, tap) for tap in taps} if modules_only else taps


def record(model, path, ids, steps, bug=None, **options):
    """Records a generation; `bug` changes the model before the recorder comes, or behind it."""
    recording = firstdiff.transformers.record(model, path, **options)
    plant = bug.plant(model) if bug else nullcontext()
    after = bool(bug) and bug.after
    with recording if after else plant as first, plant if after else recording as second:
        generate(model, ids, steps)
    assert (first if after else second).steps == steps + 1, "the recorder gave up"
    return path


def sensitive(plant, tap, **rest):
    return Bug(plant, tap, model="v4-sensitive", **rest)


MIXES = ("hc_ffn_mix",)
BUGS = [
    Bug(bugs.no_sink, "attn_probs", cause="sink-ignored"),
    Bug(bugs.sink_of_row, "attn_probs", cause="sink-head-index-wrong"),
    Bug(bugs.no_inverse_rope, "attn_unrotated", cause="rope-inverse-wrong"),
    Bug(bugs.inverse_rope_wrong_sign, "attn_unrotated", cause="rope-inverse-wrong"),
    Bug(bugs.rope_on_leading_channels, "q_rope", also=ROTATED, cause="rope-leading-channels"),
    Bug(bugs.rope_half_split, "q_rope", also=ROTATED, cause="rope-pairing-interleaved-vs-half"),
    Bug(bugs.main_theta_everywhere, "q_rope", COMPRESSED, also=ROTATED, cause="rope-set-wrong"),
    Bug(bugs.compressed_rope_on_sliding_layers, "q_rope", SLIDING, also=ROTATED, cause="rope-set-wrong"),
    Bug(bugs.yarn_amplitude, "q_rope", COMPRESSED, also=ROTATED, cause="rope-yarn-amplitude"),
    Bug(bugs.yarn_ignored, "q_rope", COMPRESSED, also=ROTATED, cause="rope-yarn-ignored"),
    Bug(bugs.entry_rotated_at_block_end, "kv_entry", COMPRESSED, also=("index_entry",), cause="entry-position-wrong"),
    Bug(bugs.entry_rotated_at_its_index, "kv_entry", COMPRESSED, also=("index_entry",), cause="entry-position-wrong"),
    Bug(bugs.entries_one_token_late, "visible_keys", COMPRESSED, cause="entry-visible-late"),
    Bug(bugs.no_overlap, "comp_pool", SPARSE, also=("index_pool",), cause="compressor-overlap-wrong"),
    Bug(bugs.overlap_halves_swapped, "comp_pool", SPARSE, also=("index_pool",), cause="compressor-overlap-wrong"),
    Bug(bugs.position_bias_dropped, "comp_pool", COMPRESSED, also=("index_pool",), cause="compressor-ape-missing"),
    Bug(bugs.compressor_norm_missing, "comp_norm", COMPRESSED, also=("index_norm",), cause="norm-missing"),
    Bug(bugs.one_gate_per_token, "comp_pool", COMPRESSED, also=("index_pool",), cause="compressor-gate-per-token"),
    Bug(bugs.indexer_without_relu, "index_scores", SPARSE, cause="indexer-relu-missing"),
    Bug(bugs.indexer_one_entry_less, "index_topk", SPARSE, cause="indexer-topk-wrong"),
    Bug(bugs.indexer_ignored, "visible_keys", SPARSE, cause="indexer-ignored"),
    Bug(bugs.window_one_too_long, "visible_keys", cause="swa-off-by-one"),
    Bug(bugs.window_without_compressed_tokens, "visible_keys", COMPRESSED, cause="window-without-compressed-tokens"),
    Bug(bugs.without_entries, "visible_keys", COMPRESSED, cause="entries-not-attended"),
    Bug(bugs.q_norm_missing, "q_norm", cause="norm-missing"),
    # in the first layer all streams are the same, and any doubly stochastic matrix leaves them so
    Bug(bugs.mix_not_transposed, "attn_resid", also=("out",), cause="hc-mix-transposed", faint=True),
    Bug(bugs.sinkhorn_one_iteration, "hc_attn_mix", also=MIXES, cause="hc-sinkhorn-wrong"),
    Bug(bugs.sinkhorn_one_less, "hc_attn_mix", also=MIXES, cause="hc-sinkhorn-wrong", faint=True),
    Bug(bugs.post_without_factor, "hc_attn_post", also=("hc_ffn_post",), cause="hc-post-factor-missing"),
    Bug(bugs.norm_per_stream, "hc_attn_norm", also=("hc_ffn_norm",), cause="hc-norm-per-stream", faint=True),
    Bug(bugs.bias_in_routing_weights, "router_weights", SCORED, cause="moe-bias-in-combine-weights"),
    Bug(bugs.no_routed_scale, "router_weights", cause="moe-routed-scale-missing"),
    Bug(bugs.hash_ignored, "router_topk", HASHED, cause="moe-hash-ignored"),
    Bug(bugs.sigmoid_scores, "router_scores", cause="moe-score-func-wrong"),
    Bug(bugs.first_row_scale, "shared_gate_proj", cause="quant-row-scale-as-scalar"),
    Bug(bugs.output_groups_interleaved, "attn_groups", cause="output-groups-interleaved"),
    sensitive(bugs.no_clamp, "experts_out", also=("shared_act",), cause="mlp-swiglu-clamp-missing"),
    sensitive(bugs.gate_clamped_on_both_sides, "experts_out", also=("shared_act",), cause="mlp-swiglu-clamp-asymmetry"),
    sensitive(bugs.clamped_after_silu, "experts_out", also=("shared_act",), cause="mlp-swiglu-clamp-asymmetry"),
    sensitive(bugs.shared_expert_not_clamped, "shared_act", cause="mlp-swiglu-clamp-missing"),
    sensitive(bugs.sinkhorn_one_less, "hc_attn_mix", also=MIXES, cause="hc-sinkhorn-wrong"),
    sensitive(bugs.sinkhorn_rows_first, "hc_attn_mix", also=MIXES, cause="hc-sinkhorn-wrong"),
    sensitive(bugs.eps_missing_in_pre, "hc_attn_pre", also=("hc_ffn_pre",), cause="hc-eps-missing"),
    sensitive(bugs.eps_missing_after_softmax, "hc_attn_mix", also=MIXES, cause="hc-eps-missing"),
    sensitive(bugs.eps_missing_in_divisors, "hc_attn_mix", also=MIXES, cause="hc-eps-missing"),
    sensitive(bugs.eps_missing_in_head, "hc_head_pre", layers=(), cause="hc-eps-missing"),
    sensitive(bugs.norm_with_hc_eps, "hc_attn_norm", also=("hc_ffn_norm",), cause="norm-eps-wrong"),
]
