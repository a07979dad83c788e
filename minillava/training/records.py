"""What a run measures of itself: metrics.jsonl, a line a step, and the bar of its progress."""
import json
import math
import re
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from minillava.training import checkpoints, distributed, plan

try:
    import resource
except ImportError:  # Windows has none
    resource = None

STATUS = Path("/proc/self/status")  # of Linux


class Records:
    """Losses stay on the device until they are written, so that the GPU is not waited for.

    first, steps: which step the run goes on with, and how many it has, for the bar that shows it.
    """

    def __init__(self, out, model, recipe, device, first, steps):
        self.out = out
        self.recipe = recipe
        self.device = device
        self.peak = plan.peak_flops(device)
        self.skeleton = plan.skeleton(model.config, recipe) if self.peak else None
        self.bar = tqdm(total=steps, initial=first, desc=f"stage {recipe.stage}",
                        disable=not distributed.leads())
        self.waiting = []          # [(row, loss, norm, ids of the samples)]
        self.since = time.perf_counter()   # the last time they were written

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error is None:
            self.flush()
        self.bar.close()

    def add(self, step, lr, batch, loss, norm, val_loss=None):
        """loss: this rank's part; batch: a StepBatch; val_loss: after the step, where measured."""
        row = {"step": step, "lr": lr, "supervised": batch.supervised, "tokens": batch.tokens,
               "images": batch.images, "bad": batch.bad, "cut": batch.cut,
               "ignored": batch.ignored}
        if val_loss is not None:
            row["val_loss"] = val_loss
        if hasattr(norm, "full_tensor"):  # FSDP2's
            norm = norm.full_tensor()
        self.waiting.append((row, loss, norm, batch.ids))

        self.bar.update()
        if self.device.type == "cpu" or step % 10 == 0:
            self.flush()

    def flush(self):
        """Writes what waits. FloatingPointError, on all ranks, for a loss of NaN or inf."""
        if not self.waiting:
            return
        losses = torch.stack([loss for _, loss, _, _ in self.waiting])
        losses = distributed.mean_over_ranks(losses).tolist()
        seconds = (time.perf_counter() - self.since) / len(self.waiting)

        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as log:
            for (row, _, norm, ids), loss in zip(self.waiting, losses):
                if not math.isfinite(loss):
                    raise FloatingPointError(not_finite(self.out, row["step"], loss, ids))
                row |= {"loss": loss, "gradient_norm": norm.item()} | self.speed(row, seconds)
                if distributed.leads():
                    log.write(json.dumps(row) + "\n")
        self.bar.set_postfix(loss=f"{losses[-1]:.3f}")
        self.waiting = []
        self.since = time.perf_counter()

    def speed(self, row, seconds):
        speed = {"tokens_per_second": row["tokens"] / seconds}
        if self.peak:
            flops = plan.step_flops(self.skeleton, self.recipe, row["tokens"], row["images"])
            speed["mfu"] = flops / seconds / (self.peak * distributed.ranks())
        return speed | {"memory_gib": peak_memory(self.device)}


def peak_memory(device):
    """GiB that this process held at most, of the GPU or of the machine; None: it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    if STATUS.exists():
        # What `resource` says begins, on Linux, with what the process held that started this one.
        kib = re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text("utf-8"))
        if kib:
            return int(kib[1]) / 2**20
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def not_finite(out, step, loss, ids):
    everyone = [str(i) for part in distributed.gather(ids) for i in part]
    done = list(checkpoints.checkpoints(out).values())
    last_good = done[-1] if done else "none"
    return (f"the loss of step {step} is {loss}, of the samples {', '.join(everyone)}; "
            f"the last good checkpoint is {last_good}")
