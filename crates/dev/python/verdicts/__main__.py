"""`cargo dev bench verdicts`: right engines and planted faults, judged by `firstdiff check`; prints the tables of
docs/VERDICTS.md and exits with 1 when a promise is not kept."""

import argparse
import multiprocessing
import pickle
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from pathlib import Path

import engines as settings
import torch
from transformers.utils import logging

import healthy
import judge

state = {}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--firstdiff", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--only", default="", help="parts to run, by name: healthy, real, faults, limits")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--save", help="keep every outcome in this file")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    import listing

    cases = [case for case in listing.cases(args.only) if args.match in case.name]
    with tempfile.TemporaryDirectory(prefix="firstdiff-verdicts-") as folder:
        engines = settings.Engines(folder, args.models)
        for model in sorted({case.model for case in cases}):
            engines.path(model)
        outcomes = run(cases, engines, args.firstdiff, Path(folder), args.jobs)
    if args.save:
        Path(args.save).write_bytes(pickle.dumps([(case.name, o) for case, o in zip(cases, outcomes)]))
    import table

    return table.show(cases, outcomes)


def run(cases, engines, binary, folder, jobs):
    groups = defaultdict(list)
    for index, case in enumerate(cases):
        groups[case.engine].append(index)
    state.update(cases=cases, engines=engines, binary=binary, folder=folder)
    # large models first; then in pieces, so that both processes end together
    order = sorted(groups.values(), key=lambda group: (cases[group[0]].model not in settings.REAL, -len(group)))
    pieces = [group[at : at + 60] for group in order for at in range(0, len(group), 60)]
    outcomes, started, told = [None] * len(cases), time.time(), 0.0
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for outcome in (o for piece in pool.imap_unordered(work, pieces) for o in piece):
            outcomes[outcome.index] = outcome
            if time.time() - told > 5:
                told = time.time()
                done = sum(o is not None for o in outcomes)
                print(f"{done} of {len(cases)} traces, {told - started:.0f} s", file=sys.stderr)
    return outcomes


def work(piece):
    scratch = state["folder"] / f"process-{multiprocessing.current_process().pid}"
    scratch.mkdir(exist_ok=True)
    return [attempt(index, scratch) for index in piece]


def attempt(index, scratch):
    case = state["cases"][index]
    try:
        return judge.run(index, case, state["engines"], state["binary"], scratch)
    except Exception:
        return judge.Outcome(index, -1, "error", [], [], error=traceback.format_exc())


if __name__ == "__main__":
    sys.exit(main())
