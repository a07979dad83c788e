"""LoRA adapters (Hu et al. 2021) as peft and LLaVA write them: small matrices beside the weights.

    W' = W + (alpha / rank) B A        A [rank, in], B [out, rank]

A folder holds adapter_config.json, adapter_model.safetensors (or .bin), and non_lora_trainables.bin
with what LLaVA trained whole: the projector. An adapter that trained words too brings embeddings,
head and their tokenizer, which may have more words than the base's. The base is a LLaVA, or a
Vicuna whose projector the adapter brings (liuhaotian/llava-v1.5-7b-lora). Names on disk are those
of the base's layout:

    base_model.model. model.layers.0.self_attn.q_proj .lora_A.weight
"""
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from minillava.files import read_json
from minillava.linear import LoraLinear
from minillava.weights.configs import check_values, is_positive, make_llava_config
from minillava.weights.devices import find_dtype
from minillava.weights.folders import open_folder, write_folder
from minillava.weights.layouts import (LLAVA, LLAVA_HF, LLAVA_HF_5, fields_of_llava, is_llava,
                                       read_llava, read_llava_folder, read_own_fields)
from minillava.weights.saving import original_llava_json, own_fields
from minillava.weights.tensors import read_tensor_file, read_tensors, rename, writing

PEFT = "base_model.model."  # before the base's own name
OTHERS = "non_lora_trainables.bin"
EMBEDDINGS = "language_model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"

# fields of a LlavaConfig that a fine-tune may change
CARRIED = ("template", "image_aspect_ratio", "prompt_format")


@dataclass(frozen=True)
class Adapter:
    rank: int
    alpha: float
    matrices: dict        # name of a linear layer in Llava -> (A [rank, in], B [out, rank])
    others: dict          # trained whole: name of a parameter in Llava -> tensor
    base: str = ""        # folder of the model that it was trained on
    tower: str = ""       # folder of the CLIP beside it, where the base has none
    dropout: float = 0.0  # in training only
    scaled_by_root: bool = False  # "rsLoRA": alpha / sqrt(rank)
    partial: bool = False         # says itself that it leaves layers out

    @property
    def scale(self):
        return self.alpha / (math.sqrt(self.rank) if self.scaled_by_root else self.rank)


def is_adapter(folder):
    return (Path(folder) / "adapter_config.json").exists()


# ---- the sum ----

def read_adapted(folder, base=None, vision=None):
    """An adapter and its base -> (LlavaConfig, tensors, Adapter, folder of the tokenizer)

    The tensors are the base's, and what the adapter brings whole in place of its own.
    """
    folder = Path(folder)
    adapter = read_adapter(folder)
    base = base_folder(folder, adapter, base)
    if is_llava(base):
        config, tensors = read_llava_folder(base, vision)
        fields = own_fields(config) | carried_fields(folder)
        config = make_llava_config(config.vision_config, config.language_config, fields, folder)
    else:
        config, tensors = read_upon_language(folder, adapter, base, vision)

    own_words = EMBEDDINGS in adapter.others and (folder / "tokenizer.json").exists()
    check_fit(adapter, tensors, folder, base, own_words)
    if own_words:
        vocab_size = len(adapter.others[EMBEDDINGS])
        language_config = replace(config.language_config, vocab_size=vocab_size)
        config = replace(config, language_config=language_config)
    tokenizer_folder = folder if own_words else base
    return config, tensors | adapter.others, adapter, tokenizer_folder


def merged(adapter, tensors, dtype="auto"):
    """Each weight with its low-rank part added in fp32; dtype "auto" is the weight's own."""
    tensors = dict(tensors)
    for name, (A, B) in adapter.matrices.items():
        weight = tensors[f"{name}.weight"]
        update = adapter.scale * (B.float() @ A.float())  # [out, in]
        summed = weight.float() + update
        wanted = weight.dtype if dtype in ("auto", "fast") else find_dtype(dtype)
        tensors[f"{name}.weight"] = summed.to(wanted)
    return tensors


