"""A recipe is one published run: its steps, its clipping, its mean of the loss."""
import shutil
from dataclasses import replace

import pytest
import torch

import train
from minillava.checkpoint import TOY, load_llava
from minillava.llama import LanguageConfig
from minillava.llava import IGNORE_INDEX, Llava, LlavaConfig, find_places
from minillava.toy.miniature import with_replay
from minillava.training.batches import StepBatch
from minillava.training.optimizer import clip_gradients, make_optimizers
from minillava.training.lora import add_lora, adapter_of
from minillava.training.options import make_parser, refuse_alone, refuse_data, refuse_parts, refuse_upon_adapter
from minillava.training.plan import count, kept_by_tower, memory, plan_lines, planned_bits, planned_config, skeleton
from minillava.training.plan import step_flops
from minillava.training.recipes import RECIPES, changed
from minillava.training.results import closing_words
from minillava.training.run_folder import Sources
from minillava.training.trained_parts import choose_trained
from minillava.vit import VisionConfig
from minillava.weights.adapters import save_adapter
from minillava.weights.quantize import save_quantized
from minillava.weights.saving import save_original_llava
from tests.comparing import same, write_jsonl

PUBLISHED = {  # optimiser steps, peak rate, gradient norm, template: of the scripts and the paper
    "v1-pretrain": (4652, 2e-3, None, "plain"),
    "v1-finetune": (3 * 1233, 2e-5, None, "vicuna_v1"),
    "v1-finetune-paper": (14787, 2e-5, 1.0, "llava_v0"),
    "v1-scienceqa": (12 * 100, 2e-5, None, "vicuna_v1"),
    "v1-scienceqa-paper": (4776, 2e-5, 1.0, "llava_v0"),
    "v1.5-pretrain": (2181, 1e-3, None, "plain"),
    "v1.5-finetune": (5198, 2e-5, None, "vicuna_v1"),
}


def test_each_recipe_is_one_published_run():
    for name, (steps, lr, norm, template) in PUBLISHED.items():
        recipe = RECIPES[name]
        assert -(-recipe.samples // recipe.batch) * recipe.epochs == steps, name
        assert (recipe.lr, recipe.max_grad_norm, recipe.template) == (lr, norm, template), name
        assert recipe.accumulation(8) == 1, name  # on the 8 GPUs they were run on
    assert RECIPES["v1-scienceqa-paper"].prompt_format == "QCM-LEPA"


def tiny_step():
    """A model and a step of two micro-batches, with 1 and 5 supervised tokens."""
    torch.manual_seed(0)
    language = LanguageConfig(50, 32, 48, 2, 4, 2, max_position_embeddings=64)
    model = Llava(LlavaConfig(VisionConfig(32, 64, 3, 2, 28, 14), language))
    micro = []
    for learned in (1, 5):
        ids = torch.randint(3, 50, (1, 8))
        labels = ids.clone()
        labels[:, : 8 - learned] = IGNORE_INDEX
        micro.append((ids, labels, torch.empty(0), *find_places(ids, labels)))
    return model, StepBatch(micro, [], 6, 16, 0, 0, 0, 0)


def test_the_official_mean_is_that_of_the_micro_batches():
    model, step = tiny_step()
    alone = [model(ids, labels=labels).item() for ids, labels, *_ in step.micro]
    expected = {"official": (alone[0] + alone[1]) / 2, "global": (alone[0] + 5 * alone[1]) / 6}
    for mean, loss in expected.items():
        recipe = changed(RECIPES["v1.5-finetune"], loss_mean=mean)
        found = train.forward_backward(model, step, recipe, torch.float32, torch.device("cpu"))
        torch.testing.assert_close(found.item(), loss)
    # and of the ranks: DDP takes the mean over these by itself
    assert recipe.loss_divisor(supervised=12, here=3, ranks=2, accumulate=1) == 6
    official = changed(recipe, loss_mean="official")
    assert official.loss_divisor(supervised=12, here=3, ranks=2, accumulate=1) == 3


def test_gradients_are_scaled_to_their_norm_where_a_recipe_says_so():
    model, step = tiny_step()
    train.forward_backward(model, step, RECIPES["v1.5-finetune"], torch.float32, torch.device("cpu"))
    norm = clip_gradients(model)
    torch.testing.assert_close(clip_gradients(model, limit=float(norm) / 4), norm)
    torch.testing.assert_close(clip_gradients(model), norm / 4)


def test_there_is_no_group_of_nothing():
    """Such a group is not in a checkpoint, and --resume would look for it."""
    model, _ = load_llava(device="cpu")
    model.freeze_for(1)
    optimizer, = make_optimizers(model, 1e-3, projector_lr=1e-4)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4]


