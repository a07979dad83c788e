"""Saving: the layouts that transformers opens, and the one that the official code opens."""
import dataclasses
from pathlib import Path

import torch

from minillava.linear import QuantizedLinear
from minillava.weights.folders import write_folder
from minillava.weights.layouts import LLAVA, LLAVA_HF, OWN_TOWER
from minillava.weights.tensors import rename, take_prefixed, with_prefix, writing


def save_llava(model, tokenizer, path):
    """The layout of llava-hf, which transformers opens.

    What that layout has no place for stands in minillava.json beside it.
    """
    config = model.config
    refuse_quantized(model)
    refuse_projector(config.projector)
    image_id = tokenizer.add("<image>")

    tensors = dict(model.named_parameters())
    vocab_size = max(config.language_config.vocab_size, image_id + 1)
    tensors = with_rows(tensors, vocab_size)
    tensors = with_two_layers(tensors, config.projector)
    tensors = rename(tensors, {here: disk for disk, here in LLAVA_HF.items()})

    language_config = dataclasses.replace(config.language_config, vocab_size=vocab_size)
    config = dataclasses.replace(config, language_config=language_config)
    files = llava_hf_files(config, tokenizer, tensors, image_id)
    write_folder(path, tensors, files, tokenizer.save)


def llava_hf_files(config, tokenizer, tensors, image_id=None):
    """The JSON files of that layout."""
    return {
        "config.json": llava_hf_json(config, tokenizer, tensors, image_id),
        "generation_config.json": token_ids(tokenizer),
        "preprocessor_config.json":
            preprocessor_json(config) | {"processor_class": "LlavaProcessor"},
        "processor_config.json": processor_json(config),
        "minillava.json": own_fields(config),
    }


def save_original_llava(model, tokenizer, path):
    """The layout of liuhaotian/llava-v1.5-7b, which the official code opens.

    A Llama with the projector in it, the projector once more in mm_projector.bin, and CLIP apart:
    in a folder of its own inside, which `mm_vision_tower` names by its full path, as the official
    code needs it. (Where the folder has moved, `minillava` looks inside first.)
    """
    refuse_quantized(model)
    path = Path(path)
    config = model.config
    tensors = dict(model.named_parameters())
    tower = take_prefixed(tensors, "vision_tower.")
    save_clip_vision(tower, config, path / OWN_TOWER)

    tensors = rename(tensors, {here: disk for disk, here in LLAVA.items()})
    projector = {name: tensor.detach().clone() for name, tensor in tensors.items()
                 if name.startswith("model.mm_projector.")}

    def save_rest(folder):
        with writing(folder / "mm_projector.bin"):
            torch.save(projector, folder / "mm_projector.bin")
        tokenizer.save(folder)

    files = {
        "config.json": original_llava_json(config, str((path / OWN_TOWER).absolute()), tensors)
            | token_ids(tokenizer),
        "generation_config.json": token_ids(tokenizer),
        "minillava.json": own_fields(config),
    }
    write_folder(path, tensors, files, save_rest)


def save_language(model, tokenizer, path):
    """The folder of a Llama, as Vicuna comes: config, weights, tokenizer."""
    refuse_quantized(model)
    tensors = rename(dict(model.named_parameters()), {"": "model.", "lm_head.": "lm_head."})
    fields = dataclasses.asdict(model.config) | token_ids(tokenizer)
    files = {
        "config.json": config_json("LlamaForCausalLM", "llama", tensors, fields),
        "generation_config.json": token_ids(tokenizer),
    }
    write_folder(path, tensors, files, tokenizer.save)


def save_clip(tensors, config, text_config, projection_dim, path):
    """The layout of openai/clip.

    tensors: by the official names (vision_model.*, text_model.*, visual_projection.weight,
    text_projection.weight, logit_scale); config: a LlavaConfig, for its vision_config, image mean
    and std; text_config: a dict in the words of transformers.
    """
    both = {"projection_dim": projection_dim}
    vision_config = dataclasses.asdict(config.vision_config)
    fields = both | {
        "vision_config": vision_config | both | {"model_type": "clip_vision_model"},
        "text_config": text_config | both | {"model_type": "clip_text_model"},
    }
    files = {
        "config.json": config_json("CLIPModel", "clip", tensors, fields),
        "preprocessor_config.json": preprocessor_json(config),
    }
    write_folder(path, tensors, files)


