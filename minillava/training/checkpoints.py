"""Checkpoints of a run: written whole or not at all, read by any number of ranks.

PyTorch pickles where in a checkpoint each tensor stands, and an optimiser's plain numbers. A pickle
can run any program: of these, only what they need is read.
"""
import pickle
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from minillava.files import replace_file
from minillava.training.distributed import add_up, barrier, leads

# a checkpoint holds what changes
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
# what says where each tensor stands, and in what shape
PLACES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "StorageMeta", "MetadataIndex", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "float32", "uint8"),
    "pathlib": ("PosixPath", "WindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),  # Python 3.13
}


def checkpoints(out):
    """The finished checkpoints of a run, {step: folder}, oldest first."""
    folders = {path.name.removeprefix("checkpoint-"): path
               for path in Path(out).glob("checkpoint-*")}
    return dict(sorted((int(step), path) for step, path in folders.items() if step.isdecimal()))


def state_of(model, optimizers):
    weights, moments = get_state_dict(model, optimizers, options=TRAINED)
    return {"model": weights, "optim": moments, "rng": torch.get_rng_state()}


def save(out, step, model, optimizers, keep):
    """out/checkpoint-STEP, by all ranks; it has its name only once all of it is written."""
    # a signal may come just after a step was saved, or before the first one after a resume; and at
    # the beginning there is nothing: another run in this folder would go on from it, unasked
    if step == 0 or add_up([step in checkpoints(out)])[0]:
        return

    new = Path(out) / f"checkpoint-{step}.tmp"
    if leads():
        for unfinished in Path(out).glob("checkpoint-*.tmp"):  # of a run killed while it saved
            shutil.rmtree(unfinished)
    barrier()

    with one_line_errors(f"{new} cannot be written, is the disk full?"):
        dcp.save(state_of(model, optimizers), checkpoint_id=new)
    if leads():
        replace_file(new, new.with_suffix(""))
        for old in list(checkpoints(out).values())[:-keep]:
            # half of one, should the run be killed now, must not bear the name of a whole one
            shutil.rmtree(old.rename(old.with_name(old.name + ".tmp")))
    barrier()


@contextmanager
def one_line_errors(what):
    """The trouble of any rank, which comes as pages of tracebacks, becomes an OSError on all."""
    try:
        yield
    except CheckpointException as failure:
        error, _ = next(iter(failure.failures.values()))
        raise OSError(f"{what} ({error!r:.200})") from None


class Places(pickle.Unpickler):
    def find_class(self, module, name):
        if name not in PLACES.get(module, ()):
            raise pickle.UnpicklingError(f"no checkpoint needs the {module}.{name} in it")
        return super().find_class(module, name)


class Reader(dcp.FileSystemReader):
    def read_metadata(self, *args, **kwargs):
        with open(self.path / ".metadata", "rb") as file:
            return Places(file).load()


class Planner(dcp.DefaultLoadPlanner):
    def load_bytes(self, item, value):
        torch.load(value, weights_only=True)  # an error where it is more than numbers
        value.seek(0)
        super().load_bytes(item, value)


def read(folder, state):
    """Fills the tensors of `state` in place, and its numbers."""
    dcp.load(state, storage_reader=Reader(folder), planner=Planner())


def load_weights(folder, model):
    """A checkpoint's trained weights into a model that is frozen as it was then, in fp32."""
    read(folder, {"model": {name: p.data for name, p in model.named_parameters()
                            if p.requires_grad}})


def resume(out, model, optimizers):
    """Brings back the newest checkpoint, by any number of ranks -> its step, or 0."""
    done = checkpoints(out)
    if not done:
        return 0
    step = max(done)
    state = state_of(model, optimizers)
    with one_line_errors(f"{done[step]} cannot be read; delete it, and the run goes on from the "
                         "one before, or from its beginning"):
        read(done[step], state)
    set_state_dict(
        model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optim"],
        options=TRAINED)
    torch.set_rng_state(state["rng"])
    return step
