"""Checkpoints of a run: written whole or not at all, read by any number of ranks."""
import os
import re
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from minillava.training.distributed import barrier

TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)  # a checkpoint holds what changes


def checkpoints(folder):
    """The finished checkpoints of a run, {step: folder}, oldest first."""
    finished = (path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return dict(sorted((int(path.name[11:]), path) for path in finished))


def save(folder, step, model, optimizers, keep):
    """folder/checkpoint-STEP, on as many ranks as there are; it has its name only once all of it is written."""
    new, leads = Path(folder) / f"checkpoint-{step}.tmp", not dist.is_initialized() or dist.get_rank() == 0
    if leads:
        for left in Path(folder).glob("checkpoint-*.tmp"):  # by a run that was killed while saving
            shutil.rmtree(left)
    barrier()
    weights, moments = get_state_dict(model, optimizers, options=TRAINED)
    dcp.save({"model": weights, "optim": moments, "rng": torch.get_rng_state()}, checkpoint_id=new)
    if leads:
        os.replace(new, new.with_suffix(""))
        for old in list(checkpoints(folder).values())[:-keep]:
            shutil.rmtree(old.rename(old.with_name(old.name + ".tmp")))
    barrier()


def load(checkpoint, model, optimizers):
    """Brings back what `save` wrote, by the same or another number of ranks."""
    weights, moments = get_state_dict(model, optimizers, options=TRAINED)
    state = {"model": weights, "optim": moments, "rng": torch.get_rng_state()}
    dcp.load(state, checkpoint_id=checkpoint)
    set_state_dict(model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optim"], options=TRAINED)
    torch.set_rng_state(state["rng"])
