//! Every hypothesis: one file each, one line in the list below.
//!
//! A file's module comment is what `firstdiff explain ID` prints. Its `propose` looks at a scene and
//! returns edits: at least one wherever the hypothesis could hold, none elsewhere.

mod fits;
mod handed;
mod masks;
mod quant;
mod scaled;
mod stored;
mod tools;
mod words;

use crate::{Edit, Scene};

/// Something that engines get wrong.
#[derive(Clone, Copy)]
pub struct Hypothesis {
    /// Its name, fixed for ever.
    pub id: &'static str,
    source: &'static str,
    /// What the engine may have computed instead, here.
    pub propose: fn(&Scene) -> Vec<Edit>,
}

impl Hypothesis {
    /// What it is, how it shows, where it was seen, how to fix it: its file's module comment, in Markdown.
    pub fn text(&self) -> String {
        let lines = self.source.lines().map_while(|l| l.strip_prefix("//!"));
        lines.map(|l| l.strip_prefix(' ').unwrap_or(l)).collect::<Vec<_>>().join("\n")
    }

    /// The first line of the text: what it is, in a few words.
    pub fn title(&self) -> String {
        self.text().lines().next().unwrap_or_default().trim_start_matches("# ").to_string()
    }
}

/// The hypothesis with this name.
pub fn hypothesis(id: &str) -> Option<&'static Hypothesis> {
    HYPOTHESES.iter().find(|h| h.id == id)
}

macro_rules! hypotheses {
    ($($module:ident => $id:literal,)*) => {
        $(mod $module;)*

        /// All hypotheses. Of equal explanations with equally many fitted numbers, the first one is named.
        pub const HYPOTHESES: &[Hypothesis] = &[$(
            Hypothesis {
                id: $id,
                source: include_str!(concat!(stringify!($module), ".rs")),
                propose: $module::propose,
            },
        )*];
    };
}

