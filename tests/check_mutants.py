"""Do the tests notice when the code is wrong?   python tests/check_mutants.py [FILE ...]

Each mutant is one small mistake: in a copy of the project a text is replaced by another one, and the tests that are
named beside it must fail. FILE: only mutants of these files. Not collected by pytest: a few seconds for each mutant.
Exit code 1 where a mutant lives, where its text is no longer found, or where the tests fail without it.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

MUTANTS = [  # (file, text, what it becomes, tests of which one at least must fail)

    # ---- images
    ("minillava/images.py", "ImageOps.exif_transpose(image)", "image", "test_parity.py -k exif"),
    ("minillava/images.py", '"RGBA", image.size, "white"', '"RGBA", image.size, "black"', "test_parity.py -k transparent"),
    ("minillava/images.py", "values / 257", "values / 256", "test_parity.py -k 16_bit"),
    ("minillava/images.py", "Resampling.BICUBIC", "Resampling.BILINEAR", "test_parity.py -k preprocess"),
    ("minillava/images.py", "(image.width - size) // 2", "(image.width - size + 1) // 2", "test_parity.py -k odd_rest"),
    ("minillava/images.py", "(side - image.width) // 2", "0", "test_parity.py -k preprocess"),
    ("minillava/images.py", "int(255 * value)", "round(255 * value)", "test_parity.py -k preprocess"),
    ("minillava/images.py", "longest**2 if pad", "longest if pad", "test_parity.py -k long_pictures"),

    # ---- attention
    ("minillava/attention.py", "q.shape[-1] ** -0.5", "q.shape[-1] ** -1.0", "test_model.py -k short_path"),
    ("minillava/attention.py", ".triu(1)", ".triu(0)", "test_model.py -k short_path"),
    ("minillava/attention.py", "k.repeat_interleave(sharing, dim=1)", "k.repeat(1, sharing, 1, 1)",
     "test_model.py -k short_path"),
    ("minillava/attention.py", "keys <= tokens", "keys < tokens", "test_generate.py -k uncached"),
    ("minillava/attention.py", "mask & (is_text | is_self)", "mask", "test_generate.py -k uncached"),
    ("minillava/attention.py", "positions - start[:, None]", "positions", "test_generate.py -k uncached"),

    # ---- vit
    ("minillava/vit.py", "1.702", "1.0", "test_parity.py -k test_clip"),
    ("minillava/vit.py", "layer += len(blocks) + 1", "layer += len(blocks)", "test_parity.py -k test_clip"),
    ("minillava/vit.py", "return tokens[:, 1:]", "return tokens[:, :-1]", "test_parity.py -k test_clip"),
    ("minillava/vit.py", "self.pre_layrnorm(self.embeddings(pixels))", "self.embeddings(pixels)",
     "test_parity.py -k test_clip"),

    # ---- llama
    ("minillava/llama.py", "h = x.float()", "h = x", "test_model.py -k fp32"),
    ("minillava/llama.py", "torch.cat([-b, a], dim=-1)", "torch.cat([b, -a], dim=-1)", "test_parity.py -k test_llama"),
    ("minillava/llama.py", "frequencies * kept + slowed * (1 - kept)", "frequencies * (1 - kept) + slowed * kept",
     "test_parity.py -k llama_3"),
    ("minillava/llama.py", ".clamp(0, 1)", "", "test_parity.py -k llama_3"),
    ("minillava/llama.py", 'frequencies / scaling["factor"]', "frequencies", "test_parity.py -k llama_linear"),
    ("minillava/llama.py", "cache.length += T", "cache.length = T", "test_generate.py -k uncached"),
    ("minillava/llama.py", "mask is None and x.shape[1] > 1", "mask is None", "test_generate.py"),
    ("minillava/llama.py", "F.silu(", "F.gelu(", "test_parity.py -k test_llama"),
    ("minillava/llama.py", "F.pad(self.values, more)", "torch.zeros_like(F.pad(self.values, more))",
     "test_generate.py -k grows"),

    # ---- llava
    ("minillava/llava.py", "targets = labels[:, 1:]", "targets = labels[:, :-1]", "test_model.py -k supervised"),
    ("minillava/llava.py", "loss / (supervised or max(1, len(targets)))", "loss / max(1, len(targets))",
     "test_model.py -k supervised"),
    ("minillava/llava.py", "max(1, len(targets))", "len(targets)", "test_model.py -k nothing_to_learn"),
    ("minillava/llava.py", "embeddings = embeddings + self.nothing_seen()", "pass", "test_model.py -k text_alone"),
    ("minillava/llava.py", "embeddings[is_image] = features.to(embeddings.dtype)",
     "embeddings[is_image] = features.flip(0).to(embeddings.dtype)", "test_model.py -k where_its_tokens_are"),
    ("minillava/llava.py", "requires_grad_(stage == 2)", "requires_grad_(True)", "test_model.py -k stage"),
    ("minillava/llava.py", "self.vision_tower.requires_grad_(False)", "self.vision_tower.requires_grad_(True)",
     "test_model.py -k stage"),
    ("minillava/llava.py", "logits.float()", "logits", "test_model.py -k fp32"),

    # ---- sentencepiece, tokenizer
    ("minillava/sentencepiece.py", "(-score, -len(piece), left, right)", "(-score, 0, left, right)",
     "test_tokenizer.py -k equal_sentencepiece"),
    ("minillava/sentencepiece.py", "(byte & 127) << shift", "(byte & 63) << shift", "test_tokenizer.py -k sentencepiece"),
    ("minillava/tokenizer.py", "self._prefix_to_come = tokenizer._has_prefix", "self._prefix_to_come = False",
     "test_tokenizer.py -k decode"),
    ("minillava/tokenizer.py", "        self.__dict__.update(state)\n        self._keep_control_tokens_text()",
     "        self.__dict__.update(state)", "test_tokenizer.py -k typed"),
    ("minillava/tokenizer.py", "self.pad_id = self.unk_id", "self.pad_id = self.eos_id", "test_tokenizer.py"),
    ("minillava/tokenizer.py", "(folder / file).unlink(missing_ok=True)", "pass", "test_tokenizer.py -k over_another"),
    ("minillava/tokenizer_json.py", 'legacy = "first" not in schemes', "legacy = True", "test_tokenizer.py -k left_out"),

    # ---- conversation
    ("minillava/conversation.py", "tokenizer.legacy or piece[-1] == IMAGE_TOKEN", "tokenizer.legacy",
     "test_conversation.py -k test_two"),
    ("minillava/conversation.py", "            prefix = False\n", "            pass\n", "test_conversation.py -k test_two"),
    ("minillava/conversation.py", "yield [tokenizer.eos_id], True", "yield [tokenizer.eos_id], False",
     "test_conversation.py -k test_two"),
    ("minillava/conversation.py", "labels = [IGNORE_INDEX] * len(ids)\n", "pass\n", "test_conversation.py -k test_prompt"),
    ("minillava/conversation.py", "while IMAGE in text:", "if IMAGE in text:", "test_conversation.py -k human_turn"),
    ("minillava/conversation.py", "turns = turns[1:]", "pass", "test_conversation.py -k edges"),

    # ---- files, data
    ("minillava/files.py", 'read_text(path).split("\\n")', "read_text(path).splitlines()", "test_data.py -k separator"),
    ("minillava/files.py", "base += at", "base = at", "test_data.py -k index_of_a_file"),
    ("minillava/data.py", "words if with_image else -words", "words", "test_data.py -k padded_on_the_right"),
    ("minillava/data.py", "padding_value=IGNORE_INDEX", "padding_value=0", "test_data.py -k padded_on_the_right"),
    ("minillava/data.py", "(self.index[place, 2] > 0) == with_image", "True", "test_data.py -k bad_sample"),
    ("minillava/data.py", 'name.is_absolute() or ".." in name.parts', "name.is_absolute()", "test_data.py -k bad_sample"),
    ("minillava/data.py", 'torch.tensor(labels[: self.max_length])', "torch.tensor(labels)", "test_data.py -k is_cut"),

    # ---- generate
    ("minillava/generate.py", "if step < limit:", "if True:", "test_generate.py -k context_does"),
    ("minillava/generate.py", "probs.cumsum(-1) - probs", "probs.cumsum(-1)", "test_generate.py -k top_p"),
    ("minillava/generate.py", "context - len(row)", "context - len(row) - 1", "test_generate.py -k last_token"),
    ("minillava/generate.py", "self.keys_values.length, len(ids) - 1)", "self.keys_values.length)",
     "test_generate.py -k same_question"),
    ("minillava/generate.py", "self.keys_values.length = common", "pass", "test_generate.py -k later_turn"),
    ("minillava/generate.py", "return self.end()", 'return ""', "test_generate.py -k templates_stop"),
    ("minillava/generate.py", "range(len(stop) - 1, 0, -1)", "range(len(stop) - 2, 0, -1)",
     "test_generate.py -k templates_stop"),
    ("minillava/generate.py", "logits.isnan().any()", "False", "test_generate.py -k computes_nan"),
]


def main():
    wanted = sys.argv[1:]
    mutants = [m for m in MUTANTS if not wanted or m[0] in wanted]
    missing = [m for m in mutants if (ROOT / m[0]).read_text(encoding="utf-8").count(m[1]) != 1]
    for file, old, _, _ in missing:
        print(f"NOT FOUND, or not once: {old!r} in {file}; write this mutant anew")
    mutants = [m for m in mutants if m not in missing]

    lives = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        skip = shutil.ignore_patterns(".git", "runs", "build", "__pycache__", ".pytest_cache", "venv", ".venv")
        shutil.copytree(ROOT, copy, ignore=skip)

        whole = {tests for *_, tests in mutants}
        broken = {tests for tests in sorted(whole) if not passes(copy, tests)}
        for tests in sorted(broken):
            print(f"FAILS WITHOUT A MUTANT, or has no test: {tests}")

        for file, old, new, tests in [m for m in mutants if m[3] not in broken]:
            path = copy / file
            source = path.read_text(encoding="utf-8")
            path.write_text(source.replace(old, new), encoding="utf-8")
            alive = passes(copy, tests)
            path.write_text(source, encoding="utf-8")
            lives += alive
            verdict = "LIVES " if alive else "killed"
            print(f"{verdict} {file}: {old!r} -> {new!r} ({tests})", flush=True)

    print(f"{lives} of {len(mutants)} mutants live; {len(missing)} were not found, "
          f"{len(broken)} sets of tests fail without any")
    sys.exit(1 if lives or missing or broken else 0)


def passes(copy, tests):
    """Whether pytest ends well on these tests (a file and more words for pytest) of the copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *split(tests)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=copy, env=environment, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, timeout=600).returncode == 0


def split(tests):
    """test_data.py -k "one or two" -> three words."""
    file, _, rest = tests.partition(" -k ")
    return [f"tests/{file}", "-k", rest] if rest else [f"tests/{file}"]


if __name__ == "__main__":
    main()
