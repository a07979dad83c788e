"""Every official layout in, one out; what is wrong with a file is said in one line."""
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from minillava.checkpoint import load_language, load_llava, load_vision
from minillava.conversation import render
from minillava.images import IMAGE_MEAN, load_image
from minillava.llama import LanguageConfig
from minillava.llava import IMAGE_TOKEN, Llava, LlavaConfig
from minillava.tokenizer import Tokenizer
from minillava.vit import VisionConfig, VisionTower
from minillava.weights import configs, layouts
from minillava.weights.__main__ import main
from minillava.weights.devices import choose_dtype, find_device
from minillava.weights.folders import refuse_to_lose, write_folder
from minillava.weights.saving import save_clip, save_clip_vision, save_language, save_llava, save_original_llava
from tests.comparing import edit_json, edit_tensors, message, same

FIXTURES = Path(__file__).parent / "fixtures"
PARTS = {"vision": FIXTURES / "clip", "language": FIXTURES / "vicuna", "projector": FIXTURES / "mm_projector.bin"}


@pytest.fixture
def copy(tmp_path):
    """A fixture folder that a test may spoil."""
    return lambda name: Path(shutil.copytree(FIXTURES / name, tmp_path / name))


# ---- what the files say ----

def test_left_out_fields_have_the_defaults_of_transformers(copy):
    defaults = json.loads((FIXTURES / "defaults.json").read_text())
    assert LanguageConfig(**defaults["llama"]) == LanguageConfig() == configs.parse_language_config({}, "")
    assert VisionConfig(**defaults["clip"]) == VisionConfig() == configs.parse_vision_config({}, "")
    assert defaults["llava_vision"] == layouts.CLIP_L | {"layer_norm_eps": VisionConfig.layer_norm_eps}
    assert defaults["llava_vision_feature_layer"] == LlavaConfig.vision_feature_layer


def test_config_of_a_llava_1_5_on_the_hub():
    """llava-hf/llava-1.5-7b-hf, which leaves out nearly everything about its language model."""
    text = {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32064}
    config = configs.parse_language_config(text, "config.json")
    assert config == LanguageConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                                    num_attention_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5)
    assert (config.head_dim, config.num_key_value_heads, config.rope_theta) == (128, 32, 10000.0)
    assert config.tie_word_embeddings is False and config.rope_scaling is None


@pytest.mark.parametrize("fields", [{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
                                    {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}}])
def test_rope_in_the_words_of_transformers_4_and_5(fields):
    config = configs.parse_language_config(fields, "")
    assert (config.rope_theta, config.rope_scaling) == (5e5, {"rope_type": "linear", "factor": 4.0})


