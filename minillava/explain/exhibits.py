"""What hangs beside each bug in the museum: its name, who met it, what became of it here."""
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
    # ---- what is learned: labels ----
    "all-masked": Exhibit(
        "Every label masked by a tokenization mismatch", bugs.every_label_masked, True,
        f"{GITHUB}/haotian-liu/LLaVA/issues/779 (and 661, 1166)",
        "'WARNING: tokenization mismatch: 1 vs. 165. (ignored)', and the loss is 0. Boundaries "
        "were found by tokenizing the parts again; where lengths differ, a sample is masked whole.",
        "A loss of exactly 0 from the first step. The answers are those of the model as it came.",
        "conversation.py builds ids and labels in one pass, and searches for no boundary. "
        "train.py --check-data shows in colour what is learned."),
    "not-shifted": Exhibit(
        "Labels not shifted", bugs.labels_not_shifted, True,
        f"{GITHUB}/KempnerInstitute/KempnerForge/issues/154",
        "'VLM captioning loss collapses to 0': each position was scored against the token that it "
        "reads itself, so the model learned to copy.",
        "The loss begins far above the healthy one and falls without end; answers repeat a word.",
        "The shift is written once, in Llava.forward, beside an example of five tokens."),
    "shifted-twice": Exhibit(
        "Labels shifted twice", bugs.labels_shifted_twice, True,
        f"{GITHUB}/InternLM/InternLM/issues/318 (and huggingface/transformers/pull/44642)",
        "The data set shifts the labels, and the model shifts them again: next-next-token "
        "prediction. It 'has tripped up a lot of users', says the pull request.",
        "The loss begins far above the healthy one; the answers leave out words.",
        "render() puts each label where its id stands, and says so; the model alone shifts."),
    "prompt-trained": Exhibit(
        "The prompt is trained too", bugs.prompt_trained, True,
        f"{GITHUB}/karpathy/nanochat/pull/582 (and NielsRogge/Transformers-Tutorials/issues/456)",
        "labels = input_ids.clone(). nanochat lost its mask in a rewrite: it trained on as before, "
        "and scored 0.315 for 0.355.",
        "The loss is that of another text: mostly of system text and questions.",
        "Each piece of a template says of itself whether it is learned, and the tests hold ids and "
        "labels to those of the official code."),
    # ---- what it starts from: weights ----
    "not-loaded": Exhibit(
        "Weights silently not loaded", bugs.weights_not_loaded, True,
        f"{GITHUB}/jingyaogong/minimind-v/issues/75",
        "The loss stays at 7.5, whatever is loaded: no name in the file was one of the model's, "
        "and load_state_dict(strict=False) says nothing about that.",
        "The loss begins where a model begins that knows no word, at ln V or above.",
        "weights/filling.py is strict: a tensor that is missing, left over or of another shape is "
        "an error that names it, and no caller can ask for less."),
    "no-stage-1": Exhibit(
        "Stage 1 skipped", bugs.no_stage_1, True,
        f"{GITHUB}/haotian-liu/LLaVA/issues/773 (and table 8 of the paper: 85.81 for 90.92)",
        "What is --pretrain_mm_mlp_adapter for, the thread asks. Without it the projector is a new "
        "one, and the training runs as well.",
        "The loss looks nearly healthy, since text alone can be guessed that far; the score is "
        "not far from that without a picture.",
        "train.py --print names what is read, --init None among it, and the held-out table has a "
        "column without a picture."),
    "other-projector": Exhibit(
        "The projector of another base", bugs.projector_of_another_base, False,
        f"{GITHUB}/haotian-liu/LLaVA/issues/272 (and 255)",
        "'You are using Vicuna v1.3 model weights, while the pretrained projector was trained "
        "based on Vicuna v1.1.' The widths are the same, so it loads.",
        "It says that it sees no image, or tells of one that is not there: the score is that "
        "without a picture.",
        "A whole LLaVA is one folder with its projector in it. Of parts put together by hand "
        "nothing can tell: compare with the score without a picture."),
    # ---- what the model is given to see ----
    "row-short": Exhibit(
        "An image token count off by one row", bugs.one_row_of_patches_short, True,
        f"{GITHUB}/huggingface/transformers/pull/33608 (and unslothai/unsloth/issues/3783)",
        "'Image features and image tokens do not match: tokens: 575': what writes the prompt "
        "counts otherwise than the tower. Before that check, masked_scatter took what fitted.",
        "The loss looks healthy. The first question of a batch is answered, those after it from "
        "parts of other pictures: the score depends on the batch size.",
        "An image has config.image_tokens places, counted from the tower's own size, and "
        "Llava.check_images refuses any other number."),
    "wrong-mean": Exhibit(
        "Pixels scaled by the wrong mean", bugs.wrong_mean, False,
        f"{GITHUB}/apple/coreai-models/pull/105 (and mlfoundations/open_clip/issues/204)",
        "One tower wants CLIP's mean and deviation, another 0.5 and 0.5, and each runs with both. "
        "With the right one the model 'identifies background colors more correctly'.",
        "Some answers are wrong, and few are strange: nothing that a look at ten answers finds.",
        "Mean and deviation are read from the checkpoint's own preprocessor_config.json, and saved "
        "with it."),
    "bgr": Exhibit(
        "Blue for red", bugs.blue_for_red, False,
        f"{GITHUB}/Geekgineer/YOLOs-CPP/pull/122",
        "OpenCV reads pictures as BGR, and the models were trained on RGB.",
        "Red is called blue and blue red, green stays green; mostly the miniature says that this "
        "is no picture of its world.",
        "Pictures come in by images.load_image alone, and preprocess() makes them RGB once more."),
    # ---- how it is asked, and how it computes ----
    "wrong-template": Exhibit(
        "The wrong template at evaluation", bugs.wrong_template, False,
        f"{GITHUB}/haotian-liu/LLaVA/issues/355 (and 207)",
        "Trained with one conversation template and evaluated with another, as a default or the "
        "name of a folder had it.",
        "Half an answer, or one that runs on without an end, though the model has the picture.",
        "The template is saved beside the weights (minillava.json), and is read there."),
    "rope": Exhibit(
        "RoPE pairs interleaved", bugs.rope_interleaved, False,
        f"{GITHUB}/jzhang38/TinyLlama/issues/24 (and huggingface/transformers/issues/25199)",
        "'Getting gibberish output': Meta's files turn channel 2i with 2i + 1, Hugging Face's i "
        "with i + C/2, and the shapes fit either way.",
        "Pieces of sentences: the model knows the words, and has lost which stands where.",
        "One layout is read, Hugging Face's, and tests/test_parity.py holds the logits to those of "
        "transformers."),
}
