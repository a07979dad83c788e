"""Batches: the official order, right padding, and images that go with their rows."""
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from minillava.checkpoint import load_llava
from minillava.data import LlavaData, collate, words_of
from minillava.files import index_of, read_jsonl, samples_in, write, write_jsonl
from minillava.llava import IGNORE_INDEX, IMAGE_TOKEN
from minillava.training.sampler import grouped_order, micro_batches

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
        Image.new("RGB", (96, 96), (shade,) * 3).save(tmp_path / f"{name}.png")
        samples.append({"id": name, "image": f"{name}.png", "conversations": [
            {"from": "human", "value": "How many shapes are there?\n<image>"}, {"from": "gpt", "value": "There are no shapes."}]})
    samples.insert(1, {"id": "text", "conversations": [{"from": "human", "value": "Hello!"}, {"from": "gpt", "value": "Hello!"}]})
    (tmp_path / "data.json").write_text(json.dumps(samples))
    data = LlavaData(tmp_path / "data.json", tmp_path, tokenizer, model.config)
    assert data.lengths() == [10, -2, 10]
    input_ids, labels, pixels = collate([data[i] for i in range(3)])
    assert pixels.shape == (2, 3, 96, 96) and pixels[0].mean() < pixels[1].mean()
    assert (input_ids == IMAGE_TOKEN).sum(1).tolist() == [model.config.image_tokens, 0, model.config.image_tokens]
    learned = labels[1][labels[1] != IGNORE_INDEX].tolist()
    assert tokenizer.decode(learned).strip() == "Hello!" and learned[-1] == tokenizer.eos_id
    assert (labels[1][len(data[1]["input_ids"]):] == IGNORE_INDEX).all()


