"""The same work in transformers, for `bench` to compare with, where it is installed."""
import importlib
import importlib.util
import tempfile
import time

import torch

from minillava.checkpoint import TOY, save_llava
from minillava.llava import IMAGE_TOKEN
from minillava.tokenizer import Tokenizer


def has_transformers():
    return importlib.util.find_spec("transformers") is not None


def open_in_transformers(folder, dtype, device):
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    cls = transformers.LlavaForConditionalGeneration
    return cls.from_pretrained(folder, dtype=dtype).to(device).eval()


class Clock:
    """A streamer for their generate: notes when each token comes, and the prompt before them."""

    def __init__(self):
        self.times = []

    def put(self, tokens):
        self.times.append(time.perf_counter())

    def end(self):
        pass


def their_steps(theirs, ids, pixels, answer):
    """{step: function}, on the same prompt, which `answer` tokens follow."""
    ids = ids.masked_fill(ids == IMAGE_TOKEN, theirs.config.image_token_index)
    pixels = pixels.to(theirs.dtype)
    mask = torch.ones_like(ids)

    def decode():
        clock = Clock()
        theirs.generate(input_ids=ids, pixel_values=pixels, attention_mask=mask, streamer=clock,
                        min_new_tokens=answer + 1, max_new_tokens=answer + 1, do_sample=False)
        return (clock.times[-1] - clock.times[1]) / answer

    return {
        "ViT": lambda: theirs.get_image_features(pixel_values=pixels),
        "prefill": lambda: theirs(input_ids=ids, pixel_values=pixels, attention_mask=mask,
                                  logits_to_keep=1),
        "decode": decode,
    }


def their_training(model, stage, dtype, ids, pixels, labels):
    """A step of a model of the same shapes: fused AdamW, autocast where the dtype is not fp32."""
    with tempfile.TemporaryDirectory() as folder:
        save_llava(model, Tokenizer.load(TOY / "vicuna"), folder)
        theirs = open_in_transformers(folder, torch.float32, ids.device).train()
    # The same parts are trained, in fp32; autocast is their mixed precision.
    for name, p in theirs.named_parameters():
        p.requires_grad_("projector" in name or stage == 2 and "vision_tower" not in name)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
    ids = ids.masked_fill(ids == IMAGE_TOKEN, theirs.config.image_token_index)

    def step():
        with torch.autocast(ids.device.type, dtype, enabled=dtype != torch.float32):
            output = theirs(input_ids=ids, pixel_values=pixels, labels=labels,
                            attention_mask=torch.ones_like(ids))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
