"""Kills a training again and again, -9, at random moments, also while it saves, and compares it with one left in peace.

    python tests/check_kill.py [--kills 20] [--ranks 1] [--workers 0]     # some minutes; not collected by pytest

Every loss and gradient norm and the bytes of the final weights must be equal.
"""
import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from minillava.toy import annotations  # noqa: E402
from minillava.toy.instruct import toy_samples  # noqa: E402


def make_world(folder, scenes=40):
    annotations.make_world(folder, "train", scenes, seed=0)
    symbols = annotations.symbols_of(folder, "train")
    for name, kinds in (("brief", {"brief": 1}), ("chat", {"conversation": 1, "reasoning": 1, "text": 0.3})):
        (folder / f"{name}.json").write_text(json.dumps(toy_samples(symbols, kinds, 0)))


def command(world, out, *more, ranks=1, recipe="v1.5-finetune"):
    """train.py on the toy world with a recipe of the real thing, in fp32 on the CPU."""
    toy, brief = ROOT / "minillava/toy/weights", recipe.endswith("pretrain")
    start = [sys.executable] if ranks == 1 else [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", ranks]
    return list(map(str, [
        *start, ROOT / "train.py", "--recipe", recipe, "--vision", toy / "clip", "--language", toy / "vicuna",
        "--data", world / ("brief.json" if brief else "chat.json"), "--images", world / "train", "--out", out,
        "--dtype", "float32", "--device", "cpu", "--batch", 8, "--per-gpu", 2, "--lr", 1e-3, "--workers", 0, *more]))


def bits(out):
    """What a run came to: every loss and gradient norm, and a digest of its final weights."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    weights = hashlib.sha256((out / "llava/model.safetensors").read_bytes()).hexdigest()
    return [(row["loss"], row["gradient_norm"]) for row in rows], weights


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    folder, rng = Path(tempfile.mkdtemp()), random.Random(0)
    make_world(folder / "world")
    quiet = dict(cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
                 env=os.environ | {"OMP_NUM_THREADS": "1"})
    more = ["--workers", args.workers, "--save-every", 1, "--epochs", 3]
    began = time.time()
    subprocess.run(command(folder / "world", folder / "peace", *more, ranks=args.ranks), **quiet, check=True)
    alone, kills, saving = time.time() - began, 0, 0
    killed = command(folder / "world", folder / "killed", *more, "--resume", ranks=args.ranks)
    while kills < args.kills:
        run = subprocess.Popen(killed, **quiet)
        time.sleep(rng.uniform(0.3, 1.0) * min(alone, 8))
        os.killpg(run.pid, signal.SIGKILL)
        left = run.communicate()[1]
        if run.returncode == 0:  # it was done before: begin anew
            assert bits(folder / "killed") == bits(folder / "peace"), "the bits differ"
            shutil.rmtree(folder / "killed")
            continue
        assert b"Error" not in left and b"error:" not in left, left.decode()
        kills, saving = kills + 1, saving + any((folder / "killed").glob("checkpoint-*.tmp"))
    subprocess.run(killed, **quiet, check=True)
    assert bits(folder / "killed") == bits(folder / "peace"), "the bits differ"
    print(f"{kills} kills, {saving} of them in the middle of a save: the same bits, {len(bits(folder / 'peace')[0])} steps")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
