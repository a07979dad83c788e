"""Deltas on LLaMA's weights, as LLaVA-v0 and v1.1 were published."""
import shutil

import torch

from minillava.weights.layouts import _folder
from minillava.weights.saving import _write
from minillava.weights.tensors import read_tensors, rename


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
