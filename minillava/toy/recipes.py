"""The miniature's two stages, its ScienceQA and one's own pictures, measured on two cores."""
from dataclasses import replace

from minillava.training.recipes import Recipe

TOY_PRETRAIN = Recipe(
    stage=1, template="plain", lr=2e-3, batch=32, per_gpu=32, epochs=5, projector="mlp2x_gelu",
    image_size=96, max_length=1024, grouped=True, checkpointing=False, samples=5760, mean=60)

# Muon reaches the loss of AdamW in a third of the steps
TOY_FINETUNE = replace(
    TOY_PRETRAIN, stage=2, template="vicuna_v1", lr=1e-3, muon_lr=0.007, batch=16, per_gpu=16,
    epochs=1, samples=12048, mean=170)

TOY_SCIENCEQA = replace(TOY_FINETUNE, batch=32, per_gpu=32, samples=48000, mean=150)

# one's own pictures: what the miniature must learn to say it mostly has never said; in runs of some
# hundred steps its first gradients, which are large, shall not make all that follow small
TOY_OWN = replace(
    TOY_FINETUNE, template="", aspect="", muon_lr=0.002, beta2=0.95, batch=8, per_gpu=8, epochs=4,
    min_steps=300, samples=900, mean=150)
TOY_OWN_LORA = replace(TOY_OWN, lora=32, lora_alpha=64, words=True)

TOY_RECIPES = {
    "toy-pretrain": TOY_PRETRAIN,
    "toy-finetune": TOY_FINETUNE,
    "toy-scienceqa": TOY_SCIENCEQA,
    "toy-own": TOY_OWN,
    "toy-own-lora": TOY_OWN_LORA,
}
