"""Whatever product is taken for speed computes the same, and only layers that can be replaced are."""
from pathlib import Path

import pytest
import torch
from torch import nn

from minillava import fastest
from minillava.checkpoint import load_llava
from minillava.fastest import FewRowsLinear, RoundingInt8Linear, choose_products, norm_of_one, trial
from minillava.generate import generate
from minillava.images import load_image
from minillava.linear import Int4Linear, Int8Linear, LoraLinear, to_int8
from minillava.llama import LanguageConfig, LanguageModel, RMSNorm

pytestmark = pytest.mark.usefixtures("fast_bf16")


def take(monkeypatch, name):
    """Lets the candidate of this name win, whatever the clock says."""
    monkeypatch.setattr(fastest, "trial", lambda layers, makers, x: {
        kind: {c: 0.0 if c == name else 1.0 for c in names} for kind, names in makers.items()})


@pytest.mark.parametrize("rows, few, product", [(1, 2, fastest.without_onednn), (3, 2, fastest.without_onednn),
                                                (300, 2, fastest.without_onednn), (1, 1, fastest.weight_times_vector),
                                                (2, 1, fastest.weight_times_vector)])
def test_another_product_is_as_exact_and_the_weight_the_same(rows, few, product):
    torch.manual_seed(0)
    layer = nn.Linear(64, 300, bias=False).bfloat16()
    x = torch.randn(1, rows, 64).bfloat16()
    new = FewRowsLinear(layer, few, product)
    exact = x.double() @ layer.weight.double().t()
    assert new.weight is layer.weight and new(x).dtype == torch.bfloat16 and new(x).shape == (1, rows, 300)
    assert (new(x) - exact).norm() <= 1.1 * (layer(x) - exact).norm()


@pytest.mark.parametrize("rows", [1, 3])
def test_onednn_is_off_for_few_rows_alone_and_on_again_after_an_error(monkeypatch, rows):
    seen = []

    def product(x, weight, bias=None):
        seen.append(torch.backends.mkldnn.enabled)
        raise ValueError
    monkeypatch.setattr(fastest.F, "linear", product)
    with pytest.raises(ValueError):
        FewRowsLinear(nn.Linear(4, 4, bias=False), 2, fastest.without_onednn)(torch.zeros(rows, 4))
    assert seen == [rows == 3] and torch.backends.mkldnn.enabled


@pytest.mark.parametrize("product", [fastest.rows_times_weight, fastest.weight_times_rows])
def test_rounding_x_costs_little(product):
    torch.manual_seed(0)
    layer = Int8Linear(128, 96)
    layer.weight, layer.scale = to_int8(torch.randn(96, 128).bfloat16())
    x = (torch.randn(2, 128) * torch.tensor([[1.0], [1000.0]])).bfloat16()  # a scale for each row
    error = RoundingInt8Linear(layer, product)(x) - layer(x)
    assert (error.norm(dim=1) <= 0.01 * layer(x).norm(dim=1)).all()


@pytest.mark.parametrize("name, rows", [("as it is", 3), ("without oneDNN", 3), ("W x", 1), ("in fp32", 3)])
def test_the_miniature_answers_the_same_whatever_is_taken(monkeypatch, name, rows, capsys):
    model, tokenizer = load_llava(device="cpu")
    scene = load_image(Path(__file__).parent.parent / "docs/scene.png")
    questions = ["How many shapes are there?", "Hello!", "What do you see?"][:rows], [scene] * rows
    before = generate(model, tokenizer, *questions, max_new_tokens=24)
    take(monkeypatch, name)
    choose_products(model.language_model, rows, verbose=True)
    assert generate(model, tokenizer, *questions, max_new_tokens=24) == before
    assert f"{name:20}    0.000   <- taken" in capsys.readouterr().err
    kinds = {type(layer) for name, layer in model.language_model.named_modules() if name.endswith(("proj", "head"))}
    assert kinds == {FewRowsLinear if name in ("without oneDNN", "W x") else nn.Linear}
    assert all("forward" in vars(m) for m in model.language_model.modules() if type(m) is RMSNorm)  # of one row
    dtypes = {p.dtype for p in model.language_model.parameters()}
    assert (dtypes == {torch.float32}) == (name == "in fp32")


@pytest.mark.parametrize("name", ["without oneDNN", "W x", "in fp32"])
def test_joint_products_are_those_of_the_layers_and_share_their_weights(monkeypatch, name):
    model = LanguageModel(LanguageConfig(50, 32, 48, 2, 4, 2)).bfloat16()
    names = model.state_dict().keys()
    take(monkeypatch, name)
    choose_products(model)
    assert model.state_dict().keys() == names
    x = torch.randn(1, 1, 32, dtype=model.embed_tokens.weight.dtype)
    for module, parts in ((model.layers[1].self_attn, ("q_proj", "k_proj", "v_proj")),
                          (model.layers[1].mlp, ("gate_proj", "up_proj"))):
        layers = [getattr(module, part) for part in parts]
        assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1
        for found, layer in zip(module.project(x), layers, strict=True):
            torch.testing.assert_close(found, layer(x))


def test_a_head_that_is_the_embedding_too_stays_so(monkeypatch):
    model = LanguageModel(LanguageConfig(50, 32, 48, 2, 4, tie_word_embeddings=True)).bfloat16()
    take(monkeypatch, "without oneDNN")
    choose_products(model)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert type(model.layers[1].mlp.down_proj) is type(model.lm_head) is FewRowsLinear


