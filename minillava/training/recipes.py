"""What is trained and how: a recipe is a published training, with a source for each figure."""
import sys
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """All trainings use AdamW (0.9, 0.999), no weight decay, cosine, and 3 % of warm-up."""

    stage: int                    # 1 trains the projector alone, 2 the language model too
    template: str                 # of conversation.TEMPLATES
    lr: float                     # at its peak
    batch: int                    # samples a step, over all GPUs and accumulation
    per_gpu: int                  # how many of these fit on an A100 of 80 GB at a time
    epochs: int
    projector: str                # "linear" or "mlp2x_gelu"
    aspect: str = "square"        # "pad": the whole picture, padded to a square
    image_size: int = 224
    max_length: int = 2048        # tokens, image included, where a sample is cut
    muon_lr: float | None = None  # of Muon over the blocks' matrices; None: AdamW for all
    grouped: bool = False         # batches of like length and of one modality
    checkpointing: bool = True    # activations are computed again, not kept
    max_grad_norm: float | None = None  # gradients are scaled down to it; None: DeepSpeed, which does not
    loss_mean: str = "global"     # over all supervised tokens of a step; or "official": see share_of
    prompt_format: str = "QCM-LEA"      # of ScienceQA
    samples: int = 0              # of the published data, for the plan
    mean: int = 0                 # tokens of one of them with its image, for the plan

    @property
    def result(self):
        """What a run leaves in its folder."""
        return "mm_projector.bin" if self.stage == 1 else "llava"

    def share_of(self, supervised, here, ranks, accumulate):
        """What a micro-batch's summed loss is divided by, before DDP and FSDP2 take the ranks' mean.

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

RECIPES = {
    "v1-pretrain": V1_PRETRAIN,
    "v1-finetune": V1_FINETUNE,
    "v1-finetune-paper": PAPER_FINETUNE,
    "v1-scienceqa": V1_SCIENCEQA,
    "v1-scienceqa-paper": PAPER_SCIENCEQA,
    "v1.5-pretrain": V15_PRETRAIN,
    "v1.5-finetune": V15_FINETUNE,
}
