"""Models whose weights are quantised with scales of their own give exactly what their dequantised twins give."""

import json
import shutil

import pytest
import quantised as q
import tiny
import torch
from firstdiff_binary import AGREES, ERROR
from safetensors.torch import load_file, save_file

IDS = tiny.prompt_ids(21)


def logits(firstdiff, model, out):
    return [step["logits"] for step in firstdiff.trace(model, out, IDS, "--steps", "2")]


def fused(name):
    return name.endswith(("experts.gate_up_proj", "experts.down_proj"))


def expert(name):
    return ".experts." in name and name.endswith("_proj.weight")


CASES = {
    "fp8 blocks": ("qwen3", q.as_fp8(), q.FP8, q.is_projection),
    "fp8 blocks, .scale": ("llama", q.as_fp8(suffix="scale"), q.FP8, q.is_projection),
    "fp8 blocks, some modules": (
        "qwen3",
        q.as_fp8(),
        {**q.FP8, "modules_to_not_convert": ["lm_head", "model.layers.1.self_attn.q_proj"]},
        lambda name: q.is_projection(name) and "layers.1.self_attn.q_proj" not in name,
    ),
    "nvfp4 of compressed-tensors": ("llama", q.as_compressed_nvfp4, q.COMPRESSED_NVFP4, q.is_projection),
    "nvfp4 of modelopt": ("qwen3", q.as_modelopt_nvfp4, q.MODELOPT_NVFP4, q.is_projection),
    "deepseek's fp4 of attention": (
        "llama",
        q.as_deepseek_fp4,
        {**q.FP8, "weight_block_size": [128, 128]},
        lambda name: "self_attn" in name and q.is_projection(name),
    ),
    "gpt-oss blocks of experts": ("qwen3-moe-fused-32", q.as_gpt_oss, {"quant_method": "mxfp4"}, fused),
    "deepseek's fp4 of experts": ("qwen3-moe-32", q.as_deepseek_fp4, q.FP8, expert),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_folder):
    """Name of a configuration -> its folder; mixtures of experts whose sizes are whole blocks too."""
    made = {}

    def folder(name):
        if not name.startswith("qwen3-moe"):
            return tiny_folder(name)
        if name not in made:
            made[name] = mixture(tmp_path_factory.mktemp(name), stacked="fused" in name)
        return made[name]

    return folder


