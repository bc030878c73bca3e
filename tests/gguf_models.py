"""GGUF files by way of the `gguf` package: into transformers (exact float32 weights), and tiny ones written from scratch.

This is the independent reading that firstdiff's own is compared with, so nothing of firstdiff is used here.
"""

import json
from functools import cached_property
from pathlib import Path

import gguf
import jinja2
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

LAYER_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_MODULES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Experts are stacked; transformers holds those of gate and up in one tensor.
EXPERT_MODULES = {"ffn_gate_inp": "mlp.gate"}
STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
FAMILIES = {"gemma3": "gemma3_text", "qwen3moe": "qwen3_moe"}
MODULES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def layer_modules(architecture):
    return LAYER_MODULES | EXPERT_MODULES | (GEMMA_MODULES if architecture == "gemma3" else {})


def hub_name(name, architecture="llama"):
    """`blk.3.attn_q.bias` -> `model.layers.3.self_attn.q_proj.bias`"""
    if name.startswith("blk."):
        _, layer, module, part = name.split(".")
        return f"model.layers.{layer}.{layer_modules(architecture)[module]}.{part}"
    module, part = name.rsplit(".", 1)
    return f"{MODULES[module]}.{part}"


def heads_first(rows, heads):
    """Undoes the converter's row order of llama's q and k: [heads, D/2, 2] back to [heads, 2, D/2]."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def pairs_first(rows, heads):
    """The converter's row order of llama's q and k."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


