//! One model, four spellings of its tensors' names: DeepSeek's release; transformers' modules; what
//! `save_pretrained` of transformers 5.23 writes (the release's names under `model.`); and what
//! 5.10 to 5.14 wrote (modules, but experts and output matrix as released).

use firstdiff_checkpoint::Checkpoint;

/// A layer's tensors: the release's name, then the module's. Both without the layer's prefix.
const LAYER: &[(&str, &str)] = &[
    ("attn_norm.weight", "input_layernorm.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("hc_attn_fn", "attn_hc.fn"),
    ("hc_attn_base", "attn_hc.base"),
    ("hc_attn_scale", "attn_hc.scale"),
    ("hc_ffn_fn", "ffn_hc.fn"),
    ("hc_ffn_base", "ffn_hc.base"),
    ("hc_ffn_scale", "ffn_hc.scale"),
    ("attn.wq_a.weight", "self_attn.q_a_proj.weight"),
    ("attn.q_norm.weight", "self_attn.q_a_norm.weight"),
    ("attn.wq_b.weight", "self_attn.q_b_proj.weight"),
    ("attn.wkv.weight", "self_attn.kv_proj.weight"),
    ("attn.kv_norm.weight", "self_attn.kv_norm.weight"),
    ("attn.attn_sink", "self_attn.sinks"),
    ("attn.wo_a.weight", "self_attn.o_a_proj.weight"),
    ("attn.wo_b.weight", "self_attn.o_b_proj.weight"),
    ("attn.compressor.wkv.weight", "self_attn.compressor.kv_proj.weight"),
    ("attn.compressor.wgate.weight", "self_attn.compressor.gate_proj.weight"),
    ("attn.compressor.norm.weight", "self_attn.compressor.kv_norm.weight"),
    ("attn.compressor.ape", "self_attn.compressor.position_bias"),
    ("attn.indexer.compressor.wkv.weight", "self_attn.compressor.indexer.kv_proj.weight"),
    ("attn.indexer.compressor.wgate.weight", "self_attn.compressor.indexer.gate_proj.weight"),
    ("attn.indexer.compressor.norm.weight", "self_attn.compressor.indexer.kv_norm.weight"),
    ("attn.indexer.compressor.ape", "self_attn.compressor.indexer.position_bias"),
    ("attn.indexer.wq_b.weight", "self_attn.compressor.indexer.q_b_proj.weight"),
    ("attn.indexer.weights_proj.weight", "self_attn.compressor.indexer.scorer.weights_proj.weight"),
    ("ffn.gate.weight", "mlp.gate.weight"),
    ("ffn.gate.bias", "mlp.gate.e_score_correction_bias"),
    ("ffn.gate.tid2eid", "mlp.gate.tid2eid"),
    ("ffn.shared_experts.w1.weight", "mlp.shared_experts.gate_proj.weight"),
    ("ffn.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight"),
    ("ffn.shared_experts.w2.weight", "mlp.shared_experts.down_proj.weight"),
];

/// Tensors outside layers, likewise.
const WHOLE: &[(&str, &str)] = &[
    ("embed.weight", "model.embed_tokens.weight"),
    ("norm.weight", "model.norm.weight"),
    ("head.weight", "lm_head.weight"),
    ("hc_head_fn", "model.hc_head.hc_fn"),
    ("hc_head_base", "model.hc_head.hc_base"),
    ("hc_head_scale", "model.hc_head.hc_scale"),
];

/// Names that single versions of transformers gave.
const ODD: &[(&str, &str)] = &[
    ("attn.kv_norm.weight", "attn.norm.weight"),
    ("attn.indexer.weights_proj.weight", "self_attn.compressor.indexer.weights_proj.weight"),
];

/// Looks tensors up by the release's names.
#[derive(Clone, Copy)]
pub(super) struct Names<'c> {
    pub checkpoint: &'c Checkpoint,
}

impl Names<'_> {
    /// The first name that the checkpoint has; the release's where it has none.
    fn first(&self, mut names: Vec<String>) -> String {
        let found = names.iter().position(|name| self.checkpoint.has(name));
        names.swap_remove(found.unwrap_or(0))
    }

    /// A tensor of a layer.
    pub fn layer(&self, layer: usize, released: &str) -> String {
        let same = |pair: &&(&str, &str)| pair.0 == released;
        let mut names =
            vec![format!("layers.{layer}.{released}"), format!("model.layers.{layer}.{released}")];
        let modules = LAYER.iter().chain(ODD).filter(same);
        names.extend(modules.map(|(_, module)| format!("model.layers.{layer}.{module}")));
        self.first(names)
    }

    /// A matrix of an expert: `w1`, `w2` or `w3`.
    pub fn expert(&self, layer: usize, expert: usize, matrix: &str) -> String {
        let name = |prefix: &str, block: &str| {
            format!("{prefix}layers.{layer}.{block}.experts.{expert}.{matrix}.weight")
        };
        self.first(vec![name("", "ffn"), name("model.", "ffn"), name("model.", "mlp")])
    }

    /// All experts' matrices in one tensor, where the checkpoint has them so.
    pub fn fused(&self, layer: usize, matrix: &str) -> Option<String> {
        let name = format!("model.layers.{layer}.mlp.experts.{matrix}");
        self.checkpoint.has(&name).then_some(name)
    }

    /// A tensor outside layers.
    pub fn whole(&self, released: &str) -> String {
        let modules = WHOLE.iter().filter(|pair| pair.0 == released).map(|pair| pair.1.to_string());
        self.first(std::iter::once(released.to_string()).chain(modules).collect())
    }
}
