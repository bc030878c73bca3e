"""The tables of docs/VERDICTS.md, and whether every line is met. With a second binary, its figures stand beside."""

from collections import Counter, defaultdict

from faults.promises import REPORTED

FORMATS = {"f32": "f32", "bf16": "bf16", "f16": "f16", "q8": "8-bit blocks"}
SMALL = 3  # roundings: a fault no larger than that, in its worst part, is counted apart
SHARE = 0.98
LEAST = {"healthy": 200, "faults": 300, "declared": {True: 1500, False: 1000}}
SLOWEST = 10


def show(cases, outcomes, before=None, whole=True):
    """Prints all of it; the exit code. `before` are another binary's outcomes of the same traces; `whole` says that no
    case was left out."""
    pairs = defaultdict(list)
    for case, outcome, other in zip(cases, outcomes, before or outcomes):
        pairs[case.part].append((case, outcome, other))
    plain = {part: [(case, outcome) for case, outcome, _ in those] for part, those in pairs.items()}
    failures = [f"{case.name}: {outcome.error.strip()}" for case, outcome in zip(cases, outcomes) if outcome.error]
    healthy = [pair for part in ("healthy", "real") for pair in plain.get(part, [])]
    if healthy:
        failures += alarms(healthy) + too_few("traces of right engines", len(healthy), LEAST["healthy"], whole)
    if "wide" in pairs:
        failures += ways(pairs["wide"], before)
        for declared, least in LEAST["declared"].items():
            count = sum(case.fault is None and case.declared == declared for case in cases)
            failures += too_few(f"traces of right engines, {'' if declared else 'un'}declared", count, least,
                                whole and "healthy" in pairs)
    if "faults" in pairs:
        failures += misses(plain["faults"], whole)
    for part in ("undeclared faults", "wide faults"):
        if part in pairs:
            strengths(part, pairs[part], before)
    if "promises" in pairs or "real faults" in pairs:
        failures += promises(plain.get("promises", []) + plain.get("real faults", []))
    if "limits" in pairs:
        limits(plain["limits"])
    if before:
        failures += beside(cases, outcomes, before)
    answers(cases, outcomes, before)
    for failure in failures:
        print(f"NOT MET: {failure}")
    return int(bool(failures))


def row(*cells):
    print("| " + " | ".join(map(str, cells)) + " |")


def head(*cells):
    row(*cells)
    print("|" + "---|" * len(cells))


def wrong_of(case, outcome):
    """A false alarm: an answer, and not a right one."""
    return case.fault is None and not outcome.right and not outcome.silent


def alarms(pairs):
    wrong = [pair for pair in pairs if wrong_of(*pair)]
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
    return [f"false alarm: {case.name}: {told(outcome)}" for case, outcome in wrong]


def ways(those, before):
    """Right engines that compute in other ways, by way; declared and not."""
    wrong = [(case, outcome) for case, outcome, _ in those if wrong_of(case, outcome)]
    print(f"\n{len(those):,} traces of right engines that compute in other ways: {len(wrong)} false alarms, "
          f"{sum(bool(o.silent) for _, o, _ in those)} without an answer.\n")
    both = " (the other build → this one)" if before else ""
    head(f"false alarms / traces{both}", "declared", "nothing declared", "without an answer", "nearest to an alarm")
    lines = defaultdict(list)
    for case, outcome, other in those:
        lines[case.variant].append((case, outcome, other))
    for way, of in [*lines.items(), ("all", those)]:
        cells = []
        for declared in (True, False):
            part = [(c, o, b) for c, o, b in of if c.declared == declared]
            cells.append(changed([wrong_of(c, b) for c, _, b in part], [wrong_of(c, o) for c, o, _ in part], before)
                         + f" / {len(part)}" if part else "")
        silent = changed([bool(b.silent) for *_, b in of], [bool(o.silent) for _, o, _ in of], before)
        near = max((o.closest[1] for _, o, _ in of if o.right and o.closest), default=0.0)
        row(way, *cells, "" if silent == "0" else silent, f"{near:.2f}")
    return [f"false alarm: {case.name}: {told(outcome)}" for case, outcome in wrong]


def changed(before, now, shown):
    """A count; with another build's in front of it."""
    return f"{sum(before)} → {sum(now)}" if shown else str(sum(now))


