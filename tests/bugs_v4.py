"""Faults planted by hand in transformers' DeepSeek-V4: context managers that change the engine and put it back.

Those of AFTER are entered while the recorder is on: what they change lies behind what a hook has copied. All others
are entered before, so that the recorder sees what a broken engine would hold.
"""

from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as source

SLIDING, HEAVY, SPARSE = "sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"


@contextmanager
def everywhere(contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def layers(model, *kinds):
    return [layer for layer in model.model.layers if not kinds or layer.self_attn.layer_type in kinds]


def compressors(model, *kinds):
    """Every compressor, the indexers' among them."""
    found = []
    for layer in layers(model, *(kinds or (HEAVY, SPARSE))):
        compressor = layer.self_attn.compressor
        found += [compressor, *([compressor.indexer] if hasattr(compressor, "indexer") else [])]
    return found


def hyper_connections(model):
    return [hc for layer in model.model.layers for hc in (layer.attn_hc, layer.ffn_hc)]


def forward(module, function):
    """Another computation in place of the module's own; `function` takes the right one first."""
    right = module.forward
    return patch.object(module, "forward", lambda *args, **kwargs: function(right, *args, **kwargs))


@contextmanager
def hook(module, change):
    """Changes a module's output after all hooks that are there."""
    handle = module.register_forward_hook(lambda _module, _args, out: change(out))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def input_hook(module, change):
    handle = module.register_forward_pre_hook(lambda _module, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def values(tensor, change):
    """Other values in a parameter or buffer."""
    kept = tensor.data.clone()
    tensor.data = change(tensor.data.clone())
    try:
        yield
    finally:
        tensor.data = kept


# ---- attention: sink, mask, groups ------------------------------------------------------------------------------


def attention(change):
    """`change(right, module, query, key, value, mask, **rest)` in place of the attention function."""
    right = source.eager_attention_forward

    def wrong(module, query, key, value, mask, **rest):
        return change(right, module, query, key, value, mask, **rest)

    return patch.object(source, "eager_attention_forward", wrong)


def no_sink(model):
    def change(right, module, query, key, value, mask, scaling, **rest):
        scores = query @ key.transpose(2, 3) * scaling
        scores = scores if mask is None else scores + mask
        probs = torch.softmax(scores, -1).to(value.dtype)
        return (probs @ value).transpose(1, 2).contiguous(), probs

    return attention(change)


def sink_of_row(model):
    """Rows of heads and tokens are numbered together, and the number is taken for a head's."""

    def change(right, module, query, key, value, mask, scaling, **rest):
        scores = query @ key.transpose(2, 3) * scaling
        scores = scores if mask is None else scores + mask
        heads, tokens = scores.shape[1:3]
        row = torch.arange(heads)[:, None] * tokens + torch.arange(tokens)
        sink = module.sinks[row % heads][None, ..., None].expand(len(scores), -1, -1, -1)
        probs = torch.softmax(torch.cat([scores, sink.to(scores.dtype)], -1), -1)[..., :-1].to(value.dtype)
        return (probs @ value).transpose(1, 2).contiguous(), probs

    return attention(change)


def entries_one_token_late(model):
    """The mask over entries lacks the one that a token completes."""

    def wrong(compressor):
        def call(right, hidden, latent, position_ids, *rest):
            entries, bias = right(hidden, latent, position_ids, *rest)
            count, m = entries.shape[2], compressor.compress_rate
            bias = torch.zeros(1, 1, position_ids.shape[1], count) if bias is None else bias
            late = torch.arange(count)[None] * m + m == position_ids[0][:, None] + 1
            return entries, bias.masked_fill(late, float("-inf"))

        return forward(compressor, call)

    return everywhere(wrong(layer.self_attn.compressor) for layer in layers(model, HEAVY, SPARSE))


def without_entries(model):
    """The production kernel ran with no compressed entries."""

    def wrong(compressor):
        def call(right, hidden, latent, position_ids, *rest):
            entries, bias = right(hidden, latent, position_ids, *rest)
            return entries, torch.full((1, 1, position_ids.shape[1], entries.shape[2]), float("-inf"))

        return forward(compressor, call)

    return everywhere(wrong(layer.self_attn.compressor) for layer in layers(model, HEAVY, SPARSE))


def window_without_compressed_tokens(model):
    """The mask over keys lacks those of complete blocks."""

    def wrong(attn):
        def call(right, *args, **kwargs):
            mask, positions, m = kwargs["attention_mask"], kwargs["position_ids"][0], attn.compressor.compress_rate
            window = positions.shape[0] if mask is None else mask.shape[-1]
            keys = int(positions[-1]) + 1 - window + torch.arange(window)
            hidden = (keys // m + 1)[None] * m <= positions[:, None] + 1
            mask = torch.zeros(1, 1, *hidden.shape) if mask is None else mask
            return right(*args, **{**kwargs, "attention_mask": mask.masked_fill(hidden, torch.finfo(mask.dtype).min)})

        return forward(attn, call)

    return everywhere(wrong(layer.self_attn) for layer in layers(model, HEAVY, SPARSE))


def window_one_too_long(model):
    return patch.object(model.config, "sliding_window", model.config.sliding_window + 1)


def output_groups_interleaved(model):
    """Inside: every other head goes to the same group."""

    def change(x):
        groups, width = x.shape[-2:]
        dim = model.config.head_dim
        heads = x.reshape(*x.shape[:-2], groups * width // dim, dim)
        order = torch.arange(heads.shape[-2]).reshape(-1, groups).T.flatten()
        return heads[..., order, :].reshape(x.shape)

    return everywhere(input_hook(layer.self_attn.o_a_proj, change) for layer in model.model.layers)


def q_norm_missing(model):
    return everywhere(forward(layer.self_attn.q_b_norm, lambda right, x: x) for layer in model.model.layers)


# ---- rotation ---------------------------------------------------------------------------------------------------


@contextmanager
def rotations(change):
    """`change(kind, right, x, cos, sin)` for each rotation: query, key, inverse, entry or index_query."""
    right_forward, right = source.DeepseekV4Attention.forward, source.apply_rotary_pos_emb
    now = {}

    def remember(self, hidden_states, position_embeddings, *args, **kwargs):
        now["table"], now["heads"] = position_embeddings[self.rope_layer_type], self.num_heads
        return right_forward(self, hidden_states, position_embeddings, *args, **kwargs)

    def wrong(x, cos, sin, *args, **kwargs):
        if cos is now["table"][0]:
            inverse = sin is not now["table"][1]
            kind = "inverse" if inverse else "query" if x.shape[1] == now["heads"] else "key"
        else:
            kind = "entry" if x.shape[1] == 1 else "index_query"
        return change(kind, right, x, cos, sin)

    with patch.object(source.DeepseekV4Attention, "forward", remember), patch.object(
        source, "apply_rotary_pos_emb", wrong
    ):
        yield


def no_inverse_rope(model):
    return rotations(lambda kind, right, x, cos, sin: x if kind == "inverse" else right(x, cos, sin))


def inverse_rope_wrong_sign(model):
    return rotations(lambda kind, right, x, cos, sin: right(x, cos, -sin if kind == "inverse" else sin))


def rope_on_leading_channels(model):
    def change(kind, right, x, cos, sin):
        r = 2 * cos.shape[-1]
        return torch.cat([right(x[..., :r], cos, sin), x[..., r:]], -1)

    return rotations(change)


def rope_half_split(model):
    def change(kind, right, x, cos, sin):
        r = 2 * cos.shape[-1]
        nope, a, b = x[..., :-r], x[..., -r : -r // 2], x[..., -r // 2 :]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return torch.cat([nope, a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)

    return rotations(change)


def tables(model):
    found = [model.model.rotary_emb]
    return found + [compressor.rotary_emb for compressor in compressors(model)]


def main_theta_everywhere(model):
    right = model.model.rotary_emb.main_inv_freq.clone()
    return everywhere(values(table.compress_inv_freq, lambda f: right) for table in tables(model))


def compressed_rope_on_sliding_layers(model):
    return everywhere(patch.object(layer.self_attn, "rope_layer_type", "compress") for layer in layers(model, SLIDING))


def yarn_amplitude(model):
    return everywhere(patch.object(table, "compress_attention_scaling", 1.2772589) for table in tables(model))


def yarn_ignored(model):
    count = model.model.rotary_emb.compress_inv_freq.numel()
    plain = model.config.rope_parameters["compress"]["rope_theta"] ** -(torch.arange(count) / count)
    return everywhere(values(table.compress_inv_freq, lambda f: plain) for table in tables(model))


def entry_positions(model, change):
    """Entries turn by other positions: `change(first token's position, m)`."""

    def wrong(compressor):
        def call(right, x, position_ids, layer_type=None):
            if x.shape[-1] == compressor.head_dim:
                position_ids = change(position_ids, compressor.compress_rate)
            return right(x, position_ids=position_ids, layer_type=layer_type)

        return forward(compressor.rotary_emb, call)

    return everywhere(wrong(compressor) for compressor in compressors(model))


def entry_rotated_at_block_end(model):
    return entry_positions(model, lambda position, m: position + m - 1)


def entry_rotated_at_its_index(model):
    return entry_positions(model, lambda position, m: position // m)


# ---- compressors and indexer ------------------------------------------------------------------------------------


def halves(compressor, change):
    return lambda x: change(x[..., : compressor.head_dim], x[..., compressor.head_dim :])


def no_overlap(model):
    """The half that looks back gets no weight."""
    drop = lambda a, b: torch.cat([torch.full_like(a, -1e9), b], -1)
    return everywhere(values(c.position_bias, halves(c, drop)) for c in compressors(model, SPARSE))


def overlap_halves_swapped(model):
    """Inside: the block before gives the second half, its own the first."""
    swap = lambda a, b: torch.cat([b, a], -1)
    contexts = []
    for c in compressors(model, SPARSE):
        contexts += [hook(c.kv_proj, halves(c, swap)), hook(c.gate_proj, halves(c, swap))]
        contexts.append(values(c.position_bias, halves(c, swap)))
    return everywhere(contexts)


def position_bias_dropped(model):
    return everywhere(values(c.position_bias, torch.zeros_like) for c in compressors(model))


def compressor_norm_missing(model):
    return everywhere(forward(c.kv_norm, lambda right, x: x) for c in compressors(model))


def one_gate_per_token(model):
    """Inside: all channels are weighted by the gate of the first one."""

    def change(compressor):
        dim = compressor.head_dim
        return lambda x: torch.cat([part[..., :1].expand_as(part) for part in x.split(dim, -1)], -1)

    contexts = []
    for c in compressors(model):
        contexts += [hook(c.gate_proj, change(c)), values(c.position_bias, change(c))]
    return everywhere(contexts)


def indexers(model):
    return [layer.self_attn.compressor.indexer for layer in layers(model, SPARSE)]


def indexer_without_relu(model):
    def wrong(scorer):
        def call(right, q, entries, hidden):
            dots = torch.einsum("bshd,bed->bshe", q.float(), entries.float()) * scorer.softmax_scale
            weights = scorer.weights_proj(hidden).float() * scorer.weights_scaling
            return (dots * weights.unsqueeze(-1)).sum(2)

        return forward(scorer, call)

    return everywhere(wrong(indexer.scorer) for indexer in indexers(model))


def indexer_one_entry_less(model):
    """Inside: the recorder lists as many as there should be."""
    return everywhere(patch.object(indexer, "index_topk", indexer.index_topk - 1) for indexer in indexers(model))


def indexer_ignored(model):
    """Inside, likewise."""
    return everywhere(patch.object(indexer, "index_topk", 1 << 20) for indexer in indexers(model))


# ---- hyper-connections ------------------------------------------------------------------------------------------


def hyper(hc, x, pre_eps=None, softmax_eps=None, divisor_eps=None, iterations=None, factor=2.0, rows_first=False):
    """A hyper-connection, with what engines get wrong as parameters."""
    n, eps = hc.hc_mult, hc.hc_eps
    pre_eps, softmax_eps, divisor_eps = (eps if e is None else e for e in (pre_eps, softmax_eps, divisor_eps))
    q = torch.nn.functional.linear(hc.input_norm(x.flatten(2).float()), hc.fn.float())
    parts = [part * s + b for part, s, b in zip(q.split([n, n, n * n], -1), hc.scale, hc.base.split([n, n, n * n]))]
    pre, post = torch.sigmoid(parts[0]) + pre_eps, factor * torch.sigmoid(parts[1])
    mix = torch.softmax(parts[2].unflatten(-1, (n, n)), -1) + softmax_eps
    for i in range(hc.hc_sinkhorn_iters if iterations is None else iterations):
        if i > 0 or rows_first:
            mix = mix / (mix.sum(-1, keepdim=True) + divisor_eps)
        if i > 0 or not rows_first:
            mix = mix / (mix.sum(-2, keepdim=True) + divisor_eps)
    return post, mix, (pre.unsqueeze(-1) * x).sum(2).to(x.dtype)


def other_hyper(model, **parameters):
    wrong = lambda hc: forward(hc, lambda right, x: hyper(hc, x, **parameters))
    return everywhere(wrong(hc) for hc in hyper_connections(model))


def mix_not_transposed(model):
    """Inside: streams are mixed by the other index."""
    change = lambda out: (out[0], out[1].transpose(-1, -2), out[2])
    return everywhere(hook(hc, change) for hc in hyper_connections(model))


def sinkhorn_one_iteration(model):
    return other_hyper(model, iterations=1)


def sinkhorn_one_less(model):
    return other_hyper(model, iterations=model.config.hc_sinkhorn_iters - 1)


def sinkhorn_rows_first(model):
    return other_hyper(model, rows_first=True)


def post_without_factor(model):
    return other_hyper(model, factor=1.0)


def norm_per_stream(model):
    def wrong(right, x):
        streams = x.unflatten(-1, (model.config.hc_mult, -1))
        scale = torch.rsqrt(streams.square().mean(-1, keepdim=True) + model.config.rms_norm_eps)
        return (streams * scale).flatten(-2)

    return everywhere(forward(hc.input_norm, wrong) for hc in hyper_connections(model))


def eps_missing_in_pre(model):
    return other_hyper(model, pre_eps=0.0)


def eps_missing_after_softmax(model):
    return other_hyper(model, softmax_eps=0.0)


def eps_missing_in_divisors(model):
    return other_hyper(model, divisor_eps=0.0)


def eps_missing_in_head(model):
    return patch.object(model.model.hc_head, "eps", 0.0)


def norm_with_hc_eps(model):
    return everywhere(patch.object(hc.input_norm, "eps", model.config.hc_eps) for hc in hyper_connections(model))


# ---- experts ----------------------------------------------------------------------------------------------------


def gates(model, hashed):
    return [layer.mlp.gate for layer in model.model.layers if layer.mlp.is_hash == hashed]


def bias_in_routing_weights(model):
    def wrong(gate):
        def call(right, x):
            logits, _, chosen = right(x)
            weights = (gate.score_fn(logits) + gate.e_score_correction_bias).gather(1, chosen)
            return logits, weights / (weights.sum(-1, keepdim=True) + 1e-20) * gate.routed_scaling_factor, chosen

        return forward(gate, call)

    return everywhere(wrong(gate) for gate in gates(model, False))


def no_routed_scale(model):
    return everywhere(
        patch.object(gate, "routed_scaling_factor", 1.0) for hashed in (True, False) for gate in gates(model, hashed)
    )


def hash_ignored(model):
    def wrong(gate):
        def call(right, x, input_ids):
            logits, _, chosen = right(x, input_ids)
            scores = gate.score_fn(logits)
            chosen = scores.topk(gate.top_k, -1).indices
            weights = scores.gather(1, chosen)
            return logits, weights / weights.sum(-1, keepdim=True) * gate.routed_scaling_factor, chosen

        return forward(gate, call)

    return everywhere(wrong(gate) for gate in gates(model, True))


def sigmoid_scores(model):
    return everywhere(
        forward(gate.score_fn, lambda right, x: torch.sigmoid(x)) for hashed in (True, False) for gate in gates(model, hashed)
    )


def activations(model, routed, shared, change):
    """`change(gate, up, limit)` in place of the clamped activation of the experts, the shared one, or both."""
    contexts = []
    for layer in model.model.layers:
        experts, mlp = layer.mlp.experts, layer.mlp.shared_experts
        if routed:
            wrong = lambda gate_up, limit=experts.limit: change(*gate_up.chunk(2, -1), limit)
            contexts.append(patch.object(experts, "_apply_gate", wrong))
        if shared:
            wrong = lambda right, x, mlp=mlp: mlp.down_proj(change(mlp.gate_proj(x), mlp.up_proj(x), mlp.limit))
            contexts.append(forward(mlp, wrong))
    return everywhere(contexts)


silu = torch.nn.functional.silu


def no_clamp(model):
    return activations(model, True, True, lambda gate, up, limit: silu(gate) * up)


def gate_clamped_on_both_sides(model):
    return activations(model, True, True, lambda g, up, limit: silu(g.clamp(-limit, limit)) * up.clamp(-limit, limit))


def clamped_after_silu(model):
    return activations(model, True, True, lambda g, up, limit: silu(g).clamp(max=limit) * up.clamp(-limit, limit))


def shared_expert_not_clamped(model):
    return activations(model, False, True, lambda gate, up, limit: silu(gate) * up)


def first_row_scale(model):
    """A matrix product whose input has a scale for each row takes the first row's for all of them."""

    def wrong(projection):
        def call(right, x):
            largest = x.abs().amax(-1, keepdim=True)
            return right(x) * largest[:, :1] / largest

        return forward(projection, call)

    return everywhere(wrong(layer.mlp.shared_experts.gate_proj) for layer in model.model.layers)


AFTER = {output_groups_interleaved, overlap_halves_swapped, one_gate_per_token, indexer_one_entry_less}
AFTER |= {indexer_ignored, mix_not_transposed}
