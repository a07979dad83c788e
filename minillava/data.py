"""LLaVA-JSON becomes batches.

A sample is {"id", "image" (left out for text alone), "conversations": [{"from": "human" or "gpt", "value"}, ...]}.
The format is that of LLaVA's published files (llava_instruct_150k.json, llava_v1_5_mix665k.json). Of a file only an index
is held in memory, three numbers a sample. Batches are padded on the right, so that the causal mask alone hides the padding
and attention needs no mask of its own.
"""
import json
import os
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from minillava.conversation import IGNORE_INDEX, IMAGE, render
from minillava.model import IMAGE_TOKEN
from minillava.vision import load_image, preprocess


def words_of(sample):
    """Words of all turns, negative for text alone: what the sampler sorts by. 1 for what is no sample; loading names it."""
    try:
        words = sum(len(turn["value"].split()) for turn in sample["conversations"])
        return max(words, 1) * (1 if "image" in sample else -1)
    except (AttributeError, KeyError, TypeError):
        return 1


def index_of(path, cache, chunk=1 << 24):
    """A JSON array of samples, of any size -> int64 [samples, 3]: first byte, last byte + 1, words (see words_of).

    One pass over the file, parsed by the chunk. The folder `cache` keeps the index for the next time.
    """
    stat = os.stat(path)
    kept = Path(cache) / f"index-{stat.st_size}-{stat.st_mtime_ns}.npy"
    if kept.exists():
        return np.load(kept, mmap_mode="r")
    rows, decode, base = [], json.JSONDecoder().raw_decode, 0  # base: where in the file `text` begins
    with open(path, "rb") as file:
        text, at = file.read(chunk).decode("latin-1"), 0  # a character is a byte, so positions are those of the file
        while True:
            while text[at : at + 1].isspace() or text[at : at + 1] in ("," if rows else "[",) and at + base < stat.st_size:
                at += 1
            if text[at : at + 1] == "]":
                break
            try:
                sample, end = decode(text, at)
            except json.JSONDecodeError as error:
                more = file.read(chunk).decode("latin-1")
                if not more:
                    raise ValueError(f"{path} is not a JSON array of samples: {error.msg} at byte {base + error.pos}, "
                                     f"after {len(rows)} samples") from None
                text, base, at = text[at:] + more, base + at, 0
                continue
            if not text[at:end].isascii():  # words are those of the real text
                sample = json.loads(text[at:end].encode("latin-1"))
            rows.append((base + at, base + end, words_of(sample)))
            at = end
    if not rows:
        raise ValueError(f"{path} holds no samples")
    Path(cache).mkdir(parents=True, exist_ok=True)
    new = kept.with_suffix(f".{os.getpid()}.npy")
    np.save(new, np.array(rows, dtype=np.int64))
    os.replace(new, kept)
    return np.load(kept, mmap_mode="r")


class LlavaData(torch.utils.data.Dataset):
    """item -> {"input_ids": [T], "labels": [T], "pixels": [images,3,S,S], images 0 or 1, "id", "cut", "bad"}.

    A sample that cannot be used is never dropped in silence and never ends the training: the item is then the next one
    of its kind (with or without an image) that can be, the same in every process; "bad" says what was passed over and why.
    """

    def __init__(self, path, images, tokenizer, config, template=None, max_length=2048, cache=None):
        """path: the JSON file; images: the folder its "image" entries are relative to; config: a LlavaConfig; cache: a
        folder for the index (default: that of the file); max_length: tokens, image included, where a sample is cut."""
        self.path, self.images, self.tokenizer, self.config = Path(path), Path(images), tokenizer, config
        self.template, self.max_length = template or config.template, max_length
        self.index = index_of(path, cache or self.path.parent)

    def __len__(self):
        return len(self.index)

    def lengths(self):
        return self.index[:, 2].tolist()

    def sample(self, index):
        """The sample as the file has it."""
        first, end, _ = self.index[index]
        with open(self.path, "rb") as file:
            file.seek(first)
            return json.loads(file.read(end - first))

    def __getitem__(self, index):
        bad, n, with_image = [], len(self), self.index[index, 2] > 0
        for at in (i % n for i in range(index, index + n)):
            if (self.index[at, 2] > 0) != with_image:  # a batch stays of one modality
                continue
            sample = self.sample(at)
            try:
                return self.prepare(sample) | {"bad": bad}
            except (OSError, ValueError) as error:
                bad.append(f"{sample.get('id', at) if isinstance(sample, dict) else at}: {error}")
            if len(bad) == 100:
                break
        raise ValueError(f"{len(bad)} samples in a row cannot be used, the last: {bad[-1]}; look at --data and --images")

    def prepare(self, sample):
        """A sample -> an item, or the OSError or ValueError that says why there is none."""
        if not isinstance(sample, dict) or not isinstance(sample.get("conversations"), list):
            raise ValueError("it has no conversations")
        turns = [(turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, turn)
                 for turn in sample["conversations"]]
        has_image, pixels = "image" in sample, torch.empty(0)
        asked = sum(role == "human" and IMAGE in str(text) for role, text in turns)
        if has_image and asked != 1:
            raise ValueError(f"it has one image and {asked} human turns with {IMAGE}")
        ids, labels = render(turns, self.tokenizer, self.template, self.config.image_tokens if has_image else 0)
        cut = len(ids) > self.max_length
        if IMAGE_TOKEN in ids[self.max_length :]:
            raise ValueError(f"too long: {len(ids)} tokens, and a cut after {self.max_length} would fall into its image")
        if has_image:
            name = PurePosixPath(str(sample["image"]))
            if name.is_absolute() or ".." in name.parts:
                raise ValueError(f"its image {name} is not within the image folder")
            pixels = preprocess([load_image(self.images / name)], self.config)
        return {"input_ids": torch.tensor(ids[: self.max_length]), "labels": torch.tensor(labels[: self.max_length]),
                "pixels": pixels, "id": sample.get("id"), "cut": int(cut)}


def collate(items):
    """-> input_ids [B,T], labels [B,T], pixels [images,3,S,S], the images in the order of their rows."""
    return (pad_sequence([item["input_ids"] for item in items], batch_first=True, padding_value=0),
            pad_sequence([item["labels"] for item in items], batch_first=True, padding_value=IGNORE_INDEX),
            torch.cat([item["pixels"] for item in items if len(item["pixels"])] or [torch.empty(0)]))


def collate_noted(items):
    """As collate, and what the run's records want to know: the ids, what was passed over, how many were cut."""
    return *collate(items), {"ids": [item["id"] for item in items], "bad": [line for item in items for line in item["bad"]],
                             "cut": sum(item["cut"] for item in items)}


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
