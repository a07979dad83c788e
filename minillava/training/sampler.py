"""Which samples a step takes: batches of like length and of one modality (llava_trainer.py)."""
import torch


def micro_batches(lengths, per_gpu, ranks, rank, accumulate, grouped, epochs, seed):
    """What one of the ranks trains on -> lists of `per_gpu` indices, `accumulate` of them a step.

    The global batches depend on the seed and on their size alone: 2 ranks that accumulate twice see
    those of 1 rank that accumulates 4 times. An epoch whose last step falls short is filled up from
    its first. grouped: as in LLaVA-1.5's second stage; else at random.
    """
    size = per_gpu * ranks * accumulate  # of a global batch
    mine = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed + epoch)
        if grouped:
            order = grouped_order(lengths, per_gpu, ranks * accumulate, generator)
        else:
            order = torch.randperm(len(lengths), generator=generator).tolist()

        # within a batch the order depends on how it is cut: what fills the last one must not
        again = sorted(order[:size])
        missing = -len(order) % size
        order += [again[i % len(again)] for i in range(missing)]

        # the micro-batches take turns among the ranks
        for start in range(rank * per_gpu, len(order), ranks * per_gpu):
            mine.append(order[start : start + per_gpu])
    return mine


def grouped_order(lengths, batch, parts, generator):
    """A shuffled order in which each global batch holds samples of like length, of one modality.

    lengths: ints, negative for text alone; batch: samples of a micro-batch; parts: micro-batches of
    a step, ranks x accumulation. The last global batch is the only mixed one. The same state of the
    generator gives the same order as the official code. Two ranks with two samples each:

        sample     0 1 2 3 4 5 6 7
        words      5 8 2 9 4 6 3 7
        shuffled   4 0 7 3 | 2 5 1 6         cut into global batches
        longest    3 7 0 4 | 1 5 6 2
        shared     3 4, 7 0 | 1 2, 5 6       9 + 4 words and 7 + 5; 8 + 2 and 6 + 3
    """
    images = [i for i, length in enumerate(lengths) if length > 0]
    texts = [i for i, length in enumerate(lengths) if length < 0]
    if not images or not texts:
        return joined(global_batches(range(len(lengths)), lengths, batch, parts, generator))

    words = [abs(length) for length in lengths]
    image_batches = global_batches(images, words, batch, parts, generator)
    text_batches = global_batches(texts, words, batch, parts, generator)
    last = sorted(image_batches.pop() + text_batches.pop())

    batches = image_batches + text_batches
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return joined(batches[i] for i in shuffled) + last


def global_batches(samples, lengths, batch, parts, generator):
    """The samples, shuffled, in batches whose order shares them out -> lists of samples."""
    order = torch.randperm(len(samples), generator=generator).tolist()
    shuffled = [samples[i] for i in order]
    size = batch * parts
    pieces = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    return [shared_out(piece, lengths, parts) for piece in pieces]


def shared_out(samples, lengths, parts):
    """One global batch, put in an order whose `parts` equal parts have about as many words each."""
    longest_first = sorted(samples, key=lambda i: lengths[i], reverse=True)
    if len(samples) % parts:  # the last batch of an epoch
        return joined(longest_first[part::parts] for part in range(parts))

    # each sample goes to the part with the fewest words so far that is not full
    size = len(samples) // parts
    filled = [[] for _ in range(parts)]
    words = [0] * parts
    for i in longest_first:
        not_full = [part for part in range(parts) if len(filled[part]) < size]
        lightest = min(not_full, key=lambda part: words[part])
        filled[lightest].append(i)
        words[lightest] += lengths[i]
    return joined(filled)


def joined(lists):
    return [i for part in lists for i in part]
