"""A run cannot be lost, and its result does not depend on how many ranks shared the work."""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from minillava.checkpoint import TOY, load_llava
from minillava.toy.miniature import draw_world
from minillava.toy.recipes import TOY_RECIPES
from minillava.training.run_folder import Setup, Sources, asked_for, enter, lock, refuse_overwriting
from minillava.training.signals import Stop
from tests.check_kill import bits, command, make_world
from tests.comparing import message, read_jsonl
from train import main  # noqa: F401, which the fixture `run` calls

ROOT = Path(__file__).parent.parent
QUIET = dict(cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, 16)
    return folder


@pytest.fixture(scope="module")
def peace(world, tmp_path_factory):
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "peace"
    subprocess.run(command(world, out, "--save-every", 2), **QUIET, check=True)
    return out


def test_a_run_says_what_it_made_and_warns_of_repeated_samples(world, tmp_path, capsys):
    recipe, sources, setup = toy(world, tmp_path)
    samples = len(json.loads(sources.data.read_text()))
    train.run(replace(recipe, batch=24, per_gpu=24, epochs=1), sources, setup, torch.device("cpu"))
    told = capsys.readouterr()
    assert f"a step takes 24 samples and there are {samples}" in told.err
    assert "mm_projector.bin" in told.out and f"--init {tmp_path}" in told.out


def losses(out):
    return [row["loss"] for row in read_jsonl(out / "metrics.jsonl")]


def test_a_run_is_a_folder(peace):
    config = json.loads((peace / "config.json").read_text())
    assert "--recipe v1.5-finetune" in config["command"] and config["recipe"]["batch"] == 8 and config["settings"]["seed"] == 0
    row = read_jsonl(peace / "metrics.jsonl")[-1]
    assert {"step", "loss", "lr", "gradient_norm", "tokens_per_second", "supervised", "memory_gib", "bad", "cut"} <= set(row)
    assert (peace / "loss.png").exists() and len(list(peace.glob("checkpoint-*"))) == 2
    model, _ = load_llava(peace / "llava", device="cpu")
    assert (model.config.template, model.config.image_aspect_ratio) == ("vicuna_v1", "pad")
    clip = json.loads((TOY / "clip" / "config.json").read_text())["vision_config"]
    blocks = model.vision_tower.encoder.layers  # CLIP's last one never runs, and is not saved
    assert len(blocks) == model.config.vision_config.num_hidden_layers == clip["num_hidden_layers"] - 1


def test_a_killed_run_resumes_to_the_same_bits(world, peace, tmp_path):
    out = tmp_path / "killed"
    run = subprocess.Popen(command(world, out, "--save-every", 2), cwd=ROOT, stderr=subprocess.DEVNULL, env=QUIET["env"])
    while not (out / "checkpoint-2").exists() and run.poll() is None:
        time.sleep(0.01)
    run.kill()
    run.wait()
    (out / "checkpoint-4.tmp").mkdir(exist_ok=True)  # as if it had been saving
    with open(out / "metrics.jsonl", "a") as log:
        log.write('{"step": 2, "lo')
    refused = subprocess.run(command(world, out), **QUIET)
    assert refused.returncode == 2 and "go on with it by --resume" in refused.stderr
    config = json.loads((out / "config.json").read_text())
    del config["recipe"]["loss_mean"], config["settings"]["text_only"], config["settings"]["data_bytes"]  # as of a run from before there were these
    (out / "config.json").write_text(json.dumps(config))
    changed = subprocess.run(command(world, out, "--resume", "--lr", 1), **QUIET)
    assert changed.returncode == 2 and "lr 0.001 to 1" in changed.stderr
    subprocess.run(command(world, out, "--save-every", 2, "--resume"), **QUIET, check=True)
    assert bits(out) == bits(peace)
    again = subprocess.run(command(world, out, "--save-every", 2, "--resume"), **QUIET)
    assert again.returncode == 0 and f"Nothing is left to do: {out / 'llava'} is there." in again.stdout


