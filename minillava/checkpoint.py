"""Weights in and out: the official layouts in, one layout out.

A folder is known by what is in its files, never by its name. Each layout has one table of prefixes, on disk -> here; a
tensor that is missing, unexpected or of another shape is an error that names it. Files are memory-mapped and their
tensors become the model's own: a 7B model needs the memory of its weights and no more.
"""
import dataclasses
import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from minillava.language import LanguageConfig, LanguageModel
from minillava.model import Llava, LlavaConfig, make_projector
from minillava.tokenizer import Tokenizer
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
              "model.vision_tower.": "vision_tower.", "model.vision_tower.vision_model.": "vision_tower.",
              "model.multi_modal_projector.linear_1.": "mm_projector.0.",
              "model.multi_modal_projector.linear_2.": "mm_projector.2."}
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")  # computed here, stored by old versions


# ---- reading files: they come from strangers ----

def read_json(path):
    """The object in a JSON file; {} where there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a JSON object; download it again")
    return value


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
            tensors = {}
            for file in sorted(set(read_json(index).get("weight_map", {}).values())):
                if file != os.path.basename(file):  # an index must not make us open files elsewhere
                    raise ValueError(f"{index} names {file!r}, which is not a file of its own folder")
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
        raise ValueError(f"{path} holds more than weights (it wants to run code) or is damaged, and is refused") from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}); download it again") from None
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
    for name, parameter in parameters.items():
        if name in tensors and tensors[name].shape != parameter.shape:
            raise ValueError(f"{source}: {name} is {list(tensors[name].shape)}, "
                             f"but the config says {list(parameter.shape)}")
    new = {}
    for name, parameter in parameters.items():
        if parameter not in new:  # tied parameters stay one
            new[parameter] = nn.Parameter(tensors[name].to(device, dtype))
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, new[parameter])
    return module


def _resolve(device, dtype, tensors):
    """"auto": the GPU if there is one; the dtype of the file."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = next(iter(tensors.values())).dtype
    return device, getattr(torch, dtype) if isinstance(dtype, str) else dtype


# ---- configs ----

def _config(cls, data, fixed, source):
    """Those fields of a config.json that the class has; `fixed` are the values that the code knows of others."""
    for name, value in fixed.items():
        if data.get(name, value) != value:
            raise ValueError(f"{source}: {name} {data[name]!r} is not supported, only {value!r}")
    return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data})


def vision_config(data, source):
    return _config(VisionConfig, data, {"hidden_act": "quick_gelu", "num_channels": 3}, source)


def language_config(data, source):
    data = dict(data)
    rope = data.pop("rope_parameters", None) or data.pop("rope_scaling", None) or {}  # transformers 5, 4
    data["rope_theta"] = rope.get("rope_theta", data.get("rope_theta", LanguageConfig.rope_theta))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"{source}: rope scaling {kind!r} is not supported, only 'linear' and 'llama3'")
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "type")} | {"rope_type": kind}
    data["rope_scaling"] = scaling if kind != "default" else None
    return _config(LanguageConfig, data, {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}, source)


def _folder(path):
    """(path, its config.json)"""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    config = read_json(path / "config.json")
    if not config:
        raise FileNotFoundError(f"{path} has no config.json: it is not a folder of weights as they are published")
    return path, config


def _read_vision(path):
    path, config = _folder(path)
    tensors = rename(read_tensors(path), CLIP)
    return vision_config(config.get("vision_config") or config, path / "config.json"), tensors


def _read_language(path):
    path, config = _folder(path)
    return language_config(config, path / "config.json"), rename(read_tensors(path), LLAMA)


def _read_preprocessor(path):
    """The fields of LlavaConfig that preprocessor_config.json decides."""
    data = read_json(path / "preprocessor_config.json") or read_json(path / "processor_config.json").get("image_processor", {})
    return {"image_mean": tuple(data.get("image_mean", IMAGE_MEAN)), "image_std": tuple(data.get("image_std", IMAGE_STD))}


# ---- loading ----

