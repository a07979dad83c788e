"""Weights in and out: the official layouts in, one layout out.

A folder is known by what is in its files, never by its name. Each layout has one table of prefixes, on disk -> here; a
tensor that is missing, unexpected or of another shape is an error that names it. Files are memory-mapped and their
tensors become the model's own: a 7B model needs the memory of its weights and no more.
"""
import argparse
import dataclasses
import json
import math
import os
import pickle
import re
import shutil
import tempfile
import typing
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minillava.conversation import TEMPLATES
from minillava.language import LanguageConfig, LanguageModel
from minillava.model import Llava, LlavaConfig, make_projector
from minillava.tokenizer import FILES as TOKENIZER_FILES
from minillava.tokenizer import Tokenizer, read_json
from minillava.vision import IMAGE_MEAN, IMAGE_STD, VisionConfig, VisionTower

TOY = Path(__file__).parent / "toy"  # the shipped miniature
MAX_SHARD = 5 * 10**9  # bytes

# Prefix on disk -> prefix here; the longest that fits counts, None: of no use to LLaVA.
LLAMA = {"model.": "", "lm_head.": "lm_head."}
CLIP = {"vision_model.": "", "text_model.": None, "visual_projection.": None, "text_projection.": None,
        "logit_scale": None}
LLAVA = {"model.": "language_model.", "lm_head.": "language_model.lm_head.", "model.mm_projector.": "mm_projector.",
         "model.vision_tower.vision_tower.vision_model.": "vision_tower."}
LLAVA_HF = {"language_model.model.": "language_model.", "language_model.lm_head.": "language_model.lm_head.",
            "vision_tower.vision_model.": "vision_tower.",
            "multi_modal_projector.linear_1.": "mm_projector.0.", "multi_modal_projector.linear_2.": "mm_projector.2."}
LLAVA_HF_5 = {"model.language_model.": "language_model.", "lm_head.": "language_model.lm_head.",  # of transformers 5
              "vision_tower.": "vision_tower.", "model.vision_tower.": "vision_tower.",
              "model.vision_tower.vision_model.": "vision_tower.",
              "model.multi_modal_projector.linear_1.": "mm_projector.0.",
              "model.multi_modal_projector.linear_2.": "mm_projector.2."}
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")  # computed here, stored by old versions

CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
          "image_size": 336, "patch_size": 14}  # vision_config of a llava-hf folder that leaves it out
TOWER_SIZES = {"openai/clip-vit-large-patch14": 224, "openai/clip-vit-large-patch14-336": 336}  # mm_vision_tower


# ---- reading files: they come from strangers ----

def read_tensors(path):
    """A file of weights, or a folder with one or with shards and their index -> {name: tensor}, memory-mapped."""
    path = Path(path)
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).exists():
            return _read_file(path / name)
        index = path / (name + ".index.json")
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ValueError(f"{index} has no weight_map; download it again")
            for file in weight_map.values():
                if not re.fullmatch(r"[^/\\]+\.(safetensors|bin)", str(file)):  # no way to files elsewhere
                    raise ValueError(f"{index} names {file!r}, which is not a file of its own folder")
            tensors = {}
            for file in sorted(set(weight_map.values())):
                tensors |= _read_file(path / file)
            return tensors
    raise FileNotFoundError(f"{path} has neither model.safetensors nor pytorch_model.bin, nor shards with an index")


def _read_file(path):
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; download it again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:  # a pickle is a program: only one that builds tensors and nothing else is run
        raise ValueError(f"{path} wants to run code, or is damaged: it is refused") from None
    except Exception as error:  # what a broken file makes its reader stumble over is anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason:.200}); download it again") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} is not a table of named tensors")
    return tensors


def rename(tensors, table):
    """Names on disk -> names here; one that no prefix of the table fits stays, for `fill` to complain about."""
    renamed = {}
    for name, tensor in tensors.items():
        prefix = max((prefix for prefix in table if name.startswith(prefix)), key=len, default="")
        here = table.get(prefix, "")
        if here is None or name.endswith(BUFFERS):
            continue
        if here + name[len(prefix):] in renamed:
            raise ValueError(f"the tensor {name} is there twice, under an old and a new name")
        renamed[here + name[len(prefix):]] = tensor
    return renamed


