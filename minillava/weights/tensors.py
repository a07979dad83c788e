"""Tensors from strangers: read, renamed, put into a module."""
import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from minillava.files import read_json

BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")  # computed here, stored by old versions


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
