"""Checkpoints of a run: written whole or not at all, read by any number of ranks."""
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from minillava.files import replace_file
from minillava.training.distributed import add_up, barrier, rank

# a checkpoint holds what changes
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


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
    if rank() == 0:
        for unfinished in Path(out).glob("checkpoint-*.tmp"):  # of a run killed while it saved
            shutil.rmtree(unfinished)
    barrier()

    with one_line_errors(f"{new} cannot be written, is the disk full?"):
        dcp.save(state_of(model, optimizers), checkpoint_id=new)
    if rank() == 0:
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


def load_weights(folder, model):
    """A checkpoint's trained weights into a model that is frozen as it was then, in fp32."""
    trained = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    dcp.load({"model": trained}, checkpoint_id=folder)  # in place


def resume(out, model, optimizers):
    """Brings back the newest checkpoint, by any number of ranks -> its step, or 0."""
    done = checkpoints(out)
    if not done:
        return 0
    step = max(done)
    state = state_of(model, optimizers)
    with one_line_errors(f"{done[step]} cannot be read; delete it, and the run goes on from the "
                         "one before, or from its beginning"):
        dcp.load(state, checkpoint_id=done[step])
    set_state_dict(
        model, optimizers, model_state_dict=state["model"], optim_state_dict=state["optim"],
        options=TRAINED)
    torch.set_rng_state(state["rng"])
    return step