def fill(module, tensors, source, device, dtype):
    """Makes `tensors` the parameters of a module that was built on the meta device; strict. `source` is for errors."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    missing = sorted(dict(module.named_parameters()).keys() - tensors.keys())  # a tied head need not be there
    unexpected = sorted(tensors.keys() - parameters.keys())
    for names, what in ((missing, "lacks"), (unexpected, "has unexpected")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{source} {what} {', '.join(names[:3])}{more}")
    for name, tensor in tensors.items():
        if tensor.shape != parameters[name].shape or not tensor.is_floating_point():
            raise ValueError(f"{source}: {name} is {tensor.dtype} {list(tensor.shape)}, "
                             f"but the config says {list(parameters[name].shape)}")
    new = {}
    for name, parameter in parameters.items():
        if parameter not in new:
            new[parameter] = nn.Parameter(tensors[name].to(device, dtype))
        elif name in tensors and not torch.equal(tensors[name].to(device, dtype), new[parameter]):
            raise ValueError(f"{source}: the config ties {name} to another tensor, but the two differ")
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, new[parameter])
    return module


# ---- configs ----

def check(data, known, source):
    """`known`: the values of a field for which our code computes the right thing, its default first."""
    for name, values in known.items():
        if data.get(name, values[0]) not in values:
            only = " or ".join(map(repr, values))
            raise ValueError(f"{source}: {name} {data[name]!r:.40} is not supported, only {only}")


def section(data, name, source):
    """The JSON object `name` inside another; {} where it is left out."""
    value = data.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{source}: {name} {value!r:.40} is not a JSON object")
    return value


def positive(number, limit=1e30):
    return type(number) in (int, float) and 0 < number < limit  # type(): to isinstance, True is an int


def _fields(cls, data, source):
    """The fields of `data` that a config class has, each of its type; every number of a tower or a Llama is positive.
    What is not would otherwise be told by whatever stumbles over it, in words that name neither file nor field."""
    fields = {field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data}
    for name, value in fields.items():
        kind = cls.__annotations__[name]
        types = (float, int) if kind is float else typing.get_args(kind) or (kind,)
        limit = 1e30 if kind is float else 2**31  # a model for a long context may have a rope_theta beyond 2^31
        if type(value) not in types or int in types and value is not None and not positive(value, limit):
            wanted = ("positive " if int in types else "") + types[0].__name__
            raise ValueError(f"{source}: {name} {value!r:.40} is not a {wanted}")
    return fields


def vision_config(data, source):
    check(data, {"model_type": ["clip_vision_model", "clip"], "hidden_act": ["quick_gelu"], "num_channels": [3]},
          source)
    config = VisionConfig(**_fields(VisionConfig, data, source))
    if config.hidden_size % config.num_attention_heads or config.image_size < config.patch_size:
        raise ValueError(f"{source} describes no vision tower: {config}")
    return config


def language_config(data, source):
    rope = section(data, "rope_parameters", source) or section(data, "rope_scaling", source)  # transformers 5, and 4
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    needs = {"default": [], "linear": ["factor"],
             "llama3": ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]}
    if kind not in needs or not all(positive(rope.get(name)) for name in needs[kind]):
        raise ValueError(f"{source}: rope scaling {rope!r:.200} is not supported, only whole 'linear' and 'llama3'")
    check(data, {"model_type": ["llama", "llava", "llava_llama"], "hidden_act": ["silu"], "attention_bias": [False],
                 "mlp_bias": [False]}, source)
    theta = rope.get("rope_theta", data.get("rope_theta", LanguageConfig.rope_theta))
    scaling = {"rope_type": kind} | {name: rope[name] for name in needs[kind]} if kind != "default" else None
    return LanguageConfig(**_fields(LanguageConfig, data | {"rope_theta": theta, "rope_scaling": scaling}, source))


def llava_config(eye, mouth, fields, source):
    """`fields`: those of a LlavaConfig beside the towers, as they stand in the files."""
    config = LlavaConfig(eye, mouth, **fields)
    check(vars(config), {"template": list(TEMPLATES), "mm_use_im_start_end": [False, True],
                         "projector": ["linear", *(f"mlp{depth}x_gelu" for depth in range(1, 10))],
                         "image_aspect_ratio": ["square", "pad"]}, source)
    layers, layer = eye.num_hidden_layers, config.vision_feature_layer
    if type(layer) is not int or not -layers - 1 <= layer <= layers:
        raise ValueError(f"{source}: vision_feature_layer {layer!r:.40} is none of a tower of {layers} layers")
    triples = {"image_mean": config.image_mean, "image_std": config.image_std}
    for name, value in triples.items():
        if not isinstance(value, (list, tuple)) or [type(x) in (int, float) for x in value] != [True] * 3:
            raise ValueError(f"{source}: {name} {value!r:.80} is not three numbers")
    if not all(map(positive, config.image_std)):
        raise ValueError(f"{source}: image_std {config.image_std!r:.80} is not positive")
    return dataclasses.replace(config, **{name: tuple(value) for name, value in triples.items()})


def image_fields(path):
    """What preprocessor_config.json decides of a LlavaConfig."""
    data = read_json(path / "preprocessor_config.json")
    if not data:  # of transformers 5
        data = section(read_json(path / "processor_config.json"), "image_processor", path / "processor_config.json")
    return {"image_mean": data.get("image_mean", IMAGE_MEAN), "image_std": data.get("image_std", IMAGE_STD),
            "image_aspect_ratio": "pad" if data.get("do_pad") else "square"}


# ---- one reader per layout: folder -> (config, {name here: tensor}) ----

def _folder(path):
    """(path, its config.json)"""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path} (from the hub: hf download NAME --local-dir FOLDER)")
    if (path / "adapter_config.json").exists():
        raise ValueError(f"{path} holds a LoRA adapter: merge it into its base model first")
    config = read_json(path / "config.json")
    if not config:
        raise FileNotFoundError(f"{path} has no config.json: it is not a folder of weights as they are published")
    return path, config


def _eye(path, data):
    """The VisionConfig of a whole CLIP or of the image tower alone."""
    source = path / "config.json"
    return vision_config(section(data, "vision_config", source) or data, source)


def read_vision(path):
    """openai/clip-vit-*: the whole CLIP or the image tower alone."""
    path, data = _folder(path)
    return _eye(path, data), rename(read_tensors(path), CLIP)


def read_language(path):
    """lmsys/vicuna-* and every other Llama."""
    path, data = _folder(path)
    return language_config(data, path / "config.json"), rename(read_tensors(path), LLAMA)


def read_projector(path):
    """mm_projector.bin, of any stage 1 -> (kind, tensors)"""
    tensors = {}
    for name, tensor in read_tensors(path).items():
        _, found, rest = name.rpartition("mm_projector.")
        if not found:  # embed_tokens: rows of <im_start> and <im_end>, which the language model does not have
            raise ValueError(f"{path} holds {name} beside the projector: it belongs to one language model only")
        tensors["mm_projector." + rest] = tensor
    depth = sum(name.endswith(".weight") for name in tensors)
    return "linear" if "mm_projector.weight" in tensors else f"mlp{depth}x_gelu", tensors


def read_llava(path, data, tensors, vision=None):
    """liuhaotian/llava-*: a Llama with `mm_` fields. Most have no tower of their own: it comes from `vision`."""
    source, name = path / "config.json", str(data.get("mm_vision_tower") or "openai/clip-vit-large-patch14")
    tensors = rename(tensors, LLAVA)
    own = [key for key in tensors if key.startswith("vision_tower.")]
    tower = {key.removeprefix("vision_tower."): tensors.pop(key) for key in own}
    if tower and vision is not None:
        raise ValueError(f"{path} has a vision tower of its own: leave vision= away")
    if tower:  # described by its shapes alone, less the number of heads; in every CLIP of OpenAI's they are 64 wide
        for part in ("embeddings.patch_embedding", "embeddings.position_embedding", "encoder.layers.0.mlp.fc1"):
            if f"{part}.weight" not in tower:
                raise ValueError(f"{path} lacks model.vision_tower.vision_tower.vision_model.{part}.weight")
        D, _, P, _ = tower["embeddings.patch_embedding.weight"].shape
        grid = math.isqrt(len(tower["embeddings.position_embedding.weight"]) - 1)
        inner = [len(tensor) for key, tensor in tower.items() if key.endswith("fc1.weight")]
        eye, fields = VisionConfig(D, inner[0], len(inner), D // 64, P * grid, P), image_fields(path)
    else:
        if vision is None and not Path(name).is_dir():
            raise ValueError(f"{path} has no vision tower: download {name} and give its folder as vision=")
        (eye, tower), fields = read_vision(vision or name), image_fields(Path(vision or name))
    if eye.image_size != TOWER_SIZES.get(name, eye.image_size):
        raise ValueError(f"{path} was trained with {name}, but this tower is for images of {eye.image_size} pixels")
    check(data, {"mm_vision_select_feature": ["patch"], "image_aspect_ratio": ["square", "pad", None],
                 "mm_resampler_type": [None]}, source)
    v0 = "[PAD]" in read_json(path / "added_tokens.json")  # the only version that added it
    fields |= {"projector": data.get("mm_projector_type", "linear"),
               "vision_feature_layer": data.get("mm_vision_select_layer", -2),
               "image_aspect_ratio": data.get("image_aspect_ratio") or "square",
               "mm_use_im_start_end": data.get("mm_use_im_start_end", False),
               "template": "llava_v0" if v0 else "vicuna_v1"}
    config = llava_config(eye, language_config(data, source), fields, path)
    return config, tensors | {f"vision_tower.{name}": tensor for name, tensor in tower.items()}


def read_llava_hf(path, data, tensors):
    """llava-hf/llava-1.5-*, and what save_llava writes: with minillava.json, which says what this layout cannot."""
    source, own = path / "config.json", read_json(path / "minillava.json")
    tensors = rename(tensors, LLAVA_HF | LLAVA_HF_5)
    check(data, {"projector_hidden_act": ["gelu", "linear"], "vision_feature_select_strategy": ["default"],
                 "multimodal_projector_bias": [True]}, source)
    fields = image_fields(path) | {"vision_feature_layer": data.get("vision_feature_layer", -2)}
    if data.get("projector_hidden_act") == "linear":  # one matrix, then the identity: see save_llava
        fields["projector"] = "linear"
        weight, bias = (tensors.pop(f"mm_projector.2.{kind}", None) for kind in ("weight", "bias"))
        if weight is None or bias is None or bias.any() or not torch.equal(weight, torch.eye(len(bias)).to(weight)):
            raise ValueError(f"{path}: after a linear projector_hidden_act, linear_2 must be the identity")
        if own.get("projector") != "mlp1x_gelu":
            tensors = rename(tensors, {"mm_projector.0.": "mm_projector."})
    fields |= own
    unknown = fields.keys() - {field.name for field in dataclasses.fields(LlavaConfig)}
    if unknown:
        raise ValueError(f"{path / 'minillava.json'}: unknown {', '.join(sorted(unknown))}; a newer version wrote it")
    eye = vision_config(section(data, "vision_config", source) or CLIP_L, source)
    return llava_config(eye, language_config(section(data, "text_config", source), source), fields, path), tensors


def compose(vision, language, projector):
    """A CLIP, a Llama and a projector, as training begins: `projector` is a file, or the kind of a new one."""
    (eye, eye_tensors), (mouth, mouth_tensors) = read_vision(vision), read_language(language)
    if re.fullmatch(r"linear|mlp\dx_gelu", str(projector)):
        kind, new = projector, make_projector(projector, eye.hidden_size, mouth.hidden_size)
        tensors = {f"mm_projector.{name}": tensor for name, tensor in new.state_dict().items()}
    else:
        kind, tensors = read_projector(projector)
    tensors |= {f"vision_tower.{name}": tensor for name, tensor in eye_tensors.items()}
    tensors |= {f"language_model.{name}": tensor for name, tensor in mouth_tensors.items()}
    return llava_config(eye, mouth, image_fields(Path(vision)) | {"projector": kind}, vision), tensors


def load_config(vision, language, projector, image_size):
    """The LlavaConfig of two folders, of which config.json alone is read; None: a ViT-L/14 of that size, a LLaMA-7B."""
    eye = _eye(*_folder(vision)) if vision else VisionConfig(1024, 4096, 24, 16, image_size, 14)
    mouth = language_config(_folder(language)[1], Path(language) / "config.json") if language else LanguageConfig()
    return LlavaConfig(eye, mouth, projector)


# ---- loading ----

def _build(cls, config, tensors, source, device, dtype):
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":  # that of the file; of the Llama, where there are several
        words = [tensor.dtype for name, tensor in tensors.items() if name.endswith("embed_tokens.weight")]
        dtype = (words or [tensor.dtype for tensor in tensors.values()])[0]
    with torch.device("meta"):
        module = cls(config)
    return fill(module, tensors, source, device, getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def load_vision(path, device="auto", dtype="auto"):
    """A CLIP folder -> VisionTower."""
    return _build(VisionTower, *read_vision(path), path, device, dtype)


def load_language(path, device="auto", dtype="auto"):
    """The folder of a Vicuna or any other Llama -> (LanguageModel, Tokenizer)."""
    return _build(LanguageModel, *read_language(path), path, device, dtype), Tokenizer.load(path)


def load_llava(path=None, *, vision=None, language=None, projector=None, device="auto", dtype="auto"):
    """-> (Llava, Tokenizer). One of:

        load_llava()                               the shipped miniature
        load_llava(FOLDER)                         llava-hf/llava-1.5-7b-hf, or what save_llava wrote
        load_llava(FOLDER, vision=CLIP)            liuhaotian/llava-v1.5-7b, which has no tower of its own
        load_llava(vision=CLIP, language=LLAMA, projector=FILE)
                                                   FILE: mm_projector.bin, or "linear" or "mlp2x_gelu" for a new one

    device "auto" is the GPU if there is one, dtype "auto" is that of the file. A folder without minillava.json does not
    say its template: it is taken for vicuna_v1, that of v1.1 to v1.5, unless its tokenizer is one of v0. OSError or
    ValueError, in one line, if it cannot be had.
    """
    if language is not None or projector is not None:
        if path is not None or None in (vision, language, projector):
            raise ValueError("give either one folder, or vision=, language= and projector= together")
        config, tensors = compose(vision, language, projector)
        source = f"{vision} + {language} + {projector}"
        return _build(Llava, config, tensors, source, device, dtype), Tokenizer.load(language)
    path, data = _folder(path or TOY / "llava")
    tensors = read_tensors(path)
    if any("multi_modal_projector." in name for name in tensors):
        if vision is not None:
            raise ValueError(f"{path} has a vision tower of its own: leave vision= away")
        config, tensors = read_llava_hf(path, data, tensors)
    elif any("mm_projector." in name for name in tensors):
        config, tensors = read_llava(path, data, tensors, vision)
    else:
        raise ValueError(f"{path} has no projector: it is a {data.get('model_type', 'model')}, not a LLaVA; "
                         "give it as vision= or language=, with the other one and projector=")
    return _build(Llava, config, tensors, path, device, dtype), Tokenizer.load(path)


# ---- saving ----

def _write(path, tensors, files, save_more=lambda folder: None, change=lambda name, tensor: tensor):
    """A whole folder: {name: tensor} in shards, {file name: JSON}, and what `save_more` puts there.

    All is written elsewhere first and moved at the end: a run killed while it writes leaves the old files whole.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > MAX_SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
                 "weight_map": {name: file for file, shard in zip(names, shards) for name in shard}}
        files = files | {"model.safetensors.index.json": index}
    for killed in path.glob(".new-*"):
        shutil.rmtree(killed)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=path))
    try:
        for file, shard in zip(names, shards):
            shard = {name: change(name, tensor.detach()).contiguous() for name, tensor in shard.items()}
            save_file(shard, new / file, {"format": "pt"})
        save_more(new)
        for file, value in files.items():
            (new / file).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
        for file in names:  # safetensors lets only its owner read a file
            shutil.copymode(new / "config.json", new / file)
        written = sorted(file.name for file in new.iterdir())
        for file in written:
            os.replace(new / file, path / file)
    finally:
        shutil.rmtree(new)
    stale = {old.name for old in path.glob("model*.safetensors*")}  # of an earlier save: they do not belong to these
    if set(TOKENIZER_FILES) & set(written):
        stale |= set(TOKENIZER_FILES)
    for old in stale - set(written):
        (path / old).unlink(missing_ok=True)


