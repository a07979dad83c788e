"""The official layouts: how each names its tensors, and what its files say of the model.

A layout is a table of prefixes, on disk -> here, and a reader, folder -> (config, tensors), which
are {name here: tensor}. The projector's first weight, for example:

    here                       mm_projector.0.weight
    liuhaotian/llava-v1.5-7b   model.mm_projector.0.weight
    llava-hf/llava-1.5-7b-hf   multi_modal_projector.linear_1.weight
    transformers 5             model.multi_modal_projector.linear_1.weight
"""
import dataclasses
import math
import re
from pathlib import Path

import torch

from minillava.files import read_json
from minillava.llama import LanguageConfig
from minillava.llava import LlavaConfig, make_projector
from minillava.vit import VisionConfig
from minillava.weights.configs import (check_values, image_fields, make_llava_config,
                                       parse_language_config, parse_vision_config, section)
from minillava.weights.folders import OWN_TOWER, open_folder
from minillava.weights.tensors import read_tensors, rename, take_prefixed, with_prefix

# lmsys/vicuna-* and every other Llama
LLAMA = {
    "model.": "",
    "lm_head.": "lm_head.",
}

# openai/clip-vit-*; None: of no use to LLaVA
CLIP = {
    "vision_model.": "",
    "text_model.": None,
    "visual_projection.": None,
    "text_projection.": None,
    "logit_scale": None,
}

# liuhaotian/llava-*: a Llama with a projector, in some with CLIP's tower too
LLAVA = {
    "model.": "language_model.",
    "lm_head.": "language_model.lm_head.",
    "model.mm_projector.": "mm_projector.",
    "model.vision_tower.vision_tower.vision_model.": "vision_tower.",
}

# llava-hf/llava-1.5-*, and what save_llava writes
LLAVA_HF = {
    "language_model.model.": "language_model.",
    "language_model.lm_head.": "language_model.lm_head.",
    "vision_tower.vision_model.": "vision_tower.",
    "multi_modal_projector.linear_1.": "mm_projector.0.",
    "multi_modal_projector.linear_2.": "mm_projector.2.",
}

# the names that transformers 5 has in memory, and in some files
LLAVA_HF_5 = {
    "model.language_model.": "language_model.",
    "lm_head.": "language_model.lm_head.",
    "vision_tower.": "vision_tower.",
    "model.vision_tower.": "vision_tower.",
    "model.vision_tower.vision_model.": "vision_tower.",
    "model.multi_modal_projector.linear_1.": "mm_projector.0.",
    "model.multi_modal_projector.linear_2.": "mm_projector.2.",
}

# vision_config of a llava-hf folder that leaves it out
CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}

# mm_vision_tower -> image size
TOWER_SIZES = {
    "openai/clip-vit-large-patch14": 224,
    "openai/clip-vit-large-patch14-336": 336,
}


# ---- the parts ----

def read_vision(path):
    """A CLIP, whole or the image tower alone -> (VisionConfig, tensors)"""
    path, data = open_folder(path)
    return read_vision_config(path, data), rename(read_tensors(path), CLIP)


def read_vision_config(path, data):
    source = path / "config.json"
    return parse_vision_config(section(data, "vision_config", source) or data, source)


def read_language(path):
    """A Vicuna or any other Llama -> (LanguageConfig, tensors)"""
    path, data = open_folder(path)
    tensors = read_tensors(path)
    if any("projector." in name for name in tensors):
        raise ValueError(f"{path} is a whole LLaVA: chat with it as --model, train it as --init; "
                         "--language is a Vicuna alone")
    return parse_language_config(data, path / "config.json"), rename(tensors, LLAMA)


def read_projector(path):
    """mm_projector.bin of any stage 1 -> (kind, tensors)"""
    tensors = {}
    for name, tensor in read_tensors(path).items():
        _, found, rest = name.rpartition("mm_projector.")
        if not found:  # embed_tokens: rows of <im_start> and <im_end>, which no other Llama has
            raise ValueError(f"{path} holds {name} beside the projector: "
                             "it belongs to one language model only")
        if "mm_projector." + rest in tensors:
            raise ValueError(f"{path} holds the projector's {rest} twice, under two names: "
                             "leave one")
        tensors["mm_projector." + rest] = tensor

    if "mm_projector.weight" in tensors:
        return "linear", tensors
    depth = sum(name.endswith(".weight") for name in tensors)
    return f"mlp{depth}x_gelu", tensors


