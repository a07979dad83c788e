"""LLaVA-JSON becomes batches: the instruction data of section 3, as section 4.2 trains on it.

A sample of LLaVA's published files (llava_instruct_150k.json, llava_v1_5_mix665k.json) is

    {"id": "7", "image": "7.jpg",                    "image" is left out for text alone
     "conversations": [{"from": "human", "value": "What is it?\\n<image>"},
                       {"from": "gpt", "value": "A cat."}]}

An item is that sample as the model takes it, and a batch is items padded on the right:

    input_ids    1  319 13563 ... -200 -200 ...   319 6635 29889    2    0    0     0 is padding
    labels    -100 -100  -100 ... -100 -100 ...   319 6635 29889    2 -100 -100

On the right, so that the causal mask alone hides the padding: no word looks at what comes after it.
Of a file only an index is held in memory, three numbers a sample.
"""
import json
from itertools import chain, islice
from pathlib import Path, PurePath

import torch
from torch.nn.utils.rnn import pad_sequence

from minillava.conversation import IMAGE, render
from minillava.files import index_of
from minillava.images import load_image, preprocess
from minillava.llava import IGNORE_INDEX, IMAGE_TOKEN


def words_of(sample):
    """How many words its turns have, negative for text alone: what batches are grouped by."""
    try:
        words = sum(len(turn["value"].split()) for turn in sample["conversations"])
        with_image = "image" in sample
    except (AttributeError, KeyError, TypeError):
        # No sample at all; loading it says why.
        return 1
    # The sign of 0 would not say whether there is an image.
    words = max(words, 1)
    return words if with_image else -words


class LlavaData(torch.utils.data.Dataset):
    """item -> {"input_ids" [T], "labels" [T], "pixels" [images,3,S,S], "id", "cut", ...}.

    A sample that cannot be used never ends the training and is never dropped in silence: its place
    is taken by the next one that can, and "bad" says what was passed over and why.
    """

    def __init__(self, path, images, tokenizer, config, template=None, max_length=2048, cache=None):
        """path: the JSON file; images: the folder that its "image" entries are relative to.

        config: a LlavaConfig; template: in place of the config's; max_length: tokens, those of the
        image included, after which a sample is cut; cache: a folder for the index, that of the
        file if not given.
        """
        self.path = Path(path)
        self.images = Path(images)
        self.tokenizer = tokenizer
        self.config = config
        self.template = template or config.template
        self.max_length = max_length
        # [samples, 3]: first byte and end in the file, words.
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
        bad = []
        # After a hundred the fault is not in the samples.
        for place in islice(self.places_from(index), 100):
            sample = self.sample(place)
            # The usual case: the first one is usable, and nothing is bad.
            try:
                return self.prepare(sample) | {"bad": bad}
            except (OSError, ValueError) as error:
                name = sample.get("id", place) if isinstance(sample, dict) else place
                bad.append(f"{name}: {error}")
        raise ValueError(f"{len(bad)} samples in a row cannot be used, the last: {bad[-1]}; "
                         "look at --data and --images")

    def places_from(self, index):
        """`index`, and those after it that have an image if it has one: a batch is of one kind."""
        with_image = self.index[index, 2] > 0
        # After the last sample comes the first.
        for place in chain(range(index, len(self)), range(index)):
            if (self.index[place, 2] > 0) == with_image:
                yield place

    def prepare(self, sample):
        """A sample -> an item, or the OSError or ValueError that says why there is none."""
        turns = turns_of(sample)
        # How many human turns point at the picture. One that none points at is ignored, and the
        # text is learned: as officially.
        shown = sum(role == "human" and IMAGE in str(text) for role, text in turns)
        has_image = "image" in sample and shown > 0
        if has_image:
            refuse_several(sample, shown)

        # Text and image as ids, and what of them is learned.
        image_tokens = self.config.image_tokens if has_image else 0
        ids, labels = render(turns, self.tokenizer, self.template, image_tokens)
        if IMAGE_TOKEN in ids[self.max_length :]:
            raise ValueError(f"too long: {len(ids)} tokens, and a cut after {self.max_length} "
                             "would fall into its image")

        # The picture itself, for the vision tower.
        pixels = torch.empty(0)
        if has_image:
            image = load_image(self.images / safe_name(sample["image"]))
            pixels = preprocess([image], self.config)  # [1,3,S,S]

        return {"input_ids": torch.tensor(ids[: self.max_length]),
                "labels": torch.tensor(labels[: self.max_length]),
                "pixels": pixels,
                "id": sample.get("id"),
                "cut": int(len(ids) > self.max_length),
                "ignored": int("image" in sample and not has_image)}


def turns_of(sample):
    """A sample -> [(role, text), ...] as render takes them, which checks roles and texts."""
    if not isinstance(sample, dict) or not isinstance(sample.get("conversations"), list):
        raise ValueError("it has no conversations")
    turns = []
    for turn in sample["conversations"]:
        if not isinstance(turn, dict) or turn.get("value") is None:
            raise ValueError(f"its turn {len(turns) + 1} has no value")
        turns.append((turn.get("from"), turn["value"]))
    return turns


def refuse_several(sample, shown):
    if shown > 1 or isinstance(sample["image"], list):
        raise ValueError(f"it shows pictures in {shown} turns, or several: LLaVA was trained on "
                         "one, shown once")


def safe_name(name):
    """The path of an image within its folder; ValueError for one that leads out of it."""
    # As this platform reads it: on Windows "..\\a.png" and "C:a.png" lead out too.
    path = PurePath(str(name))
    if path.anchor or ".." in path.parts:
        raise ValueError(f"its image {name} is not within the image folder")
    return path


def collate(items):
    """Items -> input_ids [B,T], labels [B,T], pixels [images,3,S,S] in the order of their rows."""
    input_ids = [item["input_ids"] for item in items]
    labels = [item["labels"] for item in items]
    # Text alone has no picture.
    pixels = [item["pixels"] for item in items if len(item["pixels"])]

    # Any id serves as padding: it is not learned, and no token looks ahead at it.
    return (pad_sequence(input_ids, batch_first=True, padding_value=0),
            pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            torch.cat(pixels or [torch.empty(0)]))
