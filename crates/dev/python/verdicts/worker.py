"""What runs in each process: cases hold functions, so every process makes the same list and is told numbers."""

import json
import os
import traceback
from pathlib import Path

import engines as settings
import torch
from transformers.utils import logging

import judge
import listing

STARTED = {}  # cases, engines, binaries, folder, file of outcomes, seconds allowed


def start(args, folder):
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    STARTED["cases"] = listing.chosen(args.only, args.match, args.sample)
    STARTED["engines"] = settings.Engines(folder, args.models)
    STARTED["binaries"] = [binary for binary in (args.firstdiff, args.against) if binary]
    STARTED["folder"], STARTED["save"], STARTED["limit"] = Path(folder), args.save, args.limit


def work(piece):
    """Outcomes of the cases with these numbers, by the binary's place; each is on disk as soon as it is known."""
    scratch = STARTED["folder"] / f"process-{os.getpid()}"
    scratch.mkdir(exist_ok=True)
    return [(index, n, outcome) for index, missing in piece for n, outcome in attempt(index, missing, scratch)]


def attempt(index, missing, scratch):
    case = STARTED["cases"][index]
    binaries = [STARTED["binaries"][n] for n in missing]
    try:
        outcomes = judge.run(case, STARTED["engines"], binaries, scratch, STARTED["limit"])
    except Exception:
        outcomes = [judge.Outcome(verdict="none", silent="bench", error=traceback.format_exc()) for _ in binaries]
    for binary, outcome in zip(binaries, outcomes):
        keep(case, binary, outcome)
    return list(zip(missing, outcomes))


def keep(case, binary, outcome):
    """One line, in one write: processes share the file. What the bench itself could not do is tried again next time."""
    if STARTED["save"] and outcome.silent != "bench":
        line = json.dumps({"case": case.name, "binary": judge.identity(binary), **outcome.as_json()}) + "\n"
        with open(STARTED["save"], "a", buffering=1 << 20) as file:
            file.write(line)


def kept(save):
    """Outcomes of earlier runs by case and binary. A line that a killed run left unfinished does not count."""
    found = {}
    if save and Path(save).exists():
        for line in Path(save).read_text().splitlines():
            try:
                outcome = json.loads(line)
                found[outcome.pop("case"), outcome.pop("binary")] = judge.Outcome.from_json(outcome)
            except (ValueError, KeyError, TypeError):
                continue
    return found
