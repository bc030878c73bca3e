"""What recording costs the example engine: processor time of its process with every tap and without, in turn.

    python recorders/c/bench_overhead.py

A random checkpoint of SmolLM2-135M's shape is made first (538 MB, in a temporary folder), so that nothing is fetched.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_theta": 100000,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "hidden_act": "silu",
}
PROMPT = [504, 17662, 2216, 281, 6757, 253, 1194, 30]


def make_model(folder):
    draw = np.random.default_rng(0)
    matrix = lambda rows, columns: draw.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)
    d, inner, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 3 * 64
    tensors = {"model.embed_tokens.weight": matrix(CONFIG["vocab_size"], d), "model.norm.weight": np.ones(d, np.float32)}
    for n in range(CONFIG["num_hidden_layers"]):
        at = f"model.layers.{n}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{name}.weight"] = np.ones(d, np.float32)
        shapes = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d),
                  "mlp.gate_proj": (inner, d), "mlp.up_proj": (inner, d), "mlp.down_proj": (d, inner)}
        for name, shape in shapes.items():
            tensors[f"{at}{name}.weight"] = matrix(*shape)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def run(program, model, tokens, trace):
    """Processor seconds, user and system, of the engine's process; its tokens; bytes of the trace."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FIRSTDIFF_")}
    if trace:
        environment["FIRSTDIFF_TRACE"] = str(trace)
    command = [program, model, ",".join(map(str, PROMPT)), str(tokens)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    size = sum(file.stat().st_size for file in trace.iterdir()) if trace else 0
    if trace:
        shutil.rmtree(trace)
    return used.ru_utime + used.ru_stime, said, size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--most", type=float, default=1.3, help="the ratio above which the exit code is 1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_model(folder / "model")
        program = folder / "llama"
        build = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-std=c99", str(HERE / "example" / "llama.c"), "-o", str(program), "-lm", "-pthread"]
        subprocess.run(build, check=True)
        run(program, folder / "model", options.tokens, None)  # warms up
        pairs = []
        for _ in range(options.pairs):
            plain, tokens, _ = run(program, folder / "model", options.tokens, None)
            recorded, same, size = run(program, folder / "model", options.tokens, folder / "trace")
            assert same == tokens and tokens.count(b",") == options.tokens - 1, "other tokens while recording"
            pairs.append((plain, recorded))
            print(f"without {plain:.2f} s, with every tap {recorded:.2f} s ({recorded / plain:.2f}), {size / 1e6:.0f} MB", flush=True)
    plain, recorded = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"medians: {plain:.2f} s and {recorded:.2f} s; of the ratios {ratio:.2f}; {options.tokens} tokens equal in every run")
    return ratio > options.most


if __name__ == "__main__":
    raise SystemExit(main())
