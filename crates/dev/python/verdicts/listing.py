"""Every case of the bench, in parts."""

from dataclasses import replace

import faults
import healthy
from faults import limits, promises

PARTS = {
    "healthy": healthy.cases,
    "real": healthy.real,
    "faults": faults.cases,
    "promises": promises.cases,
    "real faults": promises.real,
    "limits": limits.cases,
}
UNMEASURED = ("limits", "real faults")  # their sizes are their names


def cases(only=""):
    names = only.split(",") if only else PARTS
    return [replace(case, part=name, measured=name not in UNMEASURED) for name in names for case in PARTS[name]()]