def test_a_plan_takes_a_run_for_the_llava_that_is_in_it(tmp_path):
    shutil.copytree(TOY / "llava", tmp_path / "llava")
    (tmp_path / "config.json").write_text("{}")  # the run's own
    config = planned_config(RECIPES["own"], Sources(init=tmp_path))
    assert config == planned_config(RECIPES["own"], Sources(init=TOY / "llava"))


def test_a_plan_begins_with_whatever_a_training_does(tmp_path):
    """With an adapter, with the projector of a stage 1; and a tower's layer that is not there is refused."""
    model, _ = load_llava(device="cpu", dtype="float32")
    add_lora(model, 4, 8.0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    save_adapter(adapter_of(trained, 4, 8.0, TOY / "llava"), model.config, tmp_path / "adapter")
    whole = planned_config(RECIPES["own"], Sources(init=TOY / "llava"))
    upon_adapter = Sources(init=tmp_path / "adapter")
    assert planned_config(RECIPES["own"], upon_adapter) == whole
    refuse_upon_adapter(RECIPES["own"], upon_adapter)
    with pytest.raises(ValueError, match="adapter is a LoRA, and another is not trained upon it: make a plain"):
        refuse_upon_adapter(RECIPES["own-lora"], upon_adapter)

    stage_2 = replace(RECIPES["v1.5-finetune"], projector="linear")
    parts = Sources(vision=TOY / "clip", language=TOY / "vicuna", init=TOY / "pretrain")
    assert planned_config(stage_2, parts).projector == "mlp2x_gelu"
    with pytest.raises(ValueError, match="--feature-layer 99: CLIP has"):
        planned_config(replace(stage_2, feature_layer=99), parts)


def test_the_official_layout_with_its_projector_beside_it_is_a_whole_llava(tmp_path):
    model, tokenizer = load_llava(device="cpu")
    save_original_llava(model, tokenizer, tmp_path / "official")
    assert (tmp_path / "official/mm_projector.bin").exists()
    sources = Sources(init=tmp_path / "official", data=TOY)
    assert sources.starts_whole and not Sources(init=TOY / "pretrain").starts_whole
    assert same(train.make_model(RECIPES["own"], sources)[0], model)


def test_weights_of_few_bits_learn_nothing_but_beside_them(tmp_path):
    save_quantized(*load_llava(device="cpu", quantize="int8"), tmp_path, "int8")
    sources = Sources(init=tmp_path, data=TOY)
    lora = RECIPES["own-lora"]
    for recipe in (RECIPES["own"], replace(lora, words=True)):
        with pytest.raises(ValueError, match="is quantised, and such weights stay frozen: give --lora"):
            train.make_model(recipe, sources)
    train.make_model(lora, sources)


@pytest.mark.parametrize("recipe", ["own", "own-lora"])
def test_a_plan_counts_the_rows_of_new_words(recipe):
    recipe = replace(RECIPES[recipe], words=True)
    sources = Sources(init=TOY / "llava", data=TOY, new_words=(("pink", ("red", "green")),))
    model, _, _ = train.make_model(recipe, sources)
    config = planned_config(recipe, sources)
    without = planned_config(recipe, replace(sources, new_words=None))
    assert config.language_config.vocab_size > without.language_config.vocab_size
    assert count(skeleton(config, recipe), trained=True) == count(model, trained=True)


def test_a_plan_counts_what_a_trained_tower_keeps_and_computes():
    recipe = replace(RECIPES["own"], tower=True)
    config = replace(planned_config(recipe, Sources(init=TOY / "llava")), vision_feature_layer=-2,
                     vision_config=VisionConfig(64, 256, 24, 4, 96, 16))
    model = Llava(config)
    choose_trained(model, recipe)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        features = model.vision_tower(torch.randn(2, 3, 96, 96), -2)
    in_all = sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in own)
    assert features.requires_grad and kept_by_tower(model, 4) == pytest.approx(in_all / 2, rel=0.05)

    frozen = skeleton(config, RECIPES["own"])
    assert kept_by_tower(frozen, 4) == 0
    more = step_flops(model, recipe, 100, 1) - step_flops(frozen, RECIPES["own"], 100, 1)
    assert more == 2 * 2 * count(model.vision_tower.encoder.layers[:23]) * 37  # two ways back


