"""8 and 4 bits: the kernels compute what the written-out weights do, folders are mapped, errors are small."""
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from minillava import linear
from minillava.checkpoint import load_language, load_llava, save_llava
from minillava.generate import generate
from minillava.linear import Int4Linear, Int8Linear, QuantizedLinear, in_blocks, pack, to_int4, to_int8, unpack
from minillava.llava import IMAGE_TOKEN
from minillava.weights import quantize
from minillava.weights.__main__ import main
from minillava.weights.tensors import forget_pages, read_ahead
from tests.comparing import edit_json, edit_tensors, message, same

FIXTURES = Path(__file__).parent / "fixtures"
CPU = {"device": "cpu", "dtype": torch.float32}
KINDS = {"int8": (Int8Linear, to_int8), "int4": (Int4Linear, to_int4)}


def make_layer(kind, weight):
    cls, to_few_bits = KINDS[kind]
    layer = cls(weight.shape[1], weight.shape[0])
    layer.weight, layer.scale = to_few_bits(weight)
    if kind == "int4":
        layer.weight = in_blocks(layer.weight, linear.block_here())
    return layer


def whole(layer):
    """Its weight written out, [O,I]."""
    return torch.cat(list(layer.pieces(layer.scale.dtype)))


# ---- one layer ----

@pytest.mark.parametrize("kind, error", [("int8", 0.01), ("int4", 0.1)])
@pytest.mark.parametrize("shape", [(128, 128), (344, 128), (128, 344), (903, 96)])  # odd ones are padded
def test_what_is_written_out_is_near_the_weights(kind, error, shape):
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(shape)
    written_out = whole(make_layer(kind, weight))
    assert written_out.shape == shape
    assert (written_out - weight).norm() <= error * weight.norm()


def test_numbers_that_fit_are_kept():
    """A worked example: int8 with a scale of 1/127, int4 with steps of 1 from -7 to 8."""
    weight = torch.tensor([[1.0, -1.0, 64 / 127, 0.0]])
    values, scale = to_int8(weight)
    assert values.tolist() == [[127, -127, 64, 0]] and scale.item() == pytest.approx(1 / 127)
    weight = torch.arange(-7.0, 9.0).repeat(4)[None]  # one group of 64
    torch.testing.assert_close(whole(make_layer("int4", weight)), weight)


def test_a_channel_of_zeros_stays_zero():
    for kind in KINDS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            written_out = whole(make_layer(kind, torch.zeros(64, 64, dtype=dtype)))
            assert written_out.abs().max() <= 1e-6


def test_two_values_share_a_byte():
    values = torch.randint(16, (192, 72), dtype=torch.uint8)
    packed = pack(values)
    assert packed.shape == (3, 72, 32)
    assert torch.equal(unpack(packed).transpose(1, 2).flatten(0, 1), values)
    assert packed[1, 5, 3] == values[64 + 3, 5] + 16 * values[64 + 35, 5]
    assert torch.equal(in_blocks(packed, 32), pack(values, 32))
    assert torch.equal(in_blocks(in_blocks(packed, 32), 64), packed)
    assert in_blocks(packed, 64) is packed


@pytest.mark.parametrize("saver, reader", [(64, 32), (32, 64), (32, 32), (0, 64), (32, 0)])
def test_a_folder_from_a_machine_with_another_kernel(monkeypatch, tmp_path, saver, reader):
    """It is saved as the machine reads it, to be mapped there; elsewhere it is laid anew, the same weights."""
    def become(block):
        monkeypatch.setattr(linear, "kernel_block", lambda: block)

    become(saver)
    model, tokenizer = load_llava(FIXTURES / "llava_hf", device="cpu", quantize="int4")
    quantize.save_quantized(model, tokenizer, tmp_path, "int4")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    assert load_file(tmp_path / "model.safetensors")[name].shape[-1] == (saver or 64) // 2

    become(reader)
    read, _ = load_llava(tmp_path, device="cpu")
    for layer, other in zip(model.modules(), read.modules()):
        if isinstance(layer, Int4Linear):
            assert other.weight.shape[-1] == (reader or 64) // 2
            assert torch.equal(whole(layer), whole(other))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("shape", [(128, 128), (344, 128), (128, 344), (903, 96), (2100, 64)])
