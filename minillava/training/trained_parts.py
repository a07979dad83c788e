"""What of a model a recipe trains: section 4.2, and what its ablations change there."""
from dataclasses import replace

from minillava.linear import QuantizedLinear
from minillava.training.lora import add_lora


def choose_trained(model, recipe):
    """Cuts the model to the recipe's depth, and freezes what this stage does not train."""
    if recipe.layers:
        keep_lower_blocks(model, recipe.layers)
    model.freeze_for(recipe.stage)
    if recipe.lora:
        add_lora(model, recipe.lora, recipe.lora_alpha, recipe.words)
    if recipe.tower:
        train_tower(model)


def refuse_few_bits(model, recipe, base):
    """ValueError where weights of 8 or 4 bits would have to learn: they have no gradient."""
    learns = recipe.stage == 2 and (not recipe.lora or recipe.words)
    if learns and any(isinstance(layer, QuantizedLinear) for layer in model.modules()):
        raise ValueError(f"{base} is quantised, and such weights stay frozen: give --lora RANK "
                         "with it and neither --words nor --new-word, or the plain folder")


def keep_lower_blocks(model, count):
    """The first `count` blocks of the language model stay: a smaller decoder of the same words."""
    config = model.config.language_config
    if count > config.num_hidden_layers:
        raise ValueError(f"--layers {count}: the language model has {config.num_hidden_layers}")
    del model.language_model.layers[count:]
    config = replace(config, num_hidden_layers=count)
    model.language_model.config = config
    model.config = replace(model.config, language_config=config)


def train_tower(model):
    """Every weight of the vision tower that has a part in the features."""
    model.vision_tower.requires_grad_(True)
    model.vision_tower.post_layernorm.requires_grad_(False)
    for block in model.vision_tower.encoder.layers[model.used_blocks :]:
        block.requires_grad_(False)
    model.trains_tower = True
