"""The measurements run, and say of what they are fractions; what they come out at is not tested."""
import json
import sys

import pytest
import torch

from minillava import bench
from minillava.llama import LanguageConfig
from minillava.vit import VisionConfig


def test_the_miniature_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(bench, "ceilings", lambda device: {"read": 1e9, "bf16": 1e9, "fp32": 1e9})
    monkeypatch.setattr(bench, "has_transformers", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench", "--shapes", "miniature", "--rounds", "1", "--json", "--device", "cpu"])
    bench.main()
    limits, *figures = map(json.loads, capsys.readouterr().out.splitlines())
    steps = {(row["model"], row["step"]) for row in figures}
    assert limits["read"] == 1e9
    assert {("miniature bf16", step) for step in ("loading", "ViT", "prefill", "decode", "second turn")} <= steps
    assert all(row["seconds"] > 0 and row["of_ceiling"] > 0 for row in figures)


def test_a_second_turn_and_a_token_are_less_than_a_prefill():
    from minillava.checkpoint import load_llava
    model, _ = load_llava(device="cpu")
    floor = bench.floors(model, {"read": 1e9, "bf16": 1e9}, 1e9)
    assert floor["decode"] <= floor["second turn"] < floor["prefill"]
    matrices = bench.matrices(model.language_model)
    assert matrices == sum(p.numel() for name, p in model.language_model.named_parameters()
                           if p.ndim == 2 and "embed" not in name)


def test_runners_take_turns(monkeypatch):
    turns = []
    runners = {name: lambda name=name: turns.append(name) or float(len(turns)) for name in "ab"}
    assert bench.race(runners, 3) == {"a": 5.0, "b": 6.0}  # of 1 3 5 7 and 2 4 6 8, the first for nothing
    assert turns == list("abababab")


def test_a_training_step_is_measured_in_a_process_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(bench, "has_transformers", lambda: False)
    monkeypatch.setattr(bench, "VIT_B", VisionConfig(32, 48, 2, 2, 224, 14))
    monkeypatch.setattr(bench, "LLAMA_140M", LanguageConfig(32064, 32, 48, 2, 2))
    large = torch.ones(2**28)  # a GiB here is none there
    figure = bench.training(2, "fp32", {"fp32": 1e9}, "cpu", 1)
    del large
    assert figure["step"] == "training step, stage 2" and figure["of_ceiling"] > 0
    assert 0.05 < figure["minillava_peak_gib"] < 1
    theirs = {"transformers_seconds": 9.0, "ratio": 2.0, "transformers_peak_gib": 2 * figure["minillava_peak_gib"]}
    assert bench.figure_line(figure | theirs).endswith("2.00 x transformers, 0.50 x its peak memory")


def test_four_bits_are_built_without_sixteen(monkeypatch):
    monkeypatch.setattr(bench, "LLAMA_7B", LanguageConfig(128, 64, 96, 2, 4))
    figure = bench.decoding_7b({"read": 1e9}, "cpu", 1)
    assert figure["seconds"] > 0 and figure["weights_gb"] < 128 * 64 * 2 * 2 / 1e9 + 1e-4


def test_no_rounds_and_an_unknown_device_are_one_line(monkeypatch, capsys):
    for flags in (["--rounds", "0"], ["--device", "abacus"]):
        monkeypatch.setattr(sys, "argv", ["bench", *flags])
        with pytest.raises(SystemExit) as end:
            bench.main()
        assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
