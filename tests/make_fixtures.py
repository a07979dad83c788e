"""Writes tests/fixtures: tiny random models in the official layouts, and what transformers makes of them.

    pip install torch transformers==5.23.0 pillow safetensors        # in an environment of its own
    python tests/make_fixtures.py

The weights are random numbers that bf16 and fp16 both hold exactly, so that they can be stored in two bytes; all
results are computed in fp32. One LLaVA is there in every layout, and its parts as the CLIP and the Vicuna in it.
"""
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import (CLIPConfig, CLIPModel, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig,
                          LlavaForConditionalGeneration)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

OUT = Path(__file__).parent / "fixtures"
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
          "image_size": 24, "patch_size": 8}
TEXT = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5}
IMAGE_ID, PAD_ID, HF_VOCABULARY = 40, 41, 48  # as llava-hf: the Llama's tokens, <image>, <pad>, spare rows


def randomize(model):
    """Weights large enough that a wrong layer shows in the logits."""
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm.weight" in name or "norm1.weight" in name or "norm2.weight" in name else 0.0
        value = (centre + 0.25 * torch.randn_like(parameter)).bfloat16().float()
        parameter.data = value * (value.abs() > 2**-14)
    return model.eval()


def in_two_bytes(tensors, dtype=torch.bfloat16):
    return {name: tensor.detach().to(dtype).clone() for name, tensor in tensors.items()}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def folder(name, config, tokenizer=None, added=()):
    path = OUT / name
    path.mkdir(parents=True)
    write_json(path / "config.json", config)
    if tokenizer is not None:
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.add_special_tokens(list(added))
        tokenizer.save(str(path / "tokenizer.json"))
    return path