def too_few(what, count, least, whole):
    return [f"{count} {what}, at least {least} are needed"] if whole and count < least else []


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


def misses(pairs, whole):
    large = [pair for pair in pairs if counted(pair[1])]
    small = [pair for pair in pairs if pair[1].expected and not counted(pair[1])]
    none = len(pairs) - len(large) - len(small)
    print(f"\n{len(large):,} planted faults; {len(small)} more that were smaller than {SMALL} roundings of the operation "
          f"({sum(o.right for _, o in small)} found), {none} that changed no recorded value.\n")
    failures = too_few("planted faults", len(large), LEAST["faults"], whole)
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


STRENGTHS = (0, 1, 3, 5, 10, 30, 100, float("inf"))


def strengths(part, those, before):
    """Faults by kind, by size and by what they are planted on; found at the right tap, and found at all."""
    real = [(c, o, b) for c, o, b in those if o.expected or b.expected]
    print(f"\n{part}: {len(real):,} that changed a recorded value. Found at the right tap / any divergence / faults"
          f"{' (the other build → this one)' if before else ''}:\n")
    groups = [("size in roundings", lambda c, o: strength(o)),
              ("kind", lambda c, o: f"{c.group} {c.fault.size}" if part == "wide faults" else c.group.split(":")[0])]
    if part == "wide faults":
        groups.append(("planted on", lambda c, o: c.variant))
    for title, key in groups:
        head(title, "declared", "nothing declared")
        lines = defaultdict(list)
        for one in real:
            lines[key(*one[:2])].append(one)
        names = [f"{low} to {high}" for low, high in zip(STRENGTHS, STRENGTHS[1:])]
        order = [name for name in names if name in lines] if title.startswith("size") else lines
        for name in [*order, "all"]:
            cells = []
            for declared in (True, False):
                of = [(o, b) for c, o, b in (real if name == "all" else lines[name]) if c.declared == declared]
                right = changed([b.right for _, b in of], [o.right for o, _ in of], before)
                any_ = changed([b.verdict == "diverges" for _, b in of], [o.verdict == "diverges" for o, _ in of], before)
                cells.append(f"{right} / {any_} / {len(of)}" if of else "")
            row(name, *cells)
        print()


def strength(outcome):
    return next(f"{low} to {high}" for low, high in zip(STRENGTHS, STRENGTHS[1:])
                if low <= outcome.effect < high or high == outcome.effect)


def beside(cases, outcomes, before):
    """Each trace on which the builds differ; a failure where this one finds fewer faults of some strength."""
    lost, won, found = [], [], defaultdict(lambda: [0, 0])
    for case, now, then in zip(cases, outcomes, before):
        if case.fault is not None:
            of = found[case.part, strength(now)]
            of[0], of[1] = of[0] + then.right, of[1] + now.right
        if now.right != then.right:
            (won if now.right else lost).append(f"{case.part}: {case.name}\n    then {told(then)}\n    now  {told(now)}")
    print(f"\n{len(won)} traces are judged rightly by this build alone, {len(lost)} by the other one alone.")
    for one in lost:
        print(f"LOST {one}")
    return [f"{part}, {size} roundings: {now} faults found at the right tap, {then} by the other build"
            for (part, size), (then, now) in found.items() if now < then]


def answers(cases, outcomes, before):
    """How long answers took, and which did not come."""
    for title, those in (("this build", outcomes), ("the other build", before)):
        if not those:
            continue
        took = sorted((outcome.seconds[1], case.name) for case, outcome in zip(cases, those) if outcome.seconds)
        if not took:
            continue
        at = lambda share: took[min(len(took) - 1, int(share * len(took)))][0]
        silent = Counter(outcome.silent for outcome in those if outcome.silent)
        print(f"\n{title}: {len(those):,} traces; processor seconds to check one: median {at(0.5):.2f}, 90 % {at(0.9):.2f}, "
              f"99 % {at(0.99):.2f}, largest {took[-1][0]:.1f}, in all {sum(s for s, _ in took):,.0f}. Without an answer: "
              f"{', '.join(f'{count} {kind}' for kind, count in silent.items()) or 'none'}.")
        for seconds, name in took[-SLOWEST:][::-1]:
            print(f"  {seconds:.1f} s: {name}")


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
