"""Weights that are prepacked for oneDNN: the same numbers, there and back, and only where it pays."""
import copy

import pytest
import torch
from torch import nn

from minillava import fastest, linear
from minillava.checkpoint import load_llava, save_llava
from minillava.fastest import FewRowsLinear, choose_products, without_onednn
from minillava.linear import LoraLinear, PrepackedLinear, prepack_layers
from minillava.llava import Llava, LlavaConfig
from minillava.llama import LanguageConfig
from minillava.on_cpu import prepacks
from minillava.training.distributed import wrap
from minillava.training.optimizer import forward_backward_in
from minillava.vit import VisionConfig

pytestmark = pytest.mark.skipif(not prepacks(), reason="this processor does not multiply in bf16")


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    monkeypatch.setattr(linear, "SMALL", 0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (3, 5, 96), (0, 96), (96,)])
def test_the_product_is_that_of_the_layer(bias, shape):
    torch.manual_seed(0)
    layer = nn.Linear(96, 200, bias).bfloat16().requires_grad_(False)
    x = torch.randn(shape).bfloat16()
    torch.testing.assert_close(PrepackedLinear(layer)(x), layer(x))


def test_a_part_of_a_larger_tensor_is_multiplied_as_well():
    layer = nn.Linear(96, 200).bfloat16().requires_grad_(False)
    x = torch.randn(4, 7, 96).bfloat16()[:, -1]
    torch.testing.assert_close(PrepackedLinear(layer)(x), layer(x))


def test_so_is_the_gradient():
    torch.manual_seed(0)
    layer = nn.Linear(96, 200).bfloat16().requires_grad_(False)
    grads = []
    for product in (layer, PrepackedLinear(layer)):
        x = torch.ones(2, 5, 96).bfloat16().requires_grad_()
        (product(x).float() ** 2).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def tiny():
    torch.manual_seed(0)
    vision = VisionConfig(32, 64, 3, 2, 28, 14)
    return Llava(LlavaConfig(vision, LanguageConfig(50, 32, 48, 2, 4, 2), projector="linear"))


def prepacked_of(model):
    return {name for name, layer in model.named_modules() if isinstance(layer, PrepackedLinear)}


def test_what_is_trained_stays_as_it_is_and_learns_the_same():
    plain = tiny().bfloat16()  # as most files are
    plain.freeze_for(1)
    up = plain.language_model.layers[0].mlp
    up.up_proj = LoraLinear(up.up_proj, 2, 4)
    packed = copy.deepcopy(plain)
    for p in plain.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    packed = wrap(packed, torch.device("cpu"), shard=False, dtype=torch.bfloat16)
    names = prepacked_of(packed)
    assert "mm_projector" not in names and "language_model.layers.0.mlp.up_proj.base" in names
    assert len(names) == 3 * 6 + 2 * 7 + 1  # CLIP's blocks, LLaMA's, the head

    ids = torch.tensor([[1, 5, *4 * [-200], 7, 8]])
    pixels = torch.randn(1, 3, 28, 28)
    losses = [forward_backward_in(torch.bfloat16, model, ids, pixels, labels=ids.clamp(min=-100))
              for model in (plain, packed)]
    torch.testing.assert_close(*losses)
    for p, q in zip(plain.parameters(), packed.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=0.02, atol=1e-4)


def test_beside_a_language_model_that_learns_nothing_is_prepacked():
    model = tiny()
    model.freeze_for(2)
    assert not prepacked_of(wrap(model, torch.device("cpu"), shard=False, dtype=torch.bfloat16))


def test_a_model_that_was_prepacked_is_saved_as_it_was(tmp_path):
    model, tokenizer = load_llava(device="cpu")
    save_llava(model, tokenizer, tmp_path / "before")
    prepack_layers(model.requires_grad_(False))
    assert len(prepacked_of(model)) > 40
    save_llava(model, tokenizer, tmp_path / "after")
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("before", "after"))
    assert before == after


def test_a_large_model_stays_in_its_file(monkeypatch):
    model = tiny().bfloat16().requires_grad_(False)
    monkeypatch.setattr(linear, "MOST", 1000)
    prepack_layers(model)
    assert not prepacked_of(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_only_bf16_is_prepacked(dtype):
    model = tiny().to(dtype).requires_grad_(False)
    prepack_layers(model)
    assert not prepacked_of(model)


def test_small_layers_stay_as_they_are(monkeypatch):
    monkeypatch.undo()
    model, _ = load_llava(device="cpu")
    prepack_layers(model.requires_grad_(False))
    assert not prepacked_of(model)


def test_another_product_for_one_row_leaves_many_to_the_prepacked(monkeypatch):
    layer = PrepackedLinear(nn.Linear(96, 200, bias=False).bfloat16().requires_grad_(False))
    new = FewRowsLinear(layer, 1, without_onednn)
    monkeypatch.setattr(torch.nn.functional, "linear", None)
    assert new(torch.ones(3, 96).bfloat16()).shape == (3, 200)


@pytest.mark.parametrize("of_head", ["as it is", "without oneDNN"])
def test_small_blocks_that_are_fastest_in_fp32_take_a_prepacked_head_along(monkeypatch, of_head):
    monkeypatch.setattr(linear, "SMALL", 48 * 32)
    monkeypatch.setattr(fastest, "SMALL", 48 * 32)
    monkeypatch.setattr(fastest, "fastest_of", lambda seconds: "in fp32" if "in fp32" in seconds else of_head)
    model = tiny().language_model.bfloat16().requires_grad_(False)
    ids = torch.tensor([[1, 5, 7]])
    before = model.lm_head(model(model.embed_tokens(ids)))
    prepack_layers(model)
    assert prepacked_of(model) == {"lm_head"}
    choose_products(model)
    after = model.lm_head(model(model.embed_tokens(ids)))
    torch.testing.assert_close(after, before.float(), rtol=0.02, atol=0.02)
