"""Makes checkpoints with random weights at true shape, as bf16 folders and quantised GGUF files.

    python checkpoints.py OUT [--models qwen3-0.6b,...] [--formats bf16,q8_0,...] [--tiny] [--device cuda]

Weights are drawn so that every value keeps a realistic size through all layers and logits are lively: their standard
deviation is 3, as in a trained model, so that the choice of a token means something.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from gguf_file import FORMATS, tensors_of, write
from shapes import MODELS, config

LOGIT_STD = 3.0


def weight_shapes(c):
    """The tensors of a model by transformers' names."""
    d, f, h, k = (c[n] for n in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"))
    size = c.get("head_dim") or d // h
    out = {"model.embed_tokens.weight": (c["vocab_size"], d)}
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        out[at + "input_layernorm.weight"] = (d,)
        for name, rows in (("q", h * size), ("k", k * size), ("v", k * size)):
            out[f"{at}self_attn.{name}_proj.weight"] = (rows, d)
            if c["model_type"] == "qwen2":
                out[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        out[at + "self_attn.o_proj.weight"] = (d, h * size)
        if c["model_type"] == "qwen3":
            out[at + "self_attn.q_norm.weight"] = out[at + "self_attn.k_norm.weight"] = (size,)
        out[at + "post_attention_layernorm.weight"] = (d,)
        out[at + "mlp.gate_proj.weight"] = out[at + "mlp.up_proj.weight"] = (f, d)
        out[at + "mlp.down_proj.weight"] = (d, f)
    out["model.norm.weight"] = (d,)
    return out


def draw(c, device, seed=1):
    """Random tensors in bf16."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, shape in weight_shapes(c).items():
        x = torch.randn(shape, generator=generator, device=device)
        if "norm" in name:
            x = 1 + 0.3 * x
        elif len(shape) == 1:
            x = 0.3 * x
        elif "embed_tokens" in name:
            # The embedding is the output matrix too. After the final norm every channel has size one or so.
            x *= LOGIT_STD / (1.09 * shape[1]) ** 0.5
        else:
            x *= 1.2 / shape[1] ** 0.5
        tensors[name] = x.to(torch.bfloat16)
    return tensors


def folder(out, name, tiny, device):
    """The bf16 checkpoint of a model; made where it is not there."""
    from safetensors.torch import save_file

    path = Path(out) / name
    if not (path / "config.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        c = config(name, tiny)
        tensors = {k: v.cpu().contiguous() for k, v in draw(c, device).items()}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(c | {"torch_dtype": "bfloat16"}, indent=1)
        (path / "config.json").write_text(text)
    return path


def quantised(out, name, file_format, tiny, device):
    """A GGUF file of the same weights; made where it is not there."""
    path = Path(out) / f"{name}-{file_format}.gguf"
    if not path.exists():
        source = folder(out, name, tiny, device)
        temporary = path.with_suffix(".tmp")
        write(temporary, config(name, tiny), tensors_of(source, device), file_format, device)
        temporary.rename(path)
    return path


def make(out, name, file_format, tiny=False, device="cpu"):
    """The path of a checkpoint, which is made where it is not there."""
    if file_format == "bf16":
        return folder(out, name, tiny, device)
    return quantised(out, name, file_format, tiny, device)


def weight_bytes(path):
    """Bytes of all tensors of a checkpoint."""
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    return file.stat().st_size


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--models", default=",".join(MODELS))
    p.add_argument("--formats", default=",".join(("bf16", *FORMATS)))
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = p.parse_args()
    for name in a.models.split(","):
        for file_format in a.formats.split(","):
            started = time.time()
            path = make(a.out, name, file_format, a.tiny, a.device)
            print(f"{path}: {weight_bytes(path) / 2**20:.1f} MiB, {time.time() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
