"""The ablations: what they change is changed, what is done is not done again, and a verdict is earned."""
import random
import sys
from types import SimpleNamespace

import pytest
import torch

import train
from minillava.checkpoint import TOY
from minillava.explain import train_script
from minillava.explain.ablation_rows import ROWS, RUNS
from minillava.explain.ablations import main  # noqa: F401: what `run` calls
from minillava.explain.verdict import interval, verdict
from minillava.llama import LanguageConfig
from minillava.llava import Llava, LlavaConfig
from minillava.toy.annotations import as_fractions
from minillava.toy.objects import read
from minillava.toy.recipes import TOY_FINETUNE
from minillava.toy.short_answers import short_answer
from minillava.toy.teacher import ask, ask_carelessly, misread
from minillava.toy.world import make_scene
from minillava.training import checkpoints
from minillava.training.optimizer import forward_backward_in, make_optimizers, take_step
from minillava.training.recipes import changed
from minillava.training.trained_parts import choose_trained
from minillava.vit import VisionConfig

TINY = ("--scenes", 16, "--heldout", 8, "--questions", 8, "--problems", 16, "--seeds", 1)


def tiny_model():
    torch.manual_seed(0)
    language = LanguageConfig(50, 32, 48, 3, 4, 2, max_position_embeddings=64)
    return Llava(LlavaConfig(VisionConfig(32, 64, 3, 2, 28, 14), language))


def step_of(model, recipe):
    """One step of training -> the names of the weights that it changed."""
    choose_trained(model, recipe)
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.tensor([[1, -200, -200, -200, -200, 7, 9, 2]])
    labels = torch.tensor([[-100, -100, -100, -100, -100, 7, 9, 2]])
    optimizers = make_optimizers(model, 1e-2, 1e-2)
    forward_backward_in(torch.float32, model, ids, torch.rand(1, 3, 28, 28), labels=labels)
    take_step(optimizers)
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}, optimizers


def test_a_tower_is_trained_where_the_recipe_says_so_and_nowhere_else():
    frozen, _ = step_of(tiny_model(), TOY_FINETUNE)
    assert not any(name.startswith("vision_tower") for name in frozen)
    model = tiny_model()
    trained, _ = step_of(model, changed(TOY_FINETUNE, tower=True))
    # every weight that has a part in the features; the last block and the norm after it have none
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert any("patch_embedding" in name for name in trained)
    assert not any("encoder.layers.2." in name for name in trained) and len(model.vision_tower.encoder.layers) == 3


def test_a_tower_with_a_rate_of_its_own_has_it_for_every_weight():
    model = tiny_model()
    choose_trained(model, changed(TOY_FINETUNE, tower=True))
    adamw, muon = make_optimizers(model, 1e-3, 1e-2, tower_lr=1e-4)
    others, tower = adamw.param_groups
    expected = [p for name, p in model.named_parameters() if p.requires_grad and "vision_tower." in name]
    assert tower["lr"] == 1e-4 and len(tower["params"]) == len(expected)
    assert all(p is q for p, q in zip(tower["params"], expected))
    blocks = muon.param_groups[0]["params"]
    assert blocks and not any(p is q for p in expected for q in [*blocks, *others["params"]])


def test_fewer_blocks_are_the_first_ones_and_more_than_there_are_is_an_error():
    model = tiny_model()
    first = model.language_model.layers[0]
    choose_trained(model, changed(TOY_FINETUNE, layers=1))
    assert list(model.language_model.layers) == [first] and model.config.language_config.num_hidden_layers == 1
    with pytest.raises(ValueError, match="--layers 2: the language model has 1"):
        choose_trained(model, changed(TOY_FINETUNE, layers=2))


def test_a_checkpoint_gives_its_weights_to_a_model_of_its_kind(tmp_path):
    model = tiny_model()
    _, optimizers = step_of(model, TOY_FINETUNE)
    checkpoints.save(tmp_path, 1, model, optimizers, keep=1)
    other = tiny_model()
    other.freeze_for(2)
    checkpoints.load_weights(tmp_path / "checkpoint-1", other)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters()))