def compose(vision, language, projector):
    """A CLIP, a Llama and a projector, as training begins -> (LlavaConfig, tensors)

    `projector` is a file, or the kind of a new one.
    """
    vision_config, vision_tensors = read_vision(vision)
    language_config, language_tensors = read_language(language)

    if re.fullmatch(r"linear|mlp\dx_gelu", str(projector)):
        new = make_projector(projector, vision_config.hidden_size, language_config.hidden_size)
        kind, tensors = projector, with_prefix("mm_projector.", new.state_dict())
    else:
        kind, tensors = read_projector(projector)
    tensors |= with_prefix("vision_tower.", vision_tensors)
    tensors |= with_prefix("language_model.", language_tensors)

    fields = image_fields(Path(vision), vision_config) | {"projector": kind}
    return make_llava_config(vision_config, language_config, fields, vision), tensors


def load_config(vision, language, projector, image_size):
    """The LlavaConfig of two folders, of which config.json alone is read.

    None stands for a ViT-L/14 of that image size, and for a LLaMA-7B.
    """
    vision_config = VisionConfig(**(CLIP_L | {"image_size": image_size}))
    if vision:
        vision_config = read_vision_config(*open_folder(vision))

    language_config = LanguageConfig()
    if language:
        path, data = open_folder(language)
        language_config = parse_language_config(data, path / "config.json")
    return LlavaConfig(vision_config, language_config, projector)


# ---- the whole ----

def read_llava_folder(path, vision=None):
    """The folder of a LLaVA -> (LlavaConfig, tensors); its tensors' names say which layout."""
    path, data = open_folder(path)
    tensors = read_tensors(path)
    if any("multi_modal_projector." in name for name in tensors):
        refuse_second_tower(path, vision)
        return read_llava_hf(path, data, tensors)
    if any("mm_projector." in name for name in tensors):
        return read_llava(path, data, tensors, vision)
    raise ValueError(
        f"{path} has no projector: it is a {data.get('model_type', 'model')}, not a LLaVA; "
        "give it as vision= or language=, with the other one and projector=")


def is_llava(path):
    """Whether a folder's weights have a projector among them."""
    return any("mm_projector." in name or "multi_modal_projector." in name
               for name in read_tensors(path))


# ---- as it was published first ----

def read_llava(path, data, tensors, vision=None):
    """liuhaotian/llava-*: most have no tower of their own, it comes from the folder `vision`."""
    tensors = rename(tensors, LLAVA)
    tower = take_prefixed(tensors, "vision_tower.")
    if tower:  # v1.6, or merged with a LoRA
        folder = vision or path
        vision_config = config_of_own_tower(path, data, tower, vision)
    else:
        folder = tower_folder(path, data, vision)
        vision_config, tower = read_vision(folder)
    check_tower_size(path, data, vision_config)

    fields = image_fields(Path(folder), vision_config) | fields_of_llava(path, data)
    fields |= read_own_fields(path)
    language_config = parse_language_config(data, path / "config.json")
    config = make_llava_config(vision_config, language_config, fields, path)
    return config, tensors | with_prefix("vision_tower.", tower)


def fields_of_llava(path, data):
    """What the `mm_` fields decide of a LlavaConfig."""
    check_values(data, {
        "mm_vision_select_feature": ["patch"],
        "image_aspect_ratio": ["square", "pad", None],
        "mm_resampler_type": [None],
    }, path / "config.json")
    is_v0 = "[PAD]" in read_json(path / "added_tokens.json")  # the only version that added it
    return {
        "projector": data.get("mm_projector_type", "linear"),
        "vision_feature_layer": data.get("mm_vision_select_layer", -2),
        "image_aspect_ratio": data.get("image_aspect_ratio") or "square",
        "mm_use_im_start_end": data.get("mm_use_im_start_end"),
        "template": "llava_v0" if is_v0 else "vicuna_v1",
    }


def config_of_own_tower(path, data, tower, vision):
    """Nothing in these files describes their tower: OpenAI's are known, of another vision= says."""
    vision_config = vision_config_from_shapes(tower, path)
    name = tower_name(data)
    # openai/clip-vit-large-patch14, or a folder of the hub's cache, models--openai--clip-vit-...
    if re.search(r"(^|[/\\]|--)clip-vit-", name) and vision_config.hidden_size % 64 == 0:
        refuse_second_tower(path, vision)
        return vision_config
    if vision is None:
        raise ValueError(f"{path} holds the vision tower {name:.80}, but does not describe it: "
                         "give a folder with its config.json as vision=")
    return read_vision_config(*open_folder(vision))


