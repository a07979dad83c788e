"""Answers: prefill the prompt, then decode token by token; batched, or streamed with a memory that outlives the turn.

Sampling as in the official demo: greedy at temperature 0, else the smallest set of tokens that holds probability top_p.
"""
import torch

from minillava.conversation import TEMPLATES, human_turn, render
from minillava.images import preprocess
from minillava.llama import KVCache
from minillava.llava import IMAGE_TOKEN


def sample(logits, temperature=0.0, top_p=1.0):
    """logits [B,V] -> ids [B]."""
    if temperature == 0:
        return logits.argmax(-1)
    probs, ids = (logits.float() / temperature).softmax(-1).sort(-1, descending=True)
    probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)  # kept: a token before which top_p is not reached
    return ids.gather(-1, torch.multinomial(probs, 1)).squeeze(-1)


def next_logits(model, input_ids, pixels, cache):
    """Runs [B,T] new ids through the cache -> logits [B,V] of what follows."""
    hidden = model.language_model(model.embed(input_ids, pixels), cache)
    return model.language_model.lm_head(hidden[:, -1])


def new_cache(model, batch, max_length, start=None):
    weight = model.language_model.embed_tokens.weight
    return KVCache(model.config.language_config, batch, max_length, weight.device, weight.dtype, start)


@torch.inference_mode()
def generate(model, tokenizer, prompts, images, max_new_tokens=512, temperature=0.0, top_p=1.0, begun=None):
    """One question per row, each with its image (None: text alone) -> list of answers, without their stop.

    begun: texts with which the answers begin already; what is returned goes on from there. Rows are padded on the left,
    so that all write their next token at the same place of the cache. An answer ends where the model's context does;
    ValueError if a prompt leaves no room for one.
    """
    template, device, context = model.config.template, model.device, model.config.language_config.max_position_embeddings
    rows = []
    for prompt, image, start in zip(prompts, images, begun or [""] * len(prompts), strict=True):
        image_tokens = model.config.image_tokens if image is not None else 0
        row, _ = render([human_turn(prompt, image is not None), ("gpt", None)], tokenizer, template, image_tokens)
        rows.append(row + (tokenizer.segment(" " + start, prefix=False) if start else []))  # the ids of training
    longest, limits = max(map(len, rows)), [min(max_new_tokens, context - len(row)) for row in rows]
    if longest >= context:
        raise ValueError(f"a prompt of {longest} tokens leaves no room for an answer in a context of {context}")
    input_ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    start = torch.tensor([longest - len(row) for row in rows], device=device)
    cache = new_cache(model, len(rows), longest + max(limits), start if start.any() else None)
    shown = [image for image in images if image is not None]
    pixels = preprocess(shown, model.config).to(device) if shown else None

    answers = [Answer(tokenizer, template) for _ in rows]
    for step in range(max(limits)):
        logits = next_logits(model, input_ids, pixels, cache)
        input_ids, pixels = sample(logits, temperature, top_p)[:, None], None
        for answer, token, limit in zip(answers, input_ids.flatten().tolist(), limits):
            if step < limit:  # alone, the row would end here too
                answer.put(token)
        if all(answer.done for answer in answers):
            break
    return [(answer.text + answer.end()).strip() for answer in answers]


class Answer:
    """Collects one answer's ids into text, until the end token or the template's stop string."""

    def __init__(self, tokenizer, template):
        self.stop, self.end_id, self.streamer = TEMPLATES[template].stop, tokenizer.eos_id, tokenizer.streamer()
        self.text, self.held, self.done = "", "", False

    def put(self, token):
        """Returns the text that has become certain: what may be the beginning of the stop string is held back."""
        if self.done:
            return ""
        if token == self.end_id:
            self.done = True
            return self.end()
        self.held += self.streamer.put(token)
        certain, self.held = self.held, ""
        if self.stop and self.stop in certain:
            certain, self.done = certain.split(self.stop)[0], True
        elif self.stop:
            overlap = max(n for n in range(len(self.stop)) if certain.endswith(self.stop[:n]))
            certain, self.held = certain[: len(certain) - overlap], certain[len(certain) - overlap :]
        self.text += certain
        return certain

    def end(self):
        """What was held back when the answer ended without its stop string."""
        rest, self.held = self.held + self.streamer.end(), ""
        self.text += rest
        return rest


class Memory:
    """Keys and values of one conversation and the ids they stand for: neither the image nor earlier turns run twice."""

    def __init__(self, model):
        self.length = model.config.language_config.max_position_embeddings
        self.cache, self.ids = new_cache(model, 1, self.length), []

    def rest_of(self, ids):
        """Forgets what `ids` does not begin with; returns what of `ids` is still to be run, one id at least."""
        differ = (i for i, (old, new) in enumerate(zip(self.ids, ids)) if old != new)
        same = next(differ, min(len(self.ids), len(ids)))
        self.cache.length = same = min(same, self.cache.length, len(ids) - 1)
        self.ids = ids
        return ids[same:]


@torch.inference_mode()
def stream(model, tokenizer, turns, image=None, max_new_tokens=512, temperature=0.0, top_p=1.0, memory=None):
    """Yields the answer to `turns`, which end with a human turn, piece by piece. `image` is that of the conversation (or None).

    A `memory` that is passed in again with the next turn makes that turn cost only its new tokens; it belongs to one
    image. ValueError if the conversation no longer fits into the context.
    """
    template, memory = model.config.template, memory or Memory(model)
    ids, _ = render([*turns, ("gpt", None)], tokenizer, template, model.config.image_tokens if image is not None else 0)
    room = memory.length - len(ids)
    if room < 1:
        raise ValueError(f"the conversation has {len(ids)} tokens, the model's context ends at {memory.length}; start anew")
    new = memory.rest_of(ids)
    pixels = preprocess([image], model.config).to(model.device) if IMAGE_TOKEN in new else None
    input_ids, answer = torch.tensor([new], device=model.device), Answer(tokenizer, template)
    for _ in range(min(max_new_tokens, room)):
        logits = next_logits(model, input_ids, pixels, memory.cache)
        input_ids, pixels = sample(logits, temperature, top_p)[:, None], None
        if piece := answer.put(input_ids.item()):
            yield piece
        if answer.done:
            return
        memory.ids = memory.ids + [input_ids.item()]
    if piece := answer.end():
        yield piece
