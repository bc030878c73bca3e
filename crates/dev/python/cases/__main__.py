"""Writes cases/: for each class a small trace of an engine with that fault, and case.md. Run by `cargo dev cases`.

Traces come from `engine` (planted.py) and from transformers' DeepSeek-V4 (deepseek_v4.py), which share nothing with
firstdiff's hypotheses. A case keeps the taps around its fault in two layers at most, and the shortest prompt and fewest steps
with which the fault still shows as it should; `--firstdiff` is asked for that. Models are the tiny ones in bf16, which cases share.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from cases import deepseek_v4, planted
from engine import models
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[4]
CASES = ROOT / "cases"
HYPOTHESES = ROOT / "crates" / "diagnose" / "src" / "hypotheses"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only classes whose name contains one of these")
    parser.add_argument("--firstdiff", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    classes = {}
    for name, attempt in [*planted.attempts(), *deepseek_v4.attempts()]:
        if name and (HYPOTHESES / f"{name.replace('-', '_')}.rs").exists():
            classes.setdefault(name, []).append(attempt)
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        original = models.tiny_folder
        models.tiny_folder = lambda name, wide=False: halved(original(name, wide), Path(folder))
        for name, attempts in classes.items():
            if args.words and not any(word in name for word in args.words):
                continue
            if not case(args.firstdiff, name, attempts, Path(folder) / "case"):
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
        stored = {n: t for part in sorted(folder.glob("*.safetensors")) for n, t in load_file(part).items()}
        plain = lambda name, t: t.dtype == torch.float32 and "scale" not in name
        tensors = {n: t.bfloat16() if plain(n, t) else t for n, t in stored.items()}
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def case(firstdiff, name, attempts, trace):
    """Tries one attempt after the other until firstdiff names the class; else keeps the first that it finds where it is."""
    found = None
    for attempt in attempts:
        result = attempt.result(firstdiff, trace)
        if result is None:
            continue
        if name in result["names"]:
            keep(name, attempt, result, trace)
            return True
        found = found or attempt
    if found is None:
        print(f"{name}: not found at its place")
        return False
    result = found.result(firstdiff, trace)
    print(f"{name}: {result['names'] or 'unnamed'}")
    keep(name, found, result, trace)
    return False


def keep(name, attempt, result, trace):
    folder = CASES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(trace, folder / "trace")
    model = shared(result["model"])
    (folder / "case.md").write_text(page(name, attempt, result, model))


def shared(model):
    """The model in cases/models: a folder, or a GGUF file."""
    into = CASES / "models"
    into.mkdir(parents=True, exist_ok=True)
    if model.is_dir():
        out = into / model.name
        shutil.rmtree(out, ignore_errors=True)  # an older one may be another model
        shutil.copytree(model, out, ignore=shutil.ignore_patterns("*.gguf", "complete"))
    else:
        out = into / f"{model.parent.name}-{model.name.lower()}"
        shutil.copy(model, out)
    return out.name


def page(name, attempt, result, model):
    source = (HYPOTHESES / f"{name.replace('-', '_')}.rs").read_text()
    seen = []
    for line in source.split("## Seen in", 1)[1].splitlines()[1:]:
        text = line.removeprefix("//!").strip()
        if text.startswith("## ") or not line.startswith("//!"):
            break
        seen.append(text)
    return f"""# {name}

{attempt.wrong[:1].upper()}{attempt.wrong[1:]}.

| | |
|---|---|
| model | {model} |
| arithmetic | {attempt.arithmetic} |
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
