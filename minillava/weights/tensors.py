"""Tensors from strangers: read, renamed, let go of."""
import ctypes
import mmap
import pickle
import re
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from minillava.files import read_json

# computed here, stored by old versions
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")

# a folder's weights, in one file; in shards, their index adds ".index.json"
MODELS = ("model.safetensors", "pytorch_model.bin")


def read_tensors(path):
    """A file of weights, or a folder of them -> {name: tensor}, memory-mapped."""
    path = Path(path)
    if path.is_file():
        return read_tensor_file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")

    tensors = {}
    for file in weight_files(path):
        shard = read_tensor_file(file)
        twice = tensors.keys() & shard.keys()
        if twice:
            raise ValueError(f"{file} holds {min(twice)}, as another shard of its folder does; "
                             "download the folder again")
        tensors |= shard
    return tensors


def weight_files(folder):
    """The files that hold a folder's weights: one, or the shards that an index lists."""
    for name in MODELS:
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            return [folder / file for file in shard_names(index)]
    raise FileNotFoundError(
        f"{folder} has neither model.safetensors nor pytorch_model.bin, nor shards with an index")


def has_weights(folder):
    """Whether a folder holds a model: its weights, or the index of their shards."""
    return any((folder / f"{name}{end}").exists() for name in MODELS for end in ("", ".index.json"))


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
    refuse_pointer(path)
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            mapped = zipfile.is_zipfile(path)  # not so before torch 1.6
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} wants to run code, or is damaged: it is refused") from None
    except Exception as error:  # what a broken file makes its reader stumble over is anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason:.200}); download it again") from None

    if not is_table_of_tensors(tensors):
        raise ValueError(f"{path} is not a table of named tensors")
    refuse_floats_of_8_bits(tensors, path)
    return tensors


def refuse_pointer(path):
    """`git clone` without Git LFS leaves a few lines of text in place of each big file."""
    if path.is_file() and path.stat().st_size < 1000 and b"git-lfs" in path.read_bytes():
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights: "
                         "git lfs pull, or hf download, brings them")


@contextmanager
def writing(path):
    """What a writer of tensors says of a full disk, each in its own words, becomes an OSError."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"{path} cannot be written ({reason:.200}); is the disk full?") from None


def is_table_of_tensors(value):
    return isinstance(value, dict) and all(
        isinstance(name, str) and is_plain_tensor(entry) for name, entry in value.items())


def is_plain_tensor(value):
    """Neither sparse nor without its numbers, on the meta device."""
    is_tensor = isinstance(value, torch.Tensor)
    return is_tensor and value.layout == torch.strided and value.device.type == "cpu"


def refuse_floats_of_8_bits(tensors, path):
    """Their scales, and what these multiply, are named otherwise by each program."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.itemsize == 1:
            raise ValueError(f"{path}: {name} is {tensor.dtype}: give the folder in 16 bits "
                             "(--quantize int8 or int4 makes it small here)")


def rename(tensors, table):
    """Names on disk -> names here, by a table of prefixes: the longest that fits counts.

        rename({"model.norm.weight": w}, {"model.": "language_model."})
            -> {"language_model.norm.weight": w}

    A name that no prefix fits stays, for `fill` to complain about; None drops what has no use here.
    """
    renamed = {}
    for name, tensor in tensors.items():
        fitting = [prefix for prefix in table if name.startswith(prefix)]
        prefix = max(fitting, key=len, default="")
        here = table.get(prefix, "")
        if here is None or name.endswith(BUFFERS):
            continue

        new_name = here + name[len(prefix):]
        if new_name in renamed:
            raise ValueError(f"the tensor {name} is there twice, under an old and a new name")
        renamed[new_name] = tensor
    return renamed


def take_prefixed(tensors, prefix):
    """Moves the tensors whose name begins so out of the table, into one without the prefix."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def forget_pages(tensor):
    """Lets go of the memory of a tensor that is not read again, where it is a mapped file's.

    Otherwise all that was read of the file would count as this process's until the last tensor is
    dropped; elsewhere than on Linux the system does it when memory is short.
    """
    advise(tensor, "MADV_DONTNEED")


def read_ahead(tensor):
    """Asks the system to read a mapped tensor from its file, and does not wait for it."""
    advise(tensor, "MADV_WILLNEED")


def advise(tensor, what):
    """Tells the system what will be done with the whole pages in a tensor; only Linux is told."""
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        advice = getattr(mmap, what)  # other systems lack some of these names
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def with_prefix(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}
