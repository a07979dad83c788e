"""What minillava saves, opened by transformers: no missing and no unexpected key, the same logits, ids and pixels.

The tests do not need transformers, so pytest does not collect this. Run it in an environment with transformers (4.37
and 5.23 were tried), torch, tokenizers, safetensors, pillow and tqdm:

    python tests/check_transformers.py [FOLDER ...]    folders of save_llava; without any: tiny ones
"""
import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from minillava.checkpoint import load_language, load_llava, load_vision  # noqa: E402
from minillava.images import preprocess  # noqa: E402
from minillava.llama import LanguageConfig  # noqa: E402
from minillava.llava import IMAGE_TOKEN, Llava, LlavaConfig  # noqa: E402
from minillava.tokenizer import Tokenizer  # noqa: E402
from minillava.vit import VisionConfig, VisionTower  # noqa: E402
from minillava.weights.saving import save_clip, save_language, save_llava, save_original_llava  # noqa: E402

OLD = transformers.__version__.startswith("4.37")
FIXTURES = ROOT / "tests" / "fixtures"


def report(what, good, detail=""):
    print("ok  " if good else "FAIL", what, detail)
    report.failed |= not good


report.failed = False


def opened(cls, folder):
    model, info = cls.from_pretrained(folder, output_loading_info=True, torch_dtype=torch.float32)
    wrong = {key: value for key, value in info.items() if value}
    report(f"{cls.__name__} {folder}", not wrong, wrong or "")
    return model.eval()


def compare(what, ours, theirs):
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    report(what, difference <= 1e-5, f"{difference:.1e}")


@torch.no_grad()
def check_llava(folder):
    model, tokenizer = load_llava(folder, device="cpu", dtype="float32")
    theirs, N = opened(transformers.LlavaForConditionalGeneration, folder), model.config.image_tokens
    image_id = theirs.config.image_token_index
    image = Image.effect_noise((50, 70), 60).convert("RGB")
    pixels = preprocess([image, image.rotate(90)], model.config)
    words = torch.randint(3, tokenizer.vocab_size - 1, (2, 12))
    ids = torch.cat([words[:, :5], torch.full((2, N), IMAGE_TOKEN), words[:, 5:]], 1)
    slots = torch.full((2, 1 if OLD else N), image_id)  # 4.37 makes one id wide itself
    their_ids = torch.cat([words[:, :5], slots, words[:, 5:]], 1)
    logits = theirs(input_ids=their_ids, pixel_values=pixels, attention_mask=torch.ones_like(their_ids)).logits
    compare("  logits", model(ids, pixels), logits)
    if OLD:
        return  # its processor does not know today's processor_config.json, that of the hub included
    processor = transformers.AutoProcessor.from_pretrained(folder)
    text = "what is  it? a dog's\nname"
    batch = processor(text=f"USER: <image>\n{text}", images=image, return_tensors="pt")
    before, after = tokenizer.encode("USER: "), tokenizer.segment(f"\n{text}", prefix=tokenizer.legacy)
    report("  ids", batch["input_ids"][0].tolist() == [*before, *[image_id] * N, *after])
    report("  pixels", torch.equal(batch["pixel_values"], pixels[:1]))


@torch.no_grad()
def check_parts(path, model, tokenizer):
    """The backbones, saved like the toy CLIP and the toy Vicuna."""
    save_language(model.language_model, tokenizer, path / "vicuna")
    theirs = opened(transformers.LlamaForCausalLM, path / "vicuna")
    ours, tokenizer = load_language(path / "vicuna", device="cpu")
    ids = torch.tensor([tokenizer.encode("what is it?")])
    compare("  logits", ours.lm_head(ours(ours.embed_tokens(ids))), theirs(input_ids=ids).logits)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(path / "vicuna")
    report("  ids", their_tokenizer("what is it?")["input_ids"] == ids[0].tolist())

    text = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config={}, projection_dim=8))
    tensors = {name: tensor for name, tensor in clip.state_dict().items()
               if not name.startswith(("vision_model.", "visual_projection")) and not name.endswith("position_ids")}
    tower = VisionTower(model.config.vision_config)
    tensors |= {f"vision_model.{name}": tensor for name, tensor in tower.state_dict().items()}
    tensors["visual_projection.weight"] = torch.randn(8, model.config.vision_config.hidden_size)
    save_clip(tensors, model.config, text, 8, path / "clip")
    theirs, S = opened(transformers.CLIPModel, path / "clip"), model.config.vision_config.image_size
    pixels = torch.randn(1, 3, S, S)
    expected = theirs.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    compare("  layer -2", load_vision(path / "clip", device="cpu")(pixels, -2), expected)


@torch.no_grad()
def check_original(path, model, tokenizer):
    """The layout of the official code: a Llama and a CLIP to transformers, with a projector that it does not know."""
    save_original_llava(model, tokenizer, path)
    names = json.loads((path / "config.json").read_text())
    for name in ("architectures", "model_type"):  # those of the official class
        names.pop(name)
    theirs, info = transformers.LlamaForCausalLM.from_pretrained(
        path, config=transformers.LlamaConfig(**names), output_loading_info=True, torch_dtype=torch.float32)
    beyond = [name for name in info["unexpected_keys"] if not name.startswith("model.mm_projector.")]
    report(f"LlamaForCausalLM {path}", not beyond and not info["missing_keys"], beyond or "")
    ids = torch.randint(3, 40, (2, 12))
    compare("  logits", model(ids), theirs.eval()(input_ids=ids).logits)

    tower, S = opened(transformers.CLIPVisionModel, path / "vision_tower"), model.config.vision_config.image_size
    pixels = torch.randn(1, 3, S, S)
    expected = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    compare("  layer -2", model.vision_tower(pixels, -2), expected)


def main():
    torch.manual_seed(0)
    print("transformers", transformers.__version__)
    for folder in sys.argv[1:]:
        check_llava(folder)
    if not sys.argv[1:]:
        path = Path(tempfile.mkdtemp())
        llama_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 16}
        for name, projector, aspect, fields in (
                ("mlp", "mlp2x_gelu", "square", {}), ("linear", "linear", "pad", {"tie_word_embeddings": True}),
                ("grouped", "mlp1x_gelu", "pad", {"num_key_value_heads": 2, "rope_theta": 500.0, "vocab_size": 64}),
                ("llama_3", "linear", "square", {"rope_scaling": llama_3, "head_dim": 16})):
            if OLD and name == "llama_3":
                continue  # younger than 4.37
            tokenizer = Tokenizer.load(FIXTURES / "vicuna")
            language = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                        "num_attention_heads": 4} | fields
            model = Llava(LlavaConfig(VisionConfig(32, 64, 3, 2, 24, 8), LanguageConfig(**language), projector,
                                      image_aspect_ratio=aspect))
            save_llava(model, tokenizer, path / name)
            check_llava(path / name)
        check_parts(path, model, Tokenizer.load(FIXTURES / "vicuna"))
        check_original(path / "original", model, Tokenizer.load(FIXTURES / "vicuna"))
    sys.exit(report.failed)


if __name__ == "__main__":
    main()
