"""Every planted fault, one file an area. A new file is one line here."""

from importlib import import_module

from ..fault import Fault

AREAS = ("rope", "positions", "projections", "norm", "attention", "kernels", "cache", "mlp", "experts", "gemma", "ends", "weights",
         "linear", "quant", "scaled", "batch", "capture", "unknown")  # fmt: skip


def _all():
    for area in AREAS:
        module = import_module(f"{__name__}.{area}")
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, Fault) and value.__module__ == module.__name__:
                if not name.startswith("_"):
                    yield value


def _by_title():
    faults = {}
    for fault in _all():
        if fault.title() in faults:
            raise ValueError(f"two faults are called {fault.title()}")
        faults[fault.title()] = fault
    return faults


# title (the id; id.variant; none.variant) -> class
FAULTS = _by_title()
