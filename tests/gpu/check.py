"""What only a GPU can show, in one command; needs one GPU of 80 GB, and no weights.

    python tests/gpu/check.py

Is the flash kernel what runs? Does a model of the 1B class train in bf16 under FSDP2, and resume to the same losses?
Tokens/s, MFU and peak memory of LLaVA-7B's shapes, as many layers as fit, beside what `--plan` foretells. How fast do
7B shapes decode in bf16, and what does `python -m minillava.bench` say there? (Written without a GPU: it was never run.)
"""
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from minillava import bench  # noqa: E402
from minillava.attention import attention  # noqa: E402
from minillava.checkpoint import TOY  # noqa: E402
from minillava.llama import KVCache, LanguageConfig, LanguageModel  # noqa: E402
from minillava.llava import Llava, LlavaConfig  # noqa: E402
from minillava.tokenizer import Tokenizer  # noqa: E402
from minillava.toy import annotations  # noqa: E402
from minillava.toy.instruct import toy_samples  # noqa: E402
from minillava.training import distributed, plan  # noqa: E402
from minillava.training.optimizer import forward_backward_in, make_optimizers, take_step  # noqa: E402
from minillava.training.recipes import RECIPES  # noqa: E402
from minillava.vit import VisionConfig  # noqa: E402
from minillava.weights.saving import save_language  # noqa: E402

SIZE_7B = LlavaConfig(VisionConfig(1024, 4096, 24, 16, 336, 14), LanguageConfig())


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
    """train.py itself on the toy world, with a Llama of 1.1B random weights; 8 steps, and again, killed and resumed."""
    tokenizer = Tokenizer.load(TOY / "vicuna")
    config = LanguageConfig(tokenizer.vocab_size, 2048, 5632, 22, 32, 4, rms_norm_eps=1e-5)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LanguageModel(config)
    save_language(model.cpu().bfloat16(), tokenizer, folder / "language")
    annotations.make_world(folder / "world", "train", 64, seed=0)
    symbols = annotations.symbols_of(folder / "world", "train")
    (folder / "data.json").write_text(json.dumps(toy_samples(symbols, {"conversation": 1, "reasoning": 1}, 0)))
    command = [sys.executable, ROOT / "train.py", "--recipe", "v1.5-finetune", "--vision", TOY / "clip", "--language",
               folder / "language", "--data", folder / "data.json", "--images", folder / "world/train", "--batch", "16",
               "--per-gpu", "8", "--save-every", "4"]
    losses = lambda out: [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    subprocess.run([*command, "--out", folder / "whole"], check=True, stderr=subprocess.DEVNULL)
    run = subprocess.Popen([*command, "--out", folder / "cut"], stderr=subprocess.DEVNULL)
    while not (folder / "cut/checkpoint-4").exists() and run.poll() is None:
        time.sleep(0.05)
    run.kill()
    run.wait()
    subprocess.run([*command, "--out", folder / "cut", "--resume"], check=True, stderr=subprocess.DEVNULL)
    whole, cut = losses(folder / "whole"), losses(folder / "cut")
    difference = max(abs(a - b) for a, b in zip(whole, cut, strict=True))
    print(f"1.1B, FSDP2 on one GPU, bf16: loss {whole[0]:.3f} -> {whole[-1]:.3f} in {len(whole)} steps; "
          f"killed and resumed, losses differ by at most {difference:.2g}")


def seven_billion(stage, layers, samples, length=2048, steps=5):
    """One micro-batch a step, activation checkpointing, AdamW; peak memory beside the plan's."""
    language = dataclasses.replace(SIZE_7B.language_config, num_hidden_layers=layers)
    config = dataclasses.replace(SIZE_7B, language_config=language)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Llava(config)
    torch.set_default_dtype(torch.float32)
    model.freeze_for(stage)
    model.language_model.checkpointing = True
    shard = stage == 2
    wrapped = distributed.wrap(model, torch.device("cuda"), shard, torch.bfloat16)
    optimizers = make_optimizers(wrapped, 1e-5)
    ids = torch.randint(3, 32000, (samples, length), device="cuda")
    ids[:, 1 : 1 + config.image_tokens] = -200
    labels = ids.masked_fill(ids < 0, -100)
    pixels = torch.randn(samples, 3, 336, 336, device="cuda")
    torch.cuda.empty_cache()
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
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LanguageModel(config)
    torch.set_default_dtype(torch.float32)
    cache = KVCache(config, 1, "cuda", torch.bfloat16)
    embeddings = torch.randn(1, 640, config.hidden_size, device="cuda", dtype=torch.bfloat16)
    words = model.lm_head(model(embeddings, cache)[:, -1:]).argmax(-1)

    def answer():
        word = words
        for _ in range(tokens):
            word = model.lm_head(model(model.embed_tokens(word), cache)).argmax(-1)
        cache.length = 640

    read = bench.ceilings(torch.device("cuda"))["read"]
    taken = min(bench.seconds(answer) for _ in range(3)) / tokens
    print(f"7B, bf16: {1 / taken:.0f} tokens/s, {bench.read_bytes(model) / taken / read:.0%} of the speed of reading, "
          f"{read / 1e9:,.0f} GB/s")


def main():
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    flash()
    with tempfile.TemporaryDirectory() as folder:
        one_billion(Path(folder))
    distributed.set_up("cuda", shard=True)
    seven_billion(1, 32, 8)
    torch.cuda.empty_cache()
    seven_billion(2, 10 if torch.cuda.mem_get_info()[1] < 100e9 else 20, 4)
    torch.cuda.empty_cache()
    decode()
    torch.cuda.empty_cache()
    command = [sys.executable, "-m", "minillava.bench", "--shapes", "miniature", "1.4B", "140M"]
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
