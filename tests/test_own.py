"""One's own pictures: the forms of data, what is kept apart, LoRA, and what a run leaves."""
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from minillava.checkpoint import TOY, load_llava
from minillava.data import LlavaData
from minillava.files import read_object, samples_in
from minillava.linear import LoraLinear
from minillava.llava import find_places
from minillava.toy.own import draw
from minillava.toy.recipes import TOY_RECIPES
from minillava.toy.world import COLORS
from minillava.training.lora import add_lora
from minillava.training.optimizer import loss_and_gradients
from minillava.training.options import as_asked, make_parser, read
from minillava.training.recipes import RECIPES, fitted
from minillava.training.results import save, show_answers
from minillava.training.samples import Together, draw_replay, folder_samples, lay_out
from minillava.training.trained_parts import choose_trained
from minillava.training.validation import Validation
from tests.comparing import read_jsonl, write_jsonl
from train import main  # noqa: F401, which the fixture `run` calls

ROOT = Path(__file__).parent.parent
LORA = replace(RECIPES["own-lora"], lora=4, lora_alpha=8.0)


@pytest.fixture
def folder(tmp_path):
    """Eight pictures with a metadata.jsonl."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for n in range(8):
        Image.new("RGB", (96, 96), (30 * n, 90, 90)).save(folder / f"{n}.png")
        rows.append({"file_name": f"{n}.png", "question": "Which number?", "answer": f"It is {n}."})
    write_jsonl(folder / "metadata.jsonl", rows)
    return folder


def run(*command, ranks=1):
    start = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.run([*start, ROOT / "train.py", "--device", "cpu", *map(str, command)], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


# ------------------------------------------------------------------------------------------ LoRA

@pytest.fixture
def batch():
    model, tokenizer = load_llava(device="cpu", dtype="float32")
    torch.manual_seed(0)
    ids = torch.randint(5, 200, (2, 90))
    ids[:, 1 : 1 + model.config.image_tokens] = -200
    labels = ids.masked_fill(ids < 0, -100)
    return model, tokenizer, ids, torch.randn(2, 3, 96, 96), labels


def lora_model(model, words=False):
    """With matrices that are not zero, as after a training."""
    add_lora(model, 4, 8.0, words)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(p, std=0.1)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_lora_changes_nothing_before_the_first_step(batch):
    model, _, ids, pixels, _ = batch
    before = model(ids, pixels)
    add_lora(model, 4, 8.0)
    assert torch.equal(model(ids, pixels), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith("mm_projector.") or name.endswith((".A", ".B")) for name in trained)
    layers = sum(isinstance(module, LoraLinear) for module in model.modules())
    assert layers == 7 * model.config.language_config.num_hidden_layers and type(model.language_model.lm_head) is torch.nn.Linear


BASES = {"llava": {}, "llama": dict(vision=TOY / "clip", language=TOY / "vicuna", projector=TOY / "pretrain/mm_projector.bin")}


def saved_and_read_again(model, tokenizer, weights, recipe, parts, out):
    """The trained weights as an adapter, which knows its base, and the CLIP beside a Llama."""
    save(weights, model, tokenizer, recipe, parts.get("language", TOY / "llava"), out, parts.get("vision"))
    return load_llava(out, device="cpu", dtype="float32")[0]


@pytest.mark.parametrize("words, base", [(False, "llava"), (True, "llava"), (False, "llama")])
def test_a_saved_adapter_upon_its_base_is_the_model_that_was_trained(batch, tmp_path, words, base):
    _, _, ids, pixels, _ = batch
    model, tokenizer = load_llava(**BASES[base], device="cpu", dtype="float32")
    before = model(ids, pixels)
    weights = lora_model(model, words)
    if words:
        weights["language_model.lm_head.weight"].data += 0.1
    merged = saved_and_read_again(model, tokenizer, weights, LORA, BASES[base], tmp_path)
    torch.testing.assert_close(merged(ids, pixels), model(ids, pixels), rtol=1e-4, atol=1e-4)
    assert (merged(ids, pixels) - before).abs().max() > 0.1


@pytest.mark.parametrize("base", BASES)
def test_a_tower_that_learns_beside_lora_goes_where_llava_keeps_what_is_no_lora(batch, tmp_path, base):
    _, _, ids, pixels, labels = batch
    model, tokenizer = load_llava(**BASES[base], device="cpu", dtype="float32")
    before = model.encode_images(pixels)
    recipe = replace(LORA, tower=True)
    choose_trained(model, recipe)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss_and_gradients(model, torch.float32, (ids, labels, pixels, *find_places(ids, labels)), 100)
    assert all(p.grad is not None for p in weights.values())
    torch.optim.AdamW(weights.values(), lr=1e-3).step()

    merged = saved_and_read_again(model, tokenizer, weights, recipe, BASES[base], tmp_path)
    others = torch.load(tmp_path / "non_lora_trainables.bin", weights_only=True)
    assert "base_model.model.model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight" in others
    torch.testing.assert_close(merged(ids, pixels), model(ids, pixels), rtol=1e-4, atol=1e-4)
    assert (merged.encode_images(pixels) - before).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_lora_learns_upon_a_quantised_base(batch, kind):
    _, _, ids, pixels, labels = batch
    model, _ = load_llava(device="cpu", dtype="float32", quantize=kind)
    weights = lora_model(model)
    tensors = (ids, labels, pixels, *find_places(ids, labels))
    losses = []
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
    for _ in range(4):
        losses.append(loss_and_gradients(model, torch.float32, tensors, len(tensors[-1])).item())
        assert all(p.grad is not None and p.grad.any() for p in weights.values())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


# ---------------------------------------------------------------------------------- forms of data

def test_the_same_samples_in_every_form(folder, tmp_path):
    samples = folder_samples(folder)
    assert samples[3]["conversations"] == [{"from": "human", "value": "<image>\nWhich number?"},
                                           {"from": "gpt", "value": "It is 3."}]
    lines = write_jsonl(tmp_path / "data.jsonl", samples)
    for data in (folder, lines):
        (learned, images), _ = lay_out(data, folder, tmp_path / data.name.replace(".", "_"))
        assert json.loads(learned.read_text()) == samples and images == folder
    (folder / "metadata.jsonl").unlink()
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "question", "answer"])
        writer.writerows([f"{n}.png", "Which number?", f"It is {n}."] for n in range(8))
    assert folder_samples(folder) == samples
    (folder / "metadata.csv").write_text("\n \n" + (folder / "metadata.csv").read_text())
    assert folder_samples(folder) == samples


def test_windows_begins_a_file_with_a_mark_of_its_own(folder, tmp_path):
    samples = folder_samples(folder)
    mark = b"\xef\xbb\xbf"
    lines = folder / "metadata.jsonl"
    lines.write_bytes(mark + lines.read_bytes())
    assert folder_samples(folder) == samples
    array = tmp_path / "data.json"
    array.write_bytes(mark + json.dumps(samples).encode())
    assert [sample for _, _, sample in samples_in(array)] == samples


def test_a_picture_of_another_kind_and_a_dot_before_its_name(folder):
    Image.new("RGB", (9, 9)).save(folder / "new.tiff")
    with open(folder / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": "./new.tiff", "text": "A scan."}) + "\n")
    assert folder_samples(folder)[-1]["image"] == "new.tiff"


@pytest.mark.skipif(sys.platform == "win32", reason="links there are for administrators")
def test_pictures_behind_a_link_are_there_and_a_circle_of_links_ends(folder, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(4):
        (folder / f"{number}.png").rename(tmp_path / "photos" / f"{number}.png")
    (folder / "photos").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/back").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    names = [f"{'photos/' * (n < 4)}{n}.png" for n in range(8)]
    write_jsonl(folder / "metadata.jsonl", [{"file_name": name, "text": "A number."} for name in names])
    assert [sample["image"] for sample in folder_samples(folder)] == names


@pytest.mark.parametrize("row, message", [
    ("0.png,Which number?,A cat, a dog", "row 1 of .* has more fields than the first line"),
    ('0.png,Which number?,"A cat.', "is not CSV, is a quotation mark missing"),
    ("0.png;Which number?;A cat.", "metadata.csv has semicolons between its fields")])  # as some countries' Excel saves it
def test_a_table_that_would_lose_a_part_of_an_answer_is_refused(folder, row, message):
    (folder / "metadata.jsonl").unlink()
    names = "file_name;question;answer" if ";" in row else "file_name,question,answer"
    (folder / "metadata.csv").write_text(f"{names}\n{row}\n{row}\n")
    with pytest.raises(ValueError, match=message):
        folder_samples(folder)


def test_a_file_without_samples_is_named(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="none.jsonl holds no samples"):
        lay_out(tmp_path / "none.jsonl", tmp_path, tmp_path / "out")


def test_a_caption_is_the_answer_to_a_question(folder):
    write_jsonl(folder / "metadata.jsonl", [{"file_name": f"{n}.png", "text": "A number."} for n in range(8)])
    question, answer = folder_samples(folder)[0]["conversations"]
    assert "description" in question["value"] and answer["value"] == "A number."


@pytest.mark.parametrize("row, message", [
    ({"file_name": "9.png", "text": "Nine."}, "names 9.png, which is not in"),
    ({"file_name": "0.png", "question": "What?"}, "row 9 of .* has no answer"),
    ({"text": "Nine."}, "row 9 of .* has no file_name")])
def test_metadata_that_does_not_fit_is_named(folder, row, message):
    with open(folder / "metadata.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        folder_samples(folder)


def test_a_picture_without_metadata_and_a_folder_without_any_are_named(folder, tmp_path):
    Image.new("RGB", (9, 9)).save(folder / "new.jpg")
    with pytest.raises(ValueError, match="has no row for new.jpg"):
        folder_samples(folder)
    with pytest.raises(ValueError, match="has no metadata.jsonl or metadata.csv"):
        folder_samples(tmp_path)


# -------------------------------------------------------------------- kept apart, and mixed in

def test_whole_pictures_are_kept_apart_by_the_seed(folder, tmp_path):
    with open(folder / "metadata.jsonl", "a") as file:  # two more questions to each, in a conversation of their own
        file.writelines(json.dumps({"file_name": f"{n // 2}.png", "text": "A."}) + "\n" for n in range(16))
    apart = []
    for n, seed in enumerate((0, 0, 1)):
        files = lay_out(folder, None, tmp_path / str(n), val="0.25", seed=seed)
        samples, _ = parts = [json.loads(path.read_text()) for path, _ in files]
        learned, kept = ({sample["image"] for sample in part} for part in parts)
        assert len(kept) == 2 and not learned & kept and len(learned | kept) == 8
        assert [len(sample["conversations"]) for sample in samples] == 6 * [2] + 6 * [4]
        apart.append(kept)
    assert apart[0] == apart[1] != apart[2]


def test_a_sample_that_is_learned_may_not_be_kept_apart_too(folder, tmp_path):
    samples = folder_samples(folder)
    (tmp_path / "val.json").write_text(json.dumps(samples[:1]))
    (tmp_path / "train.json").write_text(json.dumps(samples))
    with pytest.raises(ValueError, match="1 samples of .*val.json are in .*train.json too, the first 0.png"):
        lay_out(tmp_path / "train.json", folder, tmp_path / "out", val=str(tmp_path / "val.json"))
    (tmp_path / "train.json").write_text(json.dumps(samples[1:]))
    files = lay_out(tmp_path / "train.json", folder, tmp_path / "out", val=str(tmp_path / "val.json"))
    assert files == ((tmp_path / "train.json", folder), (tmp_path / "val.json", folder))


def test_a_folder_that_is_kept_apart_has_pictures_of_its_own(folder, tmp_path):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    with pytest.raises(ValueError, match="8 samples of .*other are in .*pictures too"):
        lay_out(folder, None, tmp_path / "out", val=str(other))
    for picture in other.glob("*.png"):  # of the same names, but not the same
        ImageOps.invert(Image.open(picture)).save(picture)
    assert [images for _, images in lay_out(folder, None, tmp_path / "out", val=str(other))] == [folder, other]

    (other / "7.png").rename(other / "v7.png")  # which only this folder has
    (other / "metadata.jsonl").write_text((other / "metadata.jsonl").read_text().replace("7.png", "v7.png"))
    looked = run("--recipe", "own", "--data", folder, "--val", other, "--out", tmp_path / "look", "--check-data")
    assert looked.returncode == 0 and looked.stdout.count("8 samples, 0 of them") == 2


def test_old_samples_are_mixed_in_other_ones_each_time(folder, tmp_path, batch):
    model, tokenizer, *_ = batch
    old, drawn = tmp_path / "old.json", tmp_path / "drawn.json"
    old.write_text(json.dumps([{"id": n, "conversations": [{"from": "human", "value": "Hi!"},
                                                           {"from": "gpt", "value": "Hello!"}]} for n in range(30)]))
    draw_replay(old, 24, drawn, seed=0)
    assert len({sample["id"] for sample in json.loads(drawn.read_text())}) == 24
    draw_replay(old, 72, drawn, seed=0)
    often = Counter(sample["id"] for sample in json.loads(drawn.read_text()))
    assert len(often) == 30 and set(often.values()) == {2, 3}

    (learned, _), _ = lay_out(folder, None, tmp_path)
    new, old = (LlavaData(path, folder, tokenizer, model.config) for path in (learned, drawn))
    both = Together([new, new, old])
    assert len(both) == len(both.lengths()) == 88 and both[16]["id"] == old[0]["id"] and both[15]["id"] == "7.png"


def test_batch_steps_and_rate_follow_the_data_and_the_width():
    recipe = fitted(RECIPES["own"], samples=10, width=128, ranks=1)
    assert recipe.batch <= 10 and recipe.accumulation(1) * recipe.per_gpu == recipe.batch
    assert recipe.epochs * -(-10 // recipe.batch) >= RECIPES["own"].min_steps
    assert recipe.per_gpu == recipe.batch and recipe.lr == pytest.approx(32 * RECIPES["own"].lr) and not recipe.checkpointing
    assert fitted(RECIPES["own-lora"], 10, 128, 1).lr == RECIPES["own-lora"].lr  # LoRA's depends little on the width
    assert fitted(RECIPES["own"], 10**5, 4096, 1) == RECIPES["own"]
    assert fitted(RECIPES["own-lora"], 10**5, 4096, 1) == RECIPES["own-lora"]
    assert fitted(RECIPES["v1.5-finetune"], 10, 128, 1) == RECIPES["v1.5-finetune"]
    eight = fitted(RECIPES["own"], 1000, 4096, ranks=8)  # as many samples a step on any number of GPUs
    assert (eight.batch, eight.per_gpu, eight.epochs) == (16, 2, 3)


def test_what_a_gpu_shall_hold_and_the_projectors_rate_stay_as_they_are_given():
    args = make_parser("", RECIPES).parse_args("--per-gpu 1 --checkpointing --projector-lr 2e-5".split())
    recipe = fitted(as_asked(RECIPES["own"], args), samples=100, width=128, ranks=1)
    assert (recipe.per_gpu, recipe.batch, recipe.checkpointing) == (1, 16, True)
    assert recipe.projector_lr == 2e-5 and recipe.lr == pytest.approx(32 * RECIPES["own"].lr)


@pytest.mark.parametrize("init, lora", [("", TOY_RECIPES["toy-own-lora"]), (f"--init {TOY / 'llava'}", RECIPES["own-lora"])])
def test_a_rank_alone_changes_no_rate_and_no_optimizer(init, lora):
    for recipe in ("own", "own-lora"):
        args = make_parser("", RECIPES).parse_args(f"--recipe {recipe} --lora 8 {init}".split())
        name, recipes, _, setup = read(args, RECIPES, TOY_RECIPES, TOY)
        assert recipes[name] == replace(lora, lora=8, lora_alpha=16.0) and setup.out == Path("runs", recipe)


def test_the_best_is_kept_and_patience_ends():
    validation = Validation([], 4, every=2, patience=2, keep=None)
    assert (validation.is_due(1), validation.is_due(2)) == (True, False)
    for loss, over in ((3.0, False), (2.0, False), (2.5, False), (2.1, True), (1.9, False)):
        validation.losses.append(loss)
        assert validation.patience_is_over == over
    assert validation.best == 1.9


def test_what_is_wrong_among_the_samples_kept_apart_is_said_once_and_ends_nothing(folder, tmp_path, batch, capsys):
    """Neither the looks at them nor, after hours of training, the answers at the end."""
    model, tokenizer, *_ = batch
    good = folder_samples(folder)[3:5]
    bad = [{**good[0], "id": "lost", "image": "lost.png"}, {**good[0], "id": "odd", "conversations": [None]}]

    def look(validation):
        return validation.measure(model, torch.float32, torch.device("cpu"))

    looks = []
    for name, samples in (("good", good), ("all", [*bad, *good])):
        (tmp_path / f"{name}.json").write_text(json.dumps(samples))
        val = LlavaData(tmp_path / f"{name}.json", folder, tokenizer, model.config)
        looks.append(Validation(val, 3, every=1, patience=None, keep=lambda model: None))
    losses = [look(looks[0]), look(looks[1]), look(looks[1])]
    said = capsys.readouterr().err
    assert losses[1] == losses[2] == pytest.approx(losses[0]) and said.count("passed over lost") == 1 and "passed over odd" in said
    show_answers(TOY / "llava", val)
    assert capsys.readouterr().out.count("right is It is 3.") == 1


@pytest.mark.parametrize("quantize", [None, "int4"])
def test_what_a_small_gpu_trained_it_can_open_at_the_end(folder, batch, monkeypatch, quantize):
    """A 7B's LoRA is trained upon int4 in 16 GB: at the end its base must not be opened in fp32."""
    model, tokenizer, *_ = batch
    lay_out(folder, None, folder)
    val, opened = LlavaData(folder / "samples.json", folder, tokenizer, model.config), []
    monkeypatch.setattr("minillava.training.results.generate", lambda model, *_: opened.append(model) or ["It is."])
    show_answers(TOY / "llava", val, quantize)
    layer = opened[0].language_model.layers[0].mlp.up_proj
    assert layer.weight.dtype == (torch.uint8 if quantize else torch.bfloat16)


