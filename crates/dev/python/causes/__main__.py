"""Every planted fault, and what firstdiff says of it: located, named, wrongly named, by class; then pairs planted together.

Run by `cargo dev bench causes`. Faults come from `engine`, a second implementation in torch that shares nothing with the
hypotheses. A fault is located when the first finding is where it was planted (with module outputs: when anything is found).
It is named when its class is the cause, or is among those that predict the same value within rounding; it is wrongly named when
another class is. Faults of no class must be located and not named. Of a pair, both must be named.
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
from engine.faults.stacks import INSIDE, STACKS
from engine.record import kind_of, record

COLUMNS = ("traces", "located", "named", "unnamed", "wrong", "missed", "faint", "failed")


def main():
    args = arguments()
    torch.set_num_threads(1)
    wanted = args.arithmetic.split(",") if args.arithmetic else None
    table, confusion, by_arithmetic = defaultdict(Counter), Counter(), defaultdict(Counter)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        for title, fault in FAULTS.items():
            if args.words and not any(word in title for word in args.words):
                continue
            for arithmetic in fault.arithmetics:
                if wanted and arithmetic not in wanted:
                    continue
                outcome, located, line = one(args, fault, arithmetic, trace, confusion)
                counts = ["traces", outcome] + ["located"] * located
                table[fault.id or "none"].update(counts)
                if fault.id:
                    by_arithmetic[arithmetic].update(counts)
                if args.verbose or outcome in ("wrong", "failed", "missed"):
                    print(f"{title:46} {fault.model:20} {arithmetic:5} {outcome:8} {line}", flush=True)
        show(table, confusion, by_arithmetic)
        pairs_bad = 0 if args.words else pairs(args, wanted or ALL, trace)
    bad = sum(row["wrong"] + row["failed"] for row in table.values()) + (table["none"]["named"]) + pairs_bad
    return 1 if bad else 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults whose title contains one of these, and no pairs")
    parser.add_argument("--firstdiff", type=Path, required=True)
    parser.add_argument("--arithmetic", help=f"only these, by comma; of {', '.join(ALL)} and q4")
    parser.add_argument("--taps", default="all", choices=("all", "modules"))
    parser.add_argument("--verbose", action="store_true", help="a line for every trace")
    return parser.parse_args()


def check(args, faults, arithmetic, trace):
    recorded = record(faults[0].model, arithmetic, trace, faults=faults, taps=args.taps)
    command = [args.firstdiff, "check", recorded.trace, "--model", recorded.model, "--format", "json", "--threads", "1"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    if done.returncode not in (0, 1, 3):
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-200:]}")
    return json.loads(done.stdout)["findings"]


def names_of(finding):
    cause = finding["cause"]
    return [cause["id"], *(equal["id"] for equal in cause["equal"])] if cause else []


def one(args, fault, arithmetic, trace, confusion):
    """(outcome, located, detail): faint and hidden faults may stay unfound, and then count as neither."""
    try:
        findings = check(args, [fault], arithmetic, trace)
    except Exception as error:
        return "failed", False, f"{type(error).__name__}: {error}"
    if not findings:
        outside = args.taps == "modules" and (fault.cancels or arithmetic in fault.faint_outside)
        return ("faint" if arithmetic in fault.faint or outside else "missed"), False, ""
    first = findings[0]
    place = f"step {first['step']} {first['tap']}"
    located = args.taps == "modules" or kind_of(first["tap"]) in fault.first
    if not located:
        place += f" (planted at {' or '.join(fault.first)})"
    cause, names = first["cause"], names_of(first)
    if cause is None:
        near = first["rejected"][:1]
        shown = f"nearest {near[0]['id']} ({near[0]['detail']}) {near[0]['residual']:.3g}" if near else "nothing tried"
        confusion[fault.id or "none", "-"] += 1
        return "unnamed", located, f"{place}: {shown}"
    confusion[fault.id or "none", cause["id"]] += 1
    detail = f"{place}: {' = '.join(names)}: {cause['detail']} [{fault.wrong}] {cause['residual']:.3g}"
    more = f", {len(findings)} findings" if len(findings) > 1 else ""
    return ("named" if fault.id in names else "wrong"), located, detail + more


def show(table, confusion, by_arithmetic):
    print(f"{'class':40}" + "".join(f"{column:>9}" for column in COLUMNS))
    total = Counter()
    for name, row in table.items():
        if name != "none":
            total.update(row)
        print_row(name, row)
    print_row("all of a class", total)
    for arithmetic, row in by_arithmetic.items():
        print_row(f"  {arithmetic}", row)
    judged = sum(total[column] for column in ("named", "unnamed", "wrong", "missed", "failed"))
    found, known = len([n for n in table if n != "none"]), sum(bool(row["named"]) for n, row in table.items() if n != "none")
    print(f"{found} classes, {known} named at least once; {judged} traces that must be found: located {share(total['located'], judged)}, "
          f"named {share(total['named'], judged)}, wrongly named {share(total['wrong'], judged)}")  # fmt: skip
    if none := table.get("none"):
        print(f"of no class: {none['traces']} traces, located {none['located']}, given a name {none['named'] + none['wrong']}")
    for (planted, named), n in sorted(confusion.items()):
        if named not in ("-", planted):
            print(f"  {planted} -> {named}: {n}")


def print_row(name, row):
    print(f"{name:40}" + "".join(f"{row[column] or '.':>9}" for column in COLUMNS))


def pairs(args, arithmetics, trace):
    """Two faults at once: both must be named, each in a finding of its own."""
    count, rows, located, named, wrong = 0, 0, 0, 0, 0
    whole = set()
    for titles in STACKS + INSIDE if args.taps == "all" else STACKS:
        faults = [FAULTS[title] for title in titles]
        count += 1
        good = []
        for arithmetic in arithmetics:
            if not all(arithmetic in fault.arithmetics for fault in faults):
                continue
            rows += 1
            findings = check(args, faults, arithmetic, trace)
            names = [names_of(finding) for finding in findings]
            places = {kind_of(tap) for finding in findings for tap in finding["taps"]}
            ids = {fault.id for fault in faults}
            both = all(any(fault.id in each for each in names) for fault in faults)
            strange = sum(bool(each) and not ids & set(each) for each in names)
            located += all(places & set(fault.first) for fault in faults) if args.taps == "all" else len(findings) > 1
            named += both
            wrong += strange
            good.append(both)
            if args.verbose or not both or strange:
                what = [f"{finding['tap']}: {' = '.join(each) or '-'}" for finding, each in zip(findings, names)]
                print(f"pair {' + '.join(titles):80} {arithmetic:5} {'both' if both else 'NOT BOTH'}; {'; '.join(what[:5])}", flush=True)
        if good and all(good):
            whole.add(titles)
    print(f"{count} pairs, {rows} traces: both located {share(located, rows)}, both named {share(named, rows)}, "
          f"in every arithmetic {len(whole)} pairs; findings with another name {wrong}")  # fmt: skip
    return wrong


def share(part, whole):
    return f"{part} ({100 * part / whole:.1f} %)" if whole else str(part)


if __name__ == "__main__":
    sys.exit(main())