hypotheses! {
    rope_pairing_interleaved_vs_half => "rope-pairing-interleaved-vs-half",
    rope_output_not_reinterleaved => "rope-output-not-reinterleaved",
    rope_table_layout_mismatch => "rope-table-layout-mismatch",
    rope_tail_dims_not_written => "rope-tail-dims-not-written",
    rope_scaling_llama3_missing => "rope-scaling-llama3-missing",
    rope_scaling_factor_wrong => "rope-scaling-factor-wrong",
    yarn_ramp_params_wrong => "yarn-ramp-params-wrong",
    yarn_mscale_wrong_on_cos_sin => "yarn-mscale-wrong-on-cos-sin",
    rope_local_global_theta_swapped => "rope-local-global-theta-swapped",
    rope_theta_wrong => "rope-theta-wrong",
    rope_partial_wrong_denominator => "rope-partial-wrong-denominator",
    rope_on_nope_layers => "rope-on-nope-layers",
    rope_table_low_precision => "rope-table-low-precision",
    pos_decode_offset_missing => "pos-decode-offset-missing",
    graph_stale_args => "graph-stale-args",
    pos_chunk_offset => "pos-chunk-offset",
    kv_prefix_resume_broken => "kv-prefix-resume-broken",
    pos_left_pad => "pos-left-pad",
    rope_batch_stride => "rope-batch-stride",
    pos_decode_offset_wrong => "pos-decode-offset-wrong",
    qkv_bias_missing => "qkv-bias-missing",
    qkv_bias_added_twice => "qkv-bias-added-twice",
    qk_weight_permutation => "qk-weight-permutation",
    attn_scale_missing => "attn-scale-missing",
    attn_scale_twice => "attn-scale-twice",
    head_dim_derived => "head-dim-derived",
    attn_scale_wrong_dim => "attn-scale-wrong-dim",
    attn_scale_layer_idx => "attn-scale-layer-idx",
    gqa_tile_vs_repeat => "gqa-tile-vs-repeat",
    gqa_wrong_divisor => "gqa-wrong-divisor",
    mask_causal_missing => "mask-causal-missing",
    mask_off_by_one => "mask-off-by-one",
    mask_ignores_prefix => "mask-ignores-prefix",
    mask_padding_ignored => "mask-padding-ignored",
    mask_tail_padding_attended => "mask-tail-padding-attended",
    swa_mask_sign => "swa-mask-sign",
    swa_ring_wrap => "swa-ring-wrap",
    swa_off_by_one => "swa-off-by-one",
    swa_not_applied => "swa-not-applied",
    swa_applied_when_disabled => "swa-applied-when-disabled",
    softmax_online_rescale_missing => "softmax-online-rescale-missing",
    attn_split_kv_merge => "attn-split-kv-merge",
    attn_decode_tile_threshold => "attn-decode-tile-threshold",
    attn_reads_unwritten_kv => "attn-reads-unwritten-kv",
    attn_tail_oob_read => "attn-tail-oob-read",
    attn_output_not_written => "attn-output-not-written",
    attn_value_scale_missing => "attn-value-scale-missing",
    race_shared_memory => "race-shared-memory",
    kv_slot_mapping => "kv-slot-mapping",
    kv_layout_misread => "kv-layout-misread",
    kv_quant_scale_missing => "kv-quant-scale-missing",
    kv_quant_dequant_bug => "kv-quant-dequant-bug",
    kv_rotation_not_undone => "kv-rotation-not-undone",
    graph_padding_writes_live_slot => "graph-padding-writes-live-slot",
    kv_prefix_hash_collision => "kv-prefix-hash-collision",
    kv_prefix_cache_stale_hit => "kv-prefix-cache-stale-hit",
    kv_shared_layer_overwrites => "kv-shared-layer-overwrites",
    kv_write_out_of_bounds => "kv-write-out-of-bounds",
    race_cross_block_visibility => "race-cross-block-visibility",
    norm_eps_wrong => "norm-eps-wrong",
    norm_mean_subtract => "norm-mean-subtract",
    norm_unit_offset_double => "norm-unit-offset-double",
    norm_unit_offset_missing => "norm-unit-offset-missing",
    final_norm_missing => "final-norm-missing",
    residual_from_normed => "residual-from-normed",
    mlp_gate_up_swapped => "mlp-gate-up-swapped",
    act_wrong_fn => "act-wrong-fn",
    act_gelu_erf_vs_tanh => "act-gelu-erf-vs-tanh",
    kernel_strides_ignored => "kernel-strides-ignored",
    kernel_layout_alias => "kernel-layout-alias",
    moe_raw_logits_as_weights => "moe-raw-logits-as-weights",
    moe_norm_topk_missing => "moe-norm-topk-missing",
    moe_normalise_wrong_dim => "moe-normalise-wrong-dim",
    moe_norm_topk_extra => "moe-norm-topk-extra",
    moe_weights_not_applied => "moe-weights-not-applied",
    moe_shared_expert_dropped => "moe-shared-expert-dropped",
    expert_index_wrong => "expert-index-wrong",
    embed_scale_rounding => "embed-scale-rounding",
    final_softcap_missing => "final-softcap-missing",
    softcap_formula_wrong => "softcap-formula-wrong",
    lm_head_tied_by_mistake => "lm-head-tied-by-mistake",
    lm_head_uninitialised => "lm-head-uninitialised",
    sink_ignored => "sink-ignored",
    sink_head_index_wrong => "sink-head-index-wrong",
    rope_inverse_wrong => "rope-inverse-wrong",
    rope_leading_channels => "rope-leading-channels",
    rope_set_wrong => "rope-set-wrong",
    rope_yarn_amplitude => "rope-yarn-amplitude",
    rope_yarn_ignored => "rope-yarn-ignored",
    entry_position_wrong => "entry-position-wrong",
    entry_visible_late => "entry-visible-late",
    window_without_compressed_tokens => "window-without-compressed-tokens",
    indexer_ignored => "indexer-ignored",
    indexer_topk_wrong => "indexer-topk-wrong",
    indexer_relu_missing => "indexer-relu-missing",
    compressor_overlap_wrong => "compressor-overlap-wrong",
    compressor_ape_missing => "compressor-ape-missing",
    compressor_gate_per_token => "compressor-gate-per-token",
    norm_missing => "norm-missing",
    hc_mix_transposed => "hc-mix-transposed",
    hc_sinkhorn_wrong => "hc-sinkhorn-wrong",
    hc_post_factor_missing => "hc-post-factor-missing",
    hc_norm_per_stream => "hc-norm-per-stream",
    hc_eps_missing => "hc-eps-missing",
    moe_bias_in_combine_weights => "moe-bias-in-combine-weights",
    moe_routed_scale_missing => "moe-routed-scale-missing",
    moe_hash_ignored => "moe-hash-ignored",
    moe_score_func_wrong => "moe-score-func-wrong",
    output_groups_interleaved => "output-groups-interleaved",
    mlp_swiglu_clamp_missing => "mlp-swiglu-clamp-missing",
    mlp_swiglu_clamp_asymmetry => "mlp-swiglu-clamp-asymmetry",
    entries_not_attended => "entries-not-attended",
    quant_row_scale_as_scalar => "quant-row-scale-as-scalar",
    quant_global_scale_reciprocal => "quant-global-scale-reciprocal",
    quant_scale_swizzled => "quant-scale-swizzled",
    quant_block_size_wrong => "quant-block-size-wrong",
    weights_not_loaded => "weights-not-loaded",
    weight_fused_qkv_layout => "weight-fused-qkv-layout",
    tp_fused_qkv_order => "tp-fused-qkv-order",
    tp_kv_replication => "tp-kv-replication",
    layer_order_wrong => "layer-order-wrong",
    weight_dtype_misread => "weight-dtype-misread",
    norm_weight_dtype_misread => "norm-weight-dtype-misread",
    weight_dtype_lossy => "weight-dtype-lossy",
    dispatch_threshold_batch => "dispatch-threshold-batch",
    quant_zero_point_off_by_one => "quant-zero-point-off-by-one",
    quant_nibble_order => "quant-nibble-order",
    quant_signed_encoding => "quant-signed-encoding",
    quant_block_layout => "quant-block-layout",
    quant_blocks_left_zero => "quant-blocks-left-zero",
    quant_scale_missing => "quant-scale-missing",
    quant_scale_transposed => "quant-scale-transposed",
    quant_scale_rounding_mismatch => "quant-scale-rounding-mismatch",
    quant_scale_double => "quant-scale-double",
    awq_fold_wrong_norm => "awq-fold-wrong-norm",
    matmul_partial_reduction => "matmul-partial-reduction",
    batch_row_corruption => "batch-row-corruption",
    cross_request_contamination => "cross-request-contamination",
    kernel_int32_offset => "kernel-int32-offset",
    embedding_gather_tail => "embedding-gather-tail",
    embed_scale_missing => "embed-scale-missing",
    logit_scale_missing => "logit-scale-missing",
    final_softcap_extra => "final-softcap-extra",
    qk_norm_missing => "qk-norm-missing",
    qk_norm_order_vs_rope => "qk-norm-order-vs-rope",
    qk_norm_wrong_axis => "qk-norm-wrong-axis",
    norm_placement_wrong => "norm-placement-wrong",
    parallel_residual_norm_crossed => "parallel-residual-norm-crossed",
    residual_multiplier_missing => "residual-multiplier-missing",
    inplace_aliasing => "inplace-aliasing",
    kernel_partial_vector_load => "kernel-partial-vector-load",
    dtype_fp16_overflow => "dtype-fp16-overflow",
    matmul_fp16_accumulate => "matmul-fp16-accumulate",
    capture_row_mismatch => "capture-row-mismatch",
    uninit_output_padding => "uninit-output-padding",
    uninit_kv_nan_masked => "uninit-kv-nan-masked",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hypothesis_is_named_like_its_file_and_says_all_that_explain_prints() {
        for h in HYPOTHESES {
            let file = format!("{}.rs", h.id.replace('-', "_"));
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/hypotheses/").to_string() + &file;
            assert_eq!(std::fs::read_to_string(&path).unwrap(), h.source, "{path}");
            let text = h.text();
            assert!(text.starts_with("# "), "{file} starts with a title");
            for heading in ["## How it shows", "## Seen in", "## Fix"] {
                let section = text.split_once(heading).map(|(_, rest)| rest.trim_start());
                let filled = section.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('#'));
                assert!(filled, "{file} has a section '{heading}'");
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<&str> = HYPOTHESES.iter().map(|h| h.id).collect();
        assert_eq!(names.len(), HYPOTHESES.len());
    }
}