def attach(adapter, model):
    """Leaves the weights as they are and puts A and B beside them.

    For weights of few bits, whose steps are wider than what an adapter adds.
    """
    dtype = model.language_model.norm.weight.dtype
    for name, (A, B) in adapter.matrices.items():
        layer = model.get_submodule(name)
        shape, own_shape = [len(B), A.shape[1]], [layer.out_features, layer.in_features]
        if shape != own_shape:
            raise ValueError(f"the adapter changes a {name} of {shape}, "
                             f"but that of the base is {own_shape}")

        beside = LoraLinear(layer, adapter.rank, adapter.alpha)
        beside.A = nn.Parameter(A.to(model.device, dtype), requires_grad=False)
        beside.B = nn.Parameter(B.to(model.device, dtype), requires_grad=False)
        beside.scale = adapter.scale
        model.set_submodule(name, beside)


def read_upon_language(folder, adapter, base, vision):
    """The base is a Vicuna: config.json and the projector are the adapter's."""
    data = read_json(folder / "config.json")
    projector = {f"model.{name}": tensor for name, tensor in adapter.others.items()
                 if name.startswith("mm_projector.")}
    if not projector:
        raise ValueError(f"{base} is not a LLaVA, and {folder} brings no projector: "
                         "give the LLaVA that the adapter was trained on as the base")
    open_folder(base)
    return read_llava(folder, data, read_tensors(base) | projector, vision)


def base_folder(folder, adapter, base):
    """The base that was given, or the one of the adapter's training, where that is still there."""
    if base is not None:
        return Path(base)
    if adapter.base and Path(adapter.base).is_dir():
        return Path(adapter.base)
    raise ValueError(f"{folder} is an adapter on {adapter.base or 'some base'}: "
                     "give the folder of its base too, as base= or --base; or merge the two "
                     "(python -m minillava.weights merge)")


def carried_fields(folder):
    """What the fine-tune says of template, aspect and prompt; {} where it says nothing."""
    fields = read_own_fields(folder)
    data = read_json(folder / "config.json")
    if not fields and "image_aspect_ratio" in data:  # the official code's
        fields = {"image_aspect_ratio": fields_of_llava(folder, data)["image_aspect_ratio"]}
    return {name: value for name, value in fields.items() if name in CARRIED}


# ---- reading ----

def read_adapter(folder):
    """-> Adapter; ValueError if it would compute something else here than in peft."""
    folder = Path(folder)
    config = parse_adapter_config(folder / "adapter_config.json")
    target_modules = config.get("target_modules")
    partial = config.get("layers_to_transform") is not None or isinstance(target_modules, str)

    others = {}
    if (folder / OTHERS).exists():
        others = names_here(read_tensor_file(folder / OTHERS))
    return Adapter(
        rank=config["r"],
        alpha=config["lora_alpha"],
        matrices=read_matrices(folder, config["r"]),
        others=others,
        base=str(config.get("base_model_name_or_path") or ""),
        dropout=config.get("lora_dropout") or 0.0,
        scaled_by_root=bool(config.get("use_rslora")),
        partial=partial,
    )


def parse_adapter_config(source):
    config = read_json(source)
    check_values(config, {
        "peft_type": ["LORA"],
        "bias": ["none"],
        "fan_in_fan_out": [False],
        "use_dora": [False],
        "lora_bias": [False],
        "layer_replication": [None],
        "modules_to_save": [None, []],
        "rank_pattern": [None, {}],
        "alpha_pattern": [None, {}],
        "alora_invocation_tokens": [None],
        # PiSSA, OLoRA and others change the base's weights too
        "init_lora_weights": [True, False, None, "gaussian", "orthogonal", "eva"],
    }, source)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not is_positive(rank, 2**31):
        raise ValueError(f"{source}: rank (r) {rank!r:.40} is not a positive int")
    if not is_positive(alpha):
        raise ValueError(f"{source}: lora_alpha {alpha!r:.40} is not a positive number")
    return config


