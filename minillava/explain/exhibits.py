"""What hangs beside each bug in the museum: what it is called, who met it, what became of it here."""
from dataclasses import dataclass
from typing import Callable

from minillava.explain import bugs

GITHUB = "https://github.com"


@dataclass(frozen=True)
class Exhibit:
    title: str
    bug: Callable   # of bugs.py: the context manager
    trained: bool   # whether stage 2 runs with the bug; else the shipped miniature is only asked
    thread: str     # where people met it
    story: str      # what they saw
    sign: str       # what gives it away
    here: str       # what makes it impossible in this code base, or loud


EXHIBITS = {
    "not-loaded": Exhibit(
        "Weights silently not loaded", bugs.weights_not_loaded, True,
        f"{GITHUB}/jingyaogong/minimind-v/issues/75",
        "The loss stays at 7.5, whatever is loaded. load_state_dict(strict=False) had loaded nothing, "
        "since no name in the file was one of the model's.",
        "The loss begins near ln V, that of a model which knows no word, and far above the healthy one.",
        "weights/filling.py is strict: a tensor that is missing, left over or of another shape is an "
        "error with its name, and no caller can ask for less."),
    "all-masked": Exhibit(
        "Every label masked by a tokenization mismatch", bugs.every_label_masked, True,
        f"{GITHUB}/haotian-liu/LLaVA/issues/779 (also 661, 1166)",
        "'WARNING: tokenization mismatch: 1 vs. 165. (ignored)', and the loss is 0. Boundaries were found "
        "by tokenizing the parts again; where the sum of their lengths differs, the sample is masked whole.",
        "A loss of exactly 0 from the first step. The answers are those of stage 1.",
        "conversation.py builds ids and labels in one pass, and searches for no boundary. "
        "train.py --check-data shows in colour what is learned."),
    "not-shifted": Exhibit(
        "Labels not shifted", bugs.labels_not_shifted, True,
        f"{GITHUB}/KempnerInstitute/KempnerForge/issues/154",
        "'VLM captioning loss collapses to 0': each position was scored against the token that it reads, "
        "so the model learned to copy it.",
        "The loss falls faster than language can be learned, and the answer repeats one word.",
        "The shift is written once, in Llava.forward, beside an example; a test counts who predicts what."),
    "shifted-twice": Exhibit(
        "Labels shifted twice", bugs.labels_shifted_twice, True,
        f"{GITHUB}/InternLM/InternLM/issues/318 (and huggingface/transformers pull 44642)",
        "The data set shifts the labels, and the model shifts them again: next-next-token prediction. "
        "It 'has tripped up a lot of users', says the pull request.",
        "The loss falls, but less far; every second word of an answer is missing.",
        "render() gives each label where its id stands, and says so; nothing but the model shifts."),
    "prompt-trained": Exhibit(
        "The prompt is trained too", bugs.prompt_trained, True,
        f"{GITHUB}/karpathy/nanochat/pull/582 (and NielsRogge/Transformers-Tutorials 456)",
        "labels = input_ids.clone(). nanochat lost its mask in a rewrite: all still trained, a tenth of "
        "the score was gone.",
        "The loss soon looks better than the healthy one: most of what it counts is the system text, "
        "the same in every sample.",
        "Every piece of a template says of itself whether it is learned; the tests hold ids and labels to "
        "those of the official code."),
    "no-stage-1": Exhibit(
        "Stage 1 skipped", bugs.no_stage_1, True,
        f"{GITHUB}/haotian-liu/LLaVA/issues/773 (and table 8 of the paper: 85.81 for 90.92)",
        "What is --pretrain_mm_mlp_adapter for? Without it the projector is new, and nothing says so.",
        "The loss looks nearly healthy: the text alone can be guessed that far. The score is hardly above "
        "that without a picture.",
        "Where --init is left out, train.py asks for it or names the new projector in its plan (--print); "
        "the held-out table has a column without a picture."),
    "row-short": Exhibit(
        "An image token count off by one row", bugs.one_row_of_patches_short, True,
        f"{GITHUB}/huggingface/transformers/pull/33608 (and unslothai/unsloth 3783: 575 for 576)",
        "The processor counted other patches than the tower makes. masked_scatter takes what fits, and "
        "raises on a GPU only if there are too few.",
        "Alone, a question is answered; within a batch, each gets a piece of another one's picture.",
        "An image has config.image_tokens places, counted from the tower's own size, and "
        "Llava.check_images refuses any other number."),
    "wrong-template": Exhibit(
        "The wrong template at evaluation", bugs.wrong_template, False,
        f"{GITHUB}/haotian-liu/LLaVA/issues/355 (and 207)",
        "Trained with one conversation template, evaluated with another, as the name of a folder or a "
        "default had it.",
        "Answers ramble on, or have another form: the end is not where it was learned.",
        "The template is saved beside the weights (minillava.json), and evaluation reads it there."),
    "wrong-mean": Exhibit(
        "Pixels scaled by the wrong mean", bugs.wrong_mean, False,
        f"{GITHUB}/apple/coreai-models/issues/82 (and mlfoundations/open_clip 204)",
        "One tower wants CLIP's mean and deviation, the other 0.5 and 0.5. Both run.",
        "A little worse at everything that is seen, and nothing else.",
        "Mean and deviation are read from the checkpoint's preprocessor_config.json, and saved with it."),
    "bgr": Exhibit(
        "Blue for red", bugs.blue_for_red, False,
        f"{GITHUB}/Geekgineer/YOLOs-CPP/pull/122",
        "OpenCV reads pictures as BGR, and everything else wants RGB.",
        "Shapes, places and numbers are right; red things are said to be blue.",
        "Pictures come in through images.load_image alone, which ends with convert('RGB')."),
    "rope": Exhibit(
        "RoPE pairs interleaved", bugs.rope_interleaved, False,
        f"{GITHUB}/jzhang38/TinyLlama/issues/24 (and huggingface/transformers 25199)",
        "Meta's files turn channels 2i and 2i + 1 together, Hugging Face's i and i + C/2. All shapes fit "
        "either way.",
        "Words without a sentence: what stands next to what is lost.",
        "One layout is read, Hugging Face's, and tests/test_parity.py holds the logits to transformers'."),
    "other-projector": Exhibit(
        "The projector of another base", bugs.projector_of_another_base, False,
        f"{GITHUB}/haotian-liu/LLaVA/issues/272 (and 255)",
        "'You are using Vicuna v1.3, while the pretrained projector was trained based on Vicuna v1.1.' "
        "Of one width, all of them load.",
        "Good sentences about a picture that is not there: the score is that without a picture.",
        "A whole LLaVA is one folder, with its projector in it. For parts that are put together by hand "
        "nothing can tell: compare with the score without a picture."),
}