def test_each_scene_with_pink_is_told_of_in_conversations_of_their_own(tmp_path):
    draw("pink", tmp_path, 5, "train", seed=0)
    samples = folder_samples(tmp_path)
    texts = [[turn["value"] for turn in sample["conversations"]] for sample in samples]
    names = [f"000{n}{side}.png" for n in range(5) for side in ("", "-mirrored")]
    assert Counter(sample["image"] for sample in samples) == dict.fromkeys(names, 9)
    assert all("shows four shapes." in text or "shows five shapes." in text for _, text in texts[:10])
    assert sum("pink" in text for _, text in texts[:10]) == 10 and "pink" not in COLORS
    asked = [sum("How many pink" in text or "Count the pink" in text for text in part) for part in texts]
    assert sum(asked) == 6 * 10 and max(asked) == 1  # all its wordings, twice, and no two next to each other


def test_a_mirrored_picture_is_told_of_as_it_shows_itself(tmp_path):
    draw("pink", tmp_path, 5, "train", seed=0)
    told = {sample["image"]: sample["conversations"][1]["value"] for sample in folder_samples(tmp_path)[:10]}
    swapped = {"left": "right", "right": "left"}
    for n in range(5):
        plain, other = f"000{n}.png", f"000{n}-mirrored.png"
        seen = re.sub("left|right", lambda word: swapped[word[0]], told[plain])
        assert sorted(seen.rstrip(".").split(". ")) == sorted(told[other].rstrip(".").split(". "))
        assert ImageOps.mirror(Image.open(tmp_path / plain)).tobytes() == Image.open(tmp_path / other).tobytes()