def chat(image="a.png", question="<image>\nHow many?", answer="One."):
    sample = {"id": f"{image} {question[:12]}", "image": image,
              "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
    return sample if image else {key: value for key, value in sample.items() if key != "image"}


@pytest.fixture(scope="module")
def miniature():
    return load_llava(device="cpu")


@pytest.mark.parametrize("chunk", [7, 50, 1 << 24])
@pytest.mark.parametrize("indent, ascii", [(None, True), (2, False)])
def test_the_index_of_a_file_finds_what_json_finds(tmp_path, chunk, indent, ascii):
    samples = [chat(), chat("b.png", 'a "quoted" [brace} <image>', "naïve 日本\u00a0語 \\ \n ]"),
               chat(None, "Hi \u3000 there"), {"id": 1}]
    (tmp_path / "data.json").write_text(json.dumps(samples, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    raw = (tmp_path / "data.json").read_bytes()
    found = list(samples_in(tmp_path / "data.json", chunk))
    assert [sample for _, _, sample in found] == samples
    assert [json.loads(raw[first:end]) for first, end, _ in found] == samples
    index = index_of(tmp_path / "data.json", tmp_path, words_of)
    assert index[:, :2].tolist() == [[first, end] for first, end, _ in found]
    assert index[:, 2].tolist() == [words_of(sample) for sample in samples] == [4, 9, -3, 1]
    assert (index_of(tmp_path / "data.json", tmp_path, words_of) == index).all()  # out of the cache


@pytest.mark.parametrize("text, message", [
    ("", "not a JSON array"), ("[]", "holds no samples"), ('[{"id": 1}, {"id": ', "after 1 samples"),
    ('{"id": 1}', "not a JSON array"), ("[1, nope]", "after 1 samples"), ('[{"id": 1}', "after 1"),
    ('[{"id": 1}, ' + '{"a":' * 10**5, "nested too deep at byte 12, after 1 samples")])
def test_a_file_that_is_no_array_of_samples_is_refused(tmp_path, text, message):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        index_of(tmp_path / "data.json", tmp_path, words_of)


def test_a_file_in_another_encoding_says_so(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes(json.dumps([chat(), chat(answer="café")], ensure_ascii=False).encode("latin-1"))
    byte = path.read_bytes().index(b"\xe9")
    with pytest.raises(ValueError, match=f"data.json is not UTF-8 text .* at byte {byte}.; save it as UTF-8"):
        index_of(path, tmp_path, words_of)


def test_jsonl_is_written_whatever_its_text_half_a_character_too(tmp_path):
    rows = [{"text": "caf\u00e9 \ud83d"}, {"text": "two\u2028lines"}]
    write_jsonl(tmp_path / "new/a.jsonl", rows)
    assert (tmp_path / "new/a.jsonl").read_bytes().isascii() and read_jsonl(tmp_path / "new/a.jsonl") == rows
    write_jsonl(tmp_path / "new/a.jsonl", rows[1:], ensure_ascii=False)
    assert "two\u2028lines".encode() in (tmp_path / "new/a.jsonl").read_bytes()


def test_jsonl_lines_end_at_a_newline_alone_not_at_a_line_separator(tmp_path):
    rows = [{"text": "one\u2028line\x85 of \u2029text"}, {"text": "two"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_jsonl(path) == rows
    path.write_text('{"a": 1}\r\n\n{"b": \n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 3 of .*a.jsonl is not JSON"):
        read_jsonl(path)
    path.write_bytes('{"text": "caf\xe9"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="a.jsonl is not UTF-8 text .* at byte 13"):
        read_jsonl(path)


def test_several_may_write_a_file_at_once_and_leave_nothing_beside_it(tmp_path):
    def write_often(text):
        for _ in range(100):
            write(tmp_path / "a.txt", text)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_often, ["a" * 9999, "b" * 9999] * 2))
    assert (tmp_path / "a.txt").read_text() in ("a" * 9999, "b" * 9999)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    write(path, "old, café")
    with pytest.raises(UnicodeEncodeError):
        write(path, "half a surrogate pair: \ud83d")
    assert path.read_bytes() == "old, café".encode()


HI = {"from": "human", "value": "Hi"}
BAD = {
    "there is no image": chat("nowhere.png"), "is not within the image folder": chat("../a.png"),
    "is not within": chat("/a.png"), "is not an image": chat("data.json"),
    "pictures in 2 turns": {"id": 5, "image": "a.png", "conversations": [
        {"from": role, "value": text} for role, text in 2 * (("human", "<image>"), ("gpt", "One."))]},
    "or several": {**chat(), "image": ["a.png", "a.png"]},
    "no answer": {"id": 1, "conversations": [HI]},
    "twice in a row": {"id": 2, "conversations": [HI, HI, {"from": "gpt", "value": "Hi"}]},
    "its turn 2 has no value": {"id": 6, "conversations": [HI, {"from": "gpt", "value": None}]},
    "its turn 1 has no value": {"id": 7, "conversations": ["Hi"]},
    "no conversations": {"id": 3}, "is from None": {"id": 4, "conversations": [{"value": "Hi"}]},
}


def test_a_bad_sample_is_named_and_the_next_one_is_drawn(tmp_path, miniature):
    model, tokenizer = miniature
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    (tmp_path / "data.json").write_text(json.dumps([*BAD.values(), 7, chat()]))
    data = LlavaData(tmp_path / "data.json", tmp_path, tokenizer, model.config)
    for message, sample in BAD.items():
        with pytest.raises((OSError, ValueError), match=message):
            data.prepare(sample)
    item = data[0]
    assert item["id"] == "a.png <image>\nHow "  # not text: a batch stays of one modality
    assert len(item["bad"]) == 1 + sum(words_of(sample) > 0 for sample in BAD.values())
    with pytest.raises(ValueError, match="would fall into its image"):
        LlavaData(tmp_path / "data.json", tmp_path, tokenizer, model.config, max_length=10).prepare(chat())
    assert data.prepare(chat())["cut"] == 0
    (tmp_path / "none.json").write_text(json.dumps([BAD["there is no image"]]))
    with pytest.raises(ValueError, match="1 samples in a row"):
        LlavaData(tmp_path / "none.json", tmp_path, tokenizer, model.config)[0]


def test_a_sample_that_is_cut_says_so_and_keeps_its_image(tmp_path, miniature):
    model, tokenizer = miniature
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    (tmp_path / "data.json").write_text(json.dumps([chat(answer="A red circle. " * 50)]))
    item = LlavaData(tmp_path / "data.json", tmp_path, tokenizer, model.config, max_length=100)[0]
    assert item["cut"] == 1 and len(item["input_ids"]) == len(item["labels"]) == 100
    assert (item["input_ids"] == IMAGE_TOKEN).sum() == model.config.image_tokens


def test_a_picture_that_no_turn_points_at_is_ignored_and_counted(tmp_path, miniature):
    model, tokenizer = miniature
    (tmp_path / "data.json").write_text(json.dumps([chat("nowhere.png", "How many?")]))
    item = LlavaData(tmp_path / "data.json", tmp_path, tokenizer, model.config)[0]
    assert item["ignored"] == 1 and not len(item["pixels"]) and not (item["input_ids"] == IMAGE_TOKEN).any()
    assert words_of(chat("nowhere.png", "How many?")) > 0  # officially among the samples with a picture


@pytest.mark.parametrize("grouped", [True, False])
def test_ranks_and_accumulation_share_the_same_global_batches(grouped):
    rng = random.Random(0)
    lengths = [rng.choice((1, 1, -1)) * rng.randint(1, 50) for _ in range(45)]
    steps = []
    for per_gpu, ranks, accumulate in ((2, 1, 4), (2, 2, 2), (2, 4, 1), (4, 2, 1), (1, 4, 2), (8, 1, 1)):
        mine = [micro_batches(lengths, per_gpu, ranks, rank, accumulate, grouped, 2, seed=3) for rank in range(ranks)]
        assert len({len(batches) for batches in mine}) == 1
        steps.append([sorted(i for batches in mine for batch in batches[start : start + accumulate] for i in batch)
                      for start in range(0, len(mine[0]), accumulate)])
    assert all(step == steps[0] for step in steps) and len(steps[0]) == 2 * 6
    assert steps[0][:6] != steps[0][6:]  # another epoch, another order
    assert {i for step in steps[0][:6] for i in step} == set(range(45))