def mixture(folder, stacked):
    """A Qwen3-MoE of 8 experts, each expert's matrices on their own, or all stacked."""
    settings = {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    tiny.make(tiny.Tiny("qwen3-moe-blocks", "qwen3_moe", settings, fused=True), folder)
    stored = load_file(folder / "model.safetensors")
    tensors = {}
    for name, w in stored.items():
        if stacked or not fused(name):
            tensors[name] = w
            continue
        prefix = name.rsplit(".", 1)[0]
        for e, matrix in enumerate(w):
            halves = dict(zip(("gate_proj", "up_proj"), matrix.chunk(2))) if "gate_up" in name else {"down_proj": matrix}
            tensors |= {f"{prefix}.{e}.{module}.weight": half for module, half in halves.items()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_quantised_model_gives_the_logits_of_its_dequantised_twin(firstdiff, source, tmp_path, name):
    config, how, settings, chosen = CASES[name]
    model, twin = q.quantise(source(config), tmp_path, how, settings, chosen)
    stored = load_file(model / "model.safetensors")
    assert any(t.dtype in (torch.float8_e4m3fn, torch.uint8, torch.int8) for t in stored.values())
    ours, theirs = logits(firstdiff, model, tmp_path / "a"), logits(firstdiff, twin, tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    unquantised = logits(firstdiff, source(config), tmp_path / "c")
    assert (ours[0] - unquantised[0]).abs().max() > 1e-2, "quantisation must show"
    # And the twin's trace is one of the quantised model, by every tap, once it does not name the twin's file.
    manifest = json.loads((tmp_path / "b" / "trace.json").read_text())
    del manifest["model"]["fingerprint"]
    (tmp_path / "b" / "trace.json").write_text(json.dumps(manifest))
    result = firstdiff.check(tmp_path / "b", model)
    assert result.code == AGREES, str(result)


def test_transformers_dequantises_to_the_same_logits(firstdiff, source, tmp_path):
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    settings = {**q.FP8, "weight_block_size": [16, 16]}
    model, _ = q.quantise(source("qwen3"), tmp_path, q.as_fp8((16, 16)), settings)
    config = FineGrainedFP8Config(weight_block_size=(16, 16), dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager", quantization_config=config
    ).eval()
    wanted = theirs(torch.tensor([IDS])).logits[0]
    ours = logits(firstdiff, model, tmp_path / "a")[0]
    # The bound of the parity tests for float32.
    assert (ours - wanted).abs().max() < 5e-5


def test_settings_of_modelopt_may_lie_in_a_file_of_their_own(firstdiff, source, tmp_path):
    model, twin = q.quantise(source("qwen3"), tmp_path, q.as_modelopt_nvfp4, q.MODELOPT_NVFP4)
    config = json.loads((model / "config.json").read_text())
    del config["quantization_config"]
    (model / "config.json").write_text(json.dumps(config))
    settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    (model / "hf_quant_config.json").write_text(json.dumps(settings))
    ours, theirs = logits(firstdiff, model, tmp_path / "a"), logits(firstdiff, twin, tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def edit(model, change):
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, model / "model.safetensors", {"format": "pt"})


def refused(firstdiff, model, tmp_path, *said):
    result = firstdiff("trace", model, tmp_path / "refused", "--tokens", "1,2,3", timeout=20)
    assert result.code == ERROR, str(result)
    for words in said:
        assert words in result.stderr, f"{words!r} is not said\n{result}"


Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def fp8(source, tmp_path):
    return q.quantise(source("llama"), tmp_path, q.as_fp8(), q.FP8)[0]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"quant_method": "gptq", "bits": 4}, ["quant_method", "gptq", "compressed-tensors"]),
        ({"quant_method": "bitsandbytes"}, ["bitsandbytes", "modelopt"]),
        ({**q.FP8, "fmt": "e5m2"}, ["fmt", "e5m2"]),
        ({**q.FP8, "weight_block_size": [0, 32]}, ["weight_block_size", "[0,32]"]),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, ["pack-quantized", "nvfp4-pack-quantized"]),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}, ["NVFP4_AWQ", "FP8"]),
        ("fp8", ["quantization_config", "not an object"]),
    ],
)
def test_a_quantisation_that_is_not_supported_is_refused_by_name(firstdiff, fp8, tmp_path, settings, said):
    config = json.loads((fp8 / "config.json").read_text())
    (fp8 / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    refused(firstdiff, fp8, tmp_path, *said)


def test_scales_of_the_wrong_shape_say_both_shapes(firstdiff, fp8, tmp_path):
    def shorten(tensors):
        tensors[f"{Q_PROJ}.weight_scale_inv"] = torch.ones(2, 3)

    edit(fp8, shorten)
    refused(firstdiff, fp8, tmp_path, f"{Q_PROJ}.weight", "[64, 64]", f"{Q_PROJ}.weight_scale_inv", "[2, 3]", "[2, 2]")


def test_a_block_of_another_size_than_declared_is_refused(firstdiff, fp8, tmp_path):
    config = json.loads((fp8 / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [128, 128]
    (fp8 / "config.json").write_text(json.dumps(config))
    refused(firstdiff, fp8, tmp_path, "blocks of 128 x 128", "[1, 1]")


def test_missing_scales_are_named(firstdiff, fp8, tmp_path):
    edit(fp8, lambda tensors: tensors.pop(f"{Q_PROJ}.weight_scale_inv"))
    refused(firstdiff, fp8, tmp_path, f"{Q_PROJ}.weight", f"{Q_PROJ}.weight_scale_inv", "missing")


def test_a_scale_that_is_not_a_number_is_named(firstdiff, fp8, tmp_path):
    def spoil(tensors):
        tensors[f"{Q_PROJ}.weight_scale_inv"][1, 0] = torch.nan

    edit(fp8, spoil)
    refused(firstdiff, fp8, tmp_path, f"{Q_PROJ}.weight", "block (1, 0)", f"{Q_PROJ}.weight_scale_inv", "NaN")


def test_integer_weights_with_scales_are_refused(firstdiff, fp8, tmp_path):
    def integers(tensors):
        tensors[f"{Q_PROJ}.weight"] = torch.ones(64, 64, dtype=torch.int8)

    edit(fp8, integers)
    refused(firstdiff, fp8, tmp_path, f"{Q_PROJ}.weight", "I8", "F32")


def test_scales_for_activations_are_listed_and_not_needed(firstdiff, fp8, tmp_path):
    edit(fp8, lambda tensors: tensors.update({f"{Q_PROJ}.input_scale": torch.tensor(0.5)}))
    report = firstdiff("inspect", fp8, "--format", "json").json
    usage = {t["name"]: t["usage"] for t in report["tensors"]}
    assert usage[f"{Q_PROJ}.input_scale"] == "ignored"
    storage = {t["name"]: t["storage"] for t in report["tensors"]}
    assert storage[f"{Q_PROJ}.weight"] == "FP8+scales"


def test_scales_may_lie_in_another_shard_than_their_weight(firstdiff, fp8, tmp_path):
    tensors = load_file(fp8 / "model.safetensors")
    other = shutil.copytree(fp8, tmp_path / "sharded")
    (other / "model.safetensors").unlink()
    scales = [n for n in tensors if n.endswith("_scale_inv")]
    index = {n: "b.safetensors" if n in scales else "a.safetensors" for n in tensors}
    for shard in ("a.safetensors", "b.safetensors"):
        save_file({n: tensors[n] for n in tensors if index[n] == shard}, other / shard, {"format": "pt"})
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    one, two = logits(firstdiff, fp8, tmp_path / "a"), logits(firstdiff, other, tmp_path / "b")
    assert torch.equal(one[0], two[0])