def read_matrices(folder, rank):
    """The A and the B of every layer -> {layer: (A, B)}"""
    files = (folder / "adapter_model.safetensors", folder / "adapter_model.bin")
    file = next(filter(Path.exists, files), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has neither adapter_model.safetensors nor .bin")

    halves = {"A": {}, "B": {}}
    for name, tensor in names_here(read_tensor_file(file)).items():
        layer, _, half = name.removesuffix(".weight").removesuffix(".default").rpartition(".lora_")
        if half not in halves or tensor.ndim != 2 or not tensor.is_floating_point():
            raise ValueError(f"{file}: {name} is not the A or B of a linear layer")
        halves[half][layer] = tensor

    if not halves["A"] or halves["A"].keys() != halves["B"].keys():
        alone = sorted(halves["A"].keys() ^ halves["B"].keys())
        raise ValueError(f"{file} has not both A and B of {alone[0] if alone else 'any layer'}")
    matrices = {}
    for layer, A in halves["A"].items():
        B = halves["B"][layer]
        if len(A) != rank or B.shape[1] != rank:
            raise ValueError(f"{file}: {layer} has A {list(A.shape)} and B {list(B.shape)}, "
                             f"but adapter_config.json says rank {rank}")
        matrices[layer] = (A, B)
    return matrices


def names_here(tensors):
    """Names on disk, of whichever layout the base had, -> names in Llava."""
    bare = {name.removeprefix(PEFT): tensor for name, tensor in tensors.items()}
    return rename(bare, LLAVA | LLAVA_HF | LLAVA_HF_5)


# ---- does it belong to this base? ----

def check_fit(adapter, tensors, folder, base, own_words):
    """own_words: embeddings and head may have more rows than the base's."""
    for name, (A, B) in adapter.matrices.items():
        # in few bits its shape is that of integers: `attach` looks at the layer
        if f"{name}.scale" not in tensors:
            check_one(f"{name}.weight", [len(B), A.shape[1]], tensors, folder, base)
    for name, tensor in adapter.others.items():
        if f"{name.removesuffix('.weight')}.scale" in tensors:
            raise ValueError(f"{folder} brings a {name} of its own, which {base} has in few bits: "
                             "give the plain base, and --quantize")
        shape = list(tensor.shape)
        if own_words and name in (EMBEDDINGS, HEAD) and name in tensors and tensor.ndim == 2:
            shape[0] = min(len(tensor), len(tensors[name]))
        check_one(name, shape, tensors, folder, base)

    layers, base_layers = count_layers(adapter.matrices), count_layers(tensors)
    if 0 < layers < base_layers and not adapter.partial:
        raise ValueError(f"{folder} is an adapter for {layers} layers, "
                         f"but {base} has {base_layers}: it belongs to another base")


def check_one(name, shape, tensors, folder, base):
    if name not in tensors:
        raise ValueError(f"{folder} changes {name}, which {base} does not have: "
                         "it belongs to another base")
    if list(tensors[name].shape) != shape:
        raise ValueError(f"{folder} changes a {name} of {shape}, but that of {base} is "
                         f"{list(tensors[name].shape)}: it belongs to another base")


def count_layers(names):
    """How many blocks of the language model these names speak of."""
    parts = [name.split(".") for name in names]
    return len({part[2] for part in parts if part[:2] == ["language_model", "layers"]})


# ---- writing ----

def save_adapter(adapter, config, folder, tokenizer=None):
    """As the official code writes it, and peft on the Llama inside reads it.

    config: the LlavaConfig of the model that was trained; tokenizer: given where words were.
    """
    tensors = {}
    for name, (A, B) in adapter.matrices.items():
        tensors[f"{name}.lora_A.weight"] = A
        tensors[f"{name}.lora_B.weight"] = B
    on_disk = {here: PEFT + disk for disk, here in LLAVA.items()}
    others = {name: tensor.detach().cpu().clone() for name, tensor in adapter.others.items()}

    def save_others(new):
        with writing(new / OTHERS):
            torch.save(rename(others, on_disk), new / OTHERS)
        if tokenizer:
            tokenizer.save(new)

    files = {
        "adapter_config.json": adapter_json(adapter),
        "config.json": original_llava_json(config, adapter.tower or adapter.base, tensors),
        "minillava.json": own_fields(config),
    }
    write_folder(folder, rename(tensors, on_disk), files, save_others, stem="adapter_model")


def adapter_json(adapter):
    """adapter_config.json in the words of peft."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in adapter.matrices}),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": adapter.scaled_by_root,
        "modules_to_save": None,
        "inference_mode": True,
    }
