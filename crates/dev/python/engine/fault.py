"""What a planted fault is: operations of one engine replaced by wrong ones.

A fault is a class. A method named like one of `engine.OPERATIONS` replaces that operation; it gets the engine, the right
operation, and the operation's arguments:

    class ThetaOfAnotherModel(Fault):
        id = "rope-theta-wrong"                  # docs/HYPOTHESES.md; "" where no class fits
        variant = ""                             # tells several faults of one class apart
        model = "qwen3"                          # a name in `models.py`
        first = ("q_rope", "k_rope")             # the first wrong taps when all are recorded
        wrong = "theta 10000 where the model has 1000000"

        def frequencies(self, engine, right):
            return plain(1e4, engine.config.head_dim), 1.0

`engine.layer`, `engine.call`, `engine.positions`, `engine.ids`, `engine.length` say where the engine is. To edit a single
value, replace `at(self, engine, right, tap, x)` and return `right(tap, edited)`. A fault instance belongs to one engine, so
it may keep state in `self`; `begin(engine)` runs once after planting.
"""

from functools import partial

from .engine import OPERATIONS

ALL = ("f32", "bf16", "f16", "q8")


class Fault:
    """Base of every planted fault. Class attributes describe it, methods make it."""

    id = ""
    variant = ""
    model = "llama"
    first = ()
    wrong = ""
    layers = None  # the layers that are wrong in themselves; None for all, () where the tap has no layer
    step = 0  # the first wrong step
    chunk = None  # prefill in pieces of so many tokens
    prompt = 24
    steps = 5
    hides = ()  # taps that an engine with this fault could not show, such as scores inside one kernel
    arithmetics = ALL
    faint = ()  # arithmetics in which it is about as small as rounding: found or not, both are right
    faint_outside = ()  # the same for module outputs only
    needs = ()  # taps elsewhere that the cause can be seen from
    cancels = False  # what follows is unchanged: module outputs have nothing to show
    batch = None  # lengths of several prompts that run together, left-padded to the longest

    def begin(self, engine):
        """Changes that are no operation: once, before the first token."""

    def plant(self, engine):
        for operation in OPERATIONS:
            replacement = getattr(self, operation, None)
            if replacement is not None:
                setattr(engine, operation, partial(replacement, engine, getattr(engine, operation)))
        self.begin(engine)

    @classmethod
    def title(cls):
        """Unique: the id, and the variant where there is one; "none" stands for no class."""
        return ".".join(part for part in (cls.id or "none", cls.variant) if part)
