"""What is trained and how: a recipe is a published training, with a source for each figure."""
import math
import sys
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """All trainings use AdamW (beta1 0.9), no weight decay, cosine, and 3 % of warm-up."""

    stage: int                    # 1 trains the projector alone, 2 the language model too
    template: str                 # of conversation.TEMPLATES; "": the checkpoint's, and so aspect
    lr: float                     # at its peak
    batch: int                    # samples a step, over all GPUs and accumulation
    per_gpu: int                  # how many of these a GPU takes at a time, as published for A100s
    epochs: int
    projector: str                # "linear" or "mlp2x_gelu", of a new one
    aspect: str = "square"        # "pad": the whole picture, padded to a square
    image_size: int = 224
    max_length: int = 2048        # tokens, image included, where a sample is cut
    beta2: float = 0.999          # of AdamW: it remembers the size of some 1000 steps' gradients
    muon_lr: float | None = None  # of Muon over the blocks' matrices; None: AdamW for all
    grouped: bool = False         # batches of like length and of one modality
    checkpointing: bool = True    # activations are computed again, not kept
    max_grad_norm: float | None = None  # gradients are clipped to it; None: not, as by DeepSpeed
    loss_mean: str = "global"     # over all supervised tokens of a step; "official": loss_divisor
    prompt_format: str = "QCM-LEA"      # of ScienceQA
    feature_layer: int = -2       # of CLIP, whose output is read; -1: the last
    layers: int = 0               # the language model's first blocks that are kept; 0: all
    tower: bool = False           # CLIP is trained too
    tower_lr: float | None = None  # its own rate, with AdamW; None: as the language model
    lora: int = 0                 # rank; 0 trains the language model itself
    lora_alpha: float = 0.0       # see lora.py
    words: bool = False           # beside LoRA: embeddings and head are trained too, whole
    projector_lr: float | None = None   # the projector's own rate; None: lr
    min_steps: int = 0            # for data of any size: see fitted; 0: the recipe is as it stands
    fits: bool = True             # a small model takes a whole batch at once: see fitted
    width: int = 0                # of the model that lr was chosen for: see fitted; 0: lr as given
    samples: int = 0              # of the published data, for the plan
    mean: int = 0                 # tokens of one of them with its image, for the plan

    @property
    def rates(self):
        """As make_optimizers takes them."""
        return self.lr, self.muon_lr, self.projector_lr, self.tower_lr, self.beta2

    @property
    def result(self):
        """What a run leaves in its folder."""
        if self.stage == 1:
            return "mm_projector.bin"
        return "adapter" if self.lora else "llava"

    def loss_divisor(self, supervised, here, ranks, accumulate):
        """What a micro-batch's summed loss is divided by, before DDP takes the mean over ranks.

        supervised: tokens of the whole step; here: of this micro-batch. "official": the mean of the
        micro-batches' means, so that a token of a batch of short answers counts for more.
        """
        if self.loss_mean == "official":
            return max(here, 1) * accumulate
        return max(supervised, 1) / ranks

    def accumulation(self, ranks):
        """Micro-batches to a step on each rank."""
        accumulate, rest = divmod(self.batch, self.per_gpu * ranks)
        if rest or not accumulate:
            raise ValueError(f"a step takes {self.batch} samples, which {ranks} ranks x "
                             f"{self.per_gpu} do not divide; change --per-gpu or --batch")
        return accumulate