def _describe(architecture, model_type, tensors, **fields):
    """A config.json in the words of transformers; our own configs use them too."""
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    return {"architectures": [architecture], "model_type": model_type, "torch_dtype": dtype, **fields}


def _token_ids(tokenizer):
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


def _preprocessor(config):
    """preprocessor_config.json of a LlavaConfig."""
    S, pad = config.vision.image_size, config.image_aspect_ratio == "pad"
    return {"image_processor_type": "LlavaImageProcessor" if pad else "CLIPImageProcessor", "do_convert_rgb": True,
            **({"do_pad": True} if pad else {}), "do_resize": True, "size": {"shortest_edge": S}, "resample": 3,
            "do_center_crop": True, "crop_size": {"height": S, "width": S},
            "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": list(config.image_mean), "image_std": list(config.image_std)}


def save_llava(model, tokenizer, path):
    """The layout of llava-hf, which transformers opens, and minillava.json with what that layout has no place for.

    Transformers looks up every id in the embedding, so `<image>` needs an id and a row of its own there. If the
    tokenizer has none, it gets the next id, and both matrices a row that is the mean of the others (as a logit it is
    never the largest).
    """
    config, tensors = model.config, dict(model.named_parameters())
    image_id, D = tokenizer.add("<image>"), config.language.hidden_size
    language = dataclasses.replace(config.language, vocab_size=max(config.language.vocab_size, image_id + 1))
    if language != config.language:
        for name in {"language_model.embed_tokens.weight", "language_model.lm_head.weight"} & tensors.keys():
            mean = tensors[name].float().mean(0).to(tensors[name].dtype)
            tensors[name] = torch.cat([tensors[name], mean.expand(language.vocab_size - len(tensors[name]), D)])
    if config.projector == "linear":
        tensors = rename(tensors, {"mm_projector.": "mm_projector.0."})
    one_layer = config.projector in ("linear", "mlp1x_gelu")
    if one_layer:  # transformers has two, with an activation between them: ours, none, the identity
        tensors["mm_projector.2.weight"] = torch.eye(D).to(tensors["mm_projector.0.weight"])
        tensors["mm_projector.2.bias"] = torch.zeros(D).to(tensors["mm_projector.0.weight"])
    elif config.projector != "mlp2x_gelu":
        raise ValueError(f"the layout of llava-hf has no place for a projector {config.projector}")
    tensors = rename(tensors, {here: disk for disk, here in LLAVA_HF.items()})
    part = lambda kind, part_config: {"model_type": kind, **dataclasses.asdict(part_config)}
    files = {
        "config.json": _describe(
            "LlavaForConditionalGeneration", "llava", tensors,
            text_config=part("llama", language) | _token_ids(tokenizer),
            vision_config=part("clip_vision_model", config.vision), vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy="default", projector_hidden_act="linear" if one_layer else "gelu",
            image_token_index=image_id, image_seq_length=config.image_tokens,
            tie_word_embeddings=language.tie_word_embeddings),
        "generation_config.json": _token_ids(tokenizer),
        "preprocessor_config.json": _preprocessor(config) | {"processor_class": "LlavaProcessor"},
        "processor_config.json": {
            "processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": config.vision.patch_size,
            "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},  # the class token
        "minillava.json": {field.name: getattr(config, field.name) for field in dataclasses.fields(config)
                           if field.name not in ("vision", "language")}}
    _write(path, tensors, files, tokenizer.save)


def save_language(model, tokenizer, path):
    """The folder of a Llama, as Vicuna comes: config, weights, tokenizer."""
    tensors = rename(dict(model.named_parameters()), {"": "model.", "lm_head.": "lm_head."})
    fields = dataclasses.asdict(model.config) | _token_ids(tokenizer)
    files = {"config.json": _describe("LlamaForCausalLM", "llama", tensors, **fields),
             "generation_config.json": _token_ids(tokenizer)}
    _write(path, tensors, files, tokenizer.save)


def save_clip(tensors, config, text_config, projection_dim, path):
    """The layout of openai/clip.

    tensors: by the official names (vision_model.*, text_model.*, visual_projection.weight, text_projection.weight,
    logit_scale); config: a LlavaConfig, for its `vision` and image mean and std; text_config: a dict in the words of
    transformers.
    """
    both = {"projection_dim": projection_dim}
    files = {"config.json": _describe(
                 "CLIPModel", "clip", tensors, **both,
                 vision_config=dataclasses.asdict(config.vision) | both | {"model_type": "clip_vision_model"},
                 text_config=text_config | both | {"model_type": "clip_text_model"}),
             "preprocessor_config.json": _preprocessor(config)}
    _write(path, tensors, files)


# ---- deltas ----

def apply_delta(base, delta, out):
    """LLaVA-v0 and v1.1 were published as the difference from LLaMA's weights: out = base + delta, in layout LLAVA.

    The delta's rows beyond the base's vocabulary and its projector are absolute values. The sum is taken in the delta's
    fp16, as the official script does.
    """
    (base, _), (delta, data) = _folder(base), _folder(delta)
    old, new = rename(read_tensors(base), {}), rename(read_tensors(delta), {})  # less the buffers
    for name in sorted(old.keys() ^ new.keys()):
        if name in old or "mm_projector." not in name:
            raise ValueError(f"{name} is only in one of {base} and {delta}: they do not belong together")
    for name in old:
        rows = name in ("model.embed_tokens.weight", "lm_head.weight")
        if old[name].shape[rows:] != new[name].shape[rows:] or len(old[name]) > len(new[name]):
            raise ValueError(f"{name} is {list(old[name].shape)} in {base}, but {list(new[name].shape)} in {delta}")

    def add(name, tensor):
        if name not in old:
            return tensor
        rows = len(old[name])
        return torch.cat([tensor[:rows] + old[name].to(tensor.dtype), tensor[rows:]])

    def copy_rest(folder):
        for file in delta.iterdir():
            if file.suffix in (".json", ".model") and not file.name.endswith("index.json"):
                shutil.copyfile(file, folder / file.name)

    if "mm_hidden_size" in data or "mm_vision_tower" in data:
        data["model_type"] = "llava"
    _write(out, new, {"config.json": data}, copy_rest, add)


def main():
    parser = argparse.ArgumentParser(prog="python -m minillava.checkpoint", description="Weights in and out.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("apply-delta", help="LLaMA + a published LLaVA delta = LLaVA")
    for name, text in (("base", "folder of the LLaMA"), ("delta", "folder of the delta"), ("out", "folder to write")):
        command.add_argument(f"--{name}", required=True, metavar="DIR", help=text)
    args = parser.parse_args()
    try:
        apply_delta(args.base, args.delta, args.out)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
