"""`cargo dev bench verdicts`: right engines and planted faults, judged by `firstdiff check`; prints the tables of
docs/VERDICTS.md and exits with 1 when a promise is not kept."""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections import defaultdict

import engines as settings
import judge
import listing
import table
import worker


def main():
    args = arguments()
    if args.list:
        listing.show(listing.chosen(args.only, args.match, args.sample))
        return 0
    with tempfile.TemporaryDirectory(prefix="firstdiff-verdicts-") as folder:
        worker.start(args, folder)
        cases, binaries = worker.STARTED["cases"], worker.STARTED["binaries"]
        known = worker.kept(args.save)
        outcomes = [[known.get((case.name, judge.identity(binary))) for case in cases] for binary in binaries]
        run(cases, outcomes, args, folder)
    return table.show(cases, *outcomes, whole=not (args.match or args.sample))


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--firstdiff", required=True)
    parser.add_argument("--against", help="another build: it judges the same traces, and the tables show both")
    parser.add_argument("--models", help="folder of the hub's models, for the parts that need them")
    parser.add_argument("--only", default="", help=f"parts to run, with commas between: {', '.join(listing.PARTS)}")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--sample", type=int, default=0, help="so many cases, spread over all kinds; always the same ones")
    parser.add_argument("--save", help="append each outcome to this file; those that it has are not run again")
    parser.add_argument("--limit", type=float, default=120, help="seconds of processor time that one check may take")
    parser.add_argument("--list", action="store_true", help="count the cases and run none")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args()


PIECE = 12  # cases: few, so that all processes end together


def run(cases, outcomes, args, folder):
    """Fills in what is not known yet."""
    groups = defaultdict(list)
    for index, case in enumerate(cases):
        missing = [n for n, of in enumerate(outcomes) if of[index] is None]
        if missing:
            groups[case.engine].append((index, missing))
    # large models first
    order = sorted(groups.values(), key=lambda group: (cases[group[0][0]].model not in settings.REAL, -len(group)))
    pieces = [group[at : at + PIECE] for group in order for at in range(0, len(group), PIECE)]
    total, done, started, told = sum(map(len, pieces)), 0, time.time(), 0.0
    if not pieces:
        return
    with multiprocessing.get_context("spawn").Pool(args.jobs, worker.start, (args, folder)) as pool:
        for piece in pool.imap_unordered(worker.work, pieces):
            done += len({index for index, _, _ in piece})
            for index, n, outcome in piece:
                outcomes[n][index] = outcome
            if time.time() - told > 5:
                told = time.time()
                print(f"{done:,} of {total:,} traces, {told - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
