"""The batches of a run, loaded ahead, and what is counted of each."""
import sys
from dataclasses import dataclass

from torch.utils.data import DataLoader
from tqdm import tqdm

from minillava.data import collate_noted
from minillava.llava import IGNORE_INDEX
from minillava.terminal import printable
from minillava.training import distributed
from minillava.training.signals import ignore_signals


@dataclass(frozen=True)
class StepBatch:
    """One step: this rank's micro-batches, and counts over all micro-batches of all ranks."""

    micro: list      # of (input_ids, labels, pixels)
    ids: list        # of this rank's samples
    supervised: int  # tokens that are learned
    tokens: int      # all tokens, padding too
    images: int
    bad: int         # samples that were passed over
    cut: int         # samples that were too long


def step_batches(data, indices, accumulate, workers, device):
    """One StepBatch after the other; indices: this rank's micro-batches, `accumulate` a step."""
    loader = DataLoader(data, batch_sampler=indices, collate_fn=collate_noted, num_workers=workers,
                        pin_memory=device.type == "cuda", worker_init_fn=ignore_signals)
    micro = []
    for batch in loader:
        for line in batch[-1]["bad"]:
            tqdm.write(f"passed over {printable(line, keep='')}", file=sys.stderr)
        micro.append(batch)
        if len(micro) == accumulate:
            yield counted(micro)
            micro = []


def counted(batches):
    """Batches of `collate_noted` -> a StepBatch."""
    ids, supervised, tokens, images, bad, cut = [], 0, 0, 0, 0, 0
    for input_ids, labels, pixels, note in batches:
        ids += note["ids"]
        supervised += (labels[:, 1:] != IGNORE_INDEX).sum().item()
        tokens += input_ids.numel()
        images += len(pixels)
        bad += len(note["bad"])
        cut += note["cut"]
    micro = [tensors for *tensors, _ in batches]
    return StepBatch(micro, ids, *distributed.add_up([supervised, tokens, images, bad, cut]))
