"""Every planted fault, and what firstdiff says of it: located, named, wrongly named, by class.

Run by `cargo dev bench causes`. Faults come from `engine`, a second implementation in torch that shares nothing with the
hypotheses. A fault is named when its class is the cause, or is among those that predict the same value; it is wrongly named
when another class is. Faults of no class must be located and not named.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from engine.fault import ALL
from engine.faults import FAULTS
from engine.record import kind_of, record


def main():
    args = arguments()
    torch.set_num_threads(1)
    wanted = args.arithmetic.split(",") if args.arithmetic else None
    table, confusion = defaultdict(Counter), Counter()
    with tempfile.TemporaryDirectory() as folder:
        for title, fault in FAULTS.items():
            if args.words and not any(word in title for word in args.words):
                continue
            for arithmetic in fault.arithmetics:
                if wanted and arithmetic not in wanted:
                    continue
                outcome, line = one(args, fault, arithmetic, Path(folder) / "trace", confusion)
                table[fault.id or "none"][outcome] += 1
                if args.verbose or outcome in ("wrong", "failed"):
                    print(f"{title:46} {fault.model:20} {arithmetic:5} {outcome:8} {line}", flush=True)
    show(table, confusion)
    return 1 if any(row["wrong"] or row["failed"] for row in table.values()) else 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults whose title contains one of these")
    parser.add_argument("--firstdiff", type=Path, required=True)
    parser.add_argument("--arithmetic", help=f"only these, by comma; of {', '.join(ALL)} and q4")
    parser.add_argument("--taps", default="all", choices=("all", "modules"))
    parser.add_argument("--verbose", action="store_true", help="a line for every trace")
    return parser.parse_args()


def one(args, fault, arithmetic, trace, confusion):
    """(outcome, detail): faint and hidden faults may stay unfound, and then count as neither."""
    try:
        recorded = record(fault.model, arithmetic, trace, faults=[fault], taps=args.taps)
        command = [args.firstdiff, "check", recorded.trace, "--model", recorded.model, "--format", "json", "--threads", "1"]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
        if done.returncode not in (0, 1, 3):
            return "failed", done.stderr.strip().splitlines()[-1:]
        findings = json.loads(done.stdout)["findings"]
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    if not findings:
        outside = args.taps == "modules" and (fault.cancels or arithmetic in fault.faint_outside)
        return ("faint" if arithmetic in fault.faint or outside else "missed"), ""
    first = findings[0]
    cause = first["cause"]
    place = f"step {first['step']} {first['tap']}"
    if args.taps == "all" and kind_of(first["tap"]) not in fault.first:
        place += f" (planted at {' or '.join(fault.first)})"
    if cause is None:
        near = first["rejected"][:1]
        shown = f"nearest {near[0]['id']} ({near[0]['detail']}) {near[0]['residual']:.3g}" if near else "nothing tried"
        confusion[fault.id or "none", "-"] += 1
        return "unnamed", f"{place}: {shown}"
    names = [cause["id"], *(equal["id"] for equal in cause["equal"])]
    confusion[fault.id or "none", cause["id"]] += 1
    detail = f"{place}: {' = '.join(names)}: {cause['detail']} [{fault.wrong}] {cause['residual']:.3g}"
    more = f", {len(findings)} findings" if len(findings) > 1 else ""
    return ("named" if fault.id in names else "wrong"), detail + more


def show(table, confusion):
    columns = ("named", "unnamed", "wrong", "missed", "faint", "failed")
    print(f"{'class':40}" + "".join(f"{column:>9}" for column in columns))
    total = Counter()
    for name, row in table.items():
        total.update(row)
        print(f"{name:40}" + "".join(f"{row[column] or '.':>9}" for column in columns))
    print(f"{'all':40}" + "".join(f"{total[column]:>9}" for column in columns))
    judged = sum(row[column] for name, row in table.items() if name != "none" for column in columns[:4])
    print(f"of a class: {judged} traces, named {share(total['named'], judged)}, wrongly named {share(total['wrong'], judged)}")
    wrong = {pair: n for pair, n in confusion.items() if pair[1] != "-" and pair[0] != pair[1]}
    for (planted, named), n in sorted(wrong.items()):
        print(f"  {planted} -> {named}: {n}")


def share(part, whole):
    return f"{part} ({100 * part / whole:.1f} %)" if whole else str(part)


if __name__ == "__main__":
    sys.exit(main())
