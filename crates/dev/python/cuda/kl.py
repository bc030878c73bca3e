"""How far the engine's distributions lie from transformers in float32, beside transformers in bf16."""

import shutil
from pathlib import Path

import torch
from correctness import tokens
from results import call


def divergence(exact, other):
    """KL(exact || other) of each row, in float64."""
    p, q = (torch.log_softmax(x.double(), -1) for x in (exact, other))
    return (p.exp() * (p - q)).sum(-1)


def summary(values):
    return {"mean": values.mean().item(), "99 %": values.quantile(0.99).item(), "largest": values.max().item()}


def transformers_logits(path, ids, dtype, device):
    """Logits after every token, in one forward call."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()
    return model(torch.tensor([ids], device=device)).logits[0]


def transformers_steps(path, ids, device):
    """The same in bf16, token by token with a cache: as an engine decodes."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).to(device).eval()
    cache, rows = None, []
    for token in ids:
        out = model(torch.tensor([[token]], device=device), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0, -1])
    return torch.stack(rows)


def engine_logits(binary, path, ids, work, backend, device):
    from safetensors.torch import load_file

    out = Path(work) / "trace-kl"
    shutil.rmtree(out, ignore_errors=True)
    command = [binary, "trace", path, out, "--backend", backend, "--tokens", ",".join(map(str, ids))]
    call([*command, "--chunk", 1, "--taps", "logits"], 280)
    rows = [load_file(f)["logits"].reshape(-1)[None] for f in sorted(out.glob("step-*.safetensors"))]
    shutil.rmtree(out, ignore_errors=True)
    return torch.cat(rows).to(device)


@torch.no_grad()
def compare(binary, path, c, work, steps=1000, backend="cuda", device="cuda", stepwise=True):
    torch.backends.cuda.matmul.allow_tf32 = False
    ids = tokens(steps, c["vocab_size"], seed=11)
    exact = transformers_logits(path, ids, torch.float32, device)
    others = {"transformers bf16, one call": transformers_logits(path, ids, torch.bfloat16, device)}
    if stepwise:
        others["transformers bf16, token by token"] = transformers_steps(path, ids, device)
    others["firstdiff, token by token"] = engine_logits(binary, path, ids, work, backend, device)
    at_once = 50
    rows = []
    for name, logits in others.items():
        parts = [divergence(exact[i : i + at_once], logits[i : i + at_once]) for i in range(0, steps, at_once)]
        same = (exact.argmax(-1) == logits.argmax(-1)).float().mean().item()
        rows.append({"engine": name, "steps": steps} | summary(torch.cat(parts)) | {"same best token": same})
    theirs = {k: min(r[k] for r in rows[:-1]) for k in ("mean", "99 %")}
    ratio = {f"{k} / the better of transformers": rows[-1][k] / theirs[k] for k in theirs}
    return {"rows": rows} | ratio
