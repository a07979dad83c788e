"""A folder of weights as they are published: config.json, the tensors in shards, an index.

It is written whole or not at all.
"""
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file

from minillava.files import read_json, replace_file
from minillava.tokenizer import FILES as TOKENIZER_FILES
from minillava.weights.tensors import writing

MAX_SHARD = 5 * 10**9  # bytes

# the folder inside one of liuhaotian/llava-*'s layout that holds its CLIP, where we wrote it
OWN_TOWER = "vision_tower"


def open_folder(path):
    """-> (path, its config.json)"""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path} (from the hub: hf download NAME --local-dir FOLDER)")
    if (path / "adapter_config.json").exists():
        raise ValueError(f"{path} holds a LoRA adapter: give it as the model, "
                         "with its base beside it (base=, --base)")

    config = read_json(path / "config.json")
    if not config:
        raise FileNotFoundError(
            f"{path} has no config.json: it is not a folder of weights as they are published")
    if "recipe" in config:
        raise ValueError(f"{path} is a run of train.py: its model is {path / 'llava'}, "
                         f"or {path / 'adapter'}")
    refuse_foreign_quantization(path, config)
    return path, config


def refuse_foreign_quantization(path, config):
    """bitsandbytes, GPTQ, AWQ and others: integers that mean something else to each."""
    described = config.get("quantization_config")
    method = described.get("quant_method") if isinstance(described, dict) else described
    if method not in (None, "minillava"):
        raise ValueError(f"{path} is quantised by {str(method):.40}: give the plain folder "
                         "(--quantize int8 or int4 makes it small here)")


def refuse_to_lose(out, *folders):
    """ValueError if a folder that is read, or its tower, would be written over, or a file."""
    out = Path(out)
    if out.is_file():
        raise ValueError(f"--out {out} is a file: name a folder")
    for folder in map(Path, filter(None, folders)):
        for read in (folder, folder / OWN_TOWER, named_tower(folder)):
            for written in (out, out / OWN_TOWER):
                if read.exists() and written.exists() and written.samefile(read):
                    raise ValueError(f"--out would write over {read}: name another folder")


def named_tower(folder):
    """The CLIP that a folder's config names; the folder itself where none is named, or no config."""
    try:
        name = read_json(folder / "config.json").get("mm_vision_tower")
    except (OSError, ValueError):  # told by whoever reads the folder as a model
        name = None
    return Path(str(name or folder))


def write_folder(path, tensors, files, save_more=None, change=None, stem="model"):
    """{name: tensor} in STEM.safetensors or shards, {file name: JSON}, and `save_more(folder)`.

    `change(name, tensor)` makes each tensor what it shall be only when its shard is written: a sum
    of two 13B models never stands in memory.
    """
    path = Path(path)
    shards = cut_into_shards(tensors, stem)
    if len(shards) > 1:
        files = files | {f"{stem}.safetensors.index.json": index_of_shards(shards)}

    with replacing(path) as new:
        for file, shard in shards.items():
            write_shard(new / file, shard, change)
        if save_more is not None:
            save_more(new)
        for file, value in files.items():
            text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
            (new / file).write_text(text, encoding="utf-8")
        for file in shards:  # safetensors lets only its owner read a file
            shutil.copymode(new / "config.json", new / file)
        written = {file.name for file in new.iterdir()}
    remove_stale_files(path, written, stem)


@contextmanager
def replacing(path):
    """A folder to write into, which then takes the place of `path`, or its files that of old ones.

    A run that is killed while it writes leaves the old files whole, and no new folder at all.
    """
    # beside the old files or where the folder will stand, in a folder of its own
    beside = path if path.exists() else path.parent
    own_name = f".new-{path.name}"
    for killed in beside.glob(".new-*-*"):
        if killed.name.rpartition("-")[0] == own_name:  # .new-llava-7, not .new-llava-int4-7
            shutil.rmtree(killed)
    new = beside / f"{own_name}-{os.getpid()}"
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            for file in sorted(new.iterdir()):
                replace_file(file, path / file.name)
        else:
            replace_file(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def cut_into_shards(tensors, stem):
    """-> {file name: {tensor name: tensor}}, each at most MAX_SHARD bytes (or one tensor)."""
    shards = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > MAX_SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes

    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    total = len(shards)
    return {f"{stem}-{number:05}-of-{total:05}.safetensors": shard
            for number, shard in enumerate(shards, 1)}


def index_of_shards(shards):
    """The file that says which shard holds which tensor."""
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard.values())
    weight_map = {name: file for file, shard in shards.items() for name in shard}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def write_shard(file, shard, change):
    ready = {}
    for name, tensor in shard.items():
        tensor = tensor.detach()
        if change is not None:
            tensor = change(name, tensor)
        ready[name] = tensor.contiguous()
    with writing(file):
        save_file(ready, file, {"format": "pt"})


def remove_stale_files(path, written, stem):
    """Weights and tokenizer of an earlier save: they do not belong to these."""
    stale = {file.name for file in path.glob(f"{stem}*.safetensors*")}
    if written & set(TOKENIZER_FILES):
        stale |= set(TOKENIZER_FILES)
    for file in stale - written:
        (path / file).unlink(missing_ok=True)
