"""Writes cases/: for each class a small trace of an engine with that fault, and case.md. Run by `cargo dev cases`.

Traces come from `engine`, which shares nothing with firstdiff's hypotheses. A case keeps the taps around its fault in two
layers at most, and the shortest prompt and fewest steps with which the fault still shows as it should; `--firstdiff` is asked
for that. Models are the tiny ones in bf16, which every case shares.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from engine import models
from engine.faults import FAULTS
from engine.record import kind_of, record
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[4]
CASES = ROOT / "cases"
HYPOTHESES = ROOT / "crates" / "diagnose" / "src" / "hypotheses"
# Smallest files first; float32 holds what the others cannot show.
ARITHMETICS = ("bf16", "f16", "f32", "q8", "q4")
ATTENTION = ("attn_norm", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "q_rope", "k_rope", "k_cache", "v_cache",
             "attn_scores", "attn_probs", "attn_heads", "attn_out", "attn_post_norm", "attn_resid")  # fmt: skip
MLP = ("attn_resid", "mlp_norm", "gate_proj", "up_proj", "mlp_act", "mlp_out", "mlp_post_norm", "router_logits",
       "router_topk", "router_weights", "experts_out", "shared_out", "out")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only classes whose name contains one of these")
    parser.add_argument("--firstdiff", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    classes = {}
    for fault in FAULTS.values():
        if fault.id and (HYPOTHESES / f"{fault.id.replace('-', '_')}.rs").exists():
            classes.setdefault(fault.id, []).append(fault)
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        original = models.tiny_folder
        models.tiny_folder = lambda name, wide=False: halved(original(name, wide), Path(folder))
        for name, faults in classes.items():
            if args.words and not any(word in name for word in args.words):
                continue
            if not case(args.firstdiff, name, faults, Path(folder) / "case"):
                bad.append(name)
    if not args.words:
        forget({*classes})
    size = sum(file.stat().st_size for file in CASES.rglob("*") if file.is_file())
    print(f"{len(classes)} classes, {size / 1e6:.1f} MB, not as expected: {' '.join(bad) or 'none'}")
    return 1 if bad else 0


def halved(folder, under):
    """A copy of a tiny model whose weights are stored in bf16."""
    out = under / folder.name
    if not out.exists():
        out.mkdir()
        shutil.copy(folder / "config.json", out)
        tensors = {n: t.bfloat16() for part in sorted(folder.glob("*.safetensors")) for n, t in load_file(part).items()}
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def case(firstdiff, name, faults, trace):
    """Tries variants, arithmetics and sizes until firstdiff names one; keeps the first that it finds where it is."""
    found = None
    for fault in faults:
        known = [a for a in ARITHMETICS if a in fault.arithmetics and a not in fault.faint]
        for arithmetic in known[:3]:
            for small in (True, False):
                result = attempt(firstdiff, fault, arithmetic, small, trace)
                if result is None:
                    continue
                if name in result["names"]:
                    keep(name, fault, arithmetic, result, trace)
                    return True
                if found is None:
                    found = (fault, arithmetic, small)
    if found is None:
        print(f"{name}: not found at its place")
        return False
    fault, arithmetic, small = found
    result = attempt(firstdiff, fault, arithmetic, small, trace)
    print(f"{name}: {result['names'] or 'unnamed'}")
    keep(name, fault, arithmetic, result, trace)
    return False


def attempt(firstdiff, fault, arithmetic, small, trace):
    """Records and checks; None where the finding is elsewhere."""
    settings = {}
    if small and not fault.batch:
        # Prompts and steps that a fault does not ask for are shortened.
        prefill = -(-fault.prompt // fault.chunk) if fault.chunk else 1
        settings["steps"] = max(2, fault.step + 2 - prefill)
        if fault.prompt == 24 and not fault.chunk:
            settings["prompt"] = 12
    try:
        recorded = record(fault.model, arithmetic, trace, faults=[fault], taps=around(fault), **settings)
        command = [firstdiff, "check", recorded.trace, "--model", recorded.model, "--format", "json", "--threads", "1"]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        findings = json.loads(done.stdout)["findings"]
    except Exception as error:
        print(f"{fault.title()} {arithmetic}: {type(error).__name__}: {error}")
        return None
    if not findings or kind_of(findings[0]["tap"]) not in fault.first:
        return None
    cause = findings[0]["cause"]
    names = [cause["id"], *(equal["id"] for equal in cause["equal"])] if cause else []
    return {"names": names, "tap": findings[0]["tap"], "step": findings[0]["step"], "model": recorded.model}


def around(fault):
    """The taps near the fault: in two of its layers, those of attention or of the MLP, with what they start from."""
    kinds = set(fault.first)
    if kinds <= {"embed", "final_norm", "logits"}:
        return lambda tap: tap in ("embed", "final_norm", "logits_raw", "logits") or tap.endswith("layers.3.out")
    layers = (fault.layers or (0, 1))[:2]
    wanted = set()
    if kinds & set(ATTENTION):
        wanted |= set(ATTENTION)
    if kinds & set(MLP):
        wanted |= set(MLP)

    def keep(tap):
        if tap in fault.needs:
            return True
        if not tap.startswith("layers."):
            return tap == "embed" or tap in kinds
        layer, kind = int(tap.split(".")[1]), kind_of(tap)
        return layer in layers and kind in wanted or kind == "out" and layer + 1 in layers

    return keep


def keep(name, fault, arithmetic, result, trace):
    folder = CASES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(trace, folder / "trace")
    model = shared(result["model"])
    (folder / "case.md").write_text(page(name, fault, arithmetic, result, model))


def shared(model):
    """The model in cases/models: a folder, or a GGUF file."""
    into = CASES / "models"
    into.mkdir(parents=True, exist_ok=True)
    if model.is_dir():
        out = into / model.name
        if not out.exists():
            shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.gguf", "complete"))
    else:
        out = into / f"{model.parent.name}-{model.name.lower()}"
        if not out.exists():
            shutil.copy(model, out)
    return out.name


def page(name, fault, arithmetic, result, model):
    source = (HYPOTHESES / f"{name.replace('-', '_')}.rs").read_text()
    seen = []
    for line in source.split("## Seen in", 1)[1].splitlines()[1:]:
        text = line.removeprefix("//!").strip()
        if text.startswith("## ") or not line.startswith("//!"):
            break
        seen.append(text)
    return f"""# {name}

{fault.wrong[:1].upper()}{fault.wrong[1:]}.

| | |
|---|---|
| model | {model} |
| arithmetic | {arithmetic} |
| step | {result["step"]} |
| tap | {result["tap"]} |
| cause | {name} |

## Seen in

{chr(10).join(seen).strip()}
"""


def forget(classes):
    """Removes cases of classes that are gone, and models that no case uses."""
    used = set()
    for folder in CASES.iterdir():
        if folder.name == "models" or not folder.is_dir():
            continue
        if folder.name not in classes:
            shutil.rmtree(folder)
            continue
        used |= {line.split("|")[2].strip() for line in (folder / "case.md").read_text().splitlines() if line.startswith("| model")}
    for model in (CASES / "models").iterdir():
        if model.name not in used:
            shutil.rmtree(model) if model.is_dir() else model.unlink()


if __name__ == "__main__":
    sys.exit(main())
