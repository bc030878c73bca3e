"""Right engines: none of these traces may raise an alarm."""

from cases import VARIANTS, Case
from engines import REAL, RUNS

FAMILIES = ("llama", "llama-llama3", "llama-yarn-factor", "llama-biases", "qwen2", "qwen2-window", "qwen3",
            "qwen3-tied-biases", "qwen3-window", "heads-32", "head-dim-128")
BLOCKS = ("blocks-llama", "blocks-qwen2", "blocks-qwen3")
THIN = ("modules", "outs", "logits")  # the fewer values, the more roundings between two of them


def cases():
    found = []
    for name, variant in VARIANTS.items():
        for format in variant.formats:
            models = BLOCKS if format == "q8" else FAMILIES
            for n, model in enumerate(model for model in models if not variant.families or variant.families(model)):
                for attention in variant.attention:
                    few = THIN if name in ("eager", "sdpa", "8-bit blocks") else (THIN[n % 3],)
                    found += [Case(model, format, name, attention, taps=taps, seed=n) for taps in ("all", *few)]
    for format in ("f32", "bf16", "f16"):
        for n, model in enumerate(FAMILIES):
            for run in RUNS:
                if run != "plain":
                    attention = ("eager", "sdpa")[n % 2]
                    found += [Case(model, format, attention, attention, run, seed=20 + n)]
                    found += [Case(model, format, "sdpa", "sdpa", run, taps=("modules", "outs")[n % 2], seed=30 + n)]
    return found


def real():
    """SmolLM2 in transformers, and llama.cpp on the real files."""
    found = [Case("smollm2", format, attention, attention, seed=0, steps=2)
             for format in ("f32", "bf16", "f16") for attention in ("eager", "sdpa")]
    found += [Case(model, "llama.cpp", "llama.cpp", ("plain", "flash")[flash], seed=seed, steps=2)
              for model in REAL for flash in (0, 1) for seed in range(3)]
    return found