@pytest.mark.parametrize("name", ["x rounded too, x W", "x rounded too, W x"])
def test_quantised_layers_keep_their_numbers(monkeypatch, name):
    model, _ = load_llava(device="cpu", quantize="int8")
    before = model.language_model.layers[2].mlp.up_proj.weight
    take(monkeypatch, name)
    choose_products(model.language_model)
    after = model.language_model.layers[2].mlp.up_proj
    assert type(after) is RoundingInt8Linear and after.weight is before


@pytest.mark.parametrize("name", ["mlp.gate_proj", "self_attn.q_proj"])
def test_a_lora_stays_beside_weights_of_few_bits(monkeypatch, name):
    model, _ = load_llava(device="cpu", quantize="int8")
    block = model.language_model.layers[0]
    block.set_submodule(name, LoraLinear(block.get_submodule(name), 2, 4))
    take(monkeypatch, "x rounded too, W x")
    choose_products(model.language_model)
    assert type(block.get_submodule(name).base) is type(block.self_attn.v_proj) is Int8Linear


def test_a_little_gain_changes_nothing(monkeypatch):
    model, _ = load_llava(device="cpu")
    monkeypatch.setattr(fastest, "trial", lambda layers, makers, x: {
        kind: {c: 1.0 if c == "as it is" else 0.96 for c in names} for kind, names in makers.items()})
    choose_products(model.language_model)
    assert type(model.language_model.layers[0].mlp.up_proj) is nn.Linear


def test_a_candidate_walks_through_all_layers_in_the_place_of_its_kind(monkeypatch):
    seen = []

    def noting(name):
        def make(layer):
            return lambda x: seen.append((name, layer))
        return make
    monkeypatch.setattr(Int8Linear, "forward", lambda layer, x: seen.append(("untouched", layer)))
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: seen.append(("untouched", layer)))
    layers = [nn.Linear(4, 4) for _ in range(5)] + [Int8Linear(4, 4)]
    makers = {nn.Linear: {"one": noting("one"), "another": noting("another")}, Int8Linear: {"other": noting("other")}}
    seconds = trial(layers, makers, torch.zeros(1, 4))
    assert {kind: list(names) for kind, names in seconds.items()} == {kind: list(names) for kind, names in makers.items()}
    assert all(0 < value < 1 for names in seconds.values() for value in names.values())
    walks = [[(name, layer) for layer in layers[:5]] + [("untouched", layers[5])] for name in ("one", "another")]
    walks.append([("untouched", layer) for layer in layers[:5]] + [("other", layers[5])])
    assert seen == 3 * sum(walks, [])


def test_of_several_walks_the_fastest_counts(monkeypatch):
    """What comes between takes time, and says nothing of the candidate."""
    taken = iter([3.0, 5.0, 2.0, 1.0, 4.0, 6.0])
    monkeypatch.setattr(fastest, "walk", lambda *args: next(taken))
    seconds = trial([nn.Linear(4, 4)], {nn.Linear: {"one": nn.Identity(), "another": nn.Identity()}}, torch.zeros(1, 4))
    assert seconds == {nn.Linear: {"one": 2.0, "another": 1.0}}


def test_blocks_and_a_head_of_another_kind_are_timed(capsys):
    model, _ = load_llava(device="cpu", quantize="int4")
    choose_products(model.language_model, verbose=True)
    shown = capsys.readouterr().err
    assert "Int4Linear, x of 1 rows" in shown and "Int8Linear, x of 1 rows" in shown and shown.count("<- taken") == 2


def test_a_head_in_8_bits_above_blocks_in_4_is_chosen_for_itself(monkeypatch):
    model, _ = load_llava(device="cpu", quantize="int4")
    take(monkeypatch, "x rounded too, W x")
    choose_products(model.language_model)
    assert type(model.language_model.lm_head) is RoundingInt8Linear
    assert type(model.language_model.layers[0].mlp.up_proj) is Int4Linear


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_what_rounds_the_same_x_rounds_it_once_and_to_the_same(monkeypatch, rows):
    model, _ = load_llava(device="cpu", quantize="int8")
    take(monkeypatch, "x rounded too, W x")
    choose_products(model.language_model)
    mlp = model.language_model.layers[1].mlp
    x = torch.randn(1, rows, mlp.up_proj.in_features).bfloat16()
    alone = mlp.gate_proj(x), mlp.up_proj(x)
    calls = []
    in_8_bits = fastest.in_8_bits
    monkeypatch.setattr(fastest, "in_8_bits", lambda x: calls.append(x) or in_8_bits(x))
    for found, expected in zip(mlp.project(x), alone, strict=True):
        assert torch.equal(found, expected)
    assert len(calls) == (rows <= Int8Linear.few)


def test_a_row_of_zeros_stays_one_when_it_is_rounded():
    layer = Int8Linear(64, 32)
    layer.weight, layer.scale = to_int8(torch.randn(32, 64))
    x = torch.randn(2, 64)
    x[0] = 0
    y = RoundingInt8Linear(layer, fastest.weight_times_rows)(x)
    assert (y[0] == 0).all() and y[1].isfinite().all() and y[1].any()


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
@pytest.mark.parametrize("size", [1e-3, 1, 100])
def test_one_row_is_normalised_by_fewer_operations_to_the_same(dtype, most, size):
    norm = RMSNorm(2048, 1e-5).to(dtype)
    nn.init.normal_(norm.weight, 1, 0.3)
    x = (size * torch.randn(2, 1, 2048)).to(dtype)
    exact = nn.functional.rms_norm(x.double(), (2048,), norm.weight.double(), 1e-5)
    normalize = norm_of_one(norm)
    assert torch.equal(normalize(x), norm(x))  # two rows: the usual way
    for row, expected in zip(x, exact):
        found = normalize(row)
        assert found.dtype == dtype and (found - expected).norm() <= most * expected.norm()
