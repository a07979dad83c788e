"""What only a GPU can show, in one command; needs one GPU of 80 GB, and no weights.

    python tests/gpu/check.py

Does the miniature answer as on a CPU, also in 8 and 4 bits, and learn as there? Is the flash kernel what runs? Does a
model of the 1B class train in bf16 under FSDP2, and resume to the same losses? Tokens/s, MFU and peak memory of
LLaVA-7B's shapes, as many layers as fit, beside what `--plan` foretells. How fast do 7B shapes decode in bf16, and what
does `python -m minillava.bench` say there? A part that fails shows its error, and the next one begins. (Written without
a GPU: it was never run on one.)
"""
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from minillava import bench  # noqa: E402
from minillava.attention import attention  # noqa: E402
from minillava.checkpoint import TOY, load_llava  # noqa: E402
from minillava.conversation import human_turn  # noqa: E402
from minillava.generate import generate, logits_after, stream  # noqa: E402
from minillava.llama import KVCache, LanguageConfig, LanguageModel  # noqa: E402
from minillava.llava import Llava, LlavaConfig  # noqa: E402
from minillava.tokenizer import Tokenizer  # noqa: E402
from minillava.toy import annotations  # noqa: E402
from minillava.toy.instruct import toy_samples  # noqa: E402
from minillava.toy.scene import Scene  # noqa: E402
from minillava.training import distributed, plan  # noqa: E402
from minillava.training.optimizer import forward_backward_in, make_optimizers, take_step  # noqa: E402
from minillava.training.recipes import RECIPES  # noqa: E402
from minillava.vit import VisionConfig  # noqa: E402
from minillava.weights.saving import save_language  # noqa: E402

SIZE_7B = LlavaConfig(VisionConfig(1024, 4096, 24, 16, 336, 14), LanguageConfig())


def answers(quantize):
    """The shipped miniature in fp32: as a batch of unequal rows, and each as a stream. It raises if a word differs."""
    torch.manual_seed(0)
    scenes = [Scene.new().picture() for _ in range(8)]
    questions = ["What do you see in the picture?", "How many circles are there?"] * 4
    said = {}
    for device in ("cpu", "cuda"):
        model, tokenizer = load_llava(device=device, dtype=torch.float32, quantize=quantize)
        said[device] = generate(model, tokenizer, questions, scenes, max_new_tokens=64)
        for question, scene in zip(questions, scenes):
            turns = [human_turn(question, image=True)]
            said[device].append("".join(stream(model, tokenizer, turns, scene, max_new_tokens=64)).strip())
    assert said["cpu"] == said["cuda"], said
    print(f"the miniature, {quantize or 'fp32'}: {len(said['cuda'])} answers, word for word those of the CPU")


def train(folder, out, *words):
    """train.py in a process of its own, on 128 samples of the toy world -> the losses; what it says of a failure."""
    command = training(folder, out, *words)
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{ended.stderr[-4000:]}")
    return losses(folder / out)


def training(folder, out, *words):
    if not (folder / "data.json").exists():
        annotations.make_world(folder / "world", "train", 64, seed=0)
        symbols = annotations.symbols_of(folder / "world", "train")
        (folder / "data.json").write_text(json.dumps(toy_samples(symbols, {"conversation": 1, "reasoning": 1}, 0)))
    return [sys.executable, ROOT / "train.py", "--data", folder / "data.json", "--images", folder / "world/train",
            "--batch", "16", "--per-gpu", "8", "--out", folder / out, *words]


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def learning(folder):
    """The same steps in fp32 there and here: the whole model, and a LoRA upon 4 bits. It raises if losses differ."""
    whole = ("--recipe", "v1.5-finetune", "--init", TOY / "llava", "--dtype", "float32", "--no-shard")
    for name, words in (("whole", ()), ("LoRA upon int4", ("--lora", "8", "--quantize", "int4"))):
        here, there = (train(folder, f"{name} {device}", *whole, *words, "--device", device)
                       for device in ("cuda", "cpu"))
        difference = max(abs(a - b) for a, b in zip(here, there, strict=True))
        assert difference < 1e-2, (here, there)
        print(f"the miniature learns, {name}: losses of {len(here)} steps, {difference:.2g} from the CPU's at most")


