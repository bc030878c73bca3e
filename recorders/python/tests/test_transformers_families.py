"""Mixtures of experts, and windows that drop keys: what is particular to families beyond the plain ones."""

import pytest
import torch
from replay import state_of
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from firstdiff.transformers import record

PROMPT = torch.tensor([[3, 14, 15, 9, 26, 5, 35]])
SMALL = dict(vocab_size=80, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=64, eos_token_id=79, pad_token_id=0)
GREEDY = dict(max_new_tokens=4, do_sample=False, eos_token_id=None)


def seeded(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise + ("norm" in name) if parameter.dim() == 1 else noise / parameter.shape[-1] ** 0.5)
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_routers_logits_are_its_product_and_the_chosen_experts_follow(tmp_path, read_trace, dtype):
    config = Qwen3MoeConfig(**SMALL, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
    model = seeded(Qwen3MoeForCausalLM._from_config(config, attn_implementation="eager"), dtype)
    before, plain = state_of(model), model.generate(PROMPT, **GREEDY)
    with record(model, tmp_path / "t"):
        assert torch.equal(model.generate(PROMPT, **GREEDY), plain)
    assert state_of(model) == before and not any("forward" in vars(module) for module in model.modules())
    trace = read_trace(tmp_path / "t")
    assert len(trace) == 4
    for step in trace:
        for n, layer in enumerate(model.model.layers):
            get = lambda tap: step[f"layers.{n}.{tap}"]
            logits = torch.nn.functional.linear(get("mlp_norm"), layer.mlp.gate.weight)
            assert torch.equal(get("router_logits"), logits)
            best, chosen = logits.softmax(-1, dtype=torch.float32).topk(2)
            assert torch.equal(get("router_topk").long(), chosen)
            weights = (best / best.sum(-1, keepdim=True)).to(get("router_weights").dtype)
            assert torch.equal(get("router_weights"), weights)
            assert torch.equal(get("out"), get("attn_resid") + get("experts_out"))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_window_shows_its_last_keys(tmp_path, read_trace, attention, cache):
    config = Gemma3TextConfig(**SMALL, sliding_window=4, layer_types=["sliding_attention", "full_attention"],
                              query_pre_attn_scalar=16)
    model = seeded(Gemma3ForCausalLM._from_config(config, attn_implementation=attention))
    how = dict(GREEDY, cache_implementation="static") if cache == "static" else GREEDY
    plain = model.generate(PROMPT, **how)
    with record(model, tmp_path / "t"):
        assert torch.equal(model.generate(PROMPT, **how), plain)
    trace = read_trace(tmp_path / "t")
    keys = [[], []]
    for step in trace:
        for n in range(2):
            keys[n] = [*keys[n], *step[f"layers.{n}.k_rope"]]
            held = step[f"layers.{n}.k_cache"]
            assert torch.equal(held, torch.stack(keys[n][-len(held):]))
            if attention == "eager":
                scores, probs = step[f"layers.{n}.attn_scores"], step[f"layers.{n}.attn_probs"]
                assert scores.shape == probs.shape == (4, len(step["token_ids"]), len(held))
                assert torch.allclose(probs.sum(-1), torch.ones(probs.shape[:2]), atol=8 * torch.finfo().eps, rtol=0)
    assert len(trace[1]["layers.0.k_cache"]) == 4 and len(trace[1]["layers.1.k_cache"]) == 8
