"""The tables of docs/VERDICTS.md, and whether every line is met."""

from collections import defaultdict

from faults.promises import REPORTED

FORMATS = {"f32": "f32", "bf16": "bf16", "f16": "f16", "q8": "8-bit blocks"}
SMALL = 3  # roundings: a fault no larger than that, in its worst part, is counted apart
SHARE = 0.98
LEAST = {"healthy": 200, "faults": 300}


def show(cases, outcomes):
    """Prints all of it; the exit code."""
    pairs = defaultdict(list)
    for case, outcome in zip(cases, outcomes):
        pairs[case.part].append((case, outcome))
    failures = [f"{case.name}: {outcome.error.strip()}" for case, outcome in zip(cases, outcomes) if outcome.error]
    healthy = pairs["healthy"] + pairs["real"]
    if healthy:
        failures += alarms(healthy)
    if pairs["faults"]:
        failures += misses(pairs["faults"])
    if pairs["promises"] or pairs["real faults"]:
        failures += promises(pairs["promises"] + pairs["real faults"])
    if pairs["limits"]:
        limits(pairs["limits"])
    for failure in failures:
        print(f"NOT MET: {failure}")
    return int(bool(failures))


def row(*cells):
    print("| " + " | ".join(map(str, cells)) + " |")


def head(*cells):
    row(*cells)
    print("|" + "---|" * len(cells))


def alarms(pairs):
    wrong = [pair for pair in pairs if not pair[1].right]
    closest = max((outcome.closest[1] for _, outcome in pairs if outcome.right and outcome.closest), default=0.0)
    print(f"\n{len(pairs):,} traces of right engines: {len(wrong)} false alarms. Nearest to one: {closest:.2f} of the "
          "threshold.\n")
    ways = defaultdict(lambda: defaultdict(list))
    for case, outcome in pairs:
        way = case.variant if case.run == "plain" else case.run
        way = f"{case.model}, {case.variant}" if case.part == "real" else way
        ways[way][case.format].append(outcome.right)
    names = [*FORMATS, *(["llama.cpp"] if any(case.format == "llama.cpp" for case, _ in pairs) else [])]
    head("false alarms / traces", *(FORMATS.get(name, name) for name in names))
    for way, formats in ways.items():
        cells = [formats.get(name) for name in names]
        row(way, *(f"{cell.count(False)} / {len(cell)}" if cell else "" for cell in cells))
    found = [f"false alarm: {case.name}: {told(outcome)}" for case, outcome in wrong if not outcome.error]
    return found + too_few("traces of right engines", len(pairs), LEAST["healthy"])


def too_few(what, count, least):
    return [f"{count} {what}, at least {least} are needed"] if count < least else []


def told(outcome):
    said = [outcome.verdict]
    for first in outcome.findings[:1]:
        said.append(f"step {first['step']} {first['tap']} ratio {first['ratio']:.3g} scale {first['scale']}")
        said.append(first["where"])
    if outcome.closest:
        said.append(f"closest {outcome.closest[0]} {outcome.closest[1]:.2f}")
    if outcome.expected:
        said.append(f"expected step {outcome.expected[0]} {outcome.expected[1]}, {outcome.effect:.3g} roundings")
    return ", ".join(said)


def counted(outcome):
    return outcome.expected and outcome.effect >= SMALL


def misses(pairs):
    large = [pair for pair in pairs if counted(pair[1])]
    small = [pair for pair in pairs if pair[1].expected and not counted(pair[1])]
    none = len(pairs) - len(large) - len(small)
    print(f"\n{len(large):,} planted faults; {len(small)} more that were smaller than {SMALL} roundings of the operation "
          f"({sum(o.right for _, o in small)} found), {none} that changed no recorded value.\n")
    failures = too_few("planted faults", len(large), LEAST["faults"])
    head("fault", "which", "every tap recorded", "module outputs only")
    kinds = defaultdict(list)
    for case, outcome in large:
        kinds[case.group.split(":")[0]].append((case, outcome))
    for kind, those in kinds.items():
        row(kind, which(kind, those), *rates(those))
    row("all", "", *rates(large))
    sizes(large)
    for taps in ("all", "modules"):
        right = [outcome.right for case, outcome in large if case.taps == taps]
        if not right or sum(right) < SHARE * len(right):
            failures.append(f"{taps}: the first tap is right in {sum(right)} of {len(right)}, less than {SHARE:.0%}")
    for case, outcome in large:
        if not outcome.right and not outcome.error:
            print(f"missed: {case.name}: {told(outcome)}")
    return failures


def which(kind, pairs):
    """Sizes, or what is told of each fault where there is only one of it."""
    if kind == "as written":
        return f"{len({case.fault.size for case, _ in pairs})} bugs of tests/bugs.py"
    told = [f"{case.group} {case.fault.size}".removeprefix(kind).removeprefix(":") for case, _ in pairs]
    told = [one.removesuffix(" -").strip() for one in told]
    return ", ".join(dict.fromkeys(one for one in told if one not in ("", "-", "all of it")))


def rates(pairs):
    return [rate([outcome for case, outcome in pairs if case.taps == taps]) for taps in ("all", "modules")]


EDGES = (SMALL, 5, 10, 100, float("inf"))


def sizes(pairs):
    print("\nThe same by size, in single roundings of the operation, over the part that is worst off:\n")
    head("size", *FORMATS.values(), "every tap recorded", "module outputs only")
    for low, high in zip(EDGES, EDGES[1:]):
        those = [(case, outcome) for case, outcome in pairs if low <= outcome.effect < high or high == outcome.effect]
        formats = [rate([o for c, o in those if c.format == name]) for name in FORMATS]
        row(f"{low} to {high}" if high < float("inf") else f"over {low}", *formats, *rates(those))
    print()


def rate(outcomes):
    return f"{sum(o.right for o in outcomes)} / {len(outcomes)}" if outcomes else ""


def promises(pairs):
    print("\nFaults that have to be found:\n")
    head("fault", "found at the right tap")
    names, failures = defaultdict(list), []
    for case, outcome in pairs:
        if outcome.expected or outcome.error:  # one that changes no value after rounding is no fault
            names[case.group].append((case, outcome))
    for name, those in names.items():
        row(name + " (no promise)" * name.endswith(REPORTED), rate([outcome for _, outcome in those]))
        missed = [f"{case.name}: {told(outcome)}" for case, outcome in those if not outcome.right and not outcome.error]
        failures += [] if name.endswith(REPORTED) else missed
    return failures


def limits(pairs):
    print("\nWhere detection ends: the size from which on every one was found (half of them)\n")
    head("fault", *FORMATS.values())
    ladders = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    words = {}
    for case, outcome in pairs:
        if outcome.expected:
            ladders[case.group][case.format][case.fault.value].append(outcome.right)
            words[case.group, case.fault.value] = case.fault.size
    for name, formats in ladders.items():
        row(name, *(cell(formats.get(format), lambda size: words[name, size]) for format in FORMATS))


def cell(sizes, word):
    if not sizes:
        return ""
    every, half = smallest(sizes, 1.0), smallest(sizes, 0.5)
    if half is None:
        return f"none up to {word(max(sizes))}"
    if every is None:
        return f"not all ({word(half)})"
    return word(every) + ("" if half == every else f" ({word(half)})")


def smallest(sizes, share):
    """The smallest size from which on at least this share of the faults was found."""
    found = None
    for size in sorted(sizes, reverse=True):
        if sum(sizes[size]) < share * len(sizes[size]):
            break
        found = size
    return found