@pytest.mark.parametrize("fields, said", [
    ({"model_type": "mistral"}, "model_type 'mistral' is not supported"), ({"attention_bias": True}, "attention_bias"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "llama3"), ({"rope_scaling": {"factor": 4.0}}, "4.0} is not"),
    ({"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 4.0}}, "'default', 'factor': 4.0} is not"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 8192}}, "high_freq_factor > low_freq_factor")])
def test_what_would_compute_something_else_is_refused(copy, fields, said):
    folder = copy("vicuna")
    edit_json(folder / "config.json", **fields)
    assert said in message(ValueError, load_language, folder)


@pytest.mark.parametrize("name, file, fields, said", [
    ("vicuna", "config.json", {"hidden_size": "32"}, "config.json: hidden_size '32' is not a positive int"),
    ("vicuna", "config.json", {"num_hidden_layers": -1}, "num_hidden_layers -1 is not a positive int"),
    ("vicuna", "config.json", {"num_hidden_layers": 10**30}, "num_hidden_layers 1000"),
    ("vicuna", "config.json", {"num_attention_heads": True}, "num_attention_heads True"),
    ("vicuna", "config.json", {"rms_norm_eps": None}, "rms_norm_eps None is not a positive float"),
    ("vicuna", "config.json", {"tie_word_embeddings": "no"}, "tie_word_embeddings 'no' is not a bool"),
    ("vicuna", "config.json", {"rope_scaling": "linear"}, "rope_scaling 'linear' is not a JSON object"),
    ("vicuna", "config.json", {"rope_scaling": {"type": "linear", "factor": "4"}}, "rope scaling"),
    ("vicuna", "config.json", {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn"}}, "yarn"),
    ("llava_hf", "config.json", {"text_config": [1]}, "text_config [1] is not a JSON object"),
    ("llava_hf", "config.json", {"vision_feature_layer": [-2, -5]}, "vision_feature_layer [-2, -5]"),
    ("llava_hf", "config.json", {"vision_feature_layer": -9}, "vision_feature_layer -9 is none of a tower of 3 layers"),
    ("llava_hf", "preprocessor_config.json", {"image_mean": 0.5}, "image_mean 0.5 is not three numbers"),
    ("llava_hf", "preprocessor_config.json", {"image_std": [0, 1, 1]}, "image_std [0, 1, 1] is not positive"),
    ("llava_hf", "preprocessor_config.json", {"resample": 2}, "resample 2 is not supported"),
    ("llava_hf", "preprocessor_config.json", {"size": {"shortest_edge": 48}}, "size {'shortest_edge': 48} is not"),
    ("llava_hf", "preprocessor_config.json", {"size": {"height": 24, "width": 24}}, "size {'height': 24, 'width': 24}"),
    ("llava_hf", "preprocessor_config.json", {"crop_size": 48}, "crop_size 48 is not"),
    ("llava_hf", "preprocessor_config.json", {"do_center_crop": False}, "do_center_crop False is not supported"),
    ("llava_hf", "preprocessor_config.json", {"rescale_factor": 1 / 127.5}, "rescale_factor"),
    ("llava_hf", "minillava.json", {"template": "v9"}, "template 'v9' is not supported"),
    ("llava_hf", "minillava.json", {"projector": 2}, "projector 2 is not supported"),
    ("llava_hf", "tokenizer_config.json", {"legacy": "false"}, "legacy 'false' is neither true nor false"),
    ("llava_hf", "tokenizer_config.json", {"added_tokens_decoder": {"x": 7}}, "added tokens"),
    ("llava_hf", "tokenizer_config.json", {"added_tokens_decoder": {"41": {"content": ""}}}, "added tokens"),
    ("llava_hf", "tokenizer_config.json", {"bos_token": ["<s>"]}, "bos_token")])
def test_fields_of_a_wrong_type(copy, name, file, fields, said):
    folder = copy(name)
    if not (folder / file).exists():
        (folder / file).write_text("{}")
    edit_json(folder / file, **fields)
    assert said in message(ValueError, load_llava if name == "llava_hf" else load_language, folder)


def test_a_float_may_be_written_as_an_int_and_a_field_be_null():
    config = configs.parse_language_config({"rope_theta": 3580165449, "head_dim": None, "rope_scaling": None}, "")
    assert config.rope_theta == 3580165449 and config.head_dim == 128 and config.rope_scaling is None


def test_fields_of_a_llava(copy):
    llava, hf = copy("llava"), copy("llava_hf")
    config = load_llava(llava, vision=FIXTURES / "clip")[0].config
    assert (config.projector, config.vision_feature_layer, config.image_aspect_ratio) == ("mlp2x_gelu", -2, "pad")
    edit_json(llava / "config.json", mm_vision_select_layer=-1, image_aspect_ratio=...)
    config = load_llava(llava, vision=FIXTURES / "clip")[0].config
    assert (config.vision_feature_layer, config.image_aspect_ratio) == (-1, "square")
    edit_json(llava / "config.json", image_aspect_ratio="anyres")
    assert "image_aspect_ratio 'anyres'" in message(ValueError, load_llava, llava, vision=FIXTURES / "clip")

    assert load_llava(hf)[0].config.image_aspect_ratio == "square"
    edit_json(hf / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5], do_pad=True, do_center_crop=False,
              size={"height": 24, "width": 24})
    config = load_llava(hf)[0].config
    assert (config.image_aspect_ratio, config.image_mean) == ("pad", (0.5, 0.5, 0.5))
    (hf / "processor_config.json").write_text(json.dumps({"image_processor": {"image_std": [0.5, 0.5, 0.5]}}))
    assert load_llava(hf)[0].config.image_std == (0.5, 0.5, 0.5)
    edit_json(hf / "config.json", vision_feature_select_strategy="full")
    assert "vision_feature_select_strategy 'full'" in message(ValueError, load_llava, hf)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("flag, used", [(False, False), (True, True), (..., True)])
def test_tokens_around_the_image_are_the_configs(tmp_path, tokenizer, added, flag, used):
    words = [tokenizer.add(token) for token in ("<im_start>", "<im_end>") if added]
    save_original_llava(tiny(vocab_size=42), tokenizer, tmp_path / "a")
    (tmp_path / "a" / "minillava.json").unlink()
    edit_json(tmp_path / "a" / "config.json", mm_use_im_start_end=flag)
    if flag is True and not added:
        assert "has not both <im_start> and <im_end>" in message(ValueError, load_llava, tmp_path / "a")
        return
    save_original_llava(*load_llava(tmp_path / "a", device="cpu"), tmp_path / "b")
    for name in ("a", "b"):
        model, tokenizer = load_llava(tmp_path / name)
        tokenizer = tokenizer.changed(tokenizer.as_json())  # as --new-word does
        ids, _ = render([("human", "<image>"), ("gpt", None)], tokenizer, "vicuna_v1", 1)
        assert model.config.mm_use_im_start_end is (words == [40, 41] == [i for i in ids if i >= 40]) is (used and added)


def test_dtype_and_sharing_of_memory():
    dtypes = lambda loaded: {parameter.dtype for parameter in loaded[0].parameters()}
    assert dtypes(load_llava(FIXTURES / "llava_hf")) == {torch.bfloat16}
    assert dtypes(load_llava(FIXTURES / "llava", vision=FIXTURES / "clip")) == {torch.float16}
    assert dtypes(load_llava(FIXTURES / "llava_hf", dtype="float32")) == {torch.float32}
    model, _ = load_language(FIXTURES / "llama_tied")
    assert model.lm_head.weight is model.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llava_hf", "llava"])
def test_training_does_not_write_to_the_files(copy, name):
    spoilt, vision = copy(name), FIXTURES / "clip" if name == "llava" else None
    load = lambda folder: load_llava(folder, vision=vision, device="cpu")[0]
    with torch.no_grad():
        for parameter in load(spoilt).parameters():
            parameter.add_(1)
    assert same(load(spoilt), load(FIXTURES / name))


# ---- layouts ----

def test_composed_equals_the_whole():
    whole, _ = load_llava(FIXTURES / "llava", vision=FIXTURES / "clip")
    assert same(whole, load_llava(**PARTS, dtype="float16")[0])


def test_bin_equals_safetensors(copy):
    clip = copy("clip")
    torch.save(load_file(clip / "model.safetensors"), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()
    assert same(load_vision(clip), load_vision(FIXTURES / "clip"))
    torch.save(torch.load(clip / "pytorch_model.bin"), clip / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert same(load_vision(clip), load_vision(FIXTURES / "clip"))  # the format before torch 1.6


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_vision_alone(copy, prefix):
    """A CLIPVisionModel, as transformers 5 and 4 write it."""
    clip = copy("clip")
    whole = load_file(clip / "model.safetensors")
    tensors = {name.replace("vision_model.", prefix): whole[name] for name in whole if name.startswith("vision_model.")}
    save_file(tensors | {f"{prefix}embeddings.position_ids": torch.arange(10)[None]}, clip / "model.safetensors")
    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps(config["vision_config"]))
    assert same(load_vision(clip), load_vision(FIXTURES / "clip"))


@pytest.mark.parametrize("kind, names", [("linear", [""]), ("mlp1x_gelu", ["0."]), ("mlp2x_gelu", ["0.", "2."]),
                                         ("mlp3x_gelu", ["0.", "2.", "4."])])
def test_projectors(tmp_path, kind, names):
    tensors = {f"model.mm_projector.{name}weight": torch.randn(32, 32) for name in names}
    tensors |= {f"model.mm_projector.{name}bias": torch.randn(32) for name in names}
    torch.save(tensors, tmp_path / "mm_projector.bin")
    model = load_llava(**PARTS | {"projector": tmp_path / "mm_projector.bin"}, dtype="float32")[0]
    assert model.config.projector == kind
    loaded = {f"model.mm_projector.{name}": tensor for name, tensor in model.mm_projector.state_dict().items()}
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[name], tensors[name]) for name in tensors)

    new = load_llava(**PARTS | {"projector": kind})[0]  # the same kind, yet to be trained
    assert [p.shape for p in new.mm_projector.parameters()] == [p.shape for p in model.mm_projector.parameters()]


def test_projector_of_another_language_model(tmp_path):
    parts = PARTS | {"projector": tmp_path / "mm_projector.bin"}
    tensors = {"model.mm_projector.weight": torch.randn(48, 32), "model.mm_projector.bias": torch.randn(48)}
    torch.save(tensors, parts["projector"])
    assert "mm_projector.weight is torch.float32 [48, 32]" in message(ValueError, load_llava, **parts)
    torch.save(tensors | {"model.embed_tokens.weight": torch.randn(2, 48)}, parts["projector"])
    assert "model.embed_tokens.weight" in message(ValueError, load_llava, **parts)


def test_llava_with_its_own_tower(copy):
    """As in v1.6 and merged LoRAs; nothing there describes the tower but its shapes."""
    llava = copy("llava")
    tower = VisionTower(VisionConfig(128, 96, 2, 2, 24, 8)).half()
    prefix = "model.vision_tower.vision_tower.vision_model."
    tensors = {prefix + name: tensor for name, tensor in tower.state_dict().items()}
    tensors |= {"model.mm_projector.weight": torch.randn(32, 128), "model.mm_projector.bias": torch.randn(32)}
    language = load_file(FIXTURES / "vicuna" / "model.safetensors")
    save_file(tensors | language, llava / "model.safetensors")
    edit_json(llava / "config.json", mm_projector_type=...,  # linear
              mm_vision_tower="hub/models--openai--clip-vit-tiny/snapshots/ce19166")
    model = load_llava(llava, dtype="float16")[0]
    assert model.config.vision_config == tower.config and model.config.projector == "linear"
    assert torch.equal(model.vision_tower.encoder.layers[1].mlp.fc2.weight, tower.encoder.layers[1].mlp.fc2.weight)
    assert "leave vision= away" in message(ValueError, load_llava, llava, vision=FIXTURES / "clip")

    # another's heads may be of any width: its config.json says, the weights are those inside
    edit_json(llava / "config.json", mm_vision_tower="laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    assert "but does not describe it" in message(ValueError, load_llava, llava)
    described = replace(tower.config, num_attention_heads=4)
    save_clip_vision(dict(tower.named_parameters()), replace(model.config, vision_config=described), llava / "tower")
    other = load_llava(llava, vision=llava / "tower", dtype="float16")[0]
    assert other.config.vision_config == described and same(other, model)


def test_which_tower(copy):
    llava = copy("llava")
    assert "download openai/tiny" in message(ValueError, load_llava, llava)
    edit_json(llava / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336")
    assert "for images of 24 pixels" in message(ValueError, load_llava, llava, vision=FIXTURES / "clip")
    edit_json(llava / "config.json", mm_vision_tower=str(FIXTURES / "clip"))
    assert same(load_llava(llava)[0], load_llava(FIXTURES / "llava", vision=FIXTURES / "clip")[0])


@pytest.mark.parametrize("added", [["<im_patch>", "<im_start>", "<im_end>"],
                                   ["[PAD]", "<im_patch>", "<im_start>", "<im_end>"]])
def test_delta(tmp_path, copy, added, monkeypatch, capsys):
    """The vocabularies 32003 and 32004: three or four tokens more than the base has."""
    delta, extra = copy("vicuna"), len(added)
    base = load_file(FIXTURES / "vicuna" / "model.safetensors")
    whole = {name: (tensor.half() + 0.5 if tensor.ndim == 2 else tensor.half()) for name, tensor in base.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        whole[name] = torch.cat([whole[name], torch.randn(extra, 32).half()])
    difference = {name: tensor.clone() for name, tensor in whole.items()}
    for name, tensor in base.items():
        difference[name][: len(tensor)] -= tensor.half()
    projector = {f"model.mm_projector.{kind}": torch.randn(shape).half()
                 for kind, shape in (("weight", (32, 32)), ("bias", (32,)))}
    save_file(difference | projector, delta / "model.safetensors")
    edit_json(delta / "config.json", vocab_size=40 + extra, mm_vision_tower=str(FIXTURES / "clip"),
              mm_use_im_start_end=True, model_type="llama")
    (delta / "added_tokens.json").write_text(json.dumps({token: 40 + i for i, token in enumerate(added)}))

    command = ["checkpoint", "apply-delta", "--base", str(FIXTURES / "vicuna"), "--delta", str(delta), "--out"]
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "out")])
    main()
    model, tokenizer = load_llava(tmp_path / "out")
    for name, tensor in model.language_model.state_dict().items():
        name = name if name.startswith("lm_head") else f"model.{name}"
        expected = difference[name].clone()
        expected[: len(base[name])] += base[name].half()
        assert torch.equal(tensor, expected)
    assert torch.equal(model.mm_projector.weight, projector["model.mm_projector.weight"])
    assert model.config.template == ("llava_v0" if "[PAD]" in added else "vicuna_v1")
    assert model.config.mm_use_im_start_end
    assert tokenizer.image_ends == (40 + extra - 2, 40 + extra - 1)

    edit_tensors(delta / "model.safetensors", lambda tensors: tensors.update({"model.new.weight": torch.zeros(1)}))
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "out2")])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "model.new.weight" in said
    assert not (tmp_path / "out2").exists()


