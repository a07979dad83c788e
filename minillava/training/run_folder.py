"""A run is a folder: what was asked for, and what was measured at every step."""
import json
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from minillava.files import read_json, read_object, read_whole_lines, write, write_jsonl
from minillava.training import distributed
from minillava.training.recipes import Recipe
from minillava.weights.folders import refuse_to_lose
from minillava.weights.tensors import has_weights

try:
    import fcntl
except ImportError:
    fcntl = None  # Windows has none


@dataclass(frozen=True)
class Sources:
    """Where a run begins: folders and files, or None."""

    vision: Path | None = None    # a CLIP
    language: Path | None = None  # a Vicuna, any Llama
    init: Path | None = None      # a run of stage 1, a whole LLaVA or an adapter
    data: Path | None = None      # LLaVA-JSON, a folder with metadata, or ScienceQA's folder
    images: Path | None = None    # the folder of its images
    answer_first: bool = False    # ScienceQA: answer, then reason
    text_only: bool = False       # ScienceQA: without the questions that have an image
    val: str | None = None        # kept apart: a file or folder, or a share of the data
    replay: float = 0.0           # share of old data that is mixed in
    replay_data: Path | None = None
    replay_images: Path | None = None
    quantize: str | None = None   # the frozen base below a LoRA: "int8" or "int4"
    template: str | None = None   # in place of the recipe's or the checkpoint's, as aspect
    aspect: str | None = None
    new_words: tuple | None = None  # (word, words that it is like), for each

    @property
    def starts_whole(self):
        """Whether `init` is a LLaVA, its run or an adapter; else it is a stage 1, or nothing.

        A stage 1 has a projector and no model; the official layout of a whole LLaVA has both.
        """
        if self.init is None:
            return False
        return not (self.init / "mm_projector.bin").exists() or has_weights(self.init)

    @property
    def whole_folder(self):
        """The folder of that LLaVA or adapter; a run has it within."""
        for name in ("llava", "adapter"):
            if (self.init / name).exists():
                return self.init / name
        return self.init


@dataclass(frozen=True)
class Setup:
    """Where a run goes, and how it is carried out."""

    out: Path
    resume: bool = False
    seed: int = 0
    dtype: str = "auto"      # to compute in, see training_dtype; trained weights are fp32
    shard: bool = False      # FSDP2, else DDP
    workers: int = 0         # processes that load data
    save_every: int = 500    # steps
    keep: int = 2            # checkpoints
    eval_every: int = 50     # steps from one look at the samples kept apart to the next
    patience: int | None = None  # looks without a better loss after which a run ends


# in a folder of data: the files that say what its samples are
TABLES = ("metadata.jsonl", "metadata.csv", "problems.json", "pid_splits.json")
# how a step fits into memory, which --resume may change, for it is not what is in the step
FREE = {"per_gpu", "fits", "checkpointing"}
DEFAULTS = {field.name: field.default for kind in (Recipe, Sources, Setup)
            for field in fields(kind)}


def carried_config(config, recipe, sources):
    """The model's config with what it is trained with, which travels with the weights.

    A whole LLaVA keeps what its own training had, unless the command line says otherwise.
    """
    template = sources.template
    aspect = sources.aspect
    feature_layer = config.vision_feature_layer
    if not sources.starts_whole:
        feature_layer = recipe.feature_layer
        aspect = aspect or recipe.aspect
        if recipe.stage == 2:  # stage 1's is for captions alone
            template = template or recipe.template
    blocks = config.vision_config.num_hidden_layers
    if not -blocks - 1 <= feature_layer <= blocks:
        raise ValueError(f"--feature-layer {feature_layer}: CLIP has {blocks} blocks")
    return replace(config, template=template or config.template,
                   vision_feature_layer=feature_layer,
                   image_aspect_ratio=aspect or config.image_aspect_ratio)


def asked_for(recipe, sources, setup):
    """What config.json says of a run, and what --resume must not change."""
    settings = asdict(sources) | {"seed": setup.seed, "dtype": setup.dtype,
                                  "data_bytes": data_bytes(sources.data)}
    asked = {"recipe": asdict(recipe), "settings": settings}
    return json.loads(json.dumps(asked, default=str))  # as the file will have it


def data_bytes(data):
    """Of the samples' file or folder, so that --resume notices others; no pictures are counted."""
    files = [data] if data.is_file() else [data / name for name in TABLES]
    return sum(file.stat().st_size for file in files if file.exists())


def enter(setup, asked):
    """config.json of a new run; one that goes on keeps its own, ValueError where it was another."""
    config = setup.out / "config.json"
    if not measured(setup.out):
        if distributed.leads():
            begun = {"command": shlex.join(sys.argv), "git": git_state(), **asked}
            write(config, json.dumps(begun, indent=1))
        return

    if not setup.resume:
        raise already_there(setup.out)
    before = read_object(config)
    changes = []
    for part, values in asked.items():
        for name, value in values.items():
            # a run from before there was such a setting had its default, or the same
            was = before.get(part, {}).get(name, DEFAULTS.get(name, value))
            if was != value and name not in FREE:
                changes.append(f"{name} {was} to {value}")
    if changes:
        raise ValueError(f"the run in {setup.out} was begun otherwise, "
                         f"--resume cannot change {'; '.join(changes)}")


def lock(out):
    """-> a file that, while it is open, keeps others out of `out`; ValueError where one is in it.

    However this process ends, the lock ends with it. Nothing else here may open .lock: the lock would
    end as soon as that is closed.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = open(out / ".lock", "wb")
    try:
        if fcntl:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ValueError(f"another process is training in {out}: wait for its end, "
                         "or name another folder with --out") from None
    except OSError:
        pass  # a file system without locks
    return file


def refuse_overwriting(sources, out):
    """ValueError if a new run would write over what it reads, or over what no run has written."""
    if measured(out):
        return  # `enter` has the say
    refuse_to_lose(out, sources.init, sources.vision, sources.language, sources.data,
                   sources.val)
    there = [out / name for name in written_by(sources) if (out / name).exists()]
    if there and "recipe" not in read_json(out / "config.json"):
        raise ValueError(f"a run would write over {there[0]}, which no run has written: "
                         "name another folder with --out")


def written_by(sources):
    """What a run leaves in its folder, beside its checkpoints."""
    names = ["config.json", "metrics.jsonl", "loss.png", "mm_projector.bin", "llava", "adapter",
             "best"]
    if sources.data and sources.data.suffix != ".json":  # a folder, or JSON lines
        names += ["samples.json", "scienceqa.json"]
    if sources.val:
        names += ["train.json", "val.json"]
    if sources.replay:
        names.append("replay.json")
    return names


def already_there(out):
    return ValueError(f"{out} holds a run already; go on with it by --resume, "
                      f"or name another folder with --out")


def git_state():
    """The commit this runs from, with "+" if files have changed; None outside a repository."""
    command = "git describe --always --abbrev=40 --exclude=* --dirty=+"
    try:
        done = subprocess.run(command.split(), cwd=Path(__file__).parent,
                              capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def measured(out):
    """The rows of metrics.jsonl, but for a last one that a killed run left half written."""
    return read_whole_lines(out / "metrics.jsonl")


def losses(out):
    return [row["loss"] for row in measured(out)]


def val_losses(out):
    """[(step, loss)] of the samples kept apart."""
    return [(row["step"], row["val_loss"]) for row in measured(out) if "val_loss" in row]


def rewind(out, step):
    """Forgets what was measured from `step` on: it will be done again."""
    rows = [row for row in measured(out) if row["step"] < step]
    write_jsonl(out / "metrics.jsonl", rows)
