"""The recording is wrong, the engine is not."""

from ..fault import Fault


class _Capture(Fault):
    """What is recorded of a tap is another tensor than what the engine goes on with."""

    id = "capture-row-mismatch"

    def at(self, engine, right, tap, x):
        right(tap, self.recorded(x) if tap in self.first else x)
        return x


class RowsAround(_Capture):
    first = ("mlp_norm",)
    wrong = "the recorded second norm has the row of the token before, the first row that of the last"

    def recorded(self, x):
        return x.roll(1, 0)


class RowsReversed(_Capture):
    variant = "reversed"
    model, first = "qwen2", ("attn_out",)
    wrong = "rows of the recorded attention output lie in reverse"

    def recorded(self, x):
        return x.flip(0)
