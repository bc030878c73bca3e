"""Makes the demo: a tiny Qwen3 and the trace of a real transformers run of it, with one planted bug.

The bug is the classic of porting: the engine rotates with the default RoPE base, 10,000, where the
model's configuration says 1,000,000. Everything else is right, and the output looks plausible.
"""

import argparse
import shutil
from pathlib import Path

import firstdiff.transformers
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

THETA, WRONG_THETA = 1_000_000.0, 10_000.0
PROMPT, STEPS = 24, 6

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("out", type=Path)
out = parser.parse_args().out


def config(theta):
    return Qwen3Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        eos_token_id=0,
        bos_token_id=1,
    )


torch.manual_seed(0)
torch.set_num_threads(1)
model = Qwen3ForCausalLM(config(THETA)).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        parameter.copy_(1 + 0.2 * noise if "norm" in name else noise * 1.2 / parameter.shape[-1] ** 0.5)
model = model.to(torch.bfloat16)
for folder in ("model", "trace"):
    shutil.rmtree(out / folder, ignore_errors=True)
model.save_pretrained(out / "model")
(out / "model" / "generation_config.json").unlink(missing_ok=True)

broken = Qwen3ForCausalLM(config(WRONG_THETA)).to(torch.bfloat16).eval()
broken.load_state_dict(model.state_dict())
broken.set_attn_implementation("eager")
ids = torch.randint(2, 256, (1, PROMPT))
with torch.no_grad(), firstdiff.transformers.record(broken, out / "trace"):
    result = broken(ids, use_cache=True)
    for _ in range(STEPS):
        token = result.logits[:, -1:].argmax(-1)
        result = broken(token, past_key_values=result.past_key_values, use_cache=True)
size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
print(f"{out}: {size} bytes")
assert size <= 2_000_000, "the demo is bundled with the program: at most 2 MB"
