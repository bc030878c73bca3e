"""Values of the wrong size: a factor forgotten or applied twice, a constant that is added or dropped."""

from .planting import ENDS, EVERYWHERE, FEW, PROJECTIONS, ROWS, Kind, noise_like, sized


def scaled(factor):
    return lambda value, where: value * factor


def shifted(size):
    """The same random vector added to every token: another bias."""

    def change(value, where):
        row = noise_like(value[:1], seed=11)
        return value + size * value.double().pow(2).mean().sqrt() * row / row.pow(2).mean().sqrt()

    return change


def raised(size):
    """One constant added to every element."""
    return lambda value, where: value + size * value.double().pow(2).mean().sqrt()


def without_bias(_):
    return lambda value, where: value - where.module.bias


def bias_twice(_):
    return lambda value, where: value + where.module.bias


BIASED = ("qwen2", "llama-biases", "qwen2-window", "blocks-qwen2")

KINDS = [
    Kind("common factor", sized(0.5, 0.9, 1.003, 1.01, 1.02, 1.05, 1.25, -1.0, words="x{}"), EVERYWHERE, scaled),
    Kind("common factor", sized(1.0001, 1.001, words="x{}"), EVERYWHERE, scaled, formats=("f32",)),
    Kind("bias-like offset", sized(0.01, 0.05, 0.2, words="{} of rms"), (*PROJECTIONS, *ROWS, *ENDS), shifted),
    Kind("constant offset", sized(0.01, 0.05, 0.5, words="{} of rms"), FEW, raised),
    Kind("bias dropped", sized(0, words="all of it"), PROJECTIONS, without_bias, models=BIASED),
    Kind("bias added twice", sized(0, words="all of it"), PROJECTIONS, bias_twice, models=BIASED),
]
