"""What recording costs: the same work with and without it, in turn, medians and ratios.

    python bench_overhead.py --gguf smollm2.gguf           # cargo dev test fetches the file into target/dev/models
    python bench_overhead.py --gguf smollm2.gguf --threads 1 --clock cpu     # on a machine with other work to do
"""

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

PREFILL, DECODE = 64, 64
OUTPUTS = ["out", "logits"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def alternate(work, variants, runs):
    """Times each variant in turn, so that a slow minute of the machine falls on all alike.

    `work` gives the seconds of the prompt and of the tokens after it, and the tokens chosen: recording must not change them.
    """
    times, chosen = {name: [] for name in variants}, None
    for index in range(runs + 1):
        for name, recording in variants.items():
            with tempfile.TemporaryDirectory() as folder:
                with recording(f"{folder}/trace"):
                    *spent, tokens = work()
                size = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
            chosen = chosen or tokens
            if tokens != chosen:
                sys.exit(f"{name}: other tokens than without recording")
            if index:  # the first round warms up
                times[name].append((*spent, size))
    return times


def report(title, times):
    print(f"\n{title}: median of {len(next(iter(times.values())))} runs; {PREFILL}-token prefill, {DECODE} decode steps")
    print(f"{'recording':<14}{'prefill ms':>11}{'ratio':>7}{'decode ms':>11}{'ratio':>7}{'both':>7}{'spread':>8}{'trace MB':>10}")
    off = next(iter(times.values()))
    for name, runs in times.items():
        prefill, decode, size = (statistics.median(column) for column in zip(*runs))
        # each run beside the one without recording of the same round
        pairs = [(a[0] / b[0], a[1] / b[1], sum(a[:2]) / sum(b[:2])) for a, b in zip(runs, off)]
        ratios = [statistics.median(column) for column in zip(*pairs)]
        decodes = sorted(run[1] for run in runs)
        spread = (decodes[-1] - decodes[0]) / decode
        print(f"{name:<14}{1e3 * prefill:>11.1f}{ratios[0]:>7.2f}{1e3 * decode / DECODE:>11.2f}"
              f"{ratios[1]:>7.2f}{ratios[2]:>7.2f}{spread:>8.0%}{size / 1e6:>10.1f}", flush=True)


def bench_transformers(runs, threads, clock, attention):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from firstdiff.transformers import record

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    model = LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()
    prompt = torch.randint(0, 49152, (1, PREFILL))

    @torch.no_grad()
    def work():
        tokens = []
        start = clock()
        out = model(prompt, use_cache=True)
        middle = clock()
        for _ in range(DECODE):
            token = out.logits[:, -1:].argmax(-1)
            tokens.append(int(token))
            out = model(token, past_key_values=out.past_key_values)
        return middle - start, clock() - middle, tokens

    variants = {
        "off": lambda path: nullcontext(),
        "layer outputs": lambda path: record(model, path, taps=OUTPUTS),
        "module taps": lambda path: record(model, path, attention=False),
        "all taps": lambda path: record(model, path),
    }
    report(f"transformers, SmolLM2-135M's shape, f32, {attention}, {threads} threads", alternate(work, variants, runs))


def bench_llama_cpp(path, runs, threads, clock, flash):
    from llama_cpp import Llama

    from firstdiff.llama_cpp import record

    llama = Llama(path, n_ctx=256, n_threads=threads, n_threads_batch=threads, flash_attn=flash, verbose=False)
    prompt = list(range(1000, 1000 + PREFILL))

    def work():
        tokens = []
        llama.reset()
        start = clock()
        llama.eval(prompt)
        middle = clock()
        for _ in range(DECODE):
            tokens.append(llama.sample(temp=0.0))
            llama.eval(tokens[-1:])
        return middle - start, clock() - middle, tokens

    variants = {
        "off": lambda path: nullcontext(),
        "layer outputs": lambda path: record(llama, path, taps=OUTPUTS),
        "all taps": lambda path: record(llama, path),
    }
    title = f"llama.cpp, {Path(path).name}, {'flash' if flash else 'plain'} attention, {threads} threads"
    report(title, alternate(work, variants, runs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", help="a GGUF file for llama.cpp; left out, only transformers is measured")
    parser.add_argument("--runs", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default 2)")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall",
                        help="wall time, or CPU time of all threads (default wall)")
    parser.add_argument("--engines", nargs="+", choices=("transformers", "llama_cpp"), default=("transformers", "llama_cpp"))
    arguments = parser.parse_args()
    clock = CLOCKS[arguments.clock]
    print(f"{arguments.clock} time")
    for attention in ("eager", "sdpa") if "transformers" in arguments.engines else ():
        bench_transformers(arguments.runs, arguments.threads, clock, attention)
    if arguments.gguf and "llama_cpp" in arguments.engines:
        for flash in (False, True):
            bench_llama_cpp(arguments.gguf, arguments.runs, arguments.threads, clock, flash)


if __name__ == "__main__":
    main()
