"""Batches: the official order, right padding, and images that go with their rows."""
import json
import random

import pytest
import torch
from PIL import Image

from minillava.checkpoint import load_llava
from minillava.data import LlavaData, collate, grouped_order
from minillava.model import IGNORE_INDEX, IMAGE_TOKEN

MIXED = [5, -3, 8, 2, -7, 9, 4, -1, 6, 3, -2, 7, 1, 10, -4, 11]


@pytest.mark.parametrize("batch, world, lengths, expected", [  # measured: what the official sampler gives for seed 0
    (2, 2, MIXED, [2, 12, 8, 3, 15, 6, 5, 0, 4, 7, 14, 10, 1, 9, 11, 13]),
    (1, 4, MIXED, [2, 8, 3, 12, 15, 5, 0, 6, 4, 14, 10, 7, 1, 9, 11, 13]),
    (4, 1, MIXED, [2, 8, 3, 12, 15, 5, 0, 6, 4, 14, 10, 7, 1, 9, 11, 13]),
    (2, 2, [abs(n) for n in MIXED], [6, 12, 9, 10, 13, 8, 5, 11, 15, 14, 2, 0, 4, 7, 1, 3]),
    (1, 4, [abs(n) for n in MIXED], [6, 9, 10, 12, 13, 5, 11, 8, 15, 2, 0, 14, 4, 1, 3, 7]),
    (4, 1, [abs(n) for n in MIXED], [6, 9, 10, 12, 13, 5, 11, 8, 15, 2, 0, 14, 4, 1, 3, 7]),
])
def test_the_order_is_the_official_one(batch, world, lengths, expected):
    torch.manual_seed(0)
    assert grouped_order(lengths, batch, world, torch.default_generator) == expected


def test_every_sample_comes_once_and_a_batch_is_of_one_modality():
    rng = random.Random(0)
    lengths = [rng.choice((1, -1)) * rng.randint(1, 50) for _ in range(203)]
    order = grouped_order(lengths, 4, 2, torch.Generator().manual_seed(1))
    assert sorted(order) == list(range(203))
    batches = [order[i : i + 8] for i in range(0, 192, 8)]
    assert sum(len({lengths[i] > 0 for i in batch}) > 1 for batch in batches) <= 2  # the last of each kind, joined


def test_a_batch_is_padded_on_the_right_and_keeps_its_images_in_order(tmp_path):
    model, tokenizer = load_llava(device="cpu")
    samples = []
    for name, shade in (("dark", 10), ("light", 240)):
        Image.new("RGB", (72, 72), (shade,) * 3).save(tmp_path / f"{name}.png")
        samples.append({"id": name, "image": f"{name}.png", "conversations": [
            {"from": "human", "value": "How many shapes are there?\n<image>"}, {"from": "gpt", "value": "There are no shapes."}]})
    samples.insert(1, {"id": "text", "conversations": [{"from": "human", "value": "Hello!"}, {"from": "gpt", "value": "Hello!"}]})
    (tmp_path / "data.json").write_text(json.dumps(samples))
    data = LlavaData(tmp_path / "data.json", tmp_path, tokenizer, model.config)
    assert data.lengths() == [10, -2, 10]
    input_ids, labels, pixels = collate([data[i] for i in range(3)])
    assert pixels.shape == (2, 3, 72, 72) and pixels[0].mean() < pixels[1].mean()
    assert (input_ids == IMAGE_TOKEN).sum(1).tolist() == [model.config.image_tokens, 0, model.config.image_tokens]
    learned = labels[1][labels[1] != IGNORE_INDEX].tolist()
    assert tokenizer.decode(learned).strip() == "Hello!" and learned[-1] == tokenizer.eos_id
    assert (labels[1][len(data[1]["input_ids"]):] == IGNORE_INDEX).all()