def shards(path, tensors, save, stem, suffix, number):
    names, weight_map = sorted(tensors), {}
    for i in range(number):
        file = f"{stem}-{i + 1:05}-of-{number:05}.{suffix}"
        part = {name: tensors[name] for name in names[i::number]}
        save(part, path / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(path / f"{stem}.{suffix}.index.json", {"metadata": {}, "weight_map": weight_map})


def make_tokenizer():
    """LLaMA's kind of pipeline over single characters."""
    special = ["<unk>", "<s>", "</s>"]
    vocab = {token: i for i, token in enumerate([*special, "▁", *"abcdefghijklmnopqrstuvwxyz.,?:!\nUSER"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@torch.no_grad()
def llava(tokenizer):
    text = TEXT | {"vocab_size": HF_VOCABULARY, "model_type": "llama"}
    vision = VISION | {"model_type": "clip_vision_model"}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID, image_seq_length=9)
    model = randomize(LlavaForConditionalGeneration(config))

    ids = torch.randint(3, 40, (2, 30))
    ids[:, 0] = 1
    for row, start in ((0, 3), (0, 17), (1, 8)):  # two images in one row, one in the other
        ids[row, start : start + 9] = IMAGE_ID
    pixels = torch.randn(3, 3, 24, 24)
    save_file({"input_ids": ids, "pixels": pixels, "logits": model(input_ids=ids, pixel_values=pixels).logits},
              OUT / "llava_expected.safetensors")

    # The three generations of names. A field is left out of the first where transformers has a default for it.
    model.to(torch.bfloat16).save_pretrained(OUT / "llava_hf_mixed")
    model.save_pretrained(OUT / "llava_hf_5", save_original_format=False)
    mixed = load_file(OUT / "llava_hf_mixed" / "model.safetensors")
    hub = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in mixed.items()}
    text = {name: value for name, value in text.items() if getattr(LlamaConfig, name, None) != value}
    path = folder("llava_hf", {
        "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": IMAGE_ID,
        "model_type": "llava", "pad_token_id": PAD_ID, "projector_hidden_act": "gelu", "text_config": text,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "vision_config": vision | {"projection_dim": 16, "vocab_size": 32}, "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", "vocab_size": HF_VOCABULARY},
        tokenizer, ["<image>", "<pad>"])
    shards(path, hub, lambda part, file: save_file(part, file, {"format": "pt"}), "model", "safetensors", 3)
    for name in ("llava_hf_mixed", "llava_hf_5"):
        shutil.copyfile(path / "tokenizer.json", OUT / name / "tokenizer.json")
        (OUT / name / "generation_config.json").unlink(missing_ok=True)
    for name in ("llava_hf", "llava_hf_mixed"):
        write_json(OUT / name / "preprocessor_config.json", {
            "image_processor_type": "CLIPImageProcessor", "do_center_crop": True,
            "crop_size": {"height": 24, "width": 24},
            "image_mean": list(CLIPImageProcessorPil.image_mean), "image_std": list(CLIPImageProcessorPil.image_std)})

    # What that model was converted from: a Llama of 40 tokens with a projector in it, and a CLIP.
    words = {name.removeprefix("language_model."): tensor[:40].clone() if len(tensor) == HF_VOCABULARY else tensor
             for name, tensor in hub.items() if name.startswith("language_model.")}
    llama_config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
    path = folder("vicuna", TEXT | llama_config, tokenizer)
    save_file(words, path / "model.safetensors", {"format": "pt"})

    projector = {f"model.mm_projector.{i}.{kind}": hub[f"multi_modal_projector.linear_{j}.{kind}"]
                 for i, j in ((0, 1), (2, 2)) for kind in ("weight", "bias")}
    torch.save(in_two_bytes(projector), OUT / "mm_projector.bin")
    path = folder("llava", TEXT | {
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava",
        "mm_vision_tower": "openai/tiny", "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False, "image_aspect_ratio": "pad", "use_mm_proj": True, "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False, "unfreeze_mm_vision_tower": False, "mm_resampler_type": None,
        "pad_token_id": 0}, tokenizer)
    inverse = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(4) for i in range(2)}
    shards(path, in_two_bytes(words | projector | inverse, torch.float16), torch.save, "pytorch_model", "bin", 2)

    clip = randomize(CLIPModel(CLIPConfig(
        vision_config=VISION, projection_dim=16,
        text_config={"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "max_position_embeddings": 8})))
    prefix = "vision_tower.vision_model."
    tower = {name.removeprefix(prefix): tensor for name, tensor in hub.items() if name.startswith(prefix)}
    clip.vision_model.load_state_dict(tower, strict=True)
    states = clip.vision_model(pixels, output_hidden_states=True).hidden_states
    save_file({"pixels": pixels, "-1": states[-1], "-2": states[-2]}, OUT / "clip_expected.safetensors")
    clip.to(torch.bfloat16).save_pretrained(OUT / "clip")


@torch.no_grad()
def llama(name, tokenizer, **fields):
    model = randomize(LlamaForCausalLM(LlamaConfig(**(TEXT | {"num_key_value_heads": 4} | fields))))
    ids = torch.randint(3, 40, (2, 48))
    expected = model(input_ids=ids).logits
    model.to(torch.bfloat16).save_pretrained(OUT / name)
    (OUT / name / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save(str(OUT / name / "tokenizer.json"))
    save_file({"input_ids": ids, "logits": expected}, OUT / name / "expected.safetensors")


def preprocessing():
    """Noise of many sizes, through the processor, as it is and padded to a square."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    background, generator, out = tuple(int(255 * mean) for mean in processor.image_mean), np.random.default_rng(0), {}
    for width, height in ((1, 1), (24, 24), (23, 25), (50, 31), (31, 50), (90, 7), (3, 100), (97, 64)):
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        side, name = max(image.size), f"{width}x{height}"
        square = Image.new("RGB", (side, side), background)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        out[f"{name}.image"] = torch.from_numpy(np.array(image))
        for aspect, input_image in (("square", image), ("pad", square)):
            # Without the hint a picture 1 or 3 pixels high is taken for one with its channels first.
            pixels = processor(input_image, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
            out[f"{name}.{aspect}"] = torch.from_numpy(pixels)
    save_file(out, OUT / "preprocess_expected.safetensors")


def defaults():
    """What transformers takes for a field that a file leaves out."""
    empty = LlavaConfig()
    keep = lambda config, names: {name: getattr(config, name) for name in names}
    vision, text = list(VISION) + ["layer_norm_eps"], list(TEXT) + ["head_dim", "tie_word_embeddings"]
    write_json(OUT / "defaults.json", {
        "clip": keep(CLIPVisionConfig(), vision), "llama": keep(LlamaConfig(), text),
        "llava_vision": keep(empty.vision_config, vision), "llava_vision_feature_layer": empty.vision_feature_layer})


if __name__ == "__main__":
    torch.manual_seed(0)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    tokenizer = make_tokenizer()
    llava(tokenizer)
    llama("llama_grouped", tokenizer, num_key_value_heads=2)
    llama("llama_tied", tokenizer, tie_word_embeddings=True,
          rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    llama("llama_3", tokenizer, num_key_value_heads=1, head_dim=16, rope_parameters={
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16})
    llama("llama_linear", tokenizer, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    preprocessing()
    defaults()
    for file in OUT.rglob("README.md"):
        file.unlink()
    print(f"{sum(file.stat().st_size for file in OUT.rglob('*') if file.is_file()):,} bytes")
