"""Which samples a step takes: batches of like length and of one modality (llava_trainer.py)."""
import torch


def micro_batches(lengths, batch, world, rank, accumulate, grouped, epochs, seed):
    """What one of `world` ranks trains on, list of lists of indices: `accumulate` micro-batches of `batch` to a step.

    The order depends on the seed and on the size of the global batch alone, so that 2 ranks that accumulate twice see
    the very global batches of 1 rank that accumulates 4 times. An epoch whose last step falls short is filled up from
    its beginning. grouped: of like length and one modality, as in LLaVA-1.5's second stage; else at random.
    """
    mine = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed + epoch)
        order = (grouped_order(lengths, batch, world * accumulate, generator) if grouped
                 else torch.randperm(len(lengths), generator=generator).tolist())
        size = batch * world * accumulate
        order += [order[i % len(order)] for i in range(-len(order) % size)]
        mine += [order[start : start + batch] for start in range(rank * batch, len(order), world * batch)]
    return mine


def grouped_order(lengths, batch, world, generator):
    """A shuffled order in which each global batch holds samples of like length, and of one modality: llava_trainer.py.

    lengths: ints, negative for text alone; batch: samples per rank and step; world: ranks x accumulation steps. The last
    batch is the only mixed one. The same generator state gives the same order as the official code.
    """
    if all(n > 0 for n in lengths) or all(n < 0 for n in lengths):
        return [i for mega in _megabatches(lengths, batch, world, generator) for i in mega]
    kinds = []
    for sign in (1, -1):
        indices = [i for i, n in enumerate(lengths) if n * sign > 0]
        megabatches = _megabatches([abs(lengths[i]) for i in indices], batch, world, generator)
        order = [indices[i] for mega in megabatches for i in mega]
        kinds.append([order[i : i + batch * world] for i in range(0, len(order), batch * world)])
    last = sorted(kinds[0].pop() + kinds[1].pop())
    megabatches = kinds[0] + kinds[1]
    shuffled = [megabatches[i] for i in torch.randperm(len(megabatches), generator=generator).tolist()]
    return [i for mega in shuffled + [last] for i in mega]


def _megabatches(lengths, batch, world, generator):
    order, size = torch.randperm(len(lengths), generator=generator).tolist(), batch * world
    for start in range(0, len(order), size):
        mega = sorted(order[start : start + size], key=lambda i: lengths[i], reverse=True)
        if len(mega) % world:
            yield [i for rank in range(world) for i in mega[rank::world]]
        else:  # the longest left goes to the rank with the least so far
            ranks, sums = [[] for _ in range(world)], [0] * world
            for i in mega:
                rank = min((r for r in range(world) if len(ranks[r]) < len(mega) // world), key=lambda r: sums[r])
                ranks[rank].append(i)
                sums[rank] += lengths[i]
            yield [i for rank in ranks for i in rank]
