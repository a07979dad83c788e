"""Answers: prefill the prompt, then decode token by token; batched, or streamed with a memory that outlives the turn.

Sampling as in the official demo: greedy at temperature 0, else the smallest set of tokens that holds probability top_p.
"""
import torch

from minillava.conversation import IMAGE_TOKEN, TEMPLATES, render
from minillava.language import KVCache
from minillava.vision import preprocess


def sample(logits, temperature=0.0, top_p=1.0):
    """logits [B,V] -> ids [B]."""
    if temperature == 0:
        return logits.argmax(-1)
    probs, ids = (logits.float() / temperature).softmax(-1).sort(-1, descending=True)
    probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)  # keep a token if those before it fall short of top_p
    return ids.gather(-1, torch.multinomial(probs, 1)).squeeze(-1)


def next_logits(model, input_ids, pixels, cache):
    """Runs [B,T] new ids through the cache -> logits [B,V] of what follows."""
    hidden = model.language_model(model.embed(input_ids, pixels), cache)
    return model.language_model.lm_head(hidden[:, -1])


def new_cache(model, batch, max_length, start=None):
    weight = model.language_model.embed_tokens.weight
    return KVCache(model.config.language, batch, max_length, weight.device, weight.dtype, start)


@torch.inference_mode()
def generate(model, tokenizer, prompts, images, max_new_tokens=512, temperature=0.0, top_p=1.0):
    """One question per row, each with its image (None: text alone) -> list of answers.

    Rows are padded on the left, so that all write their next token at the same place of the cache.
    """
    template, device = TEMPLATES[model.config.template], model.device
    rows = []
    for prompt, image in zip(prompts, images, strict=True):
        turns = [("human", f"<image>\n{prompt}" if image is not None else prompt), ("gpt", None)]
        rows.append(render(turns, tokenizer, template, model.config.image_tokens)[0])
    longest = max(map(len, rows))
    input_ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    start = torch.tensor([longest - len(row) for row in rows], device=device)
    cache = new_cache(model, len(rows), longest + max_new_tokens, start if start.any() else None)
    shown = [image for image in images if image is not None]
    pixels = preprocess(shown, model.config).to(device) if shown else None

    answers, running = [[] for _ in rows], set(range(len(rows)))
    ids = sample(next_logits(model, input_ids, pixels, cache), temperature, top_p)
    for _ in range(max_new_tokens):
        for i, token in enumerate(ids.tolist()):
            if i in running:
                answers[i].append(token)
                if token == tokenizer.eos_id or template.stop in tokenizer.decode(answers[i][-8:]):
                    running.discard(i)
        if not running or cache.length == longest + max_new_tokens - 1:
            break
        ids = sample(next_logits(model, ids[:, None], None, cache), temperature, top_p)
    return [tokenizer.decode(answer).split(template.stop)[0].strip() for answer in answers]


class Memory:
    """The keys and values of one conversation, and the ids they stand for: neither the image nor earlier turns run twice."""

    def __init__(self, model):
        self.cache, self.ids = new_cache(model, 1, model.config.language.max_position_embeddings), []

    def forget_from(self, ids):
        """Keeps what `ids` begins with (all but its last id at most) and returns the rest of it."""
        same = next((i for i, (a, b) in enumerate(zip(self.ids, ids)) if a != b), min(len(self.ids), len(ids)))
        self.cache.length = same = min(same, len(ids) - 1)
        self.ids = list(ids[:same])
        return ids[same:]
