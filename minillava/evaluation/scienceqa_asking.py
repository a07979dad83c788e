"""ScienceQA's questions are put to a model: with which settings, in one pass or in two."""
import dataclasses

from minillava.evaluation import scienceqa
from minillava.evaluation.answers import fingerprint
from minillava.generate import generate
from minillava.images import load_image
from minillava.terminal import printable


def settings_of(model, prompt_format, template, option_letter, use_caption, max_new_tokens,
                batch):
    """{name: value} of all that decides the answers; prints each with where it comes from.

    A template that is asked for takes the place of the checkpoint's own in model.config.
    """
    own = model.config
    format_origin = template_origin = "the checkpoint's"
    if prompt_format:
        format_origin = f"--prompt-format; the checkpoint says {own.prompt_format or 'nothing'}"
    elif not own.prompt_format:
        prompt_format, option_letter = scienceqa.ZERO_SHOT, True
        format_origin = ("the checkpoint says nothing: as LLaVA-1.5, which was not trained for "
                         "ScienceQA, is evaluated")
    if template:
        template_origin = f"--template; the checkpoint says {own.template}"
        model.config = dataclasses.replace(own, template=template)

    dtype = model.language_model.embed_tokens.weight.dtype
    settings = {  # name: (value, where it comes from)
        "prompt_format": (prompt_format or own.prompt_format, format_origin),
        "option_letter": (option_letter, "--option-letter, or as the format"),
        "use_caption": (use_caption, "--use-caption"),
        "template": (model.config.template, template_origin),
        "image_size": (own.vision_config.image_size, "the checkpoint's"),
        "image_aspect_ratio": (own.image_aspect_ratio, "the checkpoint's"),
        "max_new_tokens": (max_new_tokens, "--max-new-tokens"),
        "batch": (batch, "--batch"),
        "dtype": (str(dtype).removeprefix("torch."), "--dtype, or the checkpoint's"),
        "fingerprint": (fingerprint(model), "the checkpoint's"),
    }
    for name, (value, origin) in settings.items():
        print(printable(f"  {name:20}{value!s:12}  {origin}", keep=""))
    return {name: value for name, (value, _) in settings.items()}


def make_questions(data, split, settings, text_only):
    samples = scienceqa.convert(data, split, settings["prompt_format"], settings["use_caption"],
                                text_only)
    images = scienceqa.image_folder(data, split)
    scienceqa.check_images(samples, images)
    return scienceqa.questions(samples, images, settings["option_letter"])


def answering(model, tokenizer, settings):
    """-> a function from a batch of questions to their texts, greedy, in one pass or in two."""
    two_passes = settings["prompt_format"].endswith("LEPA")
    ask_model = answer_in_two_passes if two_passes else generate

    def answer(asked):
        prompts = [question["prompt"] for question in asked]
        images = [question["image"] and load_image(question["image"]) for question in asked]
        return ask_model(model, tokenizer, prompts, images, settings["max_new_tokens"])

    return answer


def answer_in_two_passes(model, tokenizer, prompts, images, max_new_tokens):
    """The first LLaVA was asked to reason and then, after its own reasoning, for the letter.

    (The official code joins its reasoning to "Assistant:" without the space that the model itself
    writes there.)
    """
    texts = generate(model, tokenizer, prompts, images, max_new_tokens)
    reasoning = [text.split("###")[0].strip() for text in texts]
    prefixes = [f"{text} ###\nANSWER:" for text in reasoning]
    letters = generate(model, tokenizer, prompts, images, 64, answer_prefix=prefixes)
    return [f"{text}\n The answer is {letter.split('###')[0].strip()}"
            for text, letter in zip(reasoning, letters)]