def test_a_run_is_not_resumed_with_data_that_were_changed_since(tmp_path):
    data = tmp_path / "data.json"
    data.write_text("[1]")
    recipe, sources, setup = TOY_RECIPES["toy-pretrain"], Sources(data=data), Setup(tmp_path, resume=True)
    enter(setup, asked_for(recipe, sources, setup))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    enter(setup, asked_for(recipe, sources, setup))
    smaller = replace(recipe, per_gpu=1, checkpointing=not recipe.checkpointing)  # after an end for want of memory
    enter(setup, asked_for(smaller, sources, setup))
    data.write_text("[1, 2]")
    assert "cannot change data_bytes 3 to 6" in message(ValueError, enter, setup, asked_for(recipe, sources, setup))
    (tmp_path / "metadata.csv").write_text("of a folder")
    assert asked_for(recipe, Sources(data=tmp_path), setup)["settings"]["data_bytes"] == 11


def test_sigterm_saves_and_says_how_to_go_on(world, peace, tmp_path):
    out = tmp_path / "stopped"
    run = subprocess.Popen(command(world, out, "--workers", 2), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                           text=True, env=QUIET["env"], start_new_session=True)
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGTERM)  # as a scheduler or a terminal does: the loader's workers get it too
    told = run.communicate()[0]
    assert run.returncode == 128 + signal.SIGTERM and "--resume" in told and list(out.glob("checkpoint-*"))
    subprocess.run(command(world, out, "--resume"), **QUIET, check=True)
    assert bits(out) == bits(peace)


def test_two_ranks_are_one_and_fsdp_is_ddp(world, peace, tmp_path):
    for name, more in (("fsdp", []), ("ddp", ["--no-shard"])):
        subprocess.run(command(world, tmp_path / name, "--save-every", 2, *more, ranks=2), **QUIET, check=True)
        assert max(abs(a - b) for a, b in zip(losses(tmp_path / name), losses(peace), strict=True)) < 1e-5
    out = tmp_path / "fsdp"  # the checkpoint of 2 ranks goes on with one, and with four
    for ranks in (1, 4):
        (out / "llava").rename(tmp_path / f"llava{ranks}")
        more = ["--save-every", 2, "--keep", 9, "--resume"] + (["--per-gpu", 2] if ranks == 4 else [])
        subprocess.run(command(world, out, *more, ranks=ranks), **QUIET, check=True)
        assert max(abs(a - b) for a, b in zip(losses(out), losses(peace), strict=True)) < 1e-5


def toy(world, out, name="toy-pretrain"):
    """What train.run wants for a toy recipe, in steps of 4."""
    recipe = replace(TOY_RECIPES[name], batch=4, per_gpu=4)
    data = world / ("brief.json" if name == "toy-pretrain" else "chat.json")
    sources = Sources(TOY / "clip", TOY / "vicuna", data=data, images=world / "train")
    return recipe, sources, Setup(out)


def test_stage_1_leaves_clip_and_the_language_model_bit_identical(world, tmp_path):
    recipe, sources, setup = toy(world, tmp_path)
    before, _ = load_llava(vision=TOY / "clip", language=TOY / "vicuna", projector="mlp2x_gelu", device="cpu")
    model, tokenizer, _ = train.make_model(recipe, sources)
    data, _ = train.make_data(recipe, sources, setup, tokenizer, model.config)
    after = train.train(model, data, recipe, setup, torch.device("cpu")).state_dict()
    same = {name: torch.equal(tensor, after[name].to(tensor.dtype)) for name, tensor in before.state_dict().items()}
    assert all(equal != name.startswith("mm_projector") for name, equal in same.items())


def test_a_loss_that_is_not_finite_names_step_and_samples(world, tmp_path):
    recipe, sources, setup = toy(world, tmp_path, "toy-finetune")
    told = r"step \d+ is nan, of the samples 0000\S*_\w+, .* last good checkpoint is none"
    with pytest.raises(FloatingPointError, match=told):
        train.run(replace(recipe, lr=float("inf")), sources, setup, torch.device("cpu"))


