"""What a reader of the documents would have downloaded, made up: small, and in the same layout.

The models are the shipped miniature's parts, the data is the toy world's.
"""
import copy
import json
import random
import shutil

import torch

from minillava.checkpoint import TOY, load_llava
from minillava.llama import LanguageConfig, LanguageModel
from minillava.tokenizer import Tokenizer
from minillava.toy import annotations
from minillava.toy.pope import pope_rows
from minillava.toy.scienceqa import make_scienceqa
from minillava.training.lora import adapter_of, add_lora
from minillava.weights.adapters import save_adapter
from minillava.weights.saving import save_language, save_original_llava
from tests.comparing import write_jsonl
from tests.doc_commands import ROOT
from tests.test_tokenizer import byte_level, folder


def folders(root):
    """Every folder and file that a command of the documents reads and no other one makes."""
    models(root)
    pictures(root)
    answers(root)


def models(root):
    for name in ("llava", "llava-1.5-7b-hf", "LLAVA", "runs/mine/llava", "runs/finetune/llava"):
        shutil.copytree(TOY / "llava", root / name)
    for name in ("clip", "clip-vit-large-patch14-336"):
        shutil.copytree(TOY / "clip", root / name)
    for name in ("vicuna", "vicuna-7b-v1.5", "llama"):
        shutil.copytree(TOY / "vicuna", root / name)
    for name in ("pretrain", "runs/pretrain"):
        shutil.copytree(TOY / "pretrain", root / name)
    real_language(root / "smollm2")

    # as liuhaotian published it: a Llama with the projector in it, no CLIP
    model, tokenizer = load_llava(vision=TOY / "clip", language=TOY / "vicuna",
                                  projector=TOY / "pretrain/mm_projector.bin", device="cpu")
    for name in ("llava-v1.5-7b", "delta"):
        save_original_llava(model, tokenizer, root / name)
        shutil.rmtree(root / name / "vision_tower")

    # its LoRA, upon a Vicuna; another one upon a whole LLaVA
    adapter(model, "vicuna", root / "lora")
    adapter(model, "vicuna", root / "llava-v1.5-7b-lora")
    adapter(load_llava(device="cpu")[0], "LLAVA", root / "ADAPTER")


def real_language(path):
    """A Llama as SmolLM2 is one: head and embeddings are the same rows, bytes as letters, its end token pads too."""
    core, _ = byte_level()
    config = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|end|>"}
    tokenizer = Tokenizer.load(folder(path, None, tokenizer=json.loads(core.to_str()), tokenizer_config=config))
    torch.manual_seed(0)
    model = LanguageModel(LanguageConfig(
        tokenizer.vocab_size, 48, 64, 2, 3, num_key_value_heads=1, tie_word_embeddings=True))
    save_language(model, tokenizer, path)


def adapter(model, base, path):
    model = copy.deepcopy(model)
    add_lora(model, 4, 8.0)
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    save_adapter(adapter_of(weights, 4, 8.0, base), model.config, path)


def pictures(root):
    # COCO
    annotations.make_world(root, "train", 12, seed=0)
    symbols = annotations.symbols_of(root, "train")
    for name in ("captions", "instances"):
        (root / f"{name}_train.json").rename(root / f"{name}_train2014.json")
    shutil.copytree(root / "train", root / "val2014")
    names = sorted(symbols)
    shutil.copytree(ROOT / "docs", root / "docs")
    for name in ("photo.jpg", "FOLDER/photo.png"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(root / "train" / names[0], root / name)

    # one's own pictures
    (root / "train").rename(root / "my-pictures")
    write_jsonl(root / "my-pictures/metadata.jsonl",
                [{"file_name": name, "question": "What is it?", "answer": symbols[name][0][0]} for name in names])

    make_scienceqa(root / "ScienceQA", {"train": 8, "test": 4}, seed=0)

    # POPE about the same pictures
    scenes = {name: [category for category, _ in boxes] for name, (_, boxes) in symbols.items()}
    rows = pope_rows(dict(list(scenes.items())[:2]), random.Random(0))
    for row in rows:
        write_jsonl(root / "coco" / f"coco_pope_{row['category']}.json",
                    [r for r in rows if r["category"] == row["category"]])
    write_jsonl(root / "llava_pope_test.jsonl", rows)

    # LLaVA-Bench
    write_jsonl(root / "questions.jsonl", [{"question_id": 1, "image": names[0], "text": "What?", "category": "conv"}])
    write_jsonl(root / "caps_boxes.jsonl", [{"image": names[0], "captions": symbols[names[0]][0], "instances": []}])
    for name in ("gpt4", "answers"):
        write_jsonl(root / f"bench/{name}.jsonl", [{"question_id": 1, "text": "A scene.", "category": "conv"}])


def answers(root):
    """Answers that the commands of these benchmarks would have had to look at real pictures for."""
    said = {"prompt": "Two?", "model_id": "m", "metadata": {}}
    scene = root / "MME_Benchmark_release_version/count"
    scene.mkdir(parents=True)
    (scene / "1.txt").write_text("Two? Please answer yes or no.\tYes\nThree? Please answer yes or no.\tNo\n")
    counted = said | {"question_id": "count/1.png"}
    write_jsonl(root / "answers/mme.jsonl", [counted | {"text": "Yes"}, counted | {"prompt": "Three?", "text": "No"}])

    write_jsonl(root / "llava_test.jsonl", [{"question_id": 1, "image": "1.jpg", "text": "Two?"}])
    write_jsonl(root / "answers/vizwiz.jsonl", [said | {"question_id": 1, "text": "Yes"}])

    (root / "mmbench_dev_20230712.tsv").write_text("index\tquestion\tA\tB\tanswer\timage\n1\tTwo?\tyes\tno\tA\tx\n")
    write_jsonl(root / "answers/mmbench.jsonl", [said | {"question_id": 1, "text": "A"}])

    for number in (1, 2):
        review = {"question_id": number, "category": "conv", "content": "8 6", "tuple": [8, 6]}
        write_jsonl(root / f"runs/reviews/reviews_7b_{number}.jsonl", [review])

    # a text-only teacher of ScienceQA, who says A to all
    problems = json.loads((root / "ScienceQA/pid_splits.json").read_text())["test"]
    write_jsonl(root / "gpt4.jsonl", [{"question_id": n, "text": "The answer is A."} for n in problems])


def endpoint(server, request):
    """The teacher and the judge behind OPENAI_BASE_URL."""
    text = str(request["messages"])
    if "[System]" in text:
        return "8 7\nBoth are right."
    if "answer is" in text:
        return "The answer is A."
    return "Question:\nWhat is it?\n===\nAnswer:\nA circle."