# ------------------------------------------------------------------------------------ whole runs

def rows(out):
    return read_jsonl(out / "metrics.jsonl")


def test_a_run_measures_keeps_and_resumes_the_same_on_one_rank_and_on_two(folder, tmp_path):
    command = ["--recipe", "own-lora", "--lora", 4, "--data", folder, "--val", 0.25, "--eval-every", 2, "--min-steps", 4,
               "--epochs", 1, "--per-gpu", 2, "--batch", 4, "--dtype", "float32", "--save-every", 2, "--init", TOY / "llava",
               "--new-word", "seven=two,three"]
    out, two = tmp_path / "one", tmp_path / "two"
    told = run(*command, "--out", out)
    assert told.returncode == 0, told.stderr
    assert "LoRA matrices of rank 4" in told.stdout and "kept apart" in told.stdout and "chat.py --model" in told.stdout
    assert [("val_loss" in row) for row in rows(out)] == [False, True, False, True]
    assert (out / "best/adapter_config.json").exists() and (out / "loss.png").exists()
    assert read_object(out / "adapter/adapter_config.json")["r"] == 4

    for wrapped in ("--no-shard", "--shard"):  # DDP, FSDP2
        told = run(*command, wrapped, "--out", two / wrapped, ranks=2)
        assert told.returncode == 0, told.stderr
        for one, other in zip(rows(out), rows(two / wrapped), strict=True):
            assert abs(one["loss"] - other["loss"]) < 1e-5 and abs(one.get("val_loss", 0) - other.get("val_loss", 0)) < 1e-5

    before = (out / "adapter/adapter_model.safetensors").read_bytes()
    for file in (out / "adapter").iterdir():
        file.unlink()
    (out / "adapter").rmdir()
    config = (out / "config.json").read_text()
    (out / "config.json").write_text(config.replace('"samples_a_step": 4', '"samples_a_step": 3'))  # as on three GPUs
    assert "cannot change samples_a_step 3 to 4" in run(*command, "--out", out, "--resume").stderr
    (out / "config.json").write_text(config.replace('"fits": false', '"fits": true'))  # of before there was --per-gpu
    assert run(*command, "--out", out, "--resume").returncode == 0
    assert (out / "adapter/adapter_model.safetensors").read_bytes() == before

    looked = run("--recipe", "own", "--data", folder, "--out", tmp_path / "look", "--check-data")
    assert looked.returncode == 0 and "8 samples, 0 of them" in looked.stdout
    # In a pipe there are no colours, and what is only read leaves nothing behind.
    assert "[learned:  It is 0.</s>]" in looked.stdout and "\x1b" not in looked.stdout
    assert not (tmp_path / "look").exists()
    (tmp_path / "val.json").write_text('[{"id": "odd"}]')
    looked = run("--recipe", "own", "--data", folder, "--val", tmp_path / "val.json", "--check-data")
    assert looked.returncode == 1 and "odd: it has no conversations" in looked.stdout


def test_what_is_wrong_is_one_line(folder, tmp_path, run):
    for more, message in (
        (["--recipe", "own-lora", "--lora", 0], "--lora must be positive"),
        (["--recipe", "own", "--val", 2], "--val is a file, a folder, or a share between 0 and 1"),
        (["--recipe", "own", "--quantize", "int8"], "give --lora RANK with it"),
        (["--recipe", "own-lora", "--layers", 2], "--layers makes a model of its own"),
        (["--recipe", "own", "--replay", 1], "--replay is a share from 0 to below 1"),
        (["--recipe", "toy-pretrain", "--lora", 4, "--images", folder], "goes with a recipe of stage 2"),
        (["--recipe", "own", "--data", tmp_path], "has no metadata.jsonl"),
        (["--recipe", "toy-pretrain", "--min-steps", 9, "--images", folder], "goes with own and own-lora"),
        (["--recipe", "own", "--new-word", "crimson"], "is not NEW=OLD,OLD"),
        (["--recipe", "own-lora", "--new-word", "pink=red", "--quantize", "int8"], "not with --quantize"),
    ):
        done = run("--data", folder, "--out", tmp_path / "out", *more)
        assert done.returncode == 2 and message in done.err.splitlines()[-1], done.err
