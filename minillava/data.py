"""LLaVA-JSON becomes batches.

A sample is {"id", "image" (left out for text alone), "conversations": [{"from": "human" or "gpt", "value"}, ...]}.
The format is that of LLaVA's published files (llava_instruct_150k.json, llava_v1_5_mix665k.json). Batches are padded on
the right, so that the causal mask alone hides the padding and attention needs no mask of its own.
"""
import json
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from minillava.conversation import IGNORE_INDEX, render
from minillava.vision import load_image, preprocess


class LlavaData(torch.utils.data.Dataset):
    """item -> {"input_ids": [T], "labels": [T], "pixels": [images,3,S,S]}, images 0 or 1."""

    def __init__(self, path, images, tokenizer, config, template=None):
        """path: the JSON file; images: the folder its "image" entries are relative to; config: a LlavaConfig."""
        self.samples = json.loads(Path(path).read_text(encoding="utf-8"))
        self.images, self.tokenizer, self.config = Path(images), tokenizer, config
        self.template = template or config.template

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample, pixels = self.samples[index], torch.empty(0)
        turns = [(turn["from"], turn["value"]) for turn in sample["conversations"]]
        image_tokens = self.config.image_tokens if "image" in sample else 0
        ids, labels = render(turns, self.tokenizer, self.template, image_tokens)
        if image_tokens:
            pixels = preprocess([load_image(self.images / sample["image"])], self.config)
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "pixels": pixels}

    def lengths(self):
        """Words per sample, negative for text alone: what the sampler sorts by, cheap enough for 665,298 samples."""
        words = (sum(len(turn["value"].split()) for turn in sample["conversations"]) for sample in self.samples)
        return [n if "image" in sample else -n for n, sample in zip(words, self.samples)]


def collate(items):
    """-> input_ids [B,T], labels [B,T], pixels [images,3,S,S], the images in the order of their rows."""
    return (pad_sequence([item["input_ids"] for item in items], batch_first=True, padding_value=0),
            pad_sequence([item["labels"] for item in items], batch_first=True, padding_value=IGNORE_INDEX),
            torch.cat([item["pixels"] for item in items if len(item["pixels"])] or [torch.empty(0)]))


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
