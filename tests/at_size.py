"""At full size, which no test has the time for: is memory what it should be, and the big tower exact?

    python tests/at_size.py write FOLDER [--scale 7b|1b]  a random LLaVA-1.5 in bf16, llava-hf's layout (7b: 14.1 GB),
                            [--quantize int8|int4]        or as `python -m minillava.weights quantize` leaves one
    python tests/at_size.py answer FOLDER [--tokens 8] [--quantize int4]
                                                          loads it, answers about a picture; peak memory against weights
    python tests/at_size.py tower                         a random ViT-L/14-336 against transformers, layer -2, fp32:
                                                          needs an environment with transformers in it
"""
import argparse
import json
import resource
import shutil
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from minillava import checkpoint  # noqa: E402
from minillava.linear import Int4Linear, Int8Linear, block_here  # noqa: E402
from minillava.llama import LanguageConfig  # noqa: E402
from minillava.llava import Llava, LlavaConfig  # noqa: E402
from minillava.vit import VisionConfig, VisionTower  # noqa: E402
from minillava.weights import layouts, tensors  # noqa: E402
from minillava.weights.allocator import keep_freed_memory  # noqa: E402
from minillava.weights.filling import fill  # noqa: E402
from minillava.weights.quantize import HEAD, LAYER  # noqa: E402

VISION = VisionConfig(**layouts.CLIP_L)
SCALES = {"7b": LanguageConfig(vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5),
          "1b": LanguageConfig(vocab_size=32064, hidden_size=2048, intermediate_size=5504, num_hidden_layers=16,
                               num_attention_heads=16, max_position_embeddings=4096, rms_norm_eps=1e-5)}


def write(folder, scale, quantize):
    """Shard by shard, so that writing needs little memory."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    config = LlavaConfig(VISION, SCALES[scale])
    with torch.device("meta"):
        model = Llava(config)
        for name, layer in list(model.named_modules()):
            weight = f"{name}.weight"
            if quantize and (LAYER.fullmatch(weight) or HEAD.fullmatch(weight)):
                size = layer.in_features, layer.out_features
                four = quantize == "int4" and LAYER.fullmatch(weight)
                model.set_submodule(name, Int4Linear(*size, block_here()) if four else Int8Linear(*size))
    empty = dict(model.named_parameters()) | dict(model.named_buffers())
    table = {here: disk for disk, here in layouts.LLAVA_HF.items()}
    names = tensors.rename({name: name for name in empty}, table)
    weight_map, shard, size = {}, {}, 0
    for disk, name in names.items():
        shard[disk] = random_tensor(name, empty[name])
        size += shard[disk].nbytes
        if size > 2 * 10**9 or disk == list(names)[-1]:
            file = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
            save_file(shard, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            shard, size = {}, 0
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    fields = {"model_type": "llava", "text_config": vars(config.language_config)}
    if quantize:
        fields["quantization_config"] = {"quant_method": "minillava", "kind": quantize}
    (folder / "config.json").write_text(json.dumps(fields))
    shutil.copyfile(ROOT / "tests" / "fixtures" / "vicuna" / "tokenizer.json", folder / "tokenizer.json")


def random_tensor(name, like):
    if not like.is_floating_point():
        info = torch.iinfo(like.dtype)
        return torch.randint(info.min, info.max + 1, like.shape, dtype=like.dtype)
    if name.endswith(".scale"):  # so that weights are about 0.02 in size
        steps = torch.zeros(like.shape, dtype=torch.bfloat16)
        steps[..., 0] = 0.004
        return steps if steps.ndim == 3 else torch.full(like.shape, 0.0003, dtype=torch.bfloat16)
    return torch.empty(like.shape, dtype=torch.bfloat16).normal_(1 if "norm" in name else 0, 0.02)


def answer(folder, tokens, quantize):
    """Peak resident memory is that of the process: Python and torch themselves are measured before and named apart."""
    def resident():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    import minillava.generate  # noqa: F401  all that is imported, before the first measurement
    keep_freed_memory()  # as chat.py does
    before, start = resident(), time.time()
    model, tokenizer = checkpoint.load_llava(folder, device="cpu", quantize=quantize)
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    print(f"weights {weights / 1e9:.2f} GB; loaded in {time.time() - start:.1f} s; "
          f"peak resident so far {resident() / 1e9:.2f} GB", flush=True)
    start, N = time.time(), model.config.image_tokens
    from minillava.generate import new_cache, next_logits
    ids = torch.tensor([[tokenizer.bos_id, *[-200] * N, *tokenizer.segment("what is it?")]])
    with torch.inference_mode():
        cache = new_cache(model)
        logits = next_logits(model, ids, torch.randn(1, 3, 336, 336), cache)
        print(f"first token after {time.time() - start:.1f} s", flush=True)
        for _ in range(tokens - 1):
            logits = next_logits(model, logits.argmax(-1)[:, None], None, cache)
    assert logits.isfinite().all()
    print(f"{tokens} tokens after {time.time() - start:.1f} s")
    print(f"peak resident {resident() / 1e9:.2f} GB, of it {before / 1e9:.2f} GB before loading: "
          f"{resident() / weights:.3f} x the weights in all, {(resident() - before) / weights:.3f} x without")


def tower():
    from transformers import CLIPVisionConfig, CLIPVisionModel
    torch.manual_seed(0)
    theirs = CLIPVisionModel(CLIPVisionConfig(**layouts.CLIP_L)).eval()
    for parameter in theirs.parameters():  # the initial weights are so small that a wrong layer would hardly show
        parameter.data += 0.02 * torch.randn_like(parameter)
    with torch.device("meta"):
        ours = VisionTower(VISION)
    fill(ours, tensors.rename(theirs.state_dict(), layouts.CLIP), "transformers", "cpu", torch.float32)
    pixels = torch.randn(1, 3, 336, 336)
    with torch.inference_mode():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        difference = (ours(pixels, -2) - expected).abs().max() / expected.abs().max()
    print(f"ViT-L/14-336 at layer -2: relative difference {difference:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "answer", "tower"])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--scale", choices=SCALES, default="7b")
    parser.add_argument("--quantize", choices=["int8", "int4"])
    parser.add_argument("--tokens", type=int, default=8)
    args = parser.parse_args()
    if args.what == "tower":
        tower()
    elif args.what == "write":
        write(args.folder, args.scale, args.quantize)
    else:
        answer(args.folder, args.tokens, args.quantize)
