"""The bugs of tests/bugs.py, where a person would have written them, in every arithmetic that can show them."""

import planted

from .planting import patched_fault


def faults():
    """(model, fault) pairs."""
    return [
        (bug.model, patched_fault("as written", bug.name.replace("_", " "), bug.tap, bug.plant, bug.layers, bug.step))
        for bug in planted.BUGS
    ]