def test_the_kernel_for_few_rows_computes_the_same(kind, dtype, tolerance, shape, monkeypatch, fast_bf16):
    torch.manual_seed(0)
    layer = make_layer(kind, torch.randn(shape).to(dtype))
    x = torch.randn(2, 3, 2 * shape[1], dtype=dtype)[..., ::2]  # rows that do not lie together
    few = layer(x)
    monkeypatch.setattr(layer, "few", 0)
    many = layer(x)
    assert few.shape == many.shape == (2, 3, shape[0])
    assert (few - many).abs().max() <= tolerance * many.abs().max()
    torch.testing.assert_close(many, F.linear(x, whole(layer)), rtol=tolerance, atol=1e-4)


@pytest.mark.parametrize("offset", [1, 2, 4, 8, 16])
def test_int8_at_any_address(offset):
    """The kernel ends the process where weights or activations do not begin at a round address."""
    layer = make_layer("int8", torch.randn(128, 64).bfloat16())
    x = torch.randn(64 + offset).bfloat16()[offset:][None]
    expected = F.linear(x, whole(layer))
    torch.testing.assert_close(layer(x), expected, rtol=0.02, atol=0.1)
    room = torch.zeros(128 * 64 + offset, dtype=torch.int8)
    layer.weight = room[offset:].view(128, 64).copy_(layer.weight)
    torch.testing.assert_close(layer(x), expected, rtol=0.02, atol=0.1)


def test_activations_of_another_dtype():
    """As in training, where bf16 goes through what was loaded in fp32."""
    for kind in KINDS:
        layer = make_layer(kind, torch.randn(128, 64))
        for rows in (1, 200):
            x = torch.randn(rows, 64)
            torch.testing.assert_close(layer(x.bfloat16()).float(), layer(x), rtol=0.05, atol=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_what_comes_before(kind):
    """As a LoRA needs them; the weights themselves have none, and no copy of them is kept."""
    layer = make_layer(kind, torch.randn(1100, 64))  # two pieces
    x = torch.randn(5, 64, requires_grad=True)
    y = layer(x)
    kept = y.grad_fn.saved_tensors if hasattr(y.grad_fn, "saved_tensors") else ()
    assert not kept and not list(layer.parameters())
    y.square().sum().backward()
    expected = x.detach().requires_grad_()
    F.linear(expected, whole(layer)).square().sum().backward()
    torch.testing.assert_close(x.grad, expected.grad, rtol=1e-4, atol=1e-3)


def plainly_to_int8(weight):
    """As to_int8, without a thought for time or memory."""
    scale = (weight.float().abs().amax(1) / 127).clamp(min=linear.TINY).to(weight.dtype)
    return (weight.float() / scale[:, None].float()).round().clamp(-127, 127).to(torch.int8), scale


def plainly_to_int4(weight):
    """As to_int4: values and scales [O,I/64,64 and 2], of whole groups."""
    def values_of(scale, zero):
        return (groups / scale - (zero / scale - 8)).round().clamp(0, 15)

    groups = weight.float().unflatten(1, (-1, 64))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / (15 + 2 * linear.BEYOND)).clamp(min=linear.TINY)
    zero = low + (8 + linear.BEYOND) * scale
    values = values_of(scale, zero)
    deviation = values - values.mean(-1, keepdim=True)
    squares = deviation.square().sum(-1, keepdim=True).clamp(min=linear.TINY)
    scale = ((deviation * groups).sum(-1, keepdim=True) / squares).clamp(min=linear.TINY)
    zero = groups.mean(-1, keepdim=True) - (values.mean(-1, keepdim=True) - 8) * scale
    both = torch.cat([scale, zero], -1).to(weight.dtype)
    return values_of(*both.float().split(1, -1)).byte().flatten(1), both


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_some_rows_at_once_and_in_place_gives_the_same_bits(dtype):
    torch.manual_seed(0)
    weight = (0.02 * torch.randn(192, 448)).to(dtype)
    weight[3], weight[4, :64], weight[5] = 0, 5, 1000 * weight[5]
    before = weight.clone()
    integers, scale = quantize.by_rows(weight, to_int8)
    assert [torch.equal(*pair) for pair in zip((integers, scale), plainly_to_int8(weight))] == [True, True]
    packed, scale = quantize.by_rows(weight, to_int4)
    values, both = plainly_to_int4(weight)
    assert torch.equal(unpack(packed).transpose(1, 2).flatten(0, 1), values)
    assert torch.equal(scale, both.transpose(0, 1))
    assert torch.equal(weight, before)  # what is read of a file, or belongs to another model, stays