# ---- strictness ----

HEAD = "language_model.lm_head.weight"


@pytest.mark.parametrize("change, said", [
    (lambda tensors: tensors.pop(HEAD), "lacks language_model.lm_head.weight"),
    (lambda tensors: tensors.update(image_newline=torch.zeros(32)), "unexpected image_newline"),
    (lambda tensors: tensors.update({HEAD: torch.zeros(47, 32)}), f"{HEAD} is torch.float32 [47, 32]"),
    (lambda tensors: tensors.update({HEAD: torch.zeros(48, 32, dtype=torch.int8)}), f"{HEAD} is torch.int8"),
    (lambda tensors: tensors.update({"lm_head.weight": tensors[HEAD].clone()}), "lm_head.weight is there twice")])
def test_strict(copy, change, said):
    folder = copy("llava_hf")
    tensors = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    assert said in message(ValueError, load_llava, folder)


def test_tied_head_that_differs(copy):
    folder = copy("llama_grouped")
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert "ties lm_head.weight" in message(ValueError, load_language, folder)
    edit_tensors(folder / "model.safetensors",
                 lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    load_language(folder)


@pytest.mark.parametrize("special, field", [(False, "name"), (True, "bos_token"), (True, "eos_token")])
def test_a_tokenizer_of_another_model(copy, special, field):
    """Control tokens may lie beyond the table, as <image> does here; a word, <s> or </s> may not."""
    folder = copy("vicuna")
    parsed = json.loads((folder / "tokenizer.json").read_text())
    word = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    parsed["added_tokens"] += [word | {"id": 40, "content": "<image>", "special": True},
                               word | {"id": 41, "content": "Zorp", "special": special}]
    edit_json(folder / "tokenizer.json", **parsed)
    if special:
        load_language(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({field: "Zorp"}))
    assert "'Zorp' is id 41, but the model has 40 words" in message(ValueError, load_language, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "Zorp"}))  # as of some Llama-2
    load_language(folder)


