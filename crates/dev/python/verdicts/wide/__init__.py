"""Right engines that do not compute as transformers does: fused and split kernels, mixed formats, short caches, batches.

An engine of its own (crates/dev/python/engine), written with every choice that real engines make differently as a
setting (`way.Way`). It computes every value in float32, rounds it in one place (`kernels.Kernels.at`), and faults are
planted there, before that rounding.
"""
