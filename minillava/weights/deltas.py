"""Deltas on LLaMA's weights, as LLaVA-v0 and v1.1 were published."""
import shutil

import torch

from minillava.weights.folders import open_folder, write_folder
from minillava.weights.tensors import read_tensors, rename

WORD_MATRICES = ("model.embed_tokens.weight", "lm_head.weight")


def apply_delta(base, delta, out):
    """out = base + delta, in the layout of liuhaotian/llava-*.

    The delta's rows beyond the base's vocabulary and its projector are absolute values. The sum is
    taken in the delta's fp16, as the official script does.
    """
    base, _ = open_folder(base)
    delta, data = open_folder(delta)
    base_tensors = rename(read_tensors(base), {})  # less the buffers
    delta_tensors = rename(read_tensors(delta), {})
    check_pair(base_tensors, delta_tensors, base, delta)

    # one shard at a time, so that base and delta together never stand in memory
    def add(name, tensor):
        if name not in base_tensors:
            return tensor
        old = base_tensors[name].to(tensor.dtype)
        return torch.cat([tensor[: len(old)] + old, tensor[len(old):]])

    # tokenizer and the like
    def copy_rest(folder):
        for file in delta.iterdir():
            if file.suffix in (".json", ".model") and not file.name.endswith("index.json"):
                shutil.copyfile(file, folder / file.name)

    if "mm_hidden_size" in data or "mm_vision_tower" in data:
        data["model_type"] = "llava"
    write_folder(out, delta_tensors, {"config.json": data}, copy_rest, add)


def check_pair(base_tensors, delta_tensors, base, delta):
    """Same names but for the projector, same shapes but for added words; else ValueError."""
    for name in sorted(base_tensors.keys() ^ delta_tensors.keys()):
        if name in base_tensors or "mm_projector." not in name:
            raise ValueError(f"{name} is only in one of {base} and {delta}: "
                             "they do not belong together")

    for name, old in base_tensors.items():
        new = delta_tensors[name]
        grown = name in WORD_MATRICES and new.shape[1:] == old.shape[1:] and len(new) >= len(old)
        if not grown and new.shape != old.shape:
            raise ValueError(f"{name} is {list(old.shape)} in {base}, "
                             f"but {list(new.shape)} in {delta}")
