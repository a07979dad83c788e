"""What the loss sees, what the stages train, where the features go."""
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from minillava.attention import alone_on_cpu, attention, attention_mask, token_positions
from minillava.llama import Block, KVCache, LanguageConfig, LanguageModel, RMSNorm, rotary_table
from minillava.llava import (IGNORE_INDEX, IMAGE_TOKEN, Llava, LlavaConfig, find_places,
                             summed_cross_entropy)
from minillava.on_cpu import Attend, Gate, Normalize, by_formula_on_cpu
from minillava.training.optimizer import forward_backward_in, make_optimizers, take_step
from minillava.vit import VisionConfig, VisionTower


@pytest.fixture
def model():
    torch.manual_seed(0)
    language = LanguageConfig(50, 32, 48, 2, 4, 2, max_position_embeddings=64)
    return Llava(LlavaConfig(VisionConfig(32, 64, 3, 2, 28, 14), language))


def batch(lengths=(9, 7)):
    """Two rows, each with an image of 4 tokens at its second place; the last two tokens of each are supervised."""
    torch.manual_seed(1)
    input_ids, labels = torch.zeros(2, max(lengths), dtype=torch.int64), torch.full((2, max(lengths)), IGNORE_INDEX)
    for row, length in enumerate(lengths):
        input_ids[row, :length] = torch.randint(3, 50, (length,))
        input_ids[row, 1:5] = IMAGE_TOKEN
        labels[row, length - 2 : length] = input_ids[row, length - 2 : length]
    return input_ids, torch.randn(2, 3, 28, 28), labels


def test_the_loss_is_the_mean_over_supervised_tokens_however_the_batch_is_cut(model):
    input_ids, pixels, labels = batch()
    labels[1, 5] = IGNORE_INDEX  # two supervised tokens in the first row, one in the second: a mean of means would differ
    whole = model(input_ids, pixels, labels=labels)
    parts = sum(model(input_ids[i : i + 1], pixels[i : i + 1], labels=labels[i : i + 1], divisor=3) for i in range(2))
    torch.testing.assert_close(parts, whole)
    log_probs = model(input_ids, pixels).log_softmax(-1)
    expected = -sum(log_probs[b, t - 1, labels[b, t]] for b, t in (labels != IGNORE_INDEX).nonzero().tolist()) / 3
    torch.testing.assert_close(whole, expected)


def test_a_prepared_batch_is_not_searched_again(model, monkeypatch):
    input_ids, pixels, labels = batch()
    found, places = model(input_ids, pixels, labels=labels), find_places(input_ids, labels)
    assert [list(at) for at in places] == [[1, 2, 3, 4, 10, 11, 12, 13], [6, 7, 13, 14]]
    monkeypatch.setattr("minillava.llava.find_places", None)  # on a GPU each search would wait for all that runs there
    assert model(input_ids, pixels, labels=labels, places=places) == found


def test_labels_that_were_shifted_already_are_refused(model):
    input_ids, pixels, labels = batch()
    with pytest.raises(ValueError, match="the shift by one is made here"):
        model(input_ids, pixels, labels=labels[:, 1:])