def test_wrong_folders(tmp_path, copy):
    assert "hf download" in message(FileNotFoundError, load_llava, "llava-hf/llava-1.5-7b-hf")
    assert "config.json" in message(FileNotFoundError, load_llava, tmp_path)
    assert "no projector" in message(ValueError, load_llava, FIXTURES / "vicuna")
    assert "language=" in message(ValueError, load_llava, vision=FIXTURES / "clip", language=FIXTURES / "vicuna")
    assert "model_type 'llama'" in message(ValueError, load_vision, FIXTURES / "vicuna")
    folder = copy("vicuna")
    (folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor pytorch_model.bin" in message(FileNotFoundError, load_language, folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "LoRA" in message(ValueError, load_language, folder)


# ---- files from strangers ----

class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_pickle_that_wants_to_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for new in (True, False):
        tensors = {"model.mm_projector.weight": torch.zeros(1), "x": Evil()}
        torch.save(tensors, "new.bin", _use_new_zipfile_serialization=new)
        assert "run code" in message(ValueError, load_llava, **PARTS | {"projector": "new.bin"})
    Path("plain.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    message(ValueError, load_llava, **PARTS | {"projector": "plain.bin"})
    assert not Path("evil").exists()


@pytest.mark.parametrize("table, said", [
    ({"a": {"b": torch.zeros(1)}}, "not a table"), ({7: torch.zeros(1)}, "not a table"),
    ({"mm_projector.weight": torch.eye(32).to_sparse()}, "not a table"),
    ({"mm_projector.weight": torch.empty(32, 32, device="meta")}, "not a table"),
    ({"mm_projector.0.bias": torch.zeros(32), "model.mm_projector.0.bias": torch.zeros(32)}, "0.bias twice")])
def test_a_pickle_of_something_else(tmp_path, table, said):
    torch.save(table, tmp_path / "projector.bin")
    assert said in message(ValueError, load_llava, **PARTS | {"projector": tmp_path / "projector.bin"})


@pytest.mark.parametrize("file", ["../vicuna/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", 7])
def test_an_index_that_points_outside(copy, file):
    folder = copy("llava_hf")
    edit_json(folder / "model.safetensors.index.json", weight_map={"x": file})
    assert "not a file of its own folder" in message(ValueError, load_llava, folder)


@pytest.mark.parametrize("spoil", [
    lambda data: data[: len(data) // 2], lambda data: data[:5], lambda data: b"",
    lambda data: b"<html>not found</html>",
    lambda data: b"\xff" * 7 + b"\x7f" + data[8:]])  # a safetensors header of 2^63 bytes
def test_damaged_files(copy, spoil):
    load_bin = lambda folder: load_llava(folder, vision=FIXTURES / "clip")
    for name, load in (("vicuna/model.safetensors", load_language),
                       ("llava/pytorch_model-00002-of-00002.bin", load_bin)):
        folder = copy(name.split("/")[0])
        path = folder / Path(name).name
        path.write_bytes(spoil(path.read_bytes()))
        assert Path(name).name in message(ValueError, load, folder)


def test_a_clone_without_git_lfs_says_what_is_missing(copy):
    path = copy("vicuna") / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9976576152\n")
    assert "git lfs pull, or hf download" in message(ValueError, load_language, path.parent)


def test_a_whole_llava_is_no_language_model_alone(copy):
    for name in ("llava", "llava_hf"):
        assert "is a whole LLaVA: chat with it as --model" in message(ValueError, load_language, copy(name))


def test_a_tensor_that_two_shards_hold(copy):
    folder = copy("llava_hf")
    first, second, _ = sorted(folder.glob("*.safetensors"))
    name = min(load_file(first))
    edit_tensors(second, lambda tensors: tensors.update({name: load_file(first)[name]}))
    assert f"{second} holds {name}, as another" in message(ValueError, load_llava, folder)


def test_missing_shard_and_bad_json(copy):
    folder = copy("llava_hf")
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing" in message(FileNotFoundError, load_llava, folder)
    (folder / "config.json").write_text("{")
    assert "config.json" in message(ValueError, load_llava, folder)


def test_images_that_cannot_be_had(tmp_path, monkeypatch):
    assert "no image" in message(FileNotFoundError, load_image, tmp_path / "none.png")
    assert "cannot be opened" in message(OSError, load_image, tmp_path)
    (tmp_path / "text.png").write_text("hello")
    assert "is not an image" in message(ValueError, load_image, tmp_path / "text.png")
    (tmp_path / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert "is not an image" in message(ValueError, load_image, tmp_path / "program.png")
    for name in ("a.png", "a.jpg", "a.gif", "a.webp", "a.bmp"):
        Image.effect_noise((64, 64), 50).save(tmp_path / name)
        load_image(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-700])
        assert "is damaged" in message(ValueError, load_image, tmp_path / name)
    Image.new("L", (2000, 2000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "over 2,000 pixels" in message(ValueError, load_image, tmp_path / "bomb.png")


# ---- saving ----

def tiny(projector="mlp2x_gelu", **language):
    torch.manual_seed(0)
    fields = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
              "num_attention_heads": 4}
    return Llava(LlavaConfig(
        VisionConfig(24, 32, 2, 2, 16, 8), LanguageConfig(**fields | language), projector, -1, "pad",
        (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), template="plain", mm_use_im_start_end=False))


@pytest.fixture
def tokenizer():
    return Tokenizer.load(FIXTURES / "vicuna")


IDS = torch.tensor([[1, 5, IMAGE_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN, IMAGE_TOKEN, 9, 7]])


@pytest.mark.parametrize("make", [
    lambda: tiny(), lambda: tiny("linear"), lambda: tiny("mlp1x_gelu"), lambda: tiny().bfloat16(),
    lambda: tiny(tie_word_embeddings=True, num_key_value_heads=2),
    lambda: tiny(head_dim=8, rope_theta=500.0, rope_scaling={"rope_type": "linear", "factor": 2.0})])
def test_saved_and_loaded(tmp_path, tokenizer, make):
    model = make()
    save_llava(model, tokenizer, tmp_path)
    loaded, loaded_tokenizer = load_llava(tmp_path, device="cpu")
    image_row = {"language_config": replace(model.config.language_config, vocab_size=41)}
    assert loaded.config == replace(model.config, **image_row)
    pixels = torch.randn(1, 3, 16, 16)
    logits, expected = loaded(IDS, pixels), model(IDS, pixels)
    assert torch.equal(logits[..., :40], expected)
    assert (logits[..., 40] <= expected.max(-1).values).all()  # <image> is never the answer
    assert loaded_tokenizer.encode("what <image> is it?") == tokenizer.encode("what <image> is it?")

    save_llava(loaded, loaded_tokenizer, tmp_path / "again")
    again, _ = load_llava(tmp_path / "again", device="cpu")
    assert same(again, loaded) and again.config == loaded.config


def test_saved_files_are_as_readable_as_others(tmp_path, tokenizer):
    save_llava(tiny(), tokenizer, tmp_path)
    (tmp_path / "plain").write_text("")
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1


def test_saved_names_and_fields_are_those_of_the_hub(tmp_path):
    """tests/check_transformers.py opens the folder in transformers itself."""
    model, tokenizer = load_llava(FIXTURES / "llava_hf")
    save_llava(model, tokenizer, tmp_path)
    hub, ours = {}, load_file(tmp_path / "model.safetensors")
    for shard in (FIXTURES / "llava_hf").glob("*.safetensors"):
        hub |= load_file(shard)
    assert ours.keys() == hub.keys() and all(torch.equal(ours[name], hub[name]) for name in hub)
    saved, config = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, FIXTURES / "llava_hf"))
    for name in ("architectures", "model_type", "image_token_index", "projector_hidden_act", "vision_feature_layer",
                 "vision_feature_select_strategy", "torch_dtype", "tie_word_embeddings"):
        assert saved[name] == config[name]
    assert saved["text_config"].items() >= config["text_config"].items()
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_mean"] == list(IMAGE_MEAN)


def test_shards(tmp_path, tokenizer, monkeypatch):
    model = tiny()
    save_llava(model, tokenizer, tmp_path)
    one = sorted(file.name for file in tmp_path.iterdir())
    monkeypatch.setattr("minillava.weights.folders.MAX_SHARD", 10_000)
    save_llava(model, tokenizer, tmp_path)
    files = [file for file in tmp_path.iterdir() if file.suffix == ".safetensors"]
    sizes = [[tensor.nbytes for tensor in load_file(file).values()] for file in files]
    assert len(files) > 2 and all(sum(shard) <= 10_000 or len(shard) == 1 for shard in sizes)
    sharded, _ = load_llava(tmp_path, device="cpu")
    monkeypatch.undo()
    save_llava(sharded, tokenizer, tmp_path)  # over the files it is mapped from
    assert sorted(file.name for file in tmp_path.iterdir()) == one
    assert same(load_llava(tmp_path, device="cpu")[0], sharded)


def test_no_file_of_an_earlier_tokenizer_stays(tmp_path, tokenizer):
    model = tiny(vocab_size=560).language_model
    save_language(model, Tokenizer.load(FIXTURES / "tokenizer"), tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<old>": 300}')
    save_language(model, tokenizer, tmp_path)
    assert load_language(tmp_path, device="cpu")[1].encode("what is it?") == tokenizer.encode("what is it?")
    assert not (tmp_path / "tokenizer.model").exists()
    save_language(model, Tokenizer.load(FIXTURES / "tokenizer"), tmp_path)
    save_language(model, load_language(tmp_path, device="cpu")[1], tmp_path)  # its own: it stays
    assert (tmp_path / "tokenizer.model").read_bytes() == (FIXTURES / "tokenizer" / "tokenizer.model").read_bytes()


def test_a_save_that_fails_leaves_the_old_one(tmp_path, tokenizer, monkeypatch):
    model = tiny()
    save_llava(model, tokenizer, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*args):
        raise OSError("no space left on device")
    monkeypatch.setattr(tokenizer, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_llava(tiny(hidden_size=32), tokenizer, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_save_refuses_what_transformers_cannot_hold(tmp_path, tokenizer):
    assert "mlp3x_gelu" in message(ValueError, save_llava, tiny("mlp3x_gelu"), tokenizer, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_file_of_a_newer_version(tmp_path, tokenizer):
    save_llava(tiny(), tokenizer, tmp_path)
    edit_json(tmp_path / "minillava.json", resampler="perceiver")
    assert "unknown resampler" in message(ValueError, load_llava, tmp_path)


def test_backbones_saved_and_composed(tmp_path, tokenizer):
    model = tiny(tie_word_embeddings=True)
    tower = {f"vision_model.{name}": tensor for name, tensor in model.vision_tower.state_dict().items()}
    save_clip(tower | {"logit_scale": torch.zeros(())}, model.config, {"hidden_size": 8}, 8, tmp_path / "clip")
    save_language(model.language_model, tokenizer, tmp_path / "vicuna")
    assert same(load_vision(tmp_path / "clip", device="cpu"), model.vision_tower)
    assert same(load_language(tmp_path / "vicuna", device="cpu")[0], model.language_model)
    composed, _ = load_llava(vision=tmp_path / "clip", language=tmp_path / "vicuna", projector="linear")
    assert composed.config.image_mean == (0.5, 0.4, 0.3)


# ---- the layout of the official code ----

PROJECTOR = [f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
LAYER = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
         "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]


def test_convert_there_and_back(tmp_path, run):
    """The names that LlavaLlamaForCausalLM asks for, no other; and back again to the same bits."""
    there, moved, back = tmp_path / "there", tmp_path / "moved", tmp_path / "back"
    assert run("convert", "--to", "llava", "--model", FIXTURES / "llava_hf", "--out", there).returncode is None
    names = load_file(there / "model.safetensors").keys()
    layers = {f"model.layers.{i}.{part}.weight" for i in range(2) for part in LAYER}
    assert names == layers | set(PROJECTOR) | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    projector = torch.load(there / "mm_projector.bin", weights_only=True)
    assert projector.keys() == set(PROJECTOR)
    config = json.loads((there / "config.json").read_text())
    assert config["model_type"] == "llava_llama" and config["mm_projector_type"] == "mlp2x_gelu"
    assert Path(config["mm_vision_tower"]).is_absolute() and same(
        load_vision(config["mm_vision_tower"]), load_llava(FIXTURES / "llava_hf")[0].vision_tower)

    there.rename(moved)
    assert run("convert", "--to", "llava-hf", "--model", moved, "--out", back).returncode is None
    model, tokenizer = load_llava(FIXTURES / "llava_hf", device="cpu")
    again, again_tokenizer = load_llava(back, device="cpu")
    assert same(model, again) and model.config == again.config
    assert tokenizer.encode("what <image> is it?") == again_tokenizer.encode("what <image> is it?")


def test_the_official_layout_keeps_what_it_has_no_field_for(tmp_path, tokenizer):
    model = tiny("mlp3x_gelu", tie_word_embeddings=True)
    save_original_llava(model, tokenizer, tmp_path)
    loaded, _ = load_llava(tmp_path, device="cpu")
    assert same(loaded, model) and loaded.config == model.config
    processor = json.loads((tmp_path / "vision_tower" / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "CLIPImageProcessor" and "do_pad" not in processor  # padded before it
    parts = {"vision": tmp_path / "vision_tower", "language": FIXTURES / "vicuna"}
    torch.save(torch.load(tmp_path / "mm_projector.bin"), tmp_path / "copy.bin")
    assert "mm_projector.0.weight" in message(ValueError, load_llava, **parts, projector=tmp_path / "copy.bin")


@pytest.mark.parametrize("command", ["convert --to llava --model {out}", "quantize --to int8 --model {out}",
                                     "convert --to llava-hf --model {other} --vision {out}",
                                     "quantize --to int8 --model {other} --vision {out}",
                                     "apply-delta --base {out} --delta {other}",
                                     "apply-delta --base {other} --delta {out}"])
def test_what_is_read_is_not_written_over(copy, run, command):
    out, other = copy("llava_hf"), copy("vicuna")
    before = {path: path.read_bytes() for path in out.iterdir()}
    said = run(*command.format(out=out, other=other).split(), "--out", out)
    assert said.returncode == 2 and f"--out would write over {out}: name another" in said.err
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    said = run(*command.format(out=out, other=other).split(), "--out", out / "config.json")
    assert said.returncode == 2 and "config.json is a file: name a folder" in said.err


def test_the_tower_in_a_folder_or_named_there_is_not_written_over_either(copy):
    folder, named = copy("llava"), copy("clip")
    tower = folder / "vision_tower"
    tower.mkdir()
    for out, read in ((tower, folder), (folder, tower)):
        assert f"write over {tower}" in message(ValueError, refuse_to_lose, out, read)
    edit_json(folder / "config.json", mm_vision_tower=str(named))
    assert f"write over {named}" in message(ValueError, refuse_to_lose, named, folder)


WRITES = {
    "a folder": ["-m", "minillava.weights", "convert", "--to", "llava-hf", "--model", str(FIXTURES / "llava_hf"),
                 "--out"],
    "a projector": ["-c", "import sys, torch\nfrom pathlib import Path\n"
                          "from minillava.training.results import save_projector\n"
                          "try: save_projector({'weight': torch.zeros(100_000)}, Path(sys.argv[1]) / 'projector.bin')\n"
                          "except OSError as error: sys.exit(f'error: {error}')"],
}


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of that kind")
@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_is_one_line_and_the_old_files_stay(copy, tmp_path, what):
    """A limit on what a file may hold stands for a full disk."""
    def fill():
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    subprocess.run([sys.executable, *WRITES[what], tmp_path / "runs/new"], cwd=FIXTURES.parents[1], preexec_fn=fill,
                   capture_output=True)
    assert not (tmp_path / "runs/new").exists()  # a run that goes on would take it for its result
    out = copy("vicuna")
    before = {path: path.read_bytes() for path in out.iterdir()}
    said = subprocess.run([sys.executable, *WRITES[what], out], cwd=FIXTURES.parents[1], preexec_fn=fill,
                          capture_output=True, text=True)
    assert said.returncode in (1, 2) and said.stderr.startswith("error: "), said.stderr
    assert said.stderr.count("\n") == 1 and "is the disk full?" in said.stderr
    assert before.items() <= {path: path.read_bytes() for path in out.iterdir()}.items()


def test_a_folder_is_there_when_it_is_whole(tmp_path, tokenizer):
    model = tiny("linear")
    (tmp_path / ".new-out-7").mkdir()  # of one that was killed
    (tmp_path / ".new-out-int4-7").mkdir()  # another's, who may be writing it now
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "out", dict(model.named_parameters()), {},
                     save_more=lambda new: (_ for _ in ()).throw(KeyboardInterrupt))
    assert [path.name for path in tmp_path.iterdir()] == [".new-out-int4-7"]
    save_llava(model, tokenizer, tmp_path / "out")
    save_llava(model, tokenizer, tmp_path / "out")  # over the old files
    assert same(load_llava(tmp_path / "out", device="cpu")[0].mm_projector, model.mm_projector)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert not list((tmp_path / "out").glob(".new*"))


def test_a_base_without_an_adapter_an_empty_path_and_a_run(tmp_path):
    assert "goes with an adapter, and the model is none" in message(ValueError, load_llava, base=FIXTURES / "llava_hf")
    assert f"{FIXTURES / 'llava_hf'} is none" in message(ValueError, load_llava, FIXTURES / "llava_hf", base=tmp_path)
    assert "is not a folder of weights" in message(FileNotFoundError, load_llava, "")
    (tmp_path / "config.json").write_text(json.dumps({"command": "train.py", "recipe": {}, "settings": {}}))
    assert f"its model is {tmp_path / 'llava'}" in message(ValueError, load_llava, tmp_path)


# ---- configs and weights that cannot be ----

def edit_section(folder, section, **fields):
    """Of config.json; "" for the fields at its top."""
    path = folder / "config.json"
    edit_json(path, **{section: json.loads(path.read_text())[section] | fields} if section else fields)


@pytest.mark.parametrize("name, section", [("vicuna", ""), ("llava_hf", "text_config"), ("llava_hf", "vision_config")])
def test_millions_of_layers_are_refused_before_they_are_made(copy, monkeypatch, name, section):
    folder = copy(name)
    edit_section(folder, section, num_hidden_layers=10**7)
    monkeypatch.setattr(torch.nn.ModuleList, "__init__", None)  # whoever makes layers fails
    said = message(ValueError, load_language if name == "vicuna" else load_llava, folder)
    assert "num_hidden_layers 10000000" in said


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "vocab_size", "num_attention_heads",
                                   "num_key_value_heads", "head_dim"])
def test_sizes_that_no_machine_has(copy, field):
    folder = copy("vicuna")
    edit_json(folder / "config.json", **{field: 2**31 - 1})
    message(ValueError, load_language, folder)


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "image_size", "patch_size", "num_attention_heads"])
def test_towers_that_no_machine_has(copy, field):
    folder = copy("clip")
    edit_section(folder, "vision_config", **{field: 2**31 - 1})
    message(ValueError, load_vision, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name, quantize", [("norm", None), ("layers.1.mlp.up_proj", "int8"), ("layers.1.mlp.up_proj", "int4")])
def test_weights_of_a_training_that_fell_apart(copy, value, name, quantize):
    """To look at every weight would read a mapped file whole; to quantise it does."""
    folder = copy("vicuna")
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors[f"model.{name}.weight"][-1:].fill_(value))
    assert f"{name}.weight is not finite" in message(ValueError, load_language, folder, quantize=quantize)


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "meta", "", None, "cpu:1"])
def test_devices_that_are_not_here(device):
    assert "there is no device" in message(ValueError, load_vision, FIXTURES / "clip", device=device)


def test_auto_takes_the_best_device_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    assert "cuda" in message(ValueError, find_device, "cuda") and "mps" in message(ValueError, find_device, "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto") == find_device("mps") == torch.device("mps")
    assert "no device 'cuda' here, only mps and cpu" in message(ValueError, find_device, "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("dtype", ["float99", "int8", "nn", "double", "float8_e4m3fn"])
def test_a_dtype_that_nothing_is_computed_in(dtype):
    assert "is none of bfloat16" in message(ValueError, load_vision, FIXTURES / "clip", dtype=dtype)


def test_loading_does_not_wait_for_pytorchs_compiler():
    loads = """import sys
from minillava.checkpoint import load_llava
load_llava()
sys.exit("torch._dynamo" in sys.modules)"""
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", loads], cwd=root).returncode == 0


def test_fast_is_the_dtype_that_the_device_is_good_at():
    cpu = torch.device("cpu")
    for stored, fast in ((torch.float16, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)):
        assert choose_dtype("fast", stored, cpu) == fast and choose_dtype("auto", stored, cpu) == stored
    assert choose_dtype("float16", torch.float32, cpu) == torch.float16
    assert choose_dtype("auto", torch.float64, cpu) == choose_dtype("fast", torch.float64, cpu) == torch.float32


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_floats_of_8_bits_are_refused(copy, name, quantize):
    folder = copy("vicuna")
    edit_tensors(folder / "model.safetensors",
                 lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e5m2)}))
    said = message(ValueError, load_language, folder, quantize=quantize)
    assert f"{name} is torch.float8_e5m2: give the folder in 16 bits" in said
