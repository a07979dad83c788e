"""The official layouts: a table of prefixes and a reader for each, folder -> (config, {name here: tensor})."""
import dataclasses
import math
import re
from pathlib import Path

import torch

from minillava.files import read_json
from minillava.llama import LanguageConfig
from minillava.llava import LlavaConfig, make_projector
from minillava.vit import VisionConfig
from minillava.weights.configs import (
    check,
    image_fields,
    language_config,
    llava_config,
    section,
    vision_config,
)
from minillava.weights.tensors import read_tensors, rename

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
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
          "image_size": 336, "patch_size": 14}  # vision_config of a llava-hf folder that leaves it out
TOWER_SIZES = {"openai/clip-vit-large-patch14": 224, "openai/clip-vit-large-patch14-336": 336}  # mm_vision_tower


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
