"""The batches of a run, loaded ahead, and what is counted of each."""
import sys
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minillava.data import collate
from minillava.llava import find_places
from minillava.terminal import printable
from minillava.training import distributed
from minillava.training.signals import ignore_signals


@dataclass(frozen=True)
class StepBatch:
    """One step: this rank's micro-batches, and counts over all micro-batches of all ranks."""

    micro: list      # of (input_ids, labels, pixels, image_at, learn_at)
    ids: list        # of this rank's samples
    supervised: int  # tokens that are learned
    tokens: int      # all tokens, padding too
    images: int
    bad: int         # samples that were passed over
    cut: int         # samples that were too long
    ignored: int     # pictures that no turn points at


class ErrorsAsItems(Dataset):
    """An error is handed over as an item is: raised in a worker, it would come as its traceback."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, index):
        try:
            return self.data[index]
        except (OSError, ValueError) as error:
            return error


def step_batches(data, indices, accumulate, workers, device):
    """One StepBatch after the other; indices: this rank's micro-batches, `accumulate` a step."""
    loader = DataLoader(ErrorsAsItems(data), batch_sampler=indices, collate_fn=collate_noted,
                        num_workers=workers, worker_init_fn=ignore_signals,
                        pin_memory=device.type == "cuda")
    micro = []
    for tensors, notes in loader:
        if notes["error"]:
            raise notes["error"]
        say_passed_over(notes)
        micro.append((tensors, notes))
        if len(micro) == accumulate:
            yield counted(micro)
            micro = []


def collate_noted(items):
    """Items -> (input_ids, labels, pixels, image_at, learn_at), and notes for the run's records."""
    errors = [item for item in items if isinstance(item, Exception)]
    if errors:
        return None, {"error": errors[0]}
    notes = {"error": None,
             "ids": [item["id"] for item in items],
             "bad": [line for item in items for line in item["bad"]],
             "cut": sum(item["cut"] for item in items),
             "ignored": sum(item["ignored"] for item in items)}
    input_ids, labels, pixels = collate(items)
    return (input_ids, labels, pixels, *find_places(input_ids, labels)), notes


def say_passed_over(notes):
    for line in notes["bad"]:
        tqdm.write(f"passed over {printable(line, keep='')}", file=sys.stderr)


def counted(batches):
    """Batches of `collate_noted` -> a StepBatch."""
    ids = []
    counts = []  # a row a batch, in StepBatch's order
    for (input_ids, _, pixels, _, learn_at), notes in batches:
        ids += notes["ids"]
        counts.append([len(learn_at), input_ids.numel(), len(pixels),
                       len(notes["bad"]), notes["cut"], notes["ignored"]])

    here = [sum(column) for column in zip(*counts)]
    micro = [tensors for tensors, _ in batches]
    return StepBatch(micro, ids, *distributed.add_up(here))
