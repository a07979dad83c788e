"""Saving, in the layouts that transformers opens."""
import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from minillava.tokenizer import FILES as TOKENIZER_FILES
from minillava.weights.layouts import LLAVA_HF
from minillava.weights.tensors import rename

MAX_SHARD = 5 * 10**9  # bytes


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
    S, pad = config.vision_config.image_size, config.image_aspect_ratio == "pad"
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
    image_id, D = tokenizer.add("<image>"), config.language_config.hidden_size
    language = dataclasses.replace(config.language_config, vocab_size=max(config.language_config.vocab_size, image_id + 1))
    if language != config.language_config:
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
            vision_config=part("clip_vision_model", config.vision_config), vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy="default", projector_hidden_act="linear" if one_layer else "gelu",
            image_token_index=image_id, image_seq_length=config.image_tokens,
            tie_word_embeddings=language.tie_word_embeddings),
        "generation_config.json": _token_ids(tokenizer),
        "preprocessor_config.json": _preprocessor(config) | {"processor_class": "LlavaProcessor"},
        "processor_config.json": {
            "processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": config.vision_config.patch_size,
            "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},  # the class token
        "minillava.json": {field.name: getattr(config, field.name) for field in dataclasses.fields(config)
                           if field.name not in ("vision_config", "language_config")}}
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
                 vision_config=dataclasses.asdict(config.vision_config) | both | {"model_type": "clip_vision_model"},
                 text_config=text_config | both | {"model_type": "clip_text_model"}),
             "preprocessor_config.json": _preprocessor(config)}
    _write(path, tensors, files)
