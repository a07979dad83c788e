"""The commands of the documents: where they are found, and how a test runs each within seconds.

A command is a line of a fenced block, or a piece of inline code, that begins with one of STARTS. In COMMANDS
each has the way it is run by test_docs.py:

    AS_IT_STANDS           just so
    "--scenes 40"          with these words added, so that it takes seconds
    "python ..."           this in its place, where what would be downloaded lies in another folder
    ARGUMENTS_ONLY         its arguments are read, nothing is run: it takes minutes; so is every torchrun

and NOT_HERE says of the rest why a test cannot run them.
"""
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTS = ("python ", "python3 ", "pip ", "torchrun ", "srun ", "hf ", "echo ")

AS_IT_STANDS = ""
ARGUMENTS_ONLY = "arguments only"

TINY = "--scenes 12 --heldout 12 --per-type 1"
SHORT = "--min-steps 2 --epochs 1"
FEW_TOKENS = "--max-new-tokens 8"

# For what is not downloaded here the miniature stands, in the layout that the command is about (made_up.py).
COMMANDS = {
    # the chat
    "python chat.py": AS_IT_STANDS,
    "python chat.py --seed 5": AS_IT_STANDS,
    'python chat.py --image docs/scene.png --prompt "How many shapes are there?"': AS_IT_STANDS,
    'echo "What color is the circle?" | python chat.py --image docs/scene.png --prompt - --json': AS_IT_STANDS,
    "python chat.py --model llava": AS_IT_STANDS,
    "python chat.py --model llava --vision clip": "python chat.py --model llava-v1.5-7b --vision clip",
    "python chat.py --model lora --base vicuna --vision clip": AS_IT_STANDS,
    "python chat.py --vision clip --language vicuna --projector pretrain/mm_projector.bin": FEW_TOKENS,
    "python chat.py --model ADAPTER --base LLAVA": AS_IT_STANDS,
    "python chat.py --model llava-v1.5-7b-lora --base vicuna-7b-v1.5 --vision clip-vit-large-patch14-336": AS_IT_STANDS,
    "python chat.py --model llava-1.5-7b-hf --quantize int8": AS_IT_STANDS,
    "python chat.py --model llava-7b-int4": AS_IT_STANDS,
    "python -m minillava.explain.ablations --quick": ARGUMENTS_ONLY,  # a row from end to end: test_ablations.py
    "python -m minillava.explain.ablations --out runs/ablations": ARGUMENTS_ONLY,
    "python -m minillava.explain.ablations --only layer stage-1": ARGUMENTS_ONLY,
    "python -m minillava.explain.look": "--scenes 2",
    "python -m minillava.explain.walk": AS_IT_STANDS,
    "python -m minillava.explain.museum": AS_IT_STANDS,
    "python -m minillava.explain.museum no-stage-1": "--scenes 20 --per-type 1",
    "python -m minillava.explain.museum prompt-trained": "--scenes 20 --per-type 1",
    "python -m minillava.explain.museum shifted-twice": "--scenes 20 --per-type 1",
    "python -m minillava.explain.museum --quiz": "--scenes 20 --per-type 1",
    "python -m minillava.explain.ablations --quick --only stage-1": ARGUMENTS_ONLY,  # two trainings a seed
    "python -m minillava.explain.limits": "--count 1",
    "python -m minillava.explain.limits counting two-pictures": "--count 1",

    # weights
    "python -m minillava.weights apply-delta --base llama --delta delta --out llava":
        "python -m minillava.weights apply-delta --base llama --delta delta --out llava-of-delta",
    "python -m minillava.weights convert --to llava --model runs/mine/llava --out mine-original": AS_IT_STANDS,
    "python -m minillava.weights convert --to llava-hf --model llava-v1.5-7b --vision clip-vit-large-patch14-336 "
    "--out mine-hf": AS_IT_STANDS,
    "python -m minillava.weights merge --base LLAVA --adapter ADAPTER --out DIR": AS_IT_STANDS,
    "python -m minillava.weights merge --base … --adapter … --out …":
        "python -m minillava.weights merge --base LLAVA --adapter ADAPTER --out merged",
    "python -m minillava.weights quantize --model llava-1.5-7b-hf --to int4 --out llava-7b-int4": AS_IT_STANDS,
    "python tests/at_size.py write DIR --quantize int4": ARGUMENTS_ONLY,  # 7B

    # training
    "python train.py": TINY,
    "python chat.py --model runs/toy/llava": AS_IT_STANDS,
    "python train.py --scenes 24000 --out runs/first": ARGUMENTS_ONLY,
    "python train.py --init runs/toy --scenes 12000 --seed 1 --lr 4e-4 --out runs/second": TINY,
    "python train.py --init runs/first --scenes 12000 --seed 1 --lr 4e-4 --out runs/second": ARGUMENTS_ONLY,
    "python train.py --init runs/second --scenes 5000 --seed 2 --lr 3e-4 --out runs/third": ARGUMENTS_ONLY,
    "python train.py --recipe own --data my-pictures --check-data": AS_IT_STANDS,
    "python train.py --recipe own --data my-pictures --val 0.1 --replay 0.5 --out runs/own": SHORT,
    "python train.py --recipe own-lora --data my-pictures --val 0.1 --out runs/own-lora": SHORT,
    "python chat.py --model runs/own/llava": AS_IT_STANDS,
    "python train.py --recipe toy-scienceqa --scenes 24000 --out runs/scienceqa":
        "--scenes 24 --heldout 1 --epochs 1",
    "python train.py --recipe ... --plan": "python train.py --recipe v1.5-pretrain --plan",
    "python train.py --recipe v1.5-finetune --plan --gpus 8": AS_IT_STANDS,
    "python train.py --recipe v1.5-pretrain --print": AS_IT_STANDS,
    "python train.py --recipe v1.5-finetune --print": AS_IT_STANDS,
    "python chat.py --model runs/finetune/llava --image photo.jpg": AS_IT_STANDS,
    "python -m minillava.toy.backbones --out runs/backbones": ARGUMENTS_ONLY,
    "python -m minillava.toy.miniature": "--heldout 12 --per-type 1",
    "python -m minillava.toy.miniature --model runs/own/llava": "--heldout 12 --per-type 1",
    "python -m minillava.toy.own pink --out pink": "--pictures 4",
    "python -m minillava.toy.own pink --out pink-new --pictures 110 --split val": "--pictures 2",
    "python train.py --recipe own --data pink --replay 0.55 --epochs 1 --batch 16 --lr 1.8e-3 --tower --tower-lr 3e-4 --new-word pink=red,purple --out runs/pink":
        "python train.py --recipe own --data pink --tower --tower-lr 3e-4 --new-word pink=red,purple --out runs/pink " + SHORT,
    "python train.py --recipe own-lora --data pink --replay 0.55 --epochs 1 --batch 16 --lr 1.8e-3 --tower --tower-lr 3e-4 --new-word pink=red,purple --out runs/pink-lora":
        "python train.py --recipe own-lora --data pink --tower --tower-lr 3e-4 --new-word pink=red,purple --out runs/pink-lora " + SHORT,
    "python -m minillava.toy.own score --model runs/pink/llava --data pink-new": AS_IT_STANDS,
    "python -m minillava.toy.own things --out things": AS_IT_STANDS,
    "python -m minillava.toy.annotations --scenes 4000 --out scenes": "--scenes 12",
    "python -m minillava.toy.instruct --captions scenes/captions_train.json --kinds brief --keep-all "
    "--out scenes/stage_1.json": AS_IT_STANDS,
    "python -m minillava.toy.instruct --captions scenes/captions_train.json --instances scenes/instances_train.json "
    "--teacher toy --count 512 --out scenes/stage_2.json": "--count 16",
    "python train.py --recipe toy-pretrain --language smollm2 --data scenes/stage_1.json --images scenes/train --epochs 1 "
    "--batch 8 --per-gpu 8 --lr 1e-3 --out runs/smol-1": AS_IT_STANDS,
    "python train.py --recipe toy-finetune --language smollm2 --init runs/smol-1 --data scenes/stage_2.json "
    "--images scenes/train --batch 8 --per-gpu 8 --lora 32 --projector-lr 5e-4 --out runs/smol-lora": AS_IT_STANDS,
    "python train.py --recipe v1.5-finetune --vision minillava/toy/weights/clip --language smollm2 --init runs/smol-1 "
    "--data scenes/stage_2.json --images scenes/train --batch 8 --per-gpu 8 --lr 3e-4 --projector-lr 5e-4 "
    "--no-checkpointing --no-shard --out runs/smol-full":
        "python train.py --recipe v1.5-finetune --vision clip --language smollm2 --init runs/smol-1 "
        "--data scenes/stage_2.json --images scenes/train --batch 8 --per-gpu 8 --no-checkpointing --no-shard --out runs/smol-full",
    "python -m minillava.toy.miniature --model runs/smol-lora/adapter --heldout 60 --per-type 10":
        "--heldout 12 --per-type 1",
    "python chat.py --model runs/smol-lora/adapter": AS_IT_STANDS,
    "torchrun --nproc-per-node 8 train.py --recipe v1.5-pretrain --vision clip --language vicuna "
    "--data blip_laion_cc_sbu_558k.json --images pretrain_images --out runs/pretrain": ARGUMENTS_ONLY,
    "torchrun --nproc-per-node 8 train.py --recipe v1.5-finetune --vision clip --language vicuna --init runs/pretrain "
    "--data llava_v1_5_mix665k.json --images playground/data --out runs/finetune": ARGUMENTS_ONLY,
    "torchrun --nproc-per-node 8 train.py --recipe v1-scienceqa --vision clip --language vicuna --init runs/pretrain "
    "--data ScienceQA --out runs/scienceqa": ARGUMENTS_ONLY,
    "torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint $HOST:29500 train.py --recipe ...":
        "torchrun --nnodes 4 --nproc-per-node 8 train.py --recipe v1.5-pretrain",
    "torchrun --nproc-per-node 8 -m minillava.evaluation answer vqav2 ...":
        "torchrun --nproc-per-node 8 -m minillava.evaluation answer vqav2 --questions q.jsonl --out answers.jsonl",

    # evaluation
    "python eval_scienceqa.py": "--questions 8 " + FEW_TOKENS,
    "python eval_scienceqa.py --out runs/mini/scienceqa.jsonl": "--questions 8 " + FEW_TOKENS,
    "python eval_scienceqa.py --model runs/scienceqa/llava --data ScienceQA --out answers.jsonl": FEW_TOKENS,
    "python eval_scienceqa.py --data ScienceQA --score-only answers.jsonl": AS_IT_STANDS,
    "python eval_scienceqa.py --data ScienceQA --score-only answers.jsonl --teacher gpt4.jsonl --ensemble judge "
    "--judge openai": AS_IT_STANDS,
    "python -m minillava.toy.bench --out runs/mini/bench": "--scenes 2",
    "python -m minillava.toy.bench --out runs/bench": "--scenes 2",
    "python -m minillava.toy.pope --out runs/mini/pope": "--scenes 2",
    "python -m minillava.evaluation answer pope --questions llava_pope_test.jsonl --images val2014 --model llava "
    "--out answers/pope.jsonl": AS_IT_STANDS,
    "python -m minillava.evaluation score pope --questions llava_pope_test.jsonl --labels coco "
    "--answers answers/pope.jsonl": AS_IT_STANDS,
    "python -m minillava.evaluation score mme --labels MME_Benchmark_release_version --answers answers/mme.jsonl":
        AS_IT_STANDS,
    "python -m minillava.evaluation upload vizwiz --questions llava_test.jsonl --answers answers/vizwiz.jsonl "
    "--out vizwiz.json": AS_IT_STANDS,
    "python -m minillava.evaluation upload mmbench --questions mmbench_dev_20230712.tsv "
    "--answers answers/mmbench.jsonl --out mmbench.xlsx": AS_IT_STANDS,
    "python -m minillava.evaluation table answers": AS_IT_STANDS,
    "python -m minillava.evaluation table runs/mini": AS_IT_STANDS,
    "python tests/check_small_talk.py --photographs FOLDER": "--sets 0 --pictures 2 --scenes 1",

    # instruction data and the judge; the endpoint is a server in the test
    "python -m minillava.instruct --captions captions_train2014.json --instances instances_train2014.json "
    "--kinds conversation,detail,reasoning --count 1000 --teacher openai --out llava_instruct.json": "--count 3",
    "python -m minillava.instruct --captions captions_train2014.json --kinds brief --out stage_1.json": AS_IT_STANDS,
    "python -m minillava.evaluation judge --questions questions.jsonl --context caps_boxes.jsonl "
    "--answers gpt4.jsonl answers.jsonl --teacher openai --out reviews.jsonl":
        "python -m minillava.evaluation judge --questions questions.jsonl --context caps_boxes.jsonl "
        "--answers bench/gpt4.jsonl bench/answers.jsonl --teacher openai --out reviews.jsonl",
    "python -m minillava.evaluation report reviews.jsonl": AS_IT_STANDS,
    "python -m minillava.evaluation report runs/reviews --select 7b --average --ignore 12 13": AS_IT_STANDS,

    # minutes of measuring
    "python -m minillava.bench": ARGUMENTS_ONLY,
    "python -m minillava.bench --quick": ARGUMENTS_ONLY,
    "python -m minillava.bench --shapes miniature": ARGUMENTS_ONLY,
    "python -m minillava.bench --shapes 1.4B": ARGUMENTS_ONLY,
    "python -m minillava.bench --shapes 140M": ARGUMENTS_ONLY,
    "python -m minillava.bench --shapes 7B": ARGUMENTS_ONLY,
    "python tests/check_kill.py": ARGUMENTS_ONLY,
}

