"""A second inference engine, in torch, that shares nothing with firstdiff: traces of it, healthy and with planted faults.

    from engine import record
    from engine.faults import FAULTS

    record("qwen3", "bf16", "out.trace")                                  # healthy: prefill of 24, then 5 greedy steps
    record("qwen3", "f32", "out.trace", faults=[FAULTS["rope-theta-wrong"]], taps="modules", chunk=8)

Models are the tiny ones of tests/tiny.py (kept in target/dev/tiny); arithmetics f32, bf16, f16, q8, q4; `record` returns
the trace's folder, the model's path for `firstdiff check --model`, and the tokens.

To plant a fault: write a class in faults/<area>.py that overrides operations of the engine; fault.py says how. One that
needs no class of its own:

    class Louder(Fault):
        variant, model, first = "louder", "llama", ("up_proj",)
        def at(self, engine, right, tap, x):
            return right(tap, x * 1.01 if tap == "up_proj" and engine.layer == 3 else x)

    record("llama", "f32", "out.trace", faults=[Louder])

`python -m engine.selftest` holds the healthy engine against transformers and firstdiff; `python -m engine.verify` plants
every fault and prints where firstdiff finds it.
"""

from .engine import OPERATIONS, Engine
from .fault import Fault
from .record import MODULES, Recorded, record

__all__ = ["OPERATIONS", "Engine", "Fault", "MODULES", "Recorded", "record"]
