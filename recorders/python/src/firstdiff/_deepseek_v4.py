"""Where transformers' DeepSeek-V4 shows what: module outputs, what attention is given, and what happens inside
hyper-connections. The names are those of docs/TRACE.md."""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ._attention import ScoreWatcher, watch
from ._cache import given
from ._forward import Forward, is_one_sequence
from ._wrap import around

_ATTENTION = ("q_rope", "kv_rope", "kv_cache", "attn_keys", "visible_keys", "attn_scores", "attn_probs", "attn_heads")


def attach(recorder: Any) -> None:
    """Hooks every tap of the model."""
    _Taps(recorder).attach()


class _Taps:
    def __init__(self, recorder: Any) -> None:
        self.r = recorder
        self.config = recorder.model.config

    def attach(self) -> None:
        model = self.r.model.model
        self.r._output(model.embed_tokens, "embed")
        for index, layer in enumerate(model.layers):
            self._layer(layer, f"layers.{index}.")
        if len(model.layers):
            self.r._input(model.layers[0], "hc_streams")
        self._hyper(model.hc_head, "hc_head", ("hc_head",))
        self.r._output(model.norm, "final_norm")
        watched = [
            layer.self_attn
            for index, layer in enumerate(model.layers)
            if any(self.r.wants(f"layers.{index}.{tap}") for tap in _ATTENTION)
        ]
        if self.r.attention and watched:
            self.r._undo.append(watch(self.r.implementation, watched, self._attend))

    def _layer(self, layer: nn.Module, at: str) -> None:
        r, attn, mlp = self.r, layer.self_attn, layer.mlp
        self._hyper(layer.attn_hc, at + "hc_attn", (at + "hc_attn_post", at + "hc_attn_mix", at + "hc_attn_in"))
        r._output(layer.input_layernorm, at + "attn_norm")
        r._output(attn.q_a_proj, at + "q_a_proj")
        r._output(attn.q_a_norm, at + "q_a_norm")
        r._output(attn.q_b_proj, at + "q_proj")
        self._picked(attn.q_b_norm, at + "q_norm", lambda out: out.transpose(1, 2))
        r._output(attn.kv_proj, at + "kv_proj")
        r._output(attn.kv_norm, at + "kv_norm")
        if attn.compressor is not None:
            self._compressor(attn.compressor, at)
        r._input(attn.o_a_proj, at + "attn_unrotated", self.config.num_attention_heads, groups=True)
        r._output(attn.o_a_proj, at + "attn_groups")
        r._output(attn.o_b_proj, at + "attn_out")
        if r.attention and r.wants_any(at + tap for tap in ("kv_rope", "kv_cache")):
            hook = functools.partial(self._watch_cache, at)
            r._undo.append(attn.register_forward_pre_hook(hook, with_kwargs=True).remove)
        r._input(layer.ffn_hc, at + "attn_resid")
        self._hyper(layer.ffn_hc, at + "hc_ffn", (at + "hc_ffn_post", at + "hc_ffn_mix", at + "hc_ffn_in"))
        r._output(layer.post_attention_layernorm, at + "mlp_norm")
        for number, tap in enumerate(("router_logits", "router_weights", "router_topk")):
            self._picked(mlp.gate, at + tap, functools.partial(self._flat, number))
        if isinstance(mlp.gate.score_fn, nn.Module):
            self._picked(mlp.gate.score_fn, at + "router_scores", functools.partial(self._flat, None))
        self._picked(mlp.experts, at + "experts_out", functools.partial(self._flat, None))
        shared = mlp.shared_experts
        r._output(shared.gate_proj, at + "shared_gate_proj")
        r._output(shared.up_proj, at + "shared_up_proj")
        r._input(shared.down_proj, at + "shared_act")
        r._output(shared, at + "shared_out")
        r._output(mlp, at + "mlp_out")
        r._output(layer, at + "out")

    def _compressor(self, compressor: nn.Module, at: str) -> None:
        self._pooling(compressor, at, ("comp_kv", "comp_gate", "comp_pool", "comp_norm"))
        self._whole(compressor, at, lambda out: out[0][0, 0], ("kv_entry", "kv_entries"), at + "comp_norm")
        indexer = getattr(compressor, "indexer", None)
        if indexer is None:
            return
        self._pooling(indexer, at, ("index_kv", "index_gate", "index_pool", "index_norm"))
        self.r._output(indexer.q_b_proj, at + "index_q_proj")
        self.r._output(indexer.scorer.weights_proj, at + "index_weights")
        self.r._output(indexer.scorer, at + "index_scores")
        self._picked(indexer, at + "index_topk", functools.partial(_filled, indexer.index_topk))

        def scored(_module: nn.Module, args: tuple) -> None:
            call = self.r._current
            if call is not None and self.r.wants(at + "index_q"):
                self.r._take(at + "index_q", args[0])
            self._entries(call, at, args[1][0], ("index_entry", "index_entries"), at + "index_norm")

        self.r._undo.append(indexer.scorer.register_forward_pre_hook(scored).remove)

    # ---- pieces ---------------------------------------------------------------------------------------------------

    def _flat(self, number: Optional[int], out: Any) -> torch.Tensor:
        """Routers and experts see all tokens of a batch in one list."""
        out = out if number is None else out[number]
        call = self.r._current
        return out.reshape(call.batch, call.tokens, out.shape[-1])

    def _picked(self, module: nn.Module, tap: str, pick: Callable[[Any], torch.Tensor]) -> None:
        if self.r.wants(tap):

            def hook(_module: nn.Module, _args: tuple, out: Any) -> None:
                if self.r._current is not None:
                    self.r._take(tap, self.r.session.guard(lambda: pick(out)))

            self.r._undo.append(module.register_forward_hook(hook).remove)

    def _pooling(self, module: nn.Module, at: str, taps: tuple) -> None:
        kv, gate, pool, norm = (at + tap for tap in taps)
        self.r._output(module.kv_proj, kv)
        self.r._output(module.gate_proj, gate)

        def hook(_module: nn.Module, args: tuple, out: torch.Tensor) -> None:
            # rows are the blocks that this call completes
            self._rows(pool, args[0][0])
            self._rows(norm, out[0], always=True)

        self.r._undo.append(module.kv_norm.register_forward_hook(hook).remove)

    def _whole(self, module: nn.Module, at: str, pick: Callable, taps: tuple, norm: str) -> None:
        def hook(_module: nn.Module, _args: tuple, out: Any) -> None:
            self._entries(self.r._current, at, pick(out), taps, norm)

        self.r._undo.append(module.register_forward_hook(hook).remove)

    def _entries(self, call: Optional[Forward], at: str, entries: torch.Tensor, taps: tuple, norm: str) -> None:
        """All entries, and the last of them: those that this call completed, of which `norm` saw so many."""
        new = 0 if call is None else self._new.get(norm, 0)
        self._new.pop(norm, None)
        if entries.shape[0]:
            self._rows(at + taps[1], entries)
        if new:
            self._rows(at + taps[0], entries[-new:])

    @property
    def _new(self) -> dict[str, int]:
        call = self.r._current
        if call is None:
            return {}
        if not hasattr(call, "closed"):
            call.closed = {}
        return call.closed

    def _rows(self, tap: str, rows: torch.Tensor, always: bool = False) -> None:
        call = self.r._current
        if call is None:
            return
        if always:
            self._new[tap] = rows.shape[0]
        if not self.r.wants(tap):
            return
        if not is_one_sequence(call):
            self.r.session.note("compressed entries left out: a batch has no single list of them")
            return
        self.r.session.guard(lambda: self.r.keep(call, tap, rows))

    # ---- hyper-connections ------------------------------------------------------------------------------------------

    def _hyper(self, module: nn.Module, at: str, outputs: tuple) -> None:
        self.r._output(module.input_norm, at + "_norm")
        for number, tap in enumerate(outputs):
            self._picked(module, tap, (lambda out, n=number: out[n]) if len(outputs) > 1 else (lambda out: out))
        taps = (at + "_proj", at + "_pre")
        if not self.r.attention or not any(self.r.wants(tap) for tap in taps):
            return

        def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self.r._current is None or not self.r.session.alive:
                return original(*args, **kwargs)
            with _HyperWatcher() as seen:
                result = original(*args, **kwargs)
            for tap, value in zip(taps, (seen.projection, seen.weights)):
                if value is not None and self.r.wants(tap):
                    self.r._take(tap, value)
            return result

        self.r._undo.append(around(vars(module), "forward", module.forward, forward))

    # ---- attention --------------------------------------------------------------------------------------------------

    def _attend(self, inner: Callable[..., Any], module: Any, query: Any, key: Any, value: Any, *args: Any, **kw: Any):
        r, call = self.r, self.r._current
        if call is None or not r.session.alive:
            return inner(module, query, key, value, *args, **kw)
        at = f"layers.{module.layer_idx}."
        mask = args[0] if args else kw.get("attention_mask")
        r.session.guard(lambda: self._before(call, at, module, query, key, mask))
        single = is_one_sequence(call)
        if single and r.wants(at + "attn_scores"):
            keep = lambda scores: r.session.guard(lambda: _copy(scores[0]))
            with ScoreWatcher(query, keep) as watcher:
                result = inner(module, query, key, value, *args, **kw)
            if watcher.scores is not None:
                call.taps[at + "attn_scores"] = watcher.scores
        else:
            result = inner(module, query, key, value, *args, **kw)
        if r.wants(at + "attn_heads"):
            r._take(at + "attn_heads", result[0])
        if single and result[1] is not None and r.wants(at + "attn_probs"):
            r.session.guard(lambda: r.keep(call, at + "attn_probs", result[1][0]))
        return result

    def _before(self, call: Forward, at: str, module: Any, query: Any, key: Any, mask: Any) -> None:
        r = self.r
        if r.wants(at + "q_rope"):
            r._take(at + "q_rope", query.transpose(1, 2))
        if not is_one_sequence(call):
            r.session.note("keys and masks left out: a batch has no single set of visible keys")
            return
        keys = key[0].transpose(0, 1)
        if module.compressor is None:
            if r.wants(at + "kv_cache"):
                r.keep(call, at + "kv_cache", keys)
        elif r.wants(at + "attn_keys"):
            r.keep(call, at + "attn_keys", keys)
        if r.wants(at + "visible_keys"):
            if mask is None:
                seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.float16)
            else:
                seen = (mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0).to(torch.float16)
                seen = seen.expand(query.shape[2], -1)[:, : key.shape[2]]
            r.keep(call, at + "visible_keys", seen)

    def _watch_cache(self, at: str, module: Any, _args: tuple, kwargs: dict) -> None:
        """Sees a key on its way into the cache, and what the cache gives back."""
        r, cache, call = self.r, given(kwargs), self.r._current
        if cache is None or call is None or r._restore_cache is not None or not r.session.alive:
            return

        def update(original: Any, keys: Any, values: Any, layer_idx: int, *args: Any, **kw: Any) -> Any:
            result = original(keys, values, layer_idx, *args, **kw)
            if r._current is call:
                name = f"layers.{layer_idx}."
                if r.wants(name + "kv_rope"):
                    r._take(name + "kv_rope", keys.transpose(1, 2))
                if r.wants(name + "kv_cache") and is_one_sequence(call):
                    r.session.guard(lambda: r.keep(call, name + "kv_cache", result[0][0].transpose(0, 1)))
            return result

        r.wrap_update(cache, update)


class _HyperWatcher(TorchFunctionMode):
    """Catches the first projection inside a hyper-connection, and the first sigmoid with what is added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.projection: Optional[torch.Tensor] = None
        self.weights: Optional[torch.Tensor] = None
        self._open = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        result = func(*args, **(kwargs or {}))
        if name == "linear" and self.projection is None:
            self.projection = result
        elif name == "sigmoid" and self.weights is None:
            self.weights, self._open = result, True
        elif self._open and any(arg is self.weights for arg in args):
            if name in ("add", "__add__", "__radd__", "__iadd__") and not isinstance(args[-1], torch.Tensor):
                self.weights = result
            self._open = False
        return result


def _filled(count: int, chosen: torch.Tensor) -> torch.Tensor:
    """A choice of fewer entries than there may be is filled up with -1."""
    return torch.nn.functional.pad(chosen, (0, count - chosen.shape[-1]), value=-1)


def _copy(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