def test_a_batch_with_nothing_to_learn_has_loss_zero_and_a_gradient(model):
    input_ids, pixels, labels = batch()
    loss = model(input_ids, pixels, labels=torch.full_like(labels, IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def gradients(model, dtype, checkpointing=False, **batch):
    model.zero_grad()
    model.language_model.checkpointing = checkpointing
    loss = forward_backward_in(dtype, model, **batch)
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_chunks_of_the_head_nor_activation_checkpointing_change_anything(model, dtype, monkeypatch):
    input_ids, pixels, labels = batch()
    model.freeze_for(2)
    data = dict(input_ids=input_ids, pixels=pixels, labels=labels)
    loss, plain = gradients(model, dtype, **data)
    monkeypatch.setattr("minillava.llava.HEAD_CHUNK", 3)  # of 4 supervised positions
    again, cut = gradients(model, dtype, checkpointing=True, **data)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(cut, plain, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_of_words_is_cast_row_by_row_unless_it_is_the_head_too(model, tied, fast_bf16):
    model.freeze_for(2)
    table = model.language_model.embed_tokens.weight
    if tied:
        model.language_model.lm_head.weight = table
    input_ids, pixels, labels = batch((24, 20))
    data = dict(input_ids=input_ids % 5, pixels=pixels, labels=labels)  # few words, again and again
    data["input_ids"][:, 1:5] = IMAGE_TOKEN
    _, exact = gradients(model, torch.float32, **data)
    _, found = gradients(model, torch.bfloat16, **data)
    gradient = found["language_model.embed_tokens.weight"]
    torch.testing.assert_close(gradient, exact["language_model.embed_tokens.weight"], rtol=0.1, atol=1e-3)
    assert torch.equal(gradient, gradient.bfloat16().float()) == tied  # what adds up in bf16 stays rounded to it


@pytest.mark.parametrize("tower", [False, True])
def test_a_batch_of_text_alone_gives_every_trained_parameter_a_gradient(model, monkeypatch, tower):
    model.freeze_for(2)  # or DDP and FSDP2 would wait for the projector's for ever
    model.vision_tower.requires_grad_(tower)
    monkeypatch.setattr(VisionTower, "forward", None)  # and the tower need not run for it
    input_ids, _, labels = batch()
    _, found = gradients(model, torch.float32, input_ids=input_ids.clamp(min=0), pixels=torch.empty(0), labels=labels)
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(gradient.any() for name, gradient in found.items() if not name.startswith("language_model"))


def test_padding_changes_nothing(model):
    input_ids, pixels, labels = batch()
    alone = model(input_ids[1:, :7], pixels[1:])
    torch.testing.assert_close(model(input_ids, pixels)[1:, :7], alone)


@pytest.mark.parametrize("stage, trained", [(1, ("mm_projector.",)), (2, ("mm_projector.", "language_model."))])
def test_a_stage_changes_what_it_trains_and_nothing_else(model, stage, trained):
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.freeze_for(stage)
    input_ids, pixels, labels = batch()
    optimizers = make_optimizers(model, 1e-2, muon_lr=1e-2 if stage == 2 else None)
    forward_backward_in(torch.bfloat16, model, input_ids, pixels, labels=labels)
    take_step(optimizers)
    for name, p in model.named_parameters():
        assert p.requires_grad == name.startswith(trained), name
        assert torch.equal(p, before[name]) != name.startswith(trained), name
        assert p.dtype == torch.float32


@pytest.mark.parametrize("layer, kept", [(-2, 2), (0, 1)])  # at 0 none runs
def test_blocks_that_never_run_can_go(model, layer, kept):
    input_ids, pixels, _ = batch()
    model.config = replace(model.config, vision_feature_layer=layer)
    before = model(input_ids, pixels)
    model.drop_unused_blocks()
    assert model.config.vision_config.num_hidden_layers == len(model.vision_tower.encoder.layers) == kept
    again = Llava(model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(model(input_ids, pixels), before) and torch.equal(again(input_ids, pixels), before)


def test_each_image_goes_where_its_tokens_are(model):
    input_ids, pixels, _ = batch()
    features = model.encode_images(pixels)
    embeddings = model.embed(input_ids, pixels)
    assert torch.equal(embeddings[:, 1:5], features)
    assert torch.equal(embeddings[0, 5:], model.language_model.embed_tokens(input_ids[0, 5:]))
    with pytest.raises(ValueError, match="no images for 8"):
        model.embed(input_ids)
    with pytest.raises(ValueError, match="1 image for 8"):
        model.embed(input_ids, pixels[:1])


def test_what_overflows_or_loses_digits_is_computed_in_fp32():
    norm = RMSNorm(4, 1e-6).to(torch.float16)
    assert norm(torch.full((1, 4), 1000.0, dtype=torch.float16)).tolist() == [[1.0] * 4]  # its square is no fp16
    torch.manual_seed(0)
    hidden, targets = torch.randn(6, 32, dtype=torch.bfloat16), torch.arange(6)
    lm_head = torch.nn.Linear(32, 50, bias=False).bfloat16()
    loss = summed_cross_entropy(hidden, targets, lm_head)
    assert loss.dtype == torch.float32
    logits = lm_head(hidden).float()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))


@pytest.mark.parametrize("amx", [False, True])
def test_attention_in_bf16_has_the_gradients_of_fp32(monkeypatch, amx, fast_bf16):
    monkeypatch.setattr("minillava.on_cpu.AMX", amx)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 7, 8, requires_grad=True) for heads in (4, 2, 2))
    exact = torch.autograd.grad(attention(q, k, v, is_causal=True).sum(), (q, k, v))
    rounded = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    assert by_formula_on_cpu(rounded[0], rounded[1], None, True) and not by_formula_on_cpu(q, k, None, True)
    answering = [torch.zeros(1, 4, 600, 8, dtype=torch.bfloat16)] * 2
    assert by_formula_on_cpu(*answering, None, True) != amx
    found = torch.autograd.grad(attention(*rounded, is_causal=True).sum(), rounded)
    for a, b in zip(found, exact):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_padding_of_one_picture_changes_nothing(dtype):
    torch.manual_seed(0)
    tower = VisionTower(VisionConfig(32, 64, 3, 4, image_size=35, patch_size=7)).to(dtype)  # 26 tokens, padded to 32
    pixels = torch.randn(2, 3, 35, 35, dtype=dtype)
    together, alone = tower(pixels), torch.cat([tower(pixels[:1]), tower(pixels[1:])])
    assert alone.shape == (2, 25, 32)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)