def _build(cls, config, tensors, source, device, dtype):
    device, dtype = _resolve(device, dtype, tensors)
    with torch.device("meta"):
        module = cls(config)
    return fill(module, tensors, source, device, dtype)


def load_vision(path, device="auto", dtype="auto"):
    """A CLIP folder (whole or vision only) -> VisionTower."""
    config, tensors = _read_vision(path)
    return _build(VisionTower, config, tensors, path, device, dtype)


def load_language(path, device="auto", dtype="auto"):
    """The folder of a Vicuna or any other Llama -> (LanguageModel, Tokenizer)."""
    config, tensors = _read_language(path)
    return _build(LanguageModel, config, tensors, path, device, dtype), Tokenizer.load(path)


def load_llava(path=None, *, vision=None, language=None, projector=None, device="auto", dtype="auto"):
    """-> (Llava, Tokenizer): from one folder, or composed of a CLIP, a Llama and a projector. path=None: the miniature.

    `projector` is a file (mm_projector.bin), or a kind ("linear", "mlp2x_gelu") for a new one that is yet to be trained.
    dtype "auto" is that of the file (of the Llama, where there are several).
    """
    if path is None and language is not None:
        if vision is None or projector is None:
            raise ValueError("a LLaVA composed with language= needs vision= and projector= too")
        config, tensors, source = _compose(vision, language, projector)
        tokenizer = Tokenizer.load(language)
    else:
        source, _ = _folder(path or TOY / "llava")
        config, tensors = _read_hf(source)
        tokenizer = Tokenizer.load(source)
    if dtype == "auto":
        dtype = tensors["language_model.embed_tokens.weight"].dtype
    return _build(Llava, config, tensors, source, device, dtype), tokenizer


def _compose(vision, language, projector):
    vision_config, vision_tensors = _read_vision(vision)
    language_config, language_tensors = _read_language(language)
    if isinstance(projector, str) and re.fullmatch(r"linear|mlp\dx_gelu", projector):
        kind = projector
        new = make_projector(kind, vision_config.hidden_size, language_config.hidden_size).state_dict()
        projector_tensors = {f"mm_projector.{name}": tensor for name, tensor in new.items()}
    else:
        projector_tensors = {"mm_projector." + name.split("mm_projector.")[-1]: tensor
                             for name, tensor in read_tensors(projector).items()}
        depth = sum(name.endswith("weight") for name in projector_tensors)
        kind = "linear" if "mm_projector.weight" in projector_tensors else f"mlp{depth}x_gelu"
    config = LlavaConfig(vision_config, language_config, projector=kind, **_read_preprocessor(Path(vision)))
    tensors = {f"vision_tower.{name}": tensor for name, tensor in vision_tensors.items()}
    tensors |= {f"language_model.{name}": tensor for name, tensor in language_tensors.items()}
    return config, tensors | projector_tensors, f"{vision} + {language} + {projector}"


def _read_hf(path):
    data = read_json(path / "config.json")
    tensors = rename(read_tensors(path), LLAVA_HF | LLAVA_HF_5)
    own = read_json(path / "minillava.json")
    projector = own.get("projector", "mlp2x_gelu")
    if data.get("projector_hidden_act", "gelu") == "linear":  # W, then the identity: see save_llava
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("mm_projector.2.")}
        if projector == "linear":
            tensors = rename(tensors, {"mm_projector.0.": "mm_projector."})
    fields = {"vision_feature_layer": data.get("vision_feature_layer", -2)} | _read_preprocessor(path) | own
    fields |= {"image_mean": tuple(fields["image_mean"]), "image_std": tuple(fields["image_std"])}
    config = LlavaConfig(vision_config(data.get("vision_config", CLIP_L), path / "config.json"),
                         language_config(data.get("text_config", {}), path / "config.json"), **fields)
    return config, tensors


CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
          "image_size": 336, "patch_size": 14}  # vision_config of a LLaVA that leaves it out


# ---- saving ----