def test_a_projector_that_cannot_be_saved_is_refused_before_it_is_trained(world, tmp_path):
    recipe, sources, setup = toy(world, tmp_path, "toy-finetune")
    with pytest.raises(ValueError, match="no place for a projector mlp3x_gelu"):
        train.run(replace(recipe, projector="mlp3x_gelu"), sources, setup, torch.device("cpu"))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_world_of_another_size_is_not_resumed_in_silence(tmp_path):
    draw_world(tmp_path, 4, 2, seed=0)
    draw_world(tmp_path, 4, 2, seed=0)
    with pytest.raises(ValueError, match="drawn with --scenes 4"):
        draw_world(tmp_path, 5, 2, seed=0)


def test_signals_are_noted_and_then_left_to_others():
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT and stop.on_any_rank()
        with pytest.raises(KeyboardInterrupt):  # the second one
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("typed, said", [
    ("--check-data", "needs --data and --images"), ("--recipe own --data my-picture", "there is no my-picture;")])
def test_data_that_is_missing_is_refused(typed, said, run):
    done = run(*typed.split())
    assert done.returncode == 2 and said in done.err


@pytest.mark.parametrize("typed, lost", [
    ("--init {out}", "{out}:"), ("--recipe own --data {out}", "{out}:"),
    ("--recipe own --data {out}/train.json --images {out} --val 0.5", "{out}/train.json, which no run has written"),
    ("--recipe own --data {out}/samples.jsonl --images {out}", "{out}/samples.json, which no run has written")])
def test_a_run_does_not_write_over_what_it_reads(tmp_path, run, typed, lost):
    for name in ("train.json", "samples.json", "samples.jsonl"):
        (tmp_path / name).write_text("[1, 2]")
    done = run(*typed.format(out=tmp_path).split(), "--out", tmp_path)
    assert done.returncode == 2 and "would write over " + lost.format(out=tmp_path) in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.json", "samples.jsonl", "train.json"]


@pytest.mark.parametrize("result", ["llava", "adapter", "mm_projector.bin", "best"])
def test_weights_that_no_run_has_written_are_not_taken_for_a_result(tmp_path, result):
    """Of a LLaVA that lies there a run would say "Nothing is left to do", and end."""
    (tmp_path / result).mkdir()
    with pytest.raises(ValueError, match=f"write over .*{result}, which no run has written"):
        refuse_overwriting(Sources(), tmp_path)


def test_two_trainings_at_once_in_one_folder_are_refused(tmp_path):
    """The second one, should it --resume, would delete the checkpoint that the first is writing."""
    code = ("import pathlib, sys; from minillava.training.run_folder import lock\n"
            "held = lock(pathlib.Path(sys.argv[1])); print('held', flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "held\n"
        assert f"another process is training in {tmp_path}: wait" in message(ValueError, lock, tmp_path)
        other.kill()
    lock(tmp_path)


def test_a_run_that_came_to_no_step_begins_anew_in_its_folder(tmp_path):
    (tmp_path / "train.json").write_text("[1, 2]")
    sources = Sources(data=tmp_path / "train.json")
    enter(Setup(tmp_path), asked_for(TOY_RECIPES["toy-pretrain"], sources, Setup(tmp_path)))
    refuse_overwriting(sources, tmp_path)


def test_what_is_wrong_is_one_line(world, tmp_path, run):
    for more, message in (
        (["--per-gpu", 3], "do not divide"), (["--init", "nowhere"], "nowhere"),
        (["--init", TOY / "llava"], "leave --language away"), (["--lr", 0], "--lr must be positive"),
        (["--lr", "nan"], "--lr must be positive"), (["--device", "tpu9"], "there is no device 'tpu9' here"),
        (["--data", "README.md"], "is not a JSON array"), (["--images", tmp_path], "samples in a row cannot be used"),
        (["--images", tmp_path, "--workers", 2], "samples in a row cannot be used"),
    ):
        _, _, *typed = command(world, tmp_path / "out", *more)
        done = run(*typed, "--no-shard")
        assert done.returncode == 2 and message in done.err.splitlines()[-1]
