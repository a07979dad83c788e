"""The model computes what transformers computes: fp32, relative difference at most 1e-5, on tiny random weights.

tests/make_fixtures.py wrote the weights and the expected results. Preprocessing is equal to the last bit.
"""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from minillava.checkpoint import load_language, load_llava, load_vision
from minillava.images import crop_middle, load_image, preprocess, to_rgb
from minillava.llava import IMAGE_TOKEN, LlavaConfig
from minillava.vit import VisionConfig

FIXTURES = Path(__file__).parent / "fixtures"
CPU = {"device": "cpu", "dtype": torch.float32}


def difference(ours, expected):
    assert ours.shape == expected.shape
    return ((ours - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("layer", [-1, -2])
def test_clip(layer):
    expected = load_file(FIXTURES / "clip_expected.safetensors")
    features = load_vision(FIXTURES / "clip", **CPU)(expected["pixels"], layer)
    assert difference(features, expected[str(layer)][:, 1:]) <= 1e-5


@pytest.mark.parametrize("name", ["llama_grouped", "llama_tied", "llama_3", "llama_linear"])
def test_llama(name):
    """Grouped heads; a tied head and another theta; Llama-3's rope scaling with head_dim given; linear scaling."""
    expected = load_file(FIXTURES / name / "expected.safetensors")
    model, _ = load_language(FIXTURES / name, **CPU)
    logits = model.lm_head(model(model.embed_tokens(expected["input_ids"])))
    assert difference(logits, expected["logits"]) <= 1e-5


LAYOUTS = {
    "llava_hf": ([FIXTURES / "llava_hf"], {}),              # the hub's names, in shards
    "llava_hf_mixed": ([FIXTURES / "llava_hf_mixed"], {}),  # what transformers 5 saves
    "llava_hf_5": ([FIXTURES / "llava_hf_5"], {}),          # its names in memory
    "llava": ([FIXTURES / "llava"], {"vision": FIXTURES / "clip"}),
    "composed": ([], {"vision": FIXTURES / "clip", "language": FIXTURES / "vicuna",
                      "projector": FIXTURES / "mm_projector.bin"}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_llava(layout):
    """Two images in one row and one in the other, through every layout of the same weights."""
    expected = load_file(FIXTURES / "llava_expected.safetensors")
    args, named = LAYOUTS[layout]
    model, tokenizer = load_llava(*args, **named, **CPU)
    image_id = 40
    ids = expected["input_ids"].masked_fill(expected["input_ids"] == image_id, IMAGE_TOKEN)
    logits = model(ids, expected["pixels"])
    assert difference(logits, expected["logits"][..., : logits.shape[-1]]) <= 1e-5
    assert logits.shape[-1] == (48 if "hf" in layout else 40)
    assert tokenizer.decode(tokenizer.encode("what is it? two words.")) == "what is it? two words."


# ---- preprocessing ----

def config(aspect="square", size=24):
    return LlavaConfig(VisionConfig(image_size=size, patch_size=8), image_aspect_ratio=aspect)


EXPECTED = load_file(FIXTURES / "preprocess_expected.safetensors")
SIZES = sorted({name.split(".")[0] for name in EXPECTED})


@pytest.mark.parametrize("aspect", ["square", "pad"])
@pytest.mark.parametrize("size", SIZES)
def test_preprocess(size, aspect):
    image = Image.fromarray(EXPECTED[f"{size}.image"].numpy())
    assert torch.equal(preprocess([image], config(aspect))[0], EXPECTED[f"{size}.{aspect}"])


def test_an_odd_rest_is_cut_off_on_the_right():
    ramp = Image.fromarray(np.tile(np.arange(27, dtype=np.uint8), (24, 1)))
    assert np.asarray(crop_middle(ramp, 24))[0].tolist() == list(range(1, 25))  # (27 - 24) // 2 = 1, then 2


@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_long_pictures(aspect):
    assert preprocess([Image.new("RGB", (10000, 50))], config(aspect)).shape == (1, 3, 24, 24)
    with pytest.raises(ValueError, match="2000000 x 1 pixels is too long"):
        preprocess([Image.new("L", (2000000, 1))], config(aspect))


def test_mean_and_std_come_from_the_config():
    red = Image.new("RGB", (10, 10), (255, 0, 0))
    pixels = preprocess([red], replace(config(), image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.5, 0.5)))
    assert pixels[0, :, 0, 0].tolist() == [2.0, -1.0, -1.0]


def colours(image):
    return [tuple(int(value) for value in pixel) for pixel in np.asarray(to_rgb(image)).reshape(-1, 3)]


def test_transparent_is_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
    assert colours(image) == [(255, 0, 0), (255, 255, 255), (127, 127, 127)]
    assert colours(image.convert("LA"))[1] == (255, 255, 255)


def test_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    assert colours(image) == [(200, 100, 50), (10, 20, 30)]
    image.info["transparency"] = 0
    assert colours(image) == [(200, 100, 50), (255, 255, 255)]


def test_grey_1_bit_and_16_bit():
    assert colours(Image.new("L", (1, 1), 77)) == [(77, 77, 77)]
    assert colours(Image.new("1", (1, 1), 1)) == [(255, 255, 255)]
    for dtype in ("<u2", ">u2", "<i4"):
        deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=dtype))
        assert colours(deep) == [(0, 0, 0), (100, 100, 100), (255, 255, 255)]


def test_cmyk():
    assert colours(Image.new("CMYK", (1, 1), (0, 255, 255, 0))) == [(255, 0, 0)]


def test_exif_turns_the_picture(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 20, 20))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: what is stored as left is the top
    image.save(tmp_path / "turned.png", exif=exif)
    turned = to_rgb(Image.open(tmp_path / "turned.png"))
    assert turned.size == (20, 40)
    assert turned.getpixel((10, 5)) == (0, 0, 0) and turned.getpixel((10, 35)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(10))
def test_each_orientation_is_turned_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.effect_noise((4, 3), 50).save(path, exif=exif)
    turned = load_image(path)
    expected = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    for image in (turned, to_rgb(turned)):
        assert (image.size, image.tobytes()) == (expected.size, expected.tobytes())


@pytest.mark.parametrize("exif, size", [
    (bytes(40), (40, 20)),                                           # not EXIF at all
    (b"II*\0\x08\0\0\0\x05\0", (40, 20)),                            # it ends after "five tags follow"
    (b"II*\0\x08\0\0\0\x02\0" b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"  # orientation 6, and a resolution
     b"\x1a\x01\x02\0\x01\0\0\0" b"5\0\0\0" b"\0\0\0\0", (20, 40))],     # that is text
    ids=["none", "cut", "odd"])
@pytest.mark.filterwarnings("error")
def test_a_picture_with_damaged_exif_is_shown(tmp_path, exif, size):
    Image.new("RGB", (40, 20)).save(tmp_path / "damaged.jpg", exif=b"Exif\0\0" + exif)
    image = load_image(tmp_path / "damaged.jpg")
    assert image.size == size
    assert preprocess([image], config("pad")).shape == (1, 3, 24, 24)
