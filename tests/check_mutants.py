"""Do the tests notice when the code is wrong?   python tests/check_mutants.py [FILE ...]

Each mutant is one small mistake: in a copy of the project a text is replaced by another one, and the test that is
named beside it must fail. FILE: only mutants of these files. Not collected by pytest: a few seconds for each mutant.
Exit code 1 where a mutant lives, where its text is no longer found, or where a test fails without it.
"""
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MUTANTS = {  # file: [(text, what it becomes, a test that must fail)]
    "minillava/images.py": [
        ("image = upright(image)", "", "test_parity.py::test_exif_turns_the_picture"),
        ('"RGBA", image.size, "white"', '"RGBA", image.size, "black"',
         "test_parity.py::test_transparent_is_white"),
        ("values / 257", "values / 256", "test_parity.py::test_grey_1_bit_and_16_bit"),
        ("Resampling.BICUBIC", "Resampling.BILINEAR", "test_parity.py::test_preprocess"),
        ("(image.width - size) // 2", "(image.width - size + 1) // 2",
         "test_parity.py::test_an_odd_rest_is_cut_off_on_the_right"),
        ("(side - image.width) // 2", "0", "test_parity.py::test_preprocess"),
        ("int(255 * value)", "round(255 * value)", "test_parity.py::test_preprocess"),
        ('image.format == "EPS"', "False", "test_checkpoint.py::test_images_that_cannot_be_had"),
    ],
    "minillava/on_cpu.py": [
        ("else F.silu(", "else F.gelu(", "test_parity.py::test_llama"),
        ("(q * C**-0.5)", "(q / C)", "test_model.py::test_gradients_of_attention_by_hand"),
        (".triu(1 + start)", ".triu(2 + start)", "test_model.py::test_gradients_of_attention_by_hand"),
        ("@ keys * C**-0.5", "@ keys", "test_model.py::test_gradients_of_attention_by_hand"),
        ("wide, along, value=-1", "wide, along, value=0", "test_model.py::test_gradients_of_a_norm_and_of_swiglu_by_hand"),
        ("x.to(torch.float32, copy=True)", "x.float()", "test_model.py::test_gradients_of_a_norm_and_of_swiglu_by_hand"),
    ],
    "minillava/attention.py": [
        ("scores[..., :keys].masked_fill_(~mask, -math.inf)", "pass",
         "test_model.py::test_one_new_token_looks_at_its_keys_whichever_way_is_the_faster"),
        ("scores[..., keys:] = -math.inf", "pass",
         "test_model.py::test_one_new_token_looks_at_its_keys_whichever_way_is_the_faster"),
        ("keys <= tokens", "keys < tokens",
         "test_generate.py::test_cached_equals_uncached_at_every_position_in_a_batch_of_unequal_length"),
        ("mask & (is_text | is_self)", "mask",
         "test_generate.py::test_cached_equals_uncached_at_every_position_in_a_batch_of_unequal_length"),
        ("places - start[:, None]", "places", "test_model.py::test_where_tokens_stand_and_what_they_may_look_at"),
    ],
    "minillava/vit.py": [
        ("1.702", "1.0", "test_parity.py::test_clip"),
        ("layer %= len(blocks) + 1", "layer %= len(blocks)", "test_parity.py::test_clip"),
        ("keys=length", "keys=None", "test_model.py::test_the_padding_of_one_picture_changes_nothing"),
        ("return tokens[:, 1:]", "return tokens[:, :-1]", "test_parity.py::test_clip"),
        ("self.pre_layrnorm(self.embeddings(pixels))", "self.embeddings(pixels)",
         "test_parity.py::test_clip"),
    ],
    "minillava/llama.py": [
        ("torch.cat([-angles.sin(), angles.sin()]", "torch.cat([angles.sin(), -angles.sin()]", "test_parity.py::test_llama"),
        ("frequencies * kept + slowed * (1 - kept)", "frequencies * (1 - kept) + slowed * kept",
         "test_parity.py::test_llama"),
        (".clamp(0, 1)", "", "test_parity.py::test_llama"),
        ('frequencies / scaling["factor"]', "frequencies", "test_parity.py::test_llama"),
        ("cache.length += embeddings", "cache.length = embeddings",
         "test_generate.py::test_cached_equals_uncached_at_every_position_in_a_batch_of_unequal_length"),
        ("is_causal=mask is None", "is_causal=False", "test_parity.py::test_llama"),
        ("with_room(self.values[layer]", "with_room(self.keys[layer]", "test_generate.py::test_a_cache_grows_and_changes_nothing"),
    ],
    "minillava/llava.py": [
        ("labels.flatten()[learn_at + 1]", "labels.flatten()[learn_at]",
         "test_model.py::test_the_loss_is_the_mean_over_supervised_tokens_however_the_batch_is_cut"),
        ("loss / (divisor or max(1, len(targets)))", "loss / max(1, len(targets))",
         "test_model.py::test_the_loss_is_the_mean_over_supervised_tokens_however_the_batch_is_cut"),
        ("max(1, len(targets))", "len(targets)",
         "test_model.py::test_a_batch_with_nothing_to_learn_has_loss_zero_and_a_gradient"),
        ("(*self.vision_tower.parameters(), *self", "(*self",
         "test_model.py::test_a_batch_of_text_alone_gives_every_trained_parameter_a_gradient"),
        ("embeddings = embeddings + self.zero_from_pictures()", "pass",
         "test_model.py::test_a_batch_of_text_alone_gives_every_trained_parameter_a_gradient"),
        ("features.to(embeddings.dtype)", "features.flip(0).to(embeddings.dtype)",
         "test_model.py::test_each_image_goes_where_its_tokens_are"),
        ("requires_grad_(stage == 2)", "requires_grad_(True)",
         "test_model.py::test_a_stage_changes_what_it_trains_and_nothing_else"),
        ("self.vision_tower.requires_grad_(False)", "self.vision_tower.requires_grad_(True)",
         "test_model.py::test_a_stage_changes_what_it_trains_and_nothing_else"),
        ("logits.float()", "logits",
         "test_model.py::test_what_overflows_or_loses_digits_is_computed_in_fp32"),
    ],
    "minillava/linear.py": [
        ("turn(low | high << 4)", "turn(high | low << 4)", "test_quantize.py::test_two_values_share_a_byte"),
        (".round_().clamp_(0, 15)", ".clamp_(0, 15)", "test_quantize.py::test_what_is_written_out_is_near_the_weights"),
        ("BEYOND = 0.3", "BEYOND = 0.0", "test_quantize.py::test_groups_are_cut_a_little_and_their_line_is_fitted"),
        ("scale, zero = closest_line(to_4_bits(groups, scale, zero), groups)", "pass",
         "test_quantize.py::test_groups_are_cut_a_little_and_their_line_is_fitted"),
        ("total = total + part @ piece", "total = part @ piece",
         "test_quantize.py::test_gradients_reach_what_comes_before"),
        ("wide = x.to(product_dtype(x.dtype, x.device))", "wide = x",
         "test_slow_bf16.py::test_weights_of_few_bits_are_written_out_in_fp32"),
        ("torch.is_grad_enabled() or ", "", "test_slow_bf16.py::test_what_is_trained_stays_as_it_is"),
        ("self.prepacked, self.bias", "self.prepacked", "test_prepacked.py::test_the_product_is_that_of_the_layer"),
        ("prepacked_product(grad, self.weight.T, self.prepacked_back)", "grad @ self.weight * 2",
         "test_prepacked.py::test_so_is_the_gradient"),
        (" and not weight.requires_grad", "",
         "test_prepacked.py::test_what_is_trained_stays_as_it_is_and_learns_the_same"),
        ("model.buffers())) > MOST", "model.buffers())) < 0", "test_prepacked.py::test_a_large_model_stays_in_its_file"),
        ("y = y + self.bias", "pass",
         "test_slow_bf16.py::test_many_rows_are_multiplied_in_fp32_and_few_as_they_are"),
        ("permute(0, 3, 2, 1, 4)", "permute(0, 1, 2, 3, 4)",
         "test_quantize.py::test_a_folder_from_a_machine_with_another_kernel"),
    ],
    "minillava/weights/quantize.py": [
        ("layer.__class__ = WIDENED[type(layer)]", "pass",
         "test_slow_bf16.py::test_the_miniature_sees_and_says_the_same"),
        ("BLOCK // 2 if halved else BLOCK", "BLOCK",
         "test_quantize.py::test_a_folder_from_a_machine_with_another_kernel"),
    ],
    "minillava/fastest.py": [
        ("min(seconds[kind][name], taken)", "taken", "test_fastest.py::test_of_several_walks_the_fastest_counts"),
        ("scaled(joint, scale, scales)", "scaled(joint, scale, scales[0])",
         "test_fastest.py::test_what_rounds_the_same_x_rounds_it_once_and_to_the_same"),
    ],
    "minillava/training/muon.py": [
        ("max(1, outputs / inputs)", "1", "test_muon.py::test_it_moves_as_torch_does"),
        ("p.grad.lerp(momentum, MOMENTUM)", "momentum", "test_muon.py::test_it_moves_as_torch_does"),
        ("product_dtype(torch.bfloat16, u.device)", "torch.bfloat16",
         "test_muon.py::test_all_singular_values_become_about_one_and_the_directions_stay"),
    ],
    "minillava/training/trained_parts.py": [
        ("for block in model.vision_tower.encoder.layers[model.used_blocks :]:", "for block in []:",
         "test_ablations.py::test_a_tower_is_trained_where_the_recipe_says_so_and_nowhere_else"),
    ],
    "minillava/sentencepiece.py": [
        ("(-score, -len(piece), left, right)", "(-score, 0, left, right)",
         "test_tokenizer.py::test_ids_equal_sentencepiece_on_every_text"),
        ("(byte & 127) << shift", "(byte & 63) << shift",
         "test_tokenizer.py::test_ids_equal_sentencepiece_on_every_text"),
    ],
    "minillava/tokenizer.py": [
        ("self._prefix_to_come = tokenizer._has_prefix", "self._prefix_to_come = False",
         "test_tokenizer.py::test_decode_equals_sentencepiece"),
        ("        self.__dict__.update(state)\n        self._keep_control_tokens_text()",
         "        self.__dict__.update(state)",
         "test_tokenizer.py::test_typed_control_tokens_are_text"),
        ("self.pad_id = self.unk_id", "self.pad_id = self.eos_id", "test_tokenizer.py::test_legacy_is_read_from_the_config"),
        ("(folder / file).unlink(missing_ok=True)", "pass",
         "test_tokenizer.py::test_saving_over_another_tokenizer_leaves_none_of_its_files"),
    ],
    "minillava/tokenizer_json.py": [
        ('legacy = "first" not in schemes', "legacy = True",
         "test_tokenizer.py::test_the_prefix_of_a_tokenizer_json_can_be_left_out"),
    ],
    "minillava/conversation.py": [
        ("tokenizer.legacy or piece[-1] == IMAGE_TOKEN", "tokenizer.legacy",
         "test_conversation.py::test_two"),
        ("            prefix = False\n", "            pass\n", "test_conversation.py::test_two"),
        ("yield [tokenizer.eos_id], True", "yield [tokenizer.eos_id], False",
         "test_conversation.py::test_two"),
        ("labels = [IGNORE_INDEX] * len(ids)\n", "pass\n", "test_conversation.py::test_prompt"),
        ("while IMAGE in text:", "if IMAGE in text:", "test_conversation.py::test_human_turn"),
        ("turns = turns[1:]", "pass", "test_conversation.py::test_turns_at_the_edges"),
    ],
    "minillava/files.py": [
        ('text.split("\\n")', "text.splitlines()",
         "test_data.py::test_jsonl_lines_end_at_a_newline_alone_not_at_a_line_separator"),
        ("base += at", "base = at", "test_data.py::test_the_index_of_a_file_finds_what_json_finds"),
    ],
    "minillava/data.py": [
        (' or turn.get("value") is None', "",
         "test_data.py::test_a_bad_sample_is_named_and_the_next_one_is_drawn"),
        ("words if with_image else -words", "words",
         "test_data.py::test_a_batch_is_padded_on_the_right_and_keeps_its_images_in_order"),
        ("padding_value=IGNORE_INDEX", "padding_value=0",
         "test_data.py::test_a_batch_is_padded_on_the_right_and_keeps_its_images_in_order"),
        ("(self.index[place, 2] > 0) == with_image", "True",
         "test_data.py::test_a_bad_sample_is_named_and_the_next_one_is_drawn"),
        ('path.anchor or ".." in path.parts', "path.anchor",
         "test_data.py::test_a_bad_sample_is_named_and_the_next_one_is_drawn"),
        ("torch.tensor(labels[: self.max_length])", "torch.tensor(labels)",
         "test_data.py::test_a_sample_that_is_cut_says_so_and_keeps_its_image"),
    ],
    "minillava/generate.py": [
        ("if step < limit:", "if True:",
         "test_generate.py::test_an_answer_ends_where_the_context_does_batched_or_alone"),
        ("probs.cumsum(-1) - probs", "probs.cumsum(-1)",
         "test_generate.py::test_top_p_keeps_the_smallest_set_that_holds_p"),
        ("context - len(row)", "context - len(row) - 1",
         "test_generate.py::test_an_answer_may_fill_the_context_to_its_last_token"),
        ("self.keys_values.length, len(ids) - 1)", "self.keys_values.length)",
         "test_generate.py::test_the_same_question_twice_runs_one_token_again"),
        ("self.keys_values.length = common", "pass",
         "test_generate.py::test_the_same_question_twice_runs_one_token_again"),
        ("return self.end()", 'return ""',
         "test_generate.py::test_an_answer_stops_at_the_templates_stop_and_never_shows_a_part_of_it"),
        ("range(len(stop) - 1, 0, -1)", "range(len(stop) - 2, 0, -1)",
         "test_generate.py::test_an_answer_stops_at_the_templates_stop_and_never_shows_a_part_of_it"),
        ("logits.amax().isnan()", "False", "test_generate.py::test_a_model_that_computes_nan_says_so"),
    ],
    "minillava/training/sampler.py": [
        ("seed + epoch", "seed", "test_steps.py::test_every_epoch_has_an_order_of_its_own_and_the_seed_decides_it"),
        ("-len(order) % size", "0", "test_data.py::test_ranks_and_accumulation_share_the_same_global_batches"),
        ("reverse=True", "reverse=False", "test_data.py::test_the_order_is_the_official_one"),
        ("key=lambda part: words[part]", "key=lambda part: -words[part]",
         "test_data.py::test_the_order_is_the_official_one"),
        ("image_batches.pop() + text_batches.pop()", "image_batches.pop()",
         "test_data.py::test_every_sample_comes_once_and_a_batch_is_of_one_modality"),
    ],
    "minillava/training/optimizer.py": [
        ("warmup=0.03", "warmup=0.3",
         "test_steps.py::test_the_rate_rises_for_3_percent_of_the_steps_and_falls_by_a_cosine"),
        ("0.5 * (1 + math.cos", "0.5 * (0.9 + math.cos",
         "test_steps.py::test_the_rate_rises_for_3_percent_of_the_steps_and_falls_by_a_cosine"),
        ("step - ramp) / max", "step) / max",
         "test_steps.py::test_the_rate_rises_for_3_percent_of_the_steps_and_falls_by_a_cosine"),
        ("weight_decay=0.0, fused", "weight_decay=0.1, fused", "test_steps.py::test_no_weight_decays"),
        ("(0.9, beta2)", "(0.9, 0.95)", "test_steps.py::test_no_weight_decays"),
        ("optimizer.zero_grad()", "pass", "test_steps.py::test_no_weight_decays"),
    ],
    "minillava/training/checkpoints.py": [
        ('torch.set_rng_state(state["rng"])', "pass",
         "test_steps.py::test_a_checkpoint_brings_back_weights_moments_and_the_random_state"),
        ('"rng": torch.get_rng_state()', '"rng": torch.zeros_like(torch.get_rng_state())',
         "test_steps.py::test_a_checkpoint_brings_back_weights_moments_and_the_random_state"),
        ('optim_state_dict=state["optim"]', "optim_state_dict={}",
         "test_steps.py::test_a_checkpoint_brings_back_weights_moments_and_the_random_state"),
        ("step = max(done)", "step = min(done)", "test_steps.py::test_checkpoints_that_are_too_many_or_half_written_go"),
        ("if name not in PLACES.get(module, ()):", "if False:", "test_steps.py::test_a_checkpoint_runs_no_program"),
        (", planner=Planner()", "", "test_steps.py::test_a_checkpoint_runs_no_program"),
        ("[:-keep]", "[:-keep - 1]", "test_steps.py::test_checkpoints_that_are_too_many_or_half_written_go"),
    ],
    "minillava/training/distributed.py": [
        ("return model.no_sync()", "pass", "test_steps.py::test_gradients_travel_once_a_step_not_once_a_micro_batch"),
    ],
    "minillava/evaluation/scienceqa_ensemble.py": [
        (" or ours[i] < 0", "", "test_scienceqa.py::test_the_judge_is_also_asked_where_neither_gave_an_answer"),
    ],
    "chat.py": [
        ("except KeyboardInterrupt:\n            if", "except ZeroDivisionError:\n            if",
         "test_chat.py::test_ctrl_c_keeps_what_was_said_so_far_and_the_chat_goes_on"),
    ],
    "minillava/terminal.py": [
        ('OBEYED = {"Cc", ', 'OBEYED = {', "test_terminal.py::test_what_a_terminal_would_obey_is_shown"),
        ("""printable(error, keep='')""", "error", "test_hostile_text.py::test_nothing_from_outside_commands_the_terminal"),
    ],
    "minillava/weights/folders.py": [
        ("else path.parent", "else Path.cwd()", "test_checkpoint.py::test_a_folder_is_there_when_it_is_whole"),
    ],
    "minillava/weights/__main__.py": [
        ("refuse_to_lose(out, adapter, base, vision)", "pass", "test_adapters.py::test_a_merge_does_not_write_over_its_base"),
    ],
    "minillava/training/samples.py": [
        ("strict=True", "strict=False",
         "test_own.py::test_a_table_that_would_lose_a_part_of_an_answer_is_refused"),
        ("if None in row:", "if False:",
         "test_own.py::test_a_table_that_would_lose_a_part_of_an_answer_is_refused"),
    ],
    "minillava/training/run_folder.py": [
        ("else [data / name for name in TABLES]", "else []",
         "test_train.py::test_a_run_is_not_resumed_with_data_that_were_changed_since"),
    ],
    "minillava/training/results.py": [
        ("        whole.drop_unused_blocks()\n", "", "test_train.py::test_a_run_is_a_folder"),
    ],
}


