"""The rows of the papers' studies, and the trainings of the miniature that answer them.

LLaVA: table 8 (ScienceQA) and table 4 (LLaVA-Bench, COCO). LLaVA-1.5: table 2 (MME). All is data:
who carries it out is ablation_runs.py, who judges it verdict.py.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """One training; what is not said is as in the baseline."""

    flags: tuple = ()              # of train.py, in both stages
    finetune_flags: tuple = ()     # in stage 2 alone
    pretrained: bool = True        # stage 1 comes first
    finetuned: bool = True         # stage 2 comes at all
    data: str = "full"             # of stage 2: a key of MIXES, or see training_samples
    pictures: str = "train"        # "train-half": the same ones of half the side
    both_forms: bool = False       # asked for sentences and for words in the end


@dataclass(frozen=True)
class Row:
    """One question of the papers: the first of its runs is the one that they prefer."""

    title: str
    runs: tuple
    paper: tuple                   # a figure for each run; None: the paper gives none
    measure: str                   # of these figures
    differs: str                   # why a miniature may come out otherwise
    score: str = "right"           # or "judged"


# samples of each kind for each scene, in the proportions of LLaVA-Instruct-158K: 58, 23 and 77
MIXES = {
    "full": {"conversation": 0.75, "detail": 0.3, "reasoning": 1.0},
    "detail and reasoning": {"detail": 0.3, "reasoning": 1.0},
    "conversation and a little": {"conversation": 0.75, "detail": 0.015, "reasoning": 0.1},
    "conversation alone": {"conversation": 0.75},
}

RUNS = {
    "baseline": Run(),
    "last layer": Run(flags=("--feature-layer", "-1")),
    "no stage 1": Run(pretrained=False),
    "half the decoder": Run(flags=("--layers", "2")),
    "detail and reasoning": Run(data="detail and reasoning"),
    "conversation and a little": Run(data="conversation and a little"),
    "conversation alone": Run(data="conversation alone"),
    "no instruction tuning": Run(finetuned=False),
    "linear projector": Run(flags=("--projector", "linear")),
    "half the pixels": Run(pictures="train-half"),
    "with the wish": Run(data="with the wish", both_forms=True),
    "without the wish": Run(data="without the wish", both_forms=True),
    "tower trained": Run(finetune_flags=("--tower",)),
    "careless teacher": Run(data="careless"),
    "reasoning first": Run(data="ScienceQA"),
    "answer first": Run(data="ScienceQA", finetune_flags=("--answer-first",)),
}

SCIENCEQA, MME = "ScienceQA, %", "MME"
ROWS = {
    "layer": Row(
        "Features before the last layer, or of the last", ("baseline", "last layer"),
        (90.92, 89.96), SCIENCEQA,
        "The toy CLIP has 4 blocks, not 24, and learned by a loss on its patches too (FILIP): its "
        "last block was taught to keep what each patch shows."),
    "stage-1": Row(
        "With stage 1, or without", ("baseline", "no stage 1"), (90.92, 85.81), SCIENCEQA,
        "Every weight of the toy decoder is trained at a high rate by Muon, so it can align the "
        "two alphabets during stage 2; a Vicuna at 2e-5 has less room for that."),
    "decoder": Row(
        "The whole decoder, or half of it (13B, or 7B)", ("baseline", "half the decoder"),
        (90.92, 89.84), SCIENCEQA,
        "The small one is the first two of the toy Vicuna's four blocks, not a model that was "
        "pretrained at that size, and with few scenes the large one has no use for its depth."),
    "data": Row(
        "The instruction data",
        ("baseline", "detail and reasoning", "conversation and a little", "conversation alone",
         "no instruction tuning"),
        (85.1, 81.9, 80.5, 73.8, 21.5), "LLaVA-Bench (COCO), relative to GPT-4's own, %",
        "The toy Vicuna was pretrained on the toy teacher's own sentences, so it has something to "
        "say before any instruction tuning; and the mixes differ in size too, as in the paper.",
        score="judged"),
    "projector": Row(
        "A projector of two layers, or of one", ("baseline", "linear projector"),
        (1355.2, 1323.8), MME,
        "Its features are 96 wide and go into a decoder 128 wide that is trained as well: a "
        "matrix is nearly enough."),
    "pixels": Row(
        "The whole resolution, or less (336 px, or 224)", ("baseline", "half the pixels"),
        (1450.0, 1426.5), MME,
        "The picture is shrunk to half and drawn large again, so the number of image tokens stays; "
        "LLaVA-1.5 has 576 of them instead of 256 besides."),
    "format": Row(
        "The wish for a short answer, or none", ("with the wish", "without the wish"),
        (1323.8, 1197.0), MME,
        "Half of these questions want a word and half a sentence, and without the wish nothing "
        "tells which: at most half can be right; MME wants words alone."),
    "tower": Row(
        "The vision tower frozen, or trained in stage 2", ("baseline", "tower trained"),
        (None, None), "keeps it frozen, without a figure",
        "Stage 2 trains the tower by Muon at the decoder's high rate, for a few hundred steps: "
        "much of what it knew can go before anything better comes."),
    "teacher": Row(
        "A careful teacher, or one who errs in a fact of ten", ("baseline", "careless teacher"),
        (None, None), "GPT-4 better than ChatGPT, without a figure",
        "The errors here fall evenly and contradict each other, so much of them averages out; "
        "ChatGPT's have a system, and its data differs in more than errors."),
    "reasoning": Row(
        "Reasoning before the answer, or after it", ("reasoning first", "answer first"),
        (90.92, 89.77), SCIENCEQA,
        "The toy decoder cannot count in its head: the solution, written first, is its only way to "
        "do sums; Vicuna often knows the answer at once."),
}
