"""Plants every fault and asks firstdiff where it is: `python -m engine.verify [--arithmetic f32,bf16] [--taps modules] [WORD ..]`

A fault is found when the first finding is at the declared tap, step and layer. With module outputs only, the declared tap
may be invisible; then `diverges` is all that is asked, and of faults that cancel, nothing. Prints a table; exits 1 where
something was not found.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from .fault import ALL
from .faults import FAULTS
from .faults.stacks import INSIDE, STACKS
from .record import kind_of, record
from .selftest import check


def main():
    args = arguments()
    torch.set_num_threads(1)
    wanted = args.arithmetic.split(",") if args.arithmetic else None
    rows, missed = 0, []
    if args.stacks:
        return stacks(wanted or ALL, args.taps, args.quiet)
    with tempfile.TemporaryDirectory() as folder:
        for title, fault in FAULTS.items():
            if args.words and not any(word in title for word in args.words):
                continue
            for arithmetic in fault.arithmetics:
                if wanted and arithmetic not in wanted:
                    continue
                rows += 1
                line, found = one(fault, arithmetic, args.taps, Path(folder) / "trace")
                if not found:
                    missed.append(line)
                if not found or not args.quiet:
                    print(line, flush=True)
    classes = {fault.id for fault in FAULTS.values() if fault.id}
    unknown = sum(not fault.id for fault in FAULTS.values())
    print(f"{len(FAULTS)} faults, {len(classes)} classes, {unknown} of no class; {rows} traces, {len(missed)} not as expected")
    return 1 if missed else 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults whose title contains one of these")
    parser.add_argument("--arithmetic", help=f"only these, by comma; of {', '.join(ALL)} and q4")
    parser.add_argument("--taps", default="all", choices=("all", "modules"))
    parser.add_argument("--stacks", action="store_true", help="pairs planted together: both must be among the findings")
    parser.add_argument("--quiet", action="store_true", help="only what is not as expected")
    return parser.parse_args()


def one(fault, arithmetic, taps, trace):
    """(line of the table, found?)"""
    head = f"{fault.title():48} {fault.model:22} {arithmetic:5}"
    try:
        result = check(record(fault.model, arithmetic, trace, faults=[fault], taps=taps))
    except Exception as error:
        return f"{head} FAILED {type(error).__name__}: {error}", False
    if result["verdict"] != "diverges" or not result["findings"]:
        outside = taps == "modules" and (fault.cancels or arithmetic in fault.faint_outside)
        expected = arithmetic in fault.faint or outside
        return f"{head} {'not found, as expected' if expected else 'NOT FOUND: ' + result['verdict']}", expected
    first = result["findings"][0]
    shown = f"step {first['step']} {first['tap']} ratio {first['ratio']:.3g}"
    if taps == "modules":
        return f"{head} {shown}", True
    problems = []
    if kind_of(first["tap"]) not in fault.first:
        problems.append(f"expected {' or '.join(fault.first)}")
    if first["step"] != fault.step:
        problems.append(f"expected step {fault.step}")
    if fault.layers and not first["tap"].startswith(f"layers.{fault.layers[0]}."):
        problems.append(f"expected layer {fault.layers[0]}")
    others = {kind_of(finding["tap"]) for finding in result["findings"]} - set(fault.first)
    shown += f", and {' '.join(sorted(others))}" if others else ""
    return f"{head} {shown}{'  WRONG: ' if problems else ''}{'; '.join(problems)}", not problems


def stacks(arithmetics, taps, quiet):
    """Every pair of STACKS, each fault's tap among the findings."""
    missed = rows = 0
    pairs = STACKS + INSIDE if taps == "all" else STACKS
    with tempfile.TemporaryDirectory() as folder:
        for titles in pairs:
            faults = [FAULTS[title] for title in titles]
            for arithmetic in arithmetics:
                if not all(arithmetic in fault.arithmetics for fault in faults):
                    continue
                rows += 1
                result = check(record(faults[0].model, arithmetic, Path(folder) / "trace", faults=faults, taps=taps))
                taps_found = {kind_of(finding["tap"]) for finding in result["findings"]}
                found = all(taps_found & set(fault.first) for fault in faults) if taps == "all" else len(taps_found) > 1
                missed += not found
                if not found or not quiet:
                    print(f"{' + '.join(titles):90} {arithmetic:5} {'' if found else 'MISSED '}{sorted(taps_found)}")
    print(f"{len(pairs)} pairs, {rows} traces, {missed} not as expected")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