# ---- a whole model ----

@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    model, _ = load_llava(device="cpu")
    words = torch.randint(3, 900, (2, 30))
    slots = torch.full((2, model.config.image_tokens), IMAGE_TOKEN)
    size = model.config.vision_config.image_size
    return model, torch.cat([words[:, :5], slots, words[:, 5:]], 1), torch.randn(2, 3, size, size)


@pytest.mark.parametrize("kind, error", [("int8", 0.04), ("int4", 0.35)])
def test_the_miniature_saved_and_mapped(kind, error, batch, tmp_path, run):
    model, ids, pixels = batch
    logits = model(ids, pixels)
    from_plain, tokenizer = load_llava(device="cpu", quantize=kind)
    difference = from_plain(ids, pixels) - logits
    assert 0 < difference.norm() <= error * logits.norm()

    layers = [module for module in from_plain.language_model.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 4 * 7 + 1 and type(from_plain.language_model.lm_head) is Int8Linear
    assert not any(isinstance(module, QuantizedLinear) for module in from_plain.vision_tower.modules())

    source = Path(linear.__file__).parent / "toy" / "weights" / "llava"
    assert run("quantize", "--model", source, "--to", kind, "--out", tmp_path).returncode is None
    saved, saved_tokenizer = load_llava(tmp_path, device="cpu")
    assert same(saved, from_plain) and saved.config == from_plain.config
    assert saved_tokenizer.encode("what is it?") == tokenizer.encode("what is it?")
    assert same(load_llava(tmp_path, device="cpu", quantize=kind)[0], saved)
    other = "int4" if kind == "int8" else "int8"
    assert "is quantised already" in message(ValueError, load_llava, tmp_path, quantize=other)
    assert "int" in message(ValueError, load_llava, quantize="int2")

    prompt = ["How many shapes are there?"]
    answers = [generate(each, tokenizer, prompt, [None], max_new_tokens=5) for each in (saved, from_plain)]
    assert answers[0] == answers[1] and answers[0][0]
    head = saved.language_model.lm_head
    assert head.has_kernel(pixels) and head.weight.data_ptr() % 16 == 0

    in_fp32, _ = load_llava(tmp_path, device="cpu", dtype="float32")
    assert in_fp32(ids, pixels).dtype == torch.float32


def test_a_tied_head_stays():
    model, _ = load_language(FIXTURES / "llama_tied", device="cpu", quantize="int4")
    assert model.lm_head.weight is model.embed_tokens.weight
    assert type(model.layers[0].mlp.up_proj) is Int4Linear


def test_the_loss_of_a_quantised_model(batch):
    model, _ = load_llava(device="cpu", quantize="int8")
    _, ids, pixels = batch
    assert model(ids, pixels, labels=ids.clamp(min=0)).isfinite()


def test_the_plain_files_are_not_written_from_integers(tmp_path):
    model, tokenizer = load_llava(device="cpu", quantize="int8")
    assert "quantised" in message(ValueError, save_llava, model, tokenizer, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def resident_pages_of_files():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says so")
def test_a_mapped_tensor_that_was_read_is_let_go(tmp_path):
    """Or the plain model would be whole in memory while it is quantised; and nothing is lost by it."""
    size = 2**24
    save_file({"a": torch.arange(size, dtype=torch.int32), "b": torch.ones(999)}, tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    assert tensors["a"].sum() == size * (size - 1) // 2
    before = resident_pages_of_files()
    forget_pages(tensors["a"])
    assert before - resident_pages_of_files() > 3 * size
    assert tensors["a"].sum() == size * (size - 1) // 2 and tensors["b"].sum() == 999


def test_the_next_weight_is_read_while_one_is_rounded(monkeypatch):
    """Asked for before the one at hand is touched, and asked for once."""
    tensors = {f"layers.{i}.mlp.up_proj.weight": torch.randn(64, 64) for i in range(3)} | {"norm.weight": torch.ones(64)}
    plain = {tensor.data_ptr(): name for name, tensor in tensors.items()}
    events = []
    monkeypatch.setattr(quantize, "read_ahead", lambda tensor: events.append(("read", plain[tensor.data_ptr()])))
    monkeypatch.setattr(quantize, "forget_pages", lambda tensor: events.append(("done", plain[tensor.data_ptr()])))
    quantize.quantized(tensors, "int8", tied=False, source="x", device="cpu")
    first, second, third = list(tensors)[:3]
    assert events == [("read", second), ("done", first), ("read", third), ("done", second), ("done", third)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux is asked")
def test_reading_ahead_changes_nothing(tmp_path):
    save_file({"a": torch.arange(2**20)}, tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    for tensor in (tensors["a"], tensors["a"][3:5], torch.ones(9999)):
        before = tensor.clone()
        read_ahead(tensor)
        assert torch.equal(tensor, before)


@pytest.mark.parametrize("shared", [False, True])
def test_what_became_integers_is_let_go_unless_another_name_has_it(monkeypatch, shared):
    embedding, head = torch.randn(64, 64), torch.randn(64, 64)
    tensors = {"layers.0.mlp.up_proj.weight": torch.randn(64, 64), "embed_tokens.weight": embedding,
               "lm_head.weight": embedding if shared else head}
    let_go = []
    monkeypatch.setattr(quantize, "forget_pages", lambda tensor: let_go.append(tensor.data_ptr()))
    quantize.quantized(tensors, "int8", tied=False, source="x", device="cpu")
    names = ["layers.0.mlp.up_proj.weight"] if shared else ["layers.0.mlp.up_proj.weight", "lm_head.weight"]
    assert let_go == [tensors[name].data_ptr() for name in names]


# ---- files from strangers ----

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int4")
    model, tokenizer = load_llava(FIXTURES / "llava_hf", device="cpu", quantize="int4")
    quantize.save_quantized(model, tokenizer, folder, "int4")
    return folder


NAME = "language_model.model.layers.0.mlp.up_proj"


def test_a_place_for_few_bits_takes_no_memory():
    """Freed, it would stay with the process as a gap of gigabytes, which a chat fills bit by bit."""
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    int4, int8 = to_int4(torch.randn(64, 64)), to_int8(torch.randn(64, 64))
    tensors = {"0.weight": int4[0], "0.scale": int4[1], "1.weight": int8[0], "1.scale": int8[1]}
    quantize.place_quantized(module, tensors)
    assert [type(layer) for layer in module] == [Int4Linear, Int8Linear]
    assert all(buffer.is_meta for buffer in module.buffers())


@pytest.mark.parametrize("change, said", [
    (lambda tensors: tensors.pop(f"{NAME}.scale"), "layers.0.mlp.up_proj.weight is torch.uint8"),
    (lambda tensors: tensors.pop(f"{NAME}.weight"), "lacks language_model.layers.0.mlp.up_proj.weight"),
    (lambda tensors: tensors.update({f"{NAME}.weight": torch.zeros(1, 64, 16, dtype=torch.uint8)}), "[1, 64, 16]"),
    (lambda tensors: tensors.update({f"{NAME}.scale": torch.zeros(1, 64)}), "up_proj.scale is torch.float32 [1, 64]"),
    (lambda tensors: tensors.update({f"{NAME}.scale": torch.zeros(1, 64, 2, dtype=torch.int8)}), "is torch.int8")])
def test_strict(saved, tmp_path, change, said):
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    edit_tensors(folder / "model.safetensors", change)
    assert said in message(ValueError, load_llava, folder)


def test_integers_of_another_program(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "copy"))
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "is quantised by gptq" in message(ValueError, load_llava, folder)


def test_an_adapter_stays_beside_weights_of_few_bits(saved):
    """To add it would round it away; at int8 it is nearly the sum."""
    merged, _ = load_llava(FIXTURES / "adapter", base=FIXTURES / "llava_hf", **CPU)
    beside, _ = load_llava(FIXTURES / "adapter", base=FIXTURES / "llava_hf", quantize="int8", **CPU)
    name = "layers.1.mlp.down_proj"
    x = torch.randn(5, merged.config.language_config.intermediate_size)
    expected = merged.language_model.get_submodule(name)(x)
    y = beside.language_model.get_submodule(name)(x)
    assert 0 < (y - expected).norm() <= 0.01 * expected.norm()

    upon_saved, _ = load_llava(FIXTURES / "adapter", base=saved, **CPU)
    base, _ = load_llava(saved, **CPU)
    layer = upon_saved.language_model.get_submodule(name)
    assert torch.equal(layer.base.weight, base.language_model.get_submodule(name).weight)
    assert not any(parameter.requires_grad for parameter in (layer.A, layer.B))


def test_an_adapter_for_another_quantised_base(saved, tmp_path, run):
    folder = Path(shutil.copytree(FIXTURES / "adapter", tmp_path / "adapter"))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    edit_tensors(folder / "adapter_model.safetensors", lambda tensors: tensors | {name: torch.zeros(3, 31)})
    assert "q_proj of [32, 31]" in message(ValueError, load_llava, folder, base=saved)
    said = run("merge", "--adapter", FIXTURES / "adapter", "--base", saved, "--out", tmp_path / "x")
    assert said.returncode == 2 and "quantised" in said.err and said.err.count("\n") == 1


def test_groups_are_cut_a_little_and_their_line_is_fitted(monkeypatch):
    torch.manual_seed(0)
    weight = torch.randn(64, 640)

    def error():
        return (linear.write_out(*linear.to_int4(weight)) - weight).norm()

    best = error()
    with monkeypatch.context() as patch:
        patch.setattr(linear, "BEYOND", 0.0)
        not_cut = error()
    monkeypatch.setattr(linear, "closest_line", lambda values, groups: line_of(groups))
    assert best < 0.99 * not_cut and best < 0.985 * error()


def line_of(groups):
    """Where to_int4 begins."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low) / (15 + 2 * linear.BEYOND)
    return scale, low + (8 + linear.BEYOND) * scale


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_a_gpu_writes_a_layer_out_at_once_and_a_cpu_in_pieces(kind):
    for device, shapes in (("meta", [[2050, 100]]), ("cpu", [[1024, 100], [1024, 100], [2, 100]])):  # for want of a GPU
        with torch.device(device):
            layer = kind(100, 2050)
        assert [list(piece.shape) for piece in layer.pieces(torch.float32)] == shapes
        assert layer(torch.zeros(100, 100, device=device)).shape == (100, 2050)