def flash():
    """Nothing but the flash kernel may run: it raises if it cannot."""
    q = torch.randn(2, 32, 2048, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for heads, causal in ((32, True), (8, True), (32, False)):
            k = torch.randn(2, heads, 2048, 128, device="cuda", dtype=torch.bfloat16)
            attention(q, k, k, is_causal=causal).sum().backward()
    print("flash kernel: runs, forward and backward, also with grouped heads")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        attention(q, k, k, is_causal=True).sum().backward()
    fused = [event.key[:70] for event in seen.key_averages()
             if any(word in event.key for word in ("flash", "fmha", "cudnn"))]
    print("left to choose, PyTorch runs", *fused, sep="\n    ")


def one_billion(folder):
    """With a Llama of 1.1B random weights; 8 steps, and again, killed and resumed."""
    tokenizer = Tokenizer.load(TOY / "vicuna")
    config = LanguageConfig(tokenizer.vocab_size, 2048, 5632, 22, 32, 4, rms_norm_eps=1e-5)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LanguageModel(config)
    save_language(model.cpu().bfloat16(), tokenizer, folder / "language")
    words = ("--recipe", "v1.5-finetune", "--vision", TOY / "clip", "--language", folder / "language",
             "--save-every", "4")
    whole = train(folder, "whole", *words)
    run = subprocess.Popen(training(folder, "cut", *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "cut/checkpoint-4").exists() and run.poll() is None:
        time.sleep(0.05)
    run.kill()
    run.wait()
    cut = train(folder, "cut", *words, "--resume")
    difference = max(abs(a - b) for a, b in zip(whole, cut, strict=True))
    print(f"1.1B, FSDP2 on one GPU, bf16: loss {whole[0]:.3f} -> {whole[-1]:.3f} in {len(whole)} steps; "
          f"killed and resumed, losses differ by at most {difference:.2g}")


def in_bf16(kind, config):
    """A model of random weights, made on the GPU."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return kind(config)
    finally:
        torch.set_default_dtype(torch.float32)


def seven_billion(stage, layers, samples, length=2048, steps=5):
    """One micro-batch a step, activation checkpointing, AdamW; peak memory beside the plan's."""
    language = dataclasses.replace(SIZE_7B.language_config, num_hidden_layers=layers)
    config = dataclasses.replace(SIZE_7B, language_config=language)
    torch.manual_seed(0)
    model = in_bf16(Llava, config)
    model.freeze_for(stage)
    model.language_model.checkpointing = True
    shard = stage == 2
    wrapped = distributed.wrap(model, torch.device("cuda"), shard, torch.bfloat16)
    optimizers = make_optimizers(wrapped, 1e-5)
    ids = torch.randint(3, 32000, (samples, length), device="cuda")
    ids[:, 1 : 1 + config.image_tokens] = -200
    labels = ids.masked_fill(ids < 0, -100)
    pixels = torch.randn(samples, 3, 336, 336, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    for step in range(steps + 2):
        if step == 2:
            torch.cuda.synchronize()
            began = time.time()
        if shard:
            wrapped(ids, pixels, labels=labels).backward()
        else:
            forward_backward_in(torch.bfloat16, wrapped, ids, pixels, labels=labels)
        take_step(optimizers)
    torch.cuda.synchronize()
    seconds, tokens = (time.time() - began) / steps, samples * length
    recipe = RECIPES["v1.5-finetune" if stage == 2 else "v1.5-pretrain"]
    skeleton = plan.skeleton(config, recipe)
    peak = plan.peak_flops(torch.device("cuda")) or float("nan")
    foretold = plan.memory(skeleton, tokens, samples, 1, shard, True, 2)["in all"]
    used = torch.cuda.max_memory_allocated()
    print(f"7B shapes, stage {stage}, {layers} layers, {samples} x {length} tokens: {tokens / seconds:,.0f} tokens/s, "
          f"MFU {plan.step_flops(skeleton, recipe, tokens, samples) / seconds / peak:.1%}, peak {used / 2**30:.1f} GiB "
          f"(planned {foretold / 2**30:.1f}, {foretold / used - 1:+.0%})")


@torch.inference_mode()
def decode(tokens=64):
    """A Vicuna-7B of random bf16 weights, after 640 tokens: the part of the memory's speed that a token reaches."""
    config = SIZE_7B.language_config
    model = in_bf16(LanguageModel, config)
    cache = KVCache(config, 1, "cuda", torch.bfloat16)
    embeddings = torch.randn(1, 640, config.hidden_size, device="cuda", dtype=torch.bfloat16)
    words = model.lm_head(model(embeddings, cache)[:, -1:]).argmax(-1)

    def answer():
        cache.length, word = 640, words
        for _ in range(tokens):
            word = logits_after(model, word, cache).argmax(-1, keepdim=True)

    read = bench.ceilings(torch.device("cuda"))["read"]
    taken = min(bench.seconds(answer) for _ in range(3)) / tokens
    print(f"7B, bf16: {1 / taken:.0f} tokens/s, {bench.read_bytes(model) / taken / read:.0%} of the speed of reading, "
          f"{read / 1e9:,.0f} GB/s")


def whole_bench():
    subprocess.run([sys.executable, "-m", "minillava.bench"], cwd=ROOT, check=True)


def main():
    if not torch.cuda.is_available():
        sys.exit("error: there is no GPU here")
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    distributed.set_up("cuda", shard=True)
    layers = 10 if torch.cuda.mem_get_info()[1] < 100e9 else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [
            partial(answers, None), partial(answers, "int8"), partial(answers, "int4"), partial(learning, folder),
            flash, partial(one_billion, folder), partial(seven_billion, 1, 32, 8), partial(seven_billion, 2, layers, 4),
            decode, whole_bench]
        failed = sum(not succeeds(part) for part in parts)
    distributed.end()
    sys.exit(f"error: {failed} of {len(parts)} parts failed" if failed else 0)


def succeeds(part):
    """Runs it; an error is shown, and what it had of the GPU's memory is let go."""
    try:
        part()
        return True
    except Exception:
        traceback.print_exc()
        return False
    finally:
        sys.stdout.flush()
        gc.collect()  # a model's hooks hold it otherwise, and it would count as memory of the next part
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