NOT_HERE = {
    "pip ": "needs the network",
    "hf ": "needs the network",
    "python3 -m venv": "is the environment that the tests run in",
    "srun ": "needs Slurm; the torchrun in it is the line above it",
    "python -m pytest": "is this",
    "python tests/check_mutants.py": "runs the tests again and again, for an hour",
    "python tests/gpu/check.py": "needs a GPU",
    "python tests/make_docs.py": "changes the documents",
}


def commands_in(text):
    """Every command of a markdown text, in its order, on one line and without its comment."""
    found = []
    for fenced, block, inline in re.findall(r"^(```)\w*\n(.*?)^```|`([^`\n]+(?:\n[^`\n]+)?)`", text, re.M | re.S):
        lines = shell_lines(block) if fenced else [" ".join(inline.split())]
        # A block with one command in it holds nothing else: so no line of it is passed over.
        if any(line.startswith(STARTS) for line in lines):
            found += lines
    return found


def shell_lines(block):
    """What a person types of a block: all of it, or the lines after a $ where output stands between."""
    lines = re.sub(r"\\\n\s*", " ", block).splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    lines = [" ".join(re.sub(r"\s+# .*", "", line).split()) for line in lines]
    return [line for line in lines if line]


def all_commands():
    """{command: the document that has it first}"""
    found = {}
    for path in DOCUMENTS:
        for command in commands_in(path.read_text(encoding="utf-8")):
            found.setdefault(command, path.name)
    return found