def main():
    mutants = [(file, *mutant) for file in sys.argv[1:] or MUTANTS for mutant in MUTANTS[file]]
    missing = [mutant for mutant in mutants if count_of(mutant) != 1]
    for file, old, _, _ in missing:
        print(f"NOT FOUND, or not once: {old!r} in {file}; write this mutant anew")

    lives = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "build", "venv", "__pycache__"))
        if not passes(copy, *sorted({test for *_, test in mutants}), say=True):
            sys.exit("some of these tests fail without any mutant, or are no longer there")
        for mutant in mutants:
            if mutant not in missing and not is_killed(copy, *mutant):
                lives.append(mutant)

    print(f"{len(mutants) - len(lives) - len(missing)} of {len(mutants)} killed, {len(lives)} live, "
          f"{len(missing)} not found")
    sys.exit(1 if lives or missing else 0)


def count_of(mutant):
    file, old, _, _ = mutant
    return (ROOT / file).read_text(encoding="utf-8").count(old)


def is_killed(copy, file, old, new, test):
    path = copy / file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(old, new), encoding="utf-8")
    killed = not passes(copy, test)
    path.write_text(source, encoding="utf-8")
    print(f"{'killed' if killed else 'LIVES '} {file}: {old!r} -> {new!r}  {test}", flush=True)
    return killed


def passes(copy, *tests, say=False):
    """Whether pytest ends well on these tests of the copy, in a process that has PyTorch already."""
    child = os.fork()
    if child == 0:
        signal.alarm(600)  # an endless loop is a failure too
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        sys.dont_write_bytecode = True
        if not say:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
        words = ["-q", "-x", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
        os._exit(pytest.main(words))
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main()
