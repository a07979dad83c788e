"""LoRA adapters in and out: peft computes the same from the same files; a wrong one is told in one line."""
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minillava.checkpoint import load_llava
from minillava.weights.__main__ import main
from minillava.weights.adapters import Adapter, read_adapter, save_adapter
from tests.comparing import edit_json, edit_tensors, message, same

FIXTURES = Path(__file__).parent / "fixtures"
LLAVA = FIXTURES / "llava_hf"
Q = "language_model.layers.0.self_attn.q_proj"
MATRICES = "adapter_model.safetensors"
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture
def folder(tmp_path):
    """The adapter that peft wrote, to be spoilt."""
    return Path(shutil.copytree(FIXTURES / "adapter", tmp_path / "adapter"))


# ---- reading what others wrote ----

def test_the_logits_are_those_of_peft(folder):
    """tests/make_adapter_fixture.py wrote both; its base is the Llama inside this LLaVA."""
    expected = load_file(FIXTURES / "adapter_expected.safetensors")
    for half in ("safetensors", "bin"):
        model, _ = load_llava(folder, base=FIXTURES / "llava", vision=FIXTURES / "clip", **CPU)
        logits = model(expected["input_ids"])
        assert (logits - expected["logits"]).abs().max() <= 1e-5 * expected["logits"].abs().max()
        if half == "safetensors":  # the form of peft 0.4, as in liuhaotian/llava-v1.5-7b-lora
            torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
            (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize("prefix", ["base_model.model.language_model.model.", "base_model.model.model.language_model."])
def test_adapters_trained_on_transformers_own_llava(folder, prefix):
    base, _ = load_llava(folder, base=LLAVA, **CPU)
    edit_tensors(folder / MATRICES, lambda tensors: {name.replace("base_model.model.model.", prefix): tensor.clone()
                                          for name, tensor in tensors.items()})
    assert same(load_llava(folder, base=LLAVA, **CPU)[0], base)


def test_an_official_lora_upon_a_vicuna(folder):
    """liuhaotian/llava-v1.5-7b-lora: the projector is in non_lora_trainables.bin, the tower in a CLIP."""
    projector = torch.load(FIXTURES / "mm_projector.bin", weights_only=True)
    named = {f"base_model.model.{name}": tensor for name, tensor in projector.items()}
    torch.save(named, folder / "non_lora_trainables.bin")
    shutil.copyfile(FIXTURES / "llava" / "config.json", folder / "config.json")
    model, _ = load_llava(folder, base=FIXTURES / "vicuna", vision=FIXTURES / "clip", **CPU)
    upon_llava, _ = load_llava(folder, base=FIXTURES / "llava", vision=FIXTURES / "clip", **CPU)
    assert same(model, upon_llava) and model.config == upon_llava.config
    assert model.config.image_aspect_ratio == "pad"
    words = 2 * model.language_model.embed_tokens.weight.detach()  # an embedding may be trained whole too
    torch.save(named | {"base_model.model.model.embed_tokens.weight": words}, folder / "non_lora_trainables.bin")
    model, _ = load_llava(folder, base=FIXTURES / "vicuna", vision=FIXTURES / "clip", **CPU)
    assert torch.equal(model.language_model.embed_tokens.weight, words)
    (folder / "non_lora_trainables.bin").unlink()
    assert "brings no projector" in message(ValueError, load_llava, folder, base=FIXTURES / "vicuna")


def test_rslora_is_scaled_by_the_root_of_the_rank(folder):
    assert read_adapter(folder).scale == 12 / 3
    edit_json(folder / "adapter_config.json", use_rslora=True)
    assert read_adapter(folder).scale == 12 / 3**0.5


# ---- writing ----

def make_adapter(model, rank=2, alpha=5.0):
    torch.manual_seed(0)
    matrices = {}
    for name, module in model.named_modules():
        if name.startswith("language_model.layers.") and isinstance(module, torch.nn.Linear):
            out, width = module.weight.shape
            matrices[name] = (torch.randn(rank, width), torch.randn(out, rank))
    others = {f"mm_projector.{name}": tensor.detach() + 1 for name, tensor in model.mm_projector.named_parameters()}
    return Adapter(rank, alpha, matrices, others, base=str(LLAVA))


def test_saved_read_and_merged(tmp_path, run):
    model, _ = load_llava(LLAVA, **CPU)
    adapter = make_adapter(model)
    save_adapter(adapter, model.config, tmp_path / "lora")
    again = read_adapter(tmp_path / "lora")
    assert (again.rank, again.alpha, again.base) == (2, 5.0, str(LLAVA))
    for name, halves in adapter.matrices.items():
        assert all(torch.equal(ours, read) for ours, read in zip(halves, again.matrices[name], strict=True))

    names = load_file(tmp_path / "lora" / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names and len(names) == 2 * 2 * 7
    others = torch.load(tmp_path / "lora" / "non_lora_trainables.bin", weights_only=True)
    assert "base_model.model.model.mm_projector.0.weight" in others and len(others) == 4

    merged, tokenizer = load_llava(tmp_path / "lora", **CPU)  # the base is where the adapter says
    A, B = adapter.matrices[Q]
    weight = model.get_parameter(f"{Q}.weight")
    x = torch.randn(3, 32)
    beside = x @ weight.T + 5.0 / 2 * (x @ A.T @ B.T)
    torch.testing.assert_close(merged.get_submodule(Q)(x), beside)
    assert torch.equal(merged.mm_projector[0].bias, model.mm_projector[0].bias + 1)

    out = tmp_path / "plain"
    assert run("merge", "--adapter", tmp_path / "lora", "--base", LLAVA, "--out", out).returncode is None
    plain, _ = load_llava(out, device="cpu")
    in_bf16, _ = load_llava(tmp_path / "lora", base=LLAVA, device="cpu")
    assert same(plain, in_bf16) and plain.config == in_bf16.config


@pytest.mark.parametrize("command", ["merge --base {base} --adapter", "merge --adapter", "convert --to llava --model"])
def test_a_merge_does_not_write_over_its_base(tmp_path, run, command):
    shutil.copytree(LLAVA, tmp_path / "base")
    model, _ = load_llava(LLAVA, **CPU)
    save_adapter(replace(make_adapter(model), base=str(tmp_path / "base")), model.config, tmp_path / "lora")
    (tmp_path / "lora/config.json").unlink()  # peft writes none
    words = command.format(base=tmp_path / "base").split()
    said = run(*words, tmp_path / "lora", "--out", tmp_path / "base")
    assert said.returncode == 2 and f"--out would write over {tmp_path / 'base'}" in said.err
    assert all((tmp_path / "base" / file.name).read_bytes() == file.read_bytes() for file in LLAVA.iterdir())


def test_template_and_aspect_travel_with_the_adapter(tmp_path):
    model, _ = load_llava(LLAVA, **CPU)
    config = replace(model.config, template="plain", image_aspect_ratio="pad", prompt_format="QCM-A")
    save_adapter(make_adapter(model), config, tmp_path)
    loaded, _ = load_llava(tmp_path, base=LLAVA, **CPU)
    assert loaded.config == config


# ---- wrong ones ----

@pytest.mark.parametrize("fields, said", [
    ({"r": 0}, "rank (r) 0 is not a positive int"), ({"r": "8"}, "rank (r) '8'"), ({"r": True}, "rank (r) True"),
    ({"r": 8}, "but adapter_config.json says rank 8"), ({"lora_alpha": 0}, "lora_alpha 0"),
    ({"lora_alpha": float("nan")}, "lora_alpha nan"), ({"lora_alpha": None}, "lora_alpha None"),
    ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"), ({"use_dora": True}, "use_dora True"),
    ({"alpha_pattern": {"q_proj": 9}}, "alpha_pattern"), ({"bias": "all"}, "bias 'all'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),  # its base is another one
    ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens")])
def test_configs_that_would_compute_something_else(folder, fields, said):
    edit_json(folder / "adapter_config.json", **fields)
    assert said in message(ValueError, load_llava, folder, base=LLAVA)


ON_DISK = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("change, said", [
    (lambda tensors: {name: tensors[name] for name in tensors if name != ON_DISK}, f"has not both A and B of {Q}"),
    (lambda tensors: tensors.clear(), "has not both A and B of any layer"),
    (lambda tensors: tensors.update({ON_DISK: torch.zeros(3, 31)}), f"changes a {Q}.weight of [32, 31]"),
    (lambda tensors: tensors.update({ON_DISK: torch.zeros(4, 32)}), "says rank 3"),
    (lambda tensors: tensors.update({ON_DISK: torch.zeros(3, 32, dtype=torch.int32)}), "is not the A or B"),
    (lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.zeros(40, 32)}), "is not the A or B"),
    (lambda tensors: {name.replace("layers.1", "layers.7"): tensor.clone() for name, tensor in tensors.items()},
     "layers.7."),
    (lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1" not in name},
     "is an adapter for 1 layers, but"),
    (lambda tensors: {name.replace("q_proj", "c_attn"): tensor.clone() for name, tensor in tensors.items()}, "c_attn")])
def test_adapters_of_another_base(folder, change, said):
    edit_tensors(folder / MATRICES, change)
    assert said in message(ValueError, load_llava, folder, base=LLAVA)


def test_others_of_another_base(folder):
    torch.save({"base_model.model.model.mm_projector.0.weight": torch.zeros(32, 9)}, folder / "non_lora_trainables.bin")
    assert "mm_projector.0.weight of [32, 9]" in message(ValueError, load_llava, folder, base=LLAVA)


def test_where_is_the_base(folder, tmp_path, run):
    assert "is an adapter on vicuna: give the folder" in message(ValueError, load_llava, folder)
    assert "there is no folder" in message(FileNotFoundError, load_llava, folder, base=tmp_path / "none")
    merge_first = run("quantize", "--model", folder, "--to", "int8", "--out", tmp_path / "x")
    assert merge_first.returncode == 2 and "is an adapter: merge it with its base first" in merge_first.err
    assert "holds no adapter" in run("merge", "--adapter", LLAVA, "--base", LLAVA, "--out", tmp_path / "x").err
    (folder / "adapter_model.safetensors").unlink()
    assert "neither adapter_model" in message(FileNotFoundError, load_llava, folder, base=LLAVA)


def test_a_part_of_the_layers_by_its_own_word(folder):
    edit_tensors(folder / MATRICES, lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1" not in name})
    edit_json(folder / "adapter_config.json", layers_to_transform=[0])
    load_llava(folder, base=LLAVA, device="cpu")