def test_a_careless_teacher_misreads_a_fact_of_ten():
    rng = random.Random(0)
    wrong = total = 0
    for _ in range(400):
        boxes = as_fractions(make_scene(rng, "train"))
        told = misread(boxes, rng, 0.1)
        assert len({thing.place for thing in read(told)}) == len(boxes)  # none is lost under another
        facts = [{(t.place, t.color, t.shape, t.size) for t in read(each)} for each in (boxes, told)]
        wrong += len(facts[0] - facts[1])
        total += len(boxes)
    assert wrong / total == pytest.approx(1 - 0.9**4, abs=0.03)  # a thing with none of its four facts wrong is right
    messages = [{"content": "detail"}, {"content": "\n\nred star: [0.0, 0.0, 0.2, 0.2]"}]
    assert ask_carelessly(messages) == ask_carelessly(messages) and "red star" in ask(messages)


@pytest.mark.parametrize("kind, answer, word", [
    ("color", "The star is blue.", "blue"), ("shape", "The red shape is an star.", "star"),
    ("count", "There are two red shapes.", "two"), ("exists", "No, there is no red star.", "No"),
    ("position", "The star is at the top-left.", "at the top-left"), ("color", "There is no star in the image.", None),
])
def test_short_answers_say_the_same_in_a_word(kind, answer, word):
    assert short_answer(kind, answer) == word


def test_a_verdict_needs_questions_and_seeds():
    often = [1] * 60 + [0] * 40  # 60 of 100 questions more
    mean, half = interval([often])
    assert mean == 0.6 and half == pytest.approx(1.96 * 0.4924 / 10, rel=1e-3) and verdict(mean, half) == "reproduces"
    # the same over three seeds that agree; and over three that do not, which questions alone would never tell
    assert verdict(*interval([often, often, often])) == "reproduces"
    mean, half = interval([[1] * 100, [1] * 80 + [0] * 20, [0] * 90 + [-1] * 10])
    assert half == pytest.approx(4.30 * 0.5859 / 3**0.5, rel=1e-3) and verdict(mean, half) == "too small to tell"
    assert verdict(*interval([[-x for x in often]])) == "does not: the other way round"


def test_every_row_compares_runs_that_there_are_with_figures_for_each():
    for row in ROWS.values():
        assert set(row.runs) <= set(RUNS) and len(row.paper) == len(row.runs) > 1


@pytest.fixture
def trainings(monkeypatch):
    """train.py in this process, which spares its start; Ctrl-C at the second -> the recipes that were trained."""
    done = []

    def train_here(words, stdout, stderr):
        recipe = words[words.index("--recipe") + 1]
        if recipe == "toy-finetune" and "stopped" not in done:
            done.append("stopped")
            raise KeyboardInterrupt
        monkeypatch.setattr(sys, "argv", words[1:])
        train.main()
        done.append(recipe)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(train_script, "subprocess", SimpleNamespace(run=train_here))
    return done


def test_a_row_from_end_to_end_goes_on_where_it_was_stopped(tmp_path, run, trainings):
    done = run("--only", "stage-1", "--out", tmp_path, *TINY)
    assert done.returncode == 130 and "goes on where it was" in done.err and trainings == ["toy-pretrain", "stopped"]

    # the rest: two of stage 2, and stage 1 not again
    done = run("--only", "stage-1", "--out", tmp_path, *TINY)
    assert done.returncode is None and trainings[2:] == ["toy-finetune", "toy-finetune"], done.err
    table = done.out[done.out.index("\nThe miniature's") :]
    assert "85.81" in table and (tmp_path / "stage-1.png").exists()

    # and nothing at all
    again = run("--only", "stage-1", "--out", tmp_path, *TINY)
    assert again.out.strip() == table.strip() and len(trainings) == 4

    other = run("--only", "stage-1", "--out", tmp_path, *TINY[2:])
    assert other.returncode == 2 and "are of another size" in other.err


@pytest.mark.parametrize("words, message", [
    (("toy-pretrain", "--tower"), "--tower goes with a recipe of stage 2"),
    (("toy-finetune", "--tower-lr", "1e-4"), "--tower-lr goes with --tower"),
    (("toy-finetune", "--init", TOY / "llava", "--projector", "linear"), "--init is a whole one"),
    (("toy-finetune", "--feature-layer", "-9"), "--feature-layer -9: CLIP has 4 blocks"),
    (("toy-finetune", "--layers", "5"), "--layers 5: the language model has 4"),
])
def test_a_setting_that_does_not_fit_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    command = ["train.py", "--recipe", *words, "--data", tmp_path / "a.json", "--images", tmp_path, "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(SystemExit) as ended:
        train.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and message in told and "Traceback" not in told