class GgufModel:
    """One GGUF file: its settings, its float32 weights, its tokenizer's texts, its chat template."""

    def __init__(self, path):
        self.path = Path(path)
        self.reader = gguf.GGUFReader(self.path)
        self.family = self.field("general.architecture")

    def field(self, key, default=None):
        field = self.reader.fields.get(key)
        return default if field is None else field.contents()

    def setting(self, key, default=None):
        return self.field(f"{self.family}.{key}", default)

    @cached_property
    def config(self):
        tensors = {t.name: t for t in self.reader.tensors}
        heads = self.setting("attention.head_count")
        extra = {}
        if self.family == "gemma3":
            extra = {"head_dim": self.setting("attention.key_length"), "sliding_window": self.setting("attention.sliding_window"),
                     "query_pre_attn_scalar": self.setting("attention.key_length"),
                     "final_logit_softcapping": self.setting("final_logit_softcapping")}
        if self.family == "qwen3moe":  # llama.cpp always normalises
            extra = {"head_dim": self.setting("attention.key_length"), "num_experts": self.setting("expert_count"),
                     "num_experts_per_tok": self.setting("expert_used_count"), "norm_topk_prob": True,
                     "moe_intermediate_size": self.setting("expert_feed_forward_length")}
        return extra | {
            "model_type": FAMILIES.get(self.family, self.family),
            "vocab_size": int(tensors["token_embd.weight"].shape[1]),
            "hidden_size": self.setting("embedding_length"),
            "intermediate_size": self.setting("feed_forward_length"),
            "num_hidden_layers": self.setting("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.setting("attention.head_count_kv", heads),
            "max_position_embeddings": self.setting("context_length"),
            "rms_norm_eps": self.setting("attention.layer_norm_rms_epsilon"),
            "rope_theta": self.setting("rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in tensors,
            "bos_token_id": self.field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.field("tokenizer.ggml.eos_token_id"),
        }

    def weights(self):
        """Hub name -> float32 tensor, llama's q and k back in the order of the hub's files."""
        heads = {"attn_q": self.config["num_attention_heads"], "attn_k": self.config["num_key_value_heads"]}
        stacks = {}
        for tensor in self.reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            values = np.array(values, dtype=np.float32).reshape([int(n) for n in tensor.shape[::-1]])
            module = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
            if module in STACKS:
                stacks[tensor.name] = torch.from_numpy(values)
                continue
            if self.family == "llama" and module in heads:
                values = heads_first(values, heads[module])
            if self.family == "gemma3" and tensor.name.endswith("norm.weight"):
                values = values - 1  # the converter added it
            yield hub_name(tensor.name, self.family), torch.from_numpy(np.ascontiguousarray(values))
        for layer in range(self.config["num_hidden_layers"] if stacks else 0):
            gate, up, down = (stacks[f"blk.{layer}.{stack}.weight"] for stack in STACKS)
            yield f"model.layers.{layer}.mlp.experts.gate_up_proj", torch.cat([gate, up], 1)
            yield f"model.layers.{layer}.mlp.experts.down_proj", down

    def to_transformers(self, dtype=torch.float32, attention="eager"):
        """The model in transformers, every weight set from the file."""
        config = AutoConfig.for_model(self.config["model_type"], **{k: v for k, v in self.config.items() if k != "model_type"})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
        state = {name: values.to(dtype) for name, values in self.weights()}
        if config.tie_word_embeddings:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state, assign=True, strict=True)
        # frequencies are no parameters: they were made on the meta device and hold nothing yet
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
        if config.model_type == "gemma3_text":
            embedding = model.model.embed_tokens
            embedding.embed_scale = torch.tensor(embedding.scalar_embed_scale)
        model.tie_weights()
        return model.eval()

    def render_chat(self, messages):
        """The chat template as transformers runs it: blocks trimmed, the generation prompt added."""
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        template = environment.from_string(self.field("tokenizer.chat_template"))
        tokens = self.field("tokenizer.ggml.tokens")
        special = {f"{kind}_token": tokens[self.field(f"tokenizer.ggml.{kind}_token_id")] for kind in ("bos", "eos")}
        return template.render(messages=messages, add_generation_prompt=True, tools=None, **special)

    @cached_property
    def token_bytes(self):
        """Each token's bytes: byte-level BPE writes them as printable characters, special tokens stand as they are."""
        if self.field("tokenizer.ggml.model") == "llama":  # sentencepiece
            return [self.piece_bytes(text) for text in self.field("tokenizer.ggml.tokens")]
        kinds = self.field("tokenizer.ggml.token_type")
        alphabet = {character: byte for byte, character in byte_alphabet().items()}
        plain = gguf.TokenType.NORMAL
        return [
            bytes(alphabet[c] for c in text) if kind == plain else text.encode()
            for text, kind in zip(self.field("tokenizer.ggml.tokens"), kinds)
        ]

    @staticmethod
    def piece_bytes(text):
        """`<0x0A>` is one byte; U+2581 stands for a space."""
        if text.startswith("<0x") and len(text) == 6:
            return bytes([int(text[3:5], 16)])
        return text.replace("\u2581", " ").encode()

    def decode(self, ids):
        return b"".join(self.token_bytes[i] for i in ids).decode(errors="replace")


def byte_alphabet():
    """Byte -> the character byte-level BPE writes for it: printable bytes as themselves, the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}


def in_whole_blocks(config, weights):
    """Blocks are 32 wide: every row of a tiny model is a whole number of them, except intermediate_size 80, and experts' 48."""
    config = config | {"intermediate_size": 64}
    config |= {"moe_intermediate_size": 32} if "moe_intermediate_size" in config else {}
    return config, {name: narrowed(name, tensor) for name, tensor in weights.items()}


def narrowed(name, tensor):
    if "experts.gate_up_proj" in name:
        return torch.cat([half[:, :32] for half in tensor.chunk(2, 1)], 1)
    if "experts.down_proj" in name:
        return tensor[..., :32].contiguous()
    if "gate_proj" in name or "up_proj" in name:
        return tensor[:64].contiguous()
    return tensor[:, :64].contiguous() if "down_proj.weight" in name else tensor


def stacked(weights):
    """Weights with the converter's names for stacked experts in place of transformers' two tensors."""
    for name, tensor in weights.items():
        at, _, part = name.rpartition(".mlp.experts.")
        if part == "gate_up_proj":
            for stack, half in zip(STACKS, tensor.chunk(2, 1)):
                yield f"{at}.{stack}.weight", half.contiguous()
        elif at:
            yield f"{at}.ffn_down_exps.weight", tensor
        else:
            yield name, tensor


def write(path, config, weights, kind=gguf.GGMLQuantizationType.F32, rope_freqs=None, says_no_tokenizer=False):
    """A GGUF without a tokenizer from hub-style settings and weights, as the usual converter lays it out.

    llama.cpp wants to be told that there is none.
    """
    family, heads = {hub: short for short, hub in FAMILIES.items()}.get(config["model_type"], config["model_type"]), config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    writer = gguf.GGUFWriter(path, family)
    writer.add_name("tiny")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    if says_no_tokenizer:
        writer.add_tokenizer_model("none")
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    if family == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
        if config.get("final_logit_softcapping"):
            writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if family == "qwen3moe":
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    modules = {hub: short for short, hub in MODULES.items()}
    modules_of_layers = {hub: short for short, hub in layer_modules(family).items()}
    for name, tensor in stacked(weights):
        values = tensor.float().numpy()
        module, part = name.rsplit(".", 1)
        if family == "gemma3" and module.endswith("norm"):
            values = values + 1
        if module in modules:
            short = f"{modules[module]}.{part}"
        else:
            layer, inner = module.removeprefix("model.layers.").split(".", 1)
            short = f"blk.{layer}.{modules_of_layers.get(inner, inner)}.{part}"
            if family == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
                values = pairs_first(values, heads if "q_proj" in inner else kv_heads)
        # As converters do it: routers stay in float32.
        quantised = kind if values.ndim > 1 and "ffn_gate_inp" not in short else gguf.GGMLQuantizationType.F32
        if quantised == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(short, np.ascontiguousarray(values))
        else:
            writer.add_tensor(short, gguf.quants.quantize(np.ascontiguousarray(values), quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)
