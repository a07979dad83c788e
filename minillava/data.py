"""LLaVA-JSON becomes batches.

A sample is {"id", "image" (left out for text alone), "conversations": [{"from": "human" or "gpt", "value"}, ...]}.
The format is that of LLaVA's published files (llava_instruct_150k.json, llava_v1_5_mix665k.json). Of a file only an index
is held in memory, three numbers a sample. Batches are padded on the right, so that the causal mask alone hides the padding
and attention needs no mask of its own.
"""
import json
from pathlib import Path, PurePosixPath

import torch
from torch.nn.utils.rnn import pad_sequence

from minillava.conversation import IMAGE, render
from minillava.files import index_of
from minillava.images import load_image, preprocess
from minillava.llava import IGNORE_INDEX, IMAGE_TOKEN


def words_of(sample):
    """Words of all turns, negative for text alone: what the sampler sorts by. 1 for what is no sample; loading names it."""
    try:
        words = sum(len(turn["value"].split()) for turn in sample["conversations"])
        return max(words, 1) * (1 if "image" in sample else -1)
    except (AttributeError, KeyError, TypeError):
        return 1


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
        self.index = index_of(path, cache or self.path.parent, words_of)

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
