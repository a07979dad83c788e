"""Tensors from strangers: read, renamed, put into a module."""
import ctypes
import mmap
import pickle
import re
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from minillava.files import read_json

# computed here, stored by old versions
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")


def read_tensors(path):
    """A file of weights, or a folder of them -> {name: tensor}, memory-mapped."""
    path = Path(path)
    if path.is_file():
        return read_tensor_file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")

    tensors = {}
    for file in weight_files(path):
        tensors |= read_tensor_file(file)
    return tensors


def weight_files(folder):
    """The files that hold a folder's weights: one, or the shards that an index lists."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            return [folder / file for file in shard_names(index)]
    raise FileNotFoundError(
        f"{folder} has neither model.safetensors nor pytorch_model.bin, nor shards with an index")


def shard_names(index):
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no weight_map; download it again")
    for file in weight_map.values():
        if not re.fullmatch(r"[^/\\]+\.(safetensors|bin)", str(file)):  # no way to files elsewhere
            raise ValueError(f"{index} names {file!r}, which is not a file of its own folder")
    return sorted(set(weight_map.values()))


def read_tensor_file(path):
    """A .safetensors, or a .bin: a pickle, hence a program.

    One that does anything but build tensors is refused.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; download it again")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mapped = zipfile.is_zipfile(path)  # not so before torch 1.6
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} wants to run code, or is damaged: it is refused") from None
    except Exception as error:  # what a broken file makes its reader stumble over is anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason:.200}); download it again") from None

    if not is_table_of_tensors(tensors):
        raise ValueError(f"{path} is not a table of named tensors")
    return tensors


def is_table_of_tensors(value):
    if not isinstance(value, dict):
        return False
    return all(isinstance(entry, torch.Tensor) for entry in value.values())


def rename(tensors, table):
    """Names on disk -> names here, by a table of prefixes: the longest that fits counts.

        rename({"model.norm.weight": w}, {"model.": "language_model."})
            -> {"language_model.norm.weight": w}

    A name that no prefix fits stays, for `fill` to complain about; None drops what has no use here.
    """
    renamed = {}
    for name, tensor in tensors.items():
        prefix = longest_prefix(name, table)
        here = table.get(prefix, "")
        if here is None or name.endswith(BUFFERS):
            continue

        new_name = here + name[len(prefix):]
        if new_name in renamed:
            raise ValueError(f"the tensor {name} is there twice, under an old and a new name")
        renamed[new_name] = tensor
    return renamed


def longest_prefix(name, prefixes):
    fitting = [prefix for prefix in prefixes if name.startswith(prefix)]
    return max(fitting, key=len, default="")


def take_prefixed(tensors, prefix):
    """Moves the tensors whose name begins so out of the table, into one without the prefix."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def forget_pages(tensor):
    """Lets go of the memory of a tensor that is not read again, where it is a mapped file's.

    Otherwise all that was read of the file would count as this process's until the last tensor is
    dropped. Only whole pages within the tensor, only on Linux; elsewhere the system does it when
    memory is short.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def with_prefix(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


class NoInitialValues(TorchFunctionMode):
    """Within it, modules leave out their normally distributed start, which weights will replace.

    On the meta device it would do nothing, but PyTorch imports its compiler for that, for 2 s.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.init.normal_:
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def fill(module, tensors, source, device, dtype):
    """Makes `tensors` the parameters of a module that was built on the meta device.

    Strict: a tensor that is missing, unexpected or of another shape is an error that names it and
    the `source`. The tensors are not copied where device and dtype are theirs already.
    """
    check_names(module, tensors, source)
    places = module.state_dict(keep_vars=True)  # parameters, and the integers of quantised layers
    check_shapes(places, tensors, source)

    filled = {}  # on the meta device -> real; a tied head is one parameter under two names
    for name, place in places.items():
        if place not in filled:
            filled[place] = real(place, tensors[name], device, dtype)
        elif name in tensors:
            check_tie(name, tensors[name].to(device, dtype), filled[place], source)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, filled[place])
    return module


def real(place, tensor, device, dtype):
    """What takes the place of a parameter or buffer on the meta device; integers stay integers."""
    if not tensor.is_floating_point():
        return tensor.to(device)
    tensor = tensor.to(device, dtype)
    return nn.Parameter(tensor) if isinstance(place, nn.Parameter) else tensor


def check_depth(config, tensors, source):
    """A wrong number of layers is told before millions of them are made."""
    parts = [config]
    if hasattr(config, "language_config"):
        parts = [config.vision_config, config.language_config]
    for part in parts:
        if part.num_hidden_layers > len(tensors):
            raise ValueError(
                f"{source}: the config says num_hidden_layers {part.num_hidden_layers}, "
                f"but there are {len(tensors)} tensors in all")


def check_tie(name, tensor, tied_to, source):
    if not torch.equal(tensor, tied_to):
        raise ValueError(f"{source}: the config ties {name} to another tensor, but the two differ")


def check_names(module, tensors, source):
    known = module.state_dict(keep_vars=True)
    once = dict(module.named_parameters()) | dict(module.named_buffers())  # a tied head is left out
    missing = sorted(once.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - known.keys())
    for names, what in ((missing, "lacks"), (unexpected, "has unexpected")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{source} {what} {', '.join(names[:3])}{more}")


def check_shapes(places, tensors, source):
    for name, tensor in tensors.items():
        place = places[name]
        if tensor.shape != place.shape or not of_one_kind(tensor, place):
            raise ValueError(f"{source}: {name} is {tensor.dtype} {list(tensor.shape)}, "
                             f"but the config says {list(place.shape)}")

        # to look at every weight would read a mapped file whole; norms and biases are few, and a
        # training that fell apart spoils them with the rest
        if tensor.ndim == 1 and not tensor.isfinite().all():
            raise ValueError(f"{source}: {name} is not finite: "
                             "the training that wrote it fell apart, or the file is damaged")


def of_one_kind(tensor, place):
    """Numbers of any precision for numbers of any, integers for integers of the same width."""
    if place.is_floating_point():
        return tensor.is_floating_point()
    return tensor.dtype == place.dtype
