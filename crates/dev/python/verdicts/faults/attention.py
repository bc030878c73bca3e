"""Attention that is wrong: the scale, the mask, what the softmax sums over, which head reads what."""

import torch

from .planting import Kind, sized

NOTHING = sized(0, words="-")


def scale(factor):
    return lambda value, where: value * factor


def probabilities(edit):
    """The softmax done again over edited scores; `where.given` are the masked scores [heads, tokens, keys]."""

    def change(value, where):
        scores = where.given.to(value.dtype)
        return edit(scores, allowed(scores), where).to(value.dtype)

    return change


def allowed(scores):
    return scores > -1e4


def with_sink(logit):
    """A further logit that takes its share and is dropped, where the model has none."""

    def edit(scores, seen, where):
        sink = torch.full((*scores.shape[:-1], 1), float(logit), dtype=scores.dtype)
        return torch.cat((scores, sink), -1).softmax(-1)[..., :-1]

    return probabilities(edit)


def first_key_dropped(_):
    def edit(scores, seen, where):
        scores = scores.clone()
        scores[:, 1:, 0] = -torch.inf
        if where.past:
            scores[:, :, 0] = -torch.inf
        return scores.softmax(-1)

    return probabilities(edit)


def own_key_dropped(_):
    """Strictly before: a token does not see itself (the first one must)."""

    def edit(scores, seen, where):
        scores = scores.clone()
        dropped = max(0, where.past + scores.shape[1] - scores.shape[2])  # by a window's cache
        for row in range(scores.shape[1]):
            if where.past + row:
                scores[:, row, where.past + row - dropped] = -torch.inf
        return scores.softmax(-1)

    return probabilities(edit)


def scale_inside(factor):
    """Scores scaled once more before the softmax, after they were looked at."""
    return probabilities(lambda scores, seen, where: torch.where(seen, scores * factor, -torch.inf).softmax(-1))


def capped(limit):
    """tanh soft-capping, where the model has none."""
    return probabilities(lambda s, seen, where: torch.where(seen, limit * torch.tanh(s / limit), -torch.inf).softmax(-1))


def over_padding(keys):
    """The denominator also counts keys that are not there, of score 0."""

    def edit(scores, seen, where):
        more = torch.zeros((*scores.shape[:-1], int(keys)), dtype=scores.dtype)
        return torch.cat((scores, more), -1).softmax(-1)[..., : scores.shape[-1]]

    return probabilities(edit)


def not_rescaled(_):
    """Online softmax in blocks of 8 keys, in which earlier weights are not faded when a higher score comes."""

    def edit(scores, seen, where):
        blocks = scores.split(8, -1)
        top, parts = None, []
        for block in blocks:
            here = block.amax(-1, keepdim=True)
            top = here if top is None else torch.maximum(top, here)
            parts.append((block - top).exp())
        weights = torch.cat(parts, -1)
        return weights / weights.sum(-1, keepdim=True)

    return probabilities(edit)


def last_keys_missing(count):
    """The last keys do not count towards the result: a tail that is not a whole vector."""

    def edit(scores, seen, where):
        probs = scores.softmax(-1)
        if probs.shape[-1] > count + 1:
            probs[..., -int(count) :] = 0
        return probs

    return probabilities(edit)


KINDS = [
    Kind("attention: scale", sized(4.0, 2.0, 0.5, words="x{}"), ("attn_scores",), scale),
    Kind("attention: sink that is not there", sized(0.0, 2.0, -3.0, words="logit {}"), ("attn_probs",), with_sink),
    Kind("attention: first key dropped", NOTHING, ("attn_probs",), first_key_dropped),
    Kind("attention: own key dropped", NOTHING, ("attn_probs",), own_key_dropped),
    Kind("attention: scale inside the softmax", sized(1.1, 1.4427, words="x{}"), ("attn_probs",), scale_inside),
    Kind("attention: soft-capping", sized(5.0, words="{}"), ("attn_probs",), capped),
    Kind("attention: padding in the denominator", sized(1, 8, words="{} keys"), ("attn_probs",), over_padding),
    Kind("attention: online softmax not rescaled", NOTHING, ("attn_probs",), not_rescaled),
    Kind("attention: last keys missing", sized(1, 3, words="{}"), ("attn_probs",), last_keys_missing),
]
