"""A processor without instructions for bf16: many rows are multiplied in fp32, and a training is in fp32."""
import pytest
import torch
import torch.nn.functional as F

from minillava import on_cpu
from minillava.attention import attention
from minillava.checkpoint import load_llava, save_llava
from minillava.fastest import choose_products
from minillava.linear import Int8Linear, WidenedConv2d, WidenedLinear, to_int8
from minillava.weights.devices import training_dtype

BF16 = {"device": "cpu", "dtype": torch.bfloat16}


def widened_layer(inputs=64, outputs=1100):
    """More than one piece of output channels."""
    torch.manual_seed(0)
    return WidenedLinear(inputs, outputs, dtype=torch.bfloat16).requires_grad_(False)


# ---- what is found ----

def test_a_training_computes_in_what_is_fast(has_bf16):
    cpu = torch.device("cpu")
    for answer, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        has_bf16(answer)
        assert training_dtype("auto", cpu) == dtype
        assert training_dtype("auto", torch.device("cuda")) == torch.bfloat16
        assert training_dtype("bfloat16", cpu) == torch.bfloat16 and training_dtype("float32", cpu) == torch.float32


def test_fp32_is_never_slow_and_a_torch_without_onednn_is(monkeypatch):
    assert on_cpu.is_slow(torch.bfloat16) in (True, False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    assert on_cpu.is_slow(torch.bfloat16) and on_cpu.is_slow(torch.float16)
    assert not on_cpu.is_slow(torch.float32) and not on_cpu.is_slow(torch.float64)


# ---- what is done ----

@pytest.mark.parametrize("rows", [1, 8, 9, 30])
def test_many_rows_are_multiplied_in_fp32_and_few_as_they_are(has_bf16, rows):
    has_bf16(False)
    layer = widened_layer()
    x = torch.randn(1, rows, 64).bfloat16()
    if rows > 8:
        expected = F.linear(x.float(), layer.weight.float(), layer.bias.float()).bfloat16()
    else:
        expected = F.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)


def test_on_a_gpu_they_are_plain_layers(has_bf16, monkeypatch):
    """Where a model is trained on one, its weights come from a CPU that may be slow."""
    has_bf16(False)
    monkeypatch.setattr(torch.Tensor, "float", None)
    with torch.inference_mode(), torch.device("meta"):  # for want of a GPU
        x = torch.empty(1, 3, 40, 64, dtype=torch.bfloat16)
        assert widened_layer()(x).shape == (1, 3, 40, 1100)
        assert WidenedConv2d(3, 8, 4, 4, bias=False, dtype=torch.bfloat16)(x).shape == (1, 8, 10, 16)


def test_what_is_trained_stays_as_it_is(has_bf16):
    has_bf16(False)
    layer = widened_layer().requires_grad_(True)
    x = torch.randn(30, 64).bfloat16()
    y = layer(x)
    plain = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(y, plain) and y.grad_fn.name() == plain.grad_fn.name()
    y.sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_gradients_through_few_bits_are_those_of_fp32(has_bf16, kind):
    has_bf16(False)
    model, _ = load_llava(device="cpu", dtype=torch.bfloat16, quantize=kind)
    layer = model.language_model.layers[0].mlp.up_proj
    x = torch.randn(30, layer.in_features).bfloat16().requires_grad_()
    dy = torch.randn(30, layer.out_features).bfloat16()
    layer(x).backward(dy)
    weight = torch.cat(list(layer.pieces(torch.float32)))
    torch.testing.assert_close(x.grad, (dy.float() @ weight).bfloat16(), atol=1e-3, rtol=1e-2)


def test_weights_of_few_bits_are_written_out_in_fp32(has_bf16):
    layer = Int8Linear(64, 96)
    layer.weight, layer.scale = to_int8(torch.randn(96, 64).bfloat16())
    x = torch.randn(30, 64).bfloat16()
    has_bf16(False)
    expected = F.linear(x.float(), layer.weight.float() * layer.scale.float()[:, None]).bfloat16()
    assert torch.equal(layer(x), expected)


def test_attention_is_left_to_the_fused_kernel(has_bf16):
    q, k, v = torch.randn(3, 1, 64, 40, 16).bfloat16()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    has_bf16(False)
    assert torch.equal(attention(q, k, v, is_causal=True), expected)
    assert not on_cpu.by_formula_on_cpu(q.requires_grad_(), k, None, True)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_the_miniature_sees_and_says_the_same(has_bf16, quantize):
    """All its layers, its patches too, and no farther from fp32 than without."""
    ids = torch.randint(3, 90, (2, 40), generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))

    def run(answer, dtype):
        has_bf16(answer)
        model, _ = load_llava(device="cpu", dtype=dtype, quantize=quantize)
        with torch.inference_mode():
            return model, model.encode_images(pixels.to(dtype)).float(), model(ids, None).float()

    _, right, _ = run(False, torch.float32)
    _, plain, logits = run(True, torch.bfloat16)
    model, seen, said = run(False, torch.bfloat16)
    assert (seen - right).norm() < 1.05 * (plain - right).norm()
    assert (said - logits).norm() < 0.03 * logits.norm()

    types = {type(module) for module in model.modules()}
    assert {WidenedLinear, WidenedConv2d} <= types and not {torch.nn.Linear, torch.nn.Conv2d} & types


def test_what_is_fast_or_in_fp32_stays_as_it_is(has_bf16):
    for answer, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        has_bf16(answer)
        model, _ = load_llava(device="cpu", dtype=dtype)
        assert WidenedLinear not in {type(module) for module in model.modules()}


def test_it_is_saved_as_any_other(has_bf16, tmp_path):
    for name, answer in (("plain", True), ("widened", False)):
        has_bf16(answer)
        save_llava(*load_llava(**BF16), tmp_path / name)
    plain, widened = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "widened"))
    assert plain == widened


@pytest.mark.parametrize("best", ["as it is", "in fp32"])
def test_the_fastest_of_few_rows_is_chosen_among_widened_layers_too(has_bf16, monkeypatch, best):
    has_bf16(False)
    monkeypatch.setattr("minillava.fastest.trial", lambda layers, makers, x: {
        kind: {name: 1.0 if name == best else 2.0 for name in names} for kind, names in makers.items()})
    ids = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(0))
    model, _ = load_llava(**BF16)
    with torch.inference_mode():
        before = model(ids, None).float()
        choose_products(model.language_model)
        after = model(ids, None).float()
    assert (after - before).norm() < 0.03 * before.norm()