def vision_config_from_shapes(tower, path):
    """The heads of OpenAI's CLIP are 64 wide."""
    for part in ("embeddings.patch_embedding", "embeddings.position_embedding",
                 "encoder.layers.0.mlp.fc1"):
        if f"{part}.weight" not in tower:
            on_disk = f"model.vision_tower.vision_tower.vision_model.{part}.weight"
            raise ValueError(f"{path} lacks {on_disk}")

    width, _, patch, _ = tower["embeddings.patch_embedding.weight"].shape  # [D,3,P,P]
    positions = len(tower["embeddings.position_embedding.weight"])         # class token, then N
    grid = math.isqrt(positions - 1)
    inner = [len(tensor) for name, tensor in tower.items() if name.endswith("fc1.weight")]
    return VisionConfig(width, inner[0], len(inner), width // 64, patch * grid, patch)


def tower_name(data):
    return str(data.get("mm_vision_tower") or "openai/clip-vit-large-patch14")


def tower_folder(path, data, vision):
    """The CLIP that was given, that lies inside, or that the config names."""
    if vision is not None:
        return vision
    name = tower_name(data)
    for folder in (path / OWN_TOWER, Path(name)):
        if folder.is_dir():
            return folder
    raise ValueError(f"{path} has no vision tower: download {name} and give its folder as vision=")


def check_tower_size(path, data, vision_config):
    name = tower_name(data)
    size = vision_config.image_size
    if name in TOWER_SIZES and size != TOWER_SIZES[name]:
        raise ValueError(f"{path} was trained with {name}, "
                         f"but this tower is for images of {size} pixels")


def refuse_second_tower(path, vision):
    if vision is not None:
        raise ValueError(f"{path} has a vision tower of its own: leave vision= away")


# ---- as transformers has it ----

def read_llava_hf(path, data, tensors):
    """llava-hf/llava-1.5-*, and what save_llava writes.

    The latter has a minillava.json, with what this layout cannot say.
    """
    source = path / "config.json"
    own = read_own_fields(path)
    check_values(data, {
        "projector_hidden_act": ["gelu", "linear"],
        "vision_feature_select_strategy": ["default"],
        "multimodal_projector_bias": [True],
    }, source)

    tensors = rename(tensors, LLAVA_HF | LLAVA_HF_5)
    vision_data = section(data, "vision_config", source) or CLIP_L
    vision_config = parse_vision_config(vision_data, source)
    fields = image_fields(path, vision_config)
    fields["vision_feature_layer"] = data.get("vision_feature_layer", -2)
    if data.get("projector_hidden_act") == "linear":
        kind = own.get("projector", "linear")
        tensors = one_layer_projector(tensors, kind, path)
        fields["projector"] = "linear"
    fields |= own

    tied = {"tie_word_embeddings": data.get("tie_word_embeddings", False)}
    text_config = tied | section(data, "text_config", source)
    language_config = parse_language_config(text_config, source)
    return make_llava_config(vision_config, language_config, fields, path), tensors


def one_layer_projector(tensors, kind, path):
    """Undoes `with_two_layers` of saving.py: the second matrix is the identity, and goes."""
    weight = tensors.pop("mm_projector.2.weight", None)
    bias = tensors.pop("mm_projector.2.bias", None)
    is_identity = weight is not None and torch.equal(weight, torch.eye(len(weight)).to(weight))
    if not is_identity or bias is None or bias.any():
        raise ValueError(f"{path}: after a linear projector_hidden_act, "
                         "linear_2 must be the identity")

    if kind == "mlp1x_gelu":
        return tensors
    return rename(tensors, {"mm_projector.0.": "mm_projector."})


# ---- what minillava adds to either ----

def read_own_fields(path):
    """minillava.json: the fields of a LlavaConfig for which no official layout has a place."""
    fields = read_json(path / "minillava.json")
    names = {field.name for field in dataclasses.fields(LlavaConfig)}
    unknown = fields.keys() - names | fields.keys() & {"vision_config", "language_config"}
    if unknown:
        raise ValueError(f"{path / 'minillava.json'}: unknown {', '.join(sorted(unknown))}; "
                         "a newer version wrote it")
    return fields