def test_a_plan_counts_of_lora_under_fsdp_what_is_gathered():
    """A block's frozen weights are not: each rank has them whole."""
    config = planned_config(RECIPES["own"], Sources(init=TOY / "llava"))
    for recipe in (RECIPES["own-lora"], replace(RECIPES["own-lora"], words=True), RECIPES["v1.5-pretrain"]):
        model = skeleton(config, recipe)
        trained, block = count(model, True), count(model.language_model.layers[0], True)
        root = trained - block * len(model.language_model.layers)
        items = memory(model, 100, 1, ranks=4, shard=True, checkpointing=True, width=2)
        assert items["weights"] == trained + 2 * (root + 2 * block) + 2 * count(model, False)
        assert items["gradients"] == trained + 2 * root


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_a_plan_finds_a_base_in_few_bits(tmp_path, kind):
    if kind:
        save_quantized(*load_llava(device="cpu", quantize=kind), tmp_path, kind)
    assert planned_bits(Sources(init=tmp_path if kind else TOY / "llava")) == kind
    assert planned_bits(Sources(init=TOY / "llava", quantize=kind)) == kind
    assert planned_bits(Sources(language=TOY / "vicuna", quantize=kind)) == kind


def test_a_plan_of_ones_own_is_fitted_as_the_training_is():
    lines = plan_lines(LlavaConfig(), RECIPES["own"], 8, False, "bfloat16", 0.45)
    assert "8 of them, 2 samples of 2048 tokens each" in lines and "/ 16, accumulating 1x" in lines
    with pytest.raises(ValueError, match="3 ranks x 16 do not divide"):
        plan_lines(LlavaConfig(), RECIPES["v1.5-finetune"], 3, True, "bfloat16", 0.45)


def test_a_whole_llava_keeps_its_layer_the_first_one_too():
    for layer in (0, -1):
        with pytest.raises(ValueError, match="--feature-layer are for a LLaVA that is put together"):
            refuse_parts(Sources(init=TOY / "llava"), projector=None, feature_layer=layer)


@pytest.mark.parametrize("typed, message", [
    ("--replay-data old.json", "--replay-data goes with --replay, which is not given"),
    ("--replay 0.5 --replay-data old.json", "--replay-data goes with --replay-images"),
    ("--replay 0.5 --replay-images old", "--replay-images goes with --replay-data"),
    ("--patience 3", "--patience goes with --val"), ("--lora-alpha 8", "--lora-alpha goes with --lora")])
def test_a_flag_that_would_change_nothing_is_refused(typed, message):
    args = make_parser("", RECIPES).parse_args(typed.split())
    with pytest.raises(ValueError, match=message):
        refuse_alone(args)
    refuse_alone(make_parser("", RECIPES).parse_args(["--replay", "0.5"]))  # a miniature draws its own


def test_old_data_is_drawn_for_a_whole_miniature_alone(tmp_path):
    with pytest.raises(ValueError, match="--images and --replay go with a --recipe"):
        refuse_data(Sources(replay=0.5))
    for init in (None, TOY / "pretrain"):
        with pytest.raises(ValueError, match="name it with --replay-data FILE"):
            with_replay(Sources(init=init, replay=0.5), tmp_path, seed=0)
    assert not list(tmp_path.iterdir())


def test_a_run_says_at_its_end_what_was_not_learned_whole(tmp_path):
    rows = [{"step": 0, "loss": 2.0, "bad": 1, "cut": 3}, {"step": 1, "loss": 1.0, "bad": 0, "cut": 2, "ignored": 0}]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    recipe = changed(RECIPES["v1.5-finetune"], max_length=45)
    said = closing_words(recipe, 8, tmp_path).splitlines()
    assert "Samples passed over: 1; --check-data names them." in said
    assert "Samples cut after 45 tokens: 5; --check-data names them." in said
    assert not any("without their picture" in line for line in said)