def _write(path, tensors, files, tokenizer=None):
    """A whole folder: {name: tensor} in shards, {file name: JSON}, the tokenizer.

    All is written under another name first and then moved: a run killed while it writes leaves the old files whole.
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
        weight_map = {name: file for file, shard in zip(names, shards) for name in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        files = files | {"model.safetensors.index.json": {"metadata": {"total_size": total}, "weight_map": weight_map}}
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=path))
    try:
        for name, shard in zip(names, shards):
            save_file({key: tensor.detach().contiguous() for key, tensor in shard.items()}, new / name, {"format": "pt"})
        for name, value in files.items():
            (new / name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")
        if tokenizer is not None:
            tokenizer.save(new)
        for old in path.glob("model*.safetensors*"):  # shards of an earlier save would stand beside the new ones
            if not (new / old.name).exists():
                old.unlink()
        for file in new.iterdir():
            os.replace(file, path / file.name)
    finally:
        shutil.rmtree(new)


def _dtype_name(tensors):
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


def preprocessor_json(config):
    """preprocessor_config.json of a LlavaConfig."""
    size = config.vision.image_size
    return {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
            "size": {"shortest_edge": size}, "resample": 3, "do_center_crop": True,
            "crop_size": {"height": size, "width": size}, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": list(config.image_mean), "image_std": list(config.image_std)}


def save_llava(model, tokenizer, path):
    """The layout of llava-hf, which transformers opens, and minillava.json with what that layout has no place for."""
    config, tensors = model.config, {}
    for name, tensor in model.named_parameters():
        if name in ("mm_projector.weight", "mm_projector.bias"):
            name = name.replace("mm_projector.", "mm_projector.0.")
        tensors[name] = tensor
    act = "gelu"
    if config.projector in ("linear", "mlp1x_gelu"):  # transformers has two layers and an activation: W, none, identity
        act, D = "linear", config.language.hidden_size
        tensors["mm_projector.2.weight"] = torch.eye(D).to(tensors["mm_projector.0.weight"])
        tensors["mm_projector.2.bias"] = torch.zeros(D).to(tensors["mm_projector.0.weight"])
    tensors = rename(tensors, {here: disk for disk, here in LLAVA_HF.items()})
    language = dataclasses.asdict(config.language) | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    files = {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
            "text_config": language, "vision_config": dataclasses.asdict(config.vision) | {"model_type": "clip_vision_model"},
            "projector_hidden_act": act, "vision_feature_layer": config.vision_feature_layer,
            "vision_feature_select_strategy": "default", "image_seq_length": config.image_tokens,
            "tie_word_embeddings": config.language.tie_word_embeddings, "torch_dtype": _dtype_name(tensors)},
        "preprocessor_config.json": preprocessor_json(config),
        "minillava.json": {field.name: getattr(config, field.name) for field in dataclasses.fields(config)
                           if field.name not in ("vision", "language")}}
    _write(path, tensors, files, tokenizer)


def save_clip(tensors, vision, text, path, projection_dim, config=LlavaConfig()):
    """openai/clip's layout: `tensors` under the official names (vision_model., text_model., visual_projection.weight,
    text_projection.weight, logit_scale), `vision` a VisionConfig, `text` a dict in the words of transformers."""
    files = {
        "config.json": {
            "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": projection_dim,
            "vision_config": dataclasses.asdict(vision) | {"model_type": "clip_vision_model", "projection_dim": projection_dim},
            "text_config": text | {"model_type": "clip_text_model", "projection_dim": projection_dim},
            "torch_dtype": _dtype_name(tensors)},
        "preprocessor_config.json": preprocessor_json(dataclasses.replace(config, vision=vision))}
    _write(path, tensors, files)


def save_language(model, tokenizer, path):
    """The folder of a Llama, as Vicuna comes: config, weights, tokenizer."""
    tensors = rename(dict(model.named_parameters()), {"": "model.", "lm_head.": "lm_head."})
    config = dataclasses.asdict(model.config) | {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
                                                 "torch_dtype": _dtype_name(tensors)}
    _write(path, tensors, {"config.json": config}, tokenizer)