def save_clip_vision(tower, config, path):
    """The image tower alone, as a CLIPVisionModel; what pads a picture stands before it."""
    config = dataclasses.replace(config, image_aspect_ratio="square")
    tensors = with_prefix("vision_model.", tower)
    fields = dataclasses.asdict(config.vision_config)
    files = {
        "config.json": config_json("CLIPVisionModel", "clip_vision_model", tensors, fields),
        "preprocessor_config.json": preprocessor_json(config),
    }
    write_folder(path, tensors, files)


# ---- where llava-hf wants other tensors ----

def with_rows(tensors, vocab_size):
    """Both matrices of words, grown to `vocab_size` rows with the mean of the others.

    Transformers looks up every id in the embedding, so `<image>` needs an id and a row of its own
    there. The mean row is never the largest logit.
    """
    tensors = dict(tensors)
    for name in ("language_model.embed_tokens.weight", "language_model.lm_head.weight"):
        rows = tensors.get(name)  # a tied head has none of its own
        if rows is not None and len(rows) < vocab_size:
            mean = rows.float().mean(0).to(rows.dtype)
            new = mean.expand(vocab_size - len(rows), -1)
            tensors[name] = torch.cat([rows, new])
    return tensors


def with_two_layers(tensors, projector):
    """Transformers always has two matrices: after a single one of ours the other is the identity.

    (Between them then stands no activation: see `llava_hf_json`.)
    """
    if projector == "mlp2x_gelu":
        return tensors
    if projector == "linear":
        tensors = rename(tensors, {"mm_projector.": "mm_projector.0."})
    weight = tensors["mm_projector.0.weight"]
    return tensors | {
        "mm_projector.2.weight": torch.eye(len(weight)).to(weight),
        "mm_projector.2.bias": torch.zeros(len(weight)).to(weight),
    }


def refuse_quantized(model):
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise ValueError("the model's weights are quantised: no other program would know them; "
                         "save the plain model, or see python -m minillava.weights quantize")


def refuse_projector(kind):
    if kind not in ("linear", "mlp1x_gelu", "mlp2x_gelu"):
        raise ValueError(f"the layout of llava-hf has no place for a projector {kind}")


# ---- the JSON beside them, in the words of transformers ----

def config_json(architecture, model_type, tensors, fields):
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    head = {"architectures": [architecture], "model_type": model_type, "torch_dtype": dtype}
    return head | fields


def llava_hf_json(config, tokenizer, tensors, image_id):
    text_config = {"model_type": "llama"} | dataclasses.asdict(config.language_config)
    vision_config = {"model_type": "clip_vision_model"} | dataclasses.asdict(config.vision_config)
    activation = "gelu" if config.projector == "mlp2x_gelu" else "linear"
    return config_json("LlavaForConditionalGeneration", "llava", tensors, {
        "text_config": text_config | token_ids(tokenizer),
        "vision_config": vision_config,
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": activation,
        "image_token_index": image_id,
        "image_seq_length": config.image_tokens,
        "tie_word_embeddings": config.language_config.tie_word_embeddings,
    })


def original_llava_json(config, tower, tensors):
    """A Llama's config with the `mm_` fields; `tower`: name or folder of the CLIP."""
    fields = dataclasses.asdict(config.language_config)
    return config_json("LlavaLlamaForCausalLM", "llava_llama", tensors, fields | {
        "mm_vision_tower": tower,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_projector_type": config.projector,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": config.mm_use_im_start_end,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": config.image_aspect_ratio,
        "use_mm_proj": True,
    })


def token_ids(tokenizer):
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def preprocessor_json(config):
    """preprocessor_config.json of a LlavaConfig."""
    size = config.vision_config.image_size
    kind = {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True}
    if config.image_aspect_ratio == "pad":
        kind["image_processor_type"] = "LlavaImageProcessor"
        kind["do_pad"] = True
    return kind | {
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # PIL's bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


def processor_json(config):
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # the class token
    }


def own_fields(config):
    """The fields of a LlavaConfig beside the two configs."""
    return {name: value for name, value in vars(config).items()
            if name not in ("vision_config", "language_config")}
