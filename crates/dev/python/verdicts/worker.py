"""What runs in each process: cases hold functions, so every process makes the same list and is told numbers."""

import os
import traceback
from pathlib import Path

import engines as settings
import torch
from transformers.utils import logging

import judge
import listing

STARTED = {}  # cases, engines, binary, folder


def start(args, folder):
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    STARTED["cases"] = [case for case in listing.cases(args.only) if args.match in case.name]
    STARTED["engines"] = settings.Engines(folder, args.models)
    STARTED["binary"], STARTED["folder"] = args.firstdiff, Path(folder)


def work(piece):
    scratch = STARTED["folder"] / f"process-{os.getpid()}"
    scratch.mkdir(exist_ok=True)
    return [attempt(index, scratch) for index in piece]


def attempt(index, scratch):
    case = STARTED["cases"][index]
    try:
        return judge.run(index, case, STARTED["engines"], STARTED["binary"], scratch)
    except Exception:
        return judge.Outcome(index, -1, "error", [], [], error=traceback.format_exc())
