"""Samples kept apart: their loss while a run learns, the best weights, and when to stop."""
import math

from minillava.llava import IGNORE_INDEX
from minillava.training import distributed
from minillava.training.batches import collate_noted, say_passed_over
from minillava.training.optimizer import summed_loss


class Validation:
    """data: the samples kept apart; keep: a function that saves the wrapped model's weights."""

    def __init__(self, data, per_gpu, every, patience, keep):
        self.data = data
        self.per_gpu = per_gpu
        self.every = every         # steps
        self.patience = patience   # looks without a better loss, after which a run ends; or None
        self.keep = keep
        self.losses = []           # one a look; of an earlier part of the run too

    @property
    def best(self):
        return min(self.losses, default=math.inf)

    @property
    def patience_is_over(self):
        since_best = len(self.losses) - 1 - self.losses.index(self.best)
        return self.patience is not None and since_best >= self.patience

    def is_due(self, step):
        return (step + 1) % self.every == 0

    def measure(self, wrapped, dtype, device):
        """-> the mean loss over all supervised tokens; keeps the weights if it is the best yet."""
        total = 0.0
        supervised = 0
        for indices, counts in self.batches():
            items = [self.data[i] for i in indices]
            for item in items:
                if item["bad"] or not counts:  # it only stands in for another
                    item["labels"].fill_(IGNORE_INDEX)
            tensors, notes = collate_noted(items)
            if not self.losses:  # the first look: once is enough
                say_passed_over(notes)
            *_, learn_at = tensors
            supervised += len(learn_at)
            total += summed_loss(wrapped, dtype, [x.to(device) for x in tensors]).item()
        total, supervised = map(sum, zip(*distributed.gather([total, supervised])))
        loss = total / max(supervised, 1)
        if loss < self.best:
            self.keep(wrapped)
        self.losses.append(loss)
        return loss

    def batches(self):
        """This rank's share: (indices, whether they count). FSDP2 wants as many on every rank."""
        ranks = distributed.ranks()
        mine = range(distributed.rank(), len(self.data), ranks)
        most = math.ceil(len(self.data) / ranks)  # samples of any rank
        for start in range(0, most, self.per_gpu):
            indices = list(mine[start : start + self.per_gpu])
            yield indices or [0], bool(indices)