def has_the_gradients_of(function, expected, *inputs):
    """Of all inputs, and the same result."""
    y, exact = function(*inputs), expected(*inputs)
    torch.testing.assert_close(y, exact)
    dy = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(exact, inputs, dy))


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("is_causal, keys", [(True, 7), (False, 7), (False, 5), (False, 9)])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_gradients_of_attention_by_hand(monkeypatch, is_causal, keys, heads, amx):
    torch.manual_seed(0)
    monkeypatch.setattr("minillava.on_cpu.QUERIES", 3)
    monkeypatch.setattr("minillava.on_cpu.AMX", amx)
    q, k, v = (torch.randn(2, length, groups, 8).transpose(1, 2).requires_grad_()
               for length, groups in ((7, 4), (keys, heads), (keys, heads)))
    fused = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=is_causal, enable_gqa=True)
    has_the_gradients_of(lambda *inputs: Attend.apply(*inputs, is_causal), fused, q, k, v)


def test_gradients_of_a_norm_and_of_swiglu_by_hand():
    torch.manual_seed(0)
    x, gate, up, weight = (torch.randn(*shape, requires_grad=True) for shape in ((2, 5, 8), (2, 5, 8), (2, 5, 8), (8,)))
    before = x.detach().clone()
    has_the_gradients_of(lambda x, w: Normalize.apply(x, w, 0.1), lambda x, w: F.rms_norm(x, (8,), w, 0.1), x, weight)
    has_the_gradients_of(Gate.apply, lambda gate, up: F.silu(gate) * up, gate, up)
    assert torch.equal(x, before)  # what is computed in place is a copy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_goes_by_hand_has_the_same_gradients_and_keeps_less(monkeypatch, dtype):
    torch.manual_seed(0)
    config = LanguageConfig(50, 64, 172, 1, 4)
    block = Block(config).to(dtype)
    x = torch.randn(2, 60, 64).to(dtype).requires_grad_()
    rope = rotary_table(config, 60, "cpu", dtype)[:, None]

    def gradients_and_bytes():
        kept = {}
        def keep(tensor):
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = block(x, rope, None, None, 0)
        return torch.autograd.grad(y.square().sum(), (x, *block.parameters())), sum(kept.values())

    for name in ("NORMED", "LARGE"):
        monkeypatch.setattr(f"minillava.on_cpu.{name}", 10**9)
    expected, more = gradients_and_bytes()
    for name in ("NORMED", "LARGE"):
        monkeypatch.setattr(f"minillava.on_cpu.{name}", 1)
    found, less = gradients_and_bytes()
    assert less < 0.85 * more
    for a, b in zip(found, expected):
        assert (a - b).norm() < (1e-5 if dtype == torch.float32 else 1e-2) * b.norm()


def test_where_tokens_stand_and_what_they_may_look_at():
    """The examples in the docstrings."""
    start = torch.tensor([0, 1, 2])
    assert token_positions(3, 2, start).tolist() == [[2, 3, 4], [1, 2, 3], [0, 1, 2]]
    assert token_positions(3, 0, start).tolist() == [[0, 1, 2], [0, 0, 1], [0, 0, 0]]  # padding: any will do
    assert attention_mask(2, 3, torch.tensor([1]))[0, 0].int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert attention_mask(2, 3)[0, 0].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert attention_mask(5) is None and attention_mask(1, 7) is None
    padded = attention_mask(2, 0, torch.tensor([1]))[0, 0]
    assert padded.int().tolist() == [[1, 0], [0, 1]]  # the padding looks at itself


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [2, 6])
@pytest.mark.parametrize("many, amx", [(1, False), (1, True), (2048, False)])
def test_one_new_token_looks_at_its_keys_whichever_way_is_the_faster(monkeypatch, masked, kv_heads, many, amx):
    monkeypatch.setattr("minillava.attention.MANY", many)
    monkeypatch.setattr("minillava.attention.AMX", amx)
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 1, 8), torch.randn(2, kv_heads, 5, 8), torch.randn(2, kv_heads, 5, 8)
    mask = attention_mask(1, 4, torch.tensor([0, 2])) if masked else None
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    torch.testing.assert_close(attention(q, k, v, mask), fused)
    assert alone_on_cpu(q.reshape(2, kv_heads, -1, 8), k) == (kv_heads == 6 and many == 1 and not amx)
    # The free room of a cache behind the keys, with whatever an earlier turn left there, changes nothing.
    k, v = (torch.cat([x, 100 * torch.randn(2, kv_heads, 3, 8)], dim=2) for x in (k, v))
    torch.testing.assert_close(attention(q, k, v, mask, keys=5), fused)


def test_the_formula_multiplies_matrices_of_one_size_token_after_token(monkeypatch):
    """oneDNN prepares a product for each size and keeps that: at 7B a megabyte a token, and as much in holes."""
    monkeypatch.setattr("minillava.attention.MANY", 1)
    monkeypatch.setattr("minillava.attention.AMX", False)
    torch.manual_seed(0)
    config = LanguageConfig(50, 16, 32, 1, 2)
    model = LanguageModel(config)
    cache = KVCache(config, 1, "cpu", torch.float32)

    class Sizes(TorchDispatchMode):
        seen = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.bmm.default:
                self.seen.add((args[0].shape, args[1].shape))
            return function(*args, **(kwargs or {}))

    with torch.no_grad(), Sizes() as sizes:
        for _ in range(5):
            model(torch.randn(1, 1, 16), cache)
    assert len(sizes.seen) == 2  # of the scores, of the answer