def fitted(recipe, samples, width, ranks):
    """A recipe for one's own data, fitted to how many samples there are and to the model's width.

    No step repeats a sample, and few samples are seen in more epochs. A narrower model learns at
    a higher rate, in inverse proportion to its width (Yang et al. 2022, table 8), needs no
    activation checkpointing, and the whole batch fits at once.
    """
    if not recipe.min_steps:
        return recipe
    narrow = width < 1024 and recipe.fits
    mine = max(1, min(recipe.batch, samples) // ranks)  # of a step's samples
    per_gpu = mine if narrow else min(recipe.per_gpu, mine)
    accumulate = mine // per_gpu
    batch = per_gpu * ranks * accumulate
    epochs = max(recipe.epochs, math.ceil(recipe.min_steps / math.ceil(samples / batch)))

    lr_scale = recipe.width / width if recipe.width else 1.0
    return replace(
        recipe, per_gpu=per_gpu, batch=batch, epochs=epochs, lr=recipe.lr * lr_scale,
        checkpointing=recipe.checkpointing and not narrow)


def warn_of_repeats(batch, samples):
    if batch > samples:
        print(f"warning: a step takes {batch} samples and there are {samples}, so each is in it "
              f"{batch / samples:.1f} times; --batch {samples} takes each once", file=sys.stderr)


def changed(recipe, **changes):
    """The recipe with what the command line asks for; None leaves a figure as it is."""
    return replace(recipe, **{name: x for name, x in changes.items() if x is not None})


# LLaVA, July 2023; scripts/pretrain.sh: CC3M-595K
V1_PRETRAIN = Recipe(
    stage=1, template="plain", lr=2e-3, batch=128, per_gpu=16, epochs=1, projector="linear",
    samples=595375, mean=280)

# the same; scripts/finetune_full_schedule.sh: LLaVA-Instruct-158K, DeepSpeed
V1_FINETUNE = Recipe(
    stage=2, template="vicuna_v1", lr=2e-5, batch=128, per_gpu=16, epochs=3, projector="linear",
    samples=157712, mean=620)

# the paper (April 2023), section 5: batch 32, FSDP at its gradient norm of 1, the template of v0
PAPER_FINETUNE = replace(V1_FINETUNE, template="llava_v0", batch=32, per_gpu=4, max_grad_norm=1.0)

# LLaVA, July 2023; scripts/finetune_sqa.sh: from stage 1 on, reasoning before the answer
V1_SCIENCEQA = replace(V1_FINETUNE, epochs=12, samples=12726, mean=450)

# the paper, section 5.2: as its fine-tuning, and lecture and solution on lines of their own
PAPER_SCIENCEQA = replace(
    PAPER_FINETUNE, epochs=12, prompt_format="QCM-LEPA", samples=12726, mean=450)

# LLaVA-1.5 (2023), table 9; scripts/v1_5/pretrain.sh: LCS-558K
V15_PRETRAIN = Recipe(
    stage=1, template="plain", lr=1e-3, batch=256, per_gpu=32, epochs=1, projector="mlp2x_gelu",
    image_size=336, samples=558128, mean=600)

# the same; scripts/v1_5/finetune.sh: the mix of 665K
V15_FINETUNE = Recipe(
    stage=2, template="vicuna_v1", lr=2e-5, batch=128, per_gpu=16, epochs=1, projector="mlp2x_gelu",
    aspect="pad", image_size=336, grouped=True, samples=665298, mean=900)

# the same; scripts/v1_5/finetune_task_lora.sh: from the whole LLaVA-1.5, on data of one's own
V15_TASK_LORA = replace(
    V15_FINETUNE, lr=2e-4, projector_lr=2e-5, lora=128, lora_alpha=256, samples=10000)

# for any LLaVA and one's own data, not published: finetune_task.sh and its LoRA, fitted to the data
OWN = Recipe(
    stage=2, template="", aspect="", lr=2e-5, batch=16, per_gpu=4, epochs=3, projector="",
    grouped=True, width=4096, min_steps=100, samples=1000, mean=700)
OWN_LORA = replace(OWN, lr=2e-4, lora=128, lora_alpha=256, width=0)

RECIPES = {
    "v1-pretrain": V1_PRETRAIN,
    "v1-finetune": V1_FINETUNE,
    "v1-finetune-paper": PAPER_FINETUNE,
    "v1-scienceqa": V1_SCIENCEQA,
    "v1-scienceqa-paper": PAPER_SCIENCEQA,
    "v1.5-pretrain": V15_PRETRAIN,
    "v1.5-finetune": V15_FINETUNE,
    "v1.5-task-lora": V15_TASK_LORA,
    "own": OWN,
    "own-lora": OWN_LORA,
}
