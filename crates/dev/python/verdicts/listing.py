"""Every case of the bench, in parts."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import zip_longest

import faults
import healthy
import wide.cases
import wide.faults
from faults import limits, promises

PARTS = {
    "healthy": healthy.cases,
    "wide": wide.cases.cases,
    "real": healthy.real,
    "faults": faults.cases,
    "undeclared faults": faults.undeclared,
    "wide faults": wide.faults.cases,
    "promises": promises.cases,
    "real faults": promises.real,
    "limits": limits.cases,
}
REAL = ("real", "real faults")  # need models of the hub
UNMEASURED = ("limits", "real faults")  # their sizes are their names


def cases(only=""):
    names = [name.strip() for name in only.split(",")] if only else PARTS
    return [replace(case, part=name, measured=name not in UNMEASURED) for name in names for case in PARTS[name]()]


def chosen(only="", match="", sample=0):
    """The cases of these parts whose name contains `match`; of those, `sample`, the same ones every time."""
    found = [case for case in cases(only) if match in case.name]
    names = Counter(case.part + case.name for case in found)
    assert len(names) == len(found), f"two cases of one name: {names.most_common(1)}"
    return sampled(found, sample) if sample else found


def kind_of(case):
    """What the tables have a line for."""
    if case.fault is not None:
        return case.group or case.fault.kind
    return case.variant if case.run == "plain" or hasattr(case, "of") else case.run


def sampled(found, count):
    """Kinds take turns; within one, cases stand in the order of their names' digests."""
    kinds = defaultdict(list)
    for case in sorted(found, key=lambda case: hashlib.sha256(case.name.encode()).digest()):
        kinds[case.part, kind_of(case), case.declared].append(case)
    turns = (case for turn in zip_longest(*kinds.values()) for case in turn if case is not None)
    return [case for case, _ in zip(turns, range(count))]


def show(found):
    """Counts by part and kind."""
    counts = defaultdict(Counter)
    for case in found:
        counts[case.part, kind_of(case)][case.declared] += 1
    print("| part | kind | declared | undeclared |\n|---|---|---|---|")
    for (part, kind), by in counts.items():
        print(f"| {part} | {kind} | {by[True] or ''} | {by[False] or ''} |")
    for title, those in (("right engines", [c for c in found if c.fault is None]),
                         ("faults", [c for c in found if c.fault is not None])):
        print(f"{len(those):,} traces of {title}: {sum(c.declared for c in those):,} declared, "
              f"{sum(not c.declared for c in those):,} undeclared")
