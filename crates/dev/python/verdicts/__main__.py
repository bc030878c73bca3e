"""`cargo dev bench verdicts`: right engines and planted faults, judged by `firstdiff check`; prints the tables of
docs/VERDICTS.md and exits with 1 when a promise is not kept."""

import argparse
import multiprocessing
import pickle
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import engines as settings
import table
import worker


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--firstdiff", required=True)
    parser.add_argument("--models", required=True)
    parser.add_argument("--only", default="", help="parts to run: healthy, real, faults, promises, real faults, limits")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--save", help="keep every outcome in this file")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="firstdiff-verdicts-") as folder:
        worker.start(args, folder)
        cases, engines = worker.STARTED["cases"], worker.STARTED["engines"]
        for model in sorted({case.model for case in cases}):
            engines.path(model)
        outcomes = run(cases, args, folder)
    if args.save:
        Path(args.save).write_bytes(pickle.dumps([(case.name, o) for case, o in zip(cases, outcomes)]))
    return table.show(cases, outcomes)


def run(cases, args, folder):
    groups = defaultdict(list)
    for index, case in enumerate(cases):
        groups[case.engine].append(index)
    # large models first; then in pieces, so that both processes end together
    order = sorted(groups.values(), key=lambda group: (cases[group[0]].model not in settings.REAL, -len(group)))
    pieces = [group[at : at + 60] for group in order for at in range(0, len(group), 60)]
    outcomes, started, told = [None] * len(cases), time.time(), 0.0
    with multiprocessing.get_context("spawn").Pool(args.jobs, worker.start, (args, folder)) as pool:
        for piece in pool.imap_unordered(worker.work, pieces):
            for outcome in piece:
                outcomes[outcome.index] = outcome
            if time.time() - told > 5:
                told = time.time()
                done = sum(o is not None for o in outcomes)
                print(f"{done:,} of {len(cases):,} traces, {told - started:.0f} s", file=sys.stderr)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
