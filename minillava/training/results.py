"""What a run leaves: a projector after stage 1, an adapter after LoRA, else a whole LLaVA."""
import torch

from minillava.checkpoint import load_llava, save_llava
from minillava.conversation import IMAGE
from minillava.data import turns_of
from minillava.files import replace_file
from minillava.generate import generate
from minillava.images import load_image
from minillava.llava import Llava
from minillava.terminal import printable
from minillava.training.lora import adapter_of
from minillava.training.run_folder import measured
from minillava.weights.adapters import save_adapter
from minillava.weights.tensors import writing


def save(weights, model, tokenizer, recipe, base, path, tower=None):
    """weights: {name: tensor}, what was trained; base, tower: the folders an adapter belongs to."""
    if recipe.stage == 1:
        save_projector(weights, path)
    elif recipe.lora:
        tower = tower.resolve() if tower else ""
        adapter = adapter_of(weights, recipe.lora, recipe.lora_alpha, base, tower)
        # where words were trained, the tokenizer says which
        save_adapter(adapter, model.config, path, tokenizer if recipe.words else None)
    else:
        whole = whole_copy(model, weights)
        whole.drop_unused_blocks()
        save_llava(whole, tokenizer, path)


def save_projector(weights, path):
    """mm_projector.bin, as the official code names and fills it."""
    tensors = {f"model.{name}": tensor.cpu() for name, tensor in weights.items()}
    with writing(path):
        torch.save(tensors, path.with_suffix(".tmp"))
    replace_file(path.with_suffix(".tmp"), path)


def whole_copy(model, weights):
    """The model with these weights, in bf16 on the CPU; the one that is trained stays as it is."""
    with torch.device("meta"):
        whole = Llava(model.config)
    frozen = {name: p for name, p in model.named_parameters() if name not in weights}
    tensors = {name: p.detach().to("cpu", torch.bfloat16) for name, p in (frozen | weights).items()}
    tied = model.config.language_config.tie_word_embeddings
    whole.load_state_dict(tensors, assign=True, strict=not tied)
    if tied:
        whole.language_model.lm_head.weight = whole.language_model.embed_tokens.weight
    return whole


def show_answers(path, val, quantize=None, count=3):
    """Prints what the saved model says to samples kept apart: it opens, and has learned this.

    In 16 bits or fewer, as it will be chatted with: where it was trained there is room for that.
    """
    model, tokenizer = load_llava(path, dtype="fast", quantize=quantize)
    for index in range(min(count, len(val))):
        sample = val.sample(index)
        try:
            val.prepare(sample)
            (_, question), (_, answer), *_ = turns_of(sample)
            question = question.replace(IMAGE, "").strip()
            image = load_image(val.images / sample["image"]) if "image" in sample else None
            said = generate(model, tokenizer, [question], [image], 96)[0]
        except (OSError, ValueError):
            continue  # it was passed over in the measuring too, or leaves no room for an answer
        print(f"\n  {printable(sample.get('id'), keep='')}: {printable(question, keep='')}\n"
              f"  it says  {printable(said, keep='')}\n  right is {printable(answer, keep='')}")


def closing_words(recipe, samples, out, validation=None):
    """What was made, and what to type next."""
    rows = measured(out)
    curve = [row["loss"] for row in rows]
    result = out / recipe.result
    trained = "the projector" if recipe.stage == 1 else "projector and language model"
    if recipe.lora:
        trained = f"the projector and LoRA matrices of rank {recipe.lora}"
    lines = [f"\n{len(curve)} steps over {samples} samples taught {trained}, "
             f"loss {curve[0]:.3f} -> {curve[-1]:.3f}; the weights are {result}."]
    for count, what in (("bad", "passed over"), ("cut", f"cut after {recipe.max_length} tokens"),
                        ("ignored", "learned without their picture")):
        times = sum(row.get(count, 0) for row in rows)
        if times:
            lines.append(f"Samples {what}: {times}; --check-data names them.")

    if validation:
        lines.append(f"Of the samples kept apart the loss was {validation.losses[-1]:.3f} at the end and "
                     f"{validation.best:.3f} at its best, by the weights in {out / 'best'}.")
        if validation.best < validation.losses[-1]:
            result = out / "best"
    if recipe.stage == 1:
        lines.append(f"Stage 2 starts from it:\n    python train.py ... --init {out}")
    else:
        lines.append(f"Talk with it:\n    python chat.py --model {result}")
    return "\n".join(lines)
