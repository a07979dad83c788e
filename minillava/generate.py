"""Answers, token by token: the prompt is run once, then each new word alone (autoregression).

Equation 3 read forwards: the model gives the probability of every next token, and one is drawn.

`generate` answers many questions at once, `stream` one conversation as the words come. A word is
drawn as in the official demo: the likeliest at temperature 0, else one of the smallest set of
words that together hold the probability top_p (Holtzman et al. 2019).
"""
import math
from functools import partial
from itertools import islice

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from minillava.conversation import TEMPLATES, human_turn, render
from minillava.images import preprocess
from minillava.llama import KVCache
from minillava.llava import IMAGE_TOKEN
from minillava.tokenizer import Streamer

# A temperature below this one draws the likeliest word, as 0 does; divided by it, logits overflow.
COLDEST = 1e-6
# SDPA's kernels for one new token: all but cuDNN's, which an H100 would take. That one is planned
# anew for each number of keys, hence at every token: others measured some 30 ms each time.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@torch.inference_mode()
def generate_naively(model, input_ids, pixels, max_new_tokens):
    """All there is to it: run everything, append the likeliest token, run everything again.

    ids [B,T], images -> [B,max_new_tokens]. What follows gives the same and is faster.
    """
    prompt = input_ids.shape[1]
    for _ in range(max_new_tokens):
        logits = model(input_ids, pixels)                  # [B,T,V]
        # Only the last position says something new.
        best = logits[:, -1].argmax(dim=-1, keepdim=True)  # [B,1]
        input_ids = torch.cat([input_ids, best], dim=1)    # [B,T+1]
    return input_ids[:, prompt:]


def next_tokens(model, input_ids, pixels, cache, draw):
    """Yields what follows each row, [B], and what follows that, for as long as it is asked.

    The cache keeps the keys and values of what was run. So the prompt and its images run once, and
    then only the one token that is new. draw: `sample_token`, with its settings filled in.
    """
    logits = next_logits(model, input_ids, pixels, cache)      # [B,V]
    written = input_ids[:, :0]                                 # [B,0]: nothing yet
    while True:
        refuse_nan(logits, cache)
        tokens = draw(logits, written)                         # [B]
        yield tokens
        # The next step runs what was just drawn, and nothing else.
        new_ids = tokens[:, None]                              # [B,1]
        written = torch.cat([written, new_ids], dim=1)
        logits = logits_after(model.language_model, new_ids, cache)


def next_logits(model, input_ids, pixels, cache):
    """Runs the new ids [B,T] through the cache -> logits [B,V] of what follows the last."""
    return last_logits(model.language_model, model.embed(input_ids, pixels), cache)


def logits_after(language_model, new_ids, cache):
    """Runs the one id of each row that was just drawn, [B,1] -> logits [B,V] of what follows it.

    It is never an image: looked up at once, it need not be searched for one, for which a GPU would
    be waited for.
    """
    embeddings = language_model.embed_tokens(new_ids)          # [B,1,D]
    with sdpa_kernel(KERNELS):
        return last_logits(language_model, embeddings, cache)


def last_logits(language_model, embeddings, cache):
    """[B,T,D] -> [B,V]: the head sees the last position alone."""
    hidden = language_model(embeddings, cache)                 # [B,T,D]
    return language_model.lm_head(hidden[:, -1])


def new_cache(model, batch=1, start=None):
    weight = model.language_model.embed_tokens.weight
    return KVCache(model.language_model.config, batch, weight.device, weight.dtype, start)


def sample_token(logits, written=None, temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0):
    """logits [B,V] -> ids [B]. top_k: only so many of the likeliest words are drawn from, 0: all.

    repetition_penalty: above 1, words that the answer has already, `written` [B,T], become less
    likely.
    """
    if repetition_penalty != 1:
        logits = penalized(logits, written, repetition_penalty)
    if temperature < COLDEST:
        return logits.max(-1).indices  # argmax, sooner on a CPU

    probs = (logits.float() / temperature).softmax(-1)
    probs, ids = probs.sort(-1, descending=True)
    if top_k:
        least = probs[:, :top_k][:, -1:]  # of the last word; those that are as likely stay too
        probs = probs.masked_fill(probs < least, 0.0)
        probs = probs / probs.sum(-1, keepdim=True)

    # A word is dropped where the likelier ones already hold top_p without it.
    #     probs 0.5 0.3 0.15 0.05, top_p 0.7:   before 0 0.5 0.8 0.95   kept x x . .
    # The first always stays, also where a float32 has no top_p so small.
    before = probs.cumsum(-1) - probs
    probs[:, 1:].masked_fill_(before[:, 1:] >= top_p, 0.0)

    # multinomial gives a place in the sorted order, [B,1].
    choice = torch.multinomial(probs, 1)
    return ids.gather(-1, choice).squeeze(-1)


def penalized(logits, written, penalty):
    """A positive logit is divided by the penalty (Keskar et al. 2019).

    A negative one is multiplied, as in transformers: divided, it would become likelier.
    """
    old = logits.gather(-1, written)                           # [B,T]
    return logits.scatter(-1, written, torch.where(old > 0, old / penalty, old * penalty))


@torch.inference_mode()
def generate(model, tokenizer, prompts, images, max_new_tokens=512, temperature=0.0, top_p=1.0,
             top_k=0, repetition_penalty=1.0, stop=(), answer_prefix=None):
    """One question a row, each with its image (None: text alone) -> list of answers.

    answer_prefix: for each row a text with which its answer begins; what is returned goes on from
    there. stop: texts before which an answer ends. It also ends where the model's context does.
    ValueError if a prompt leaves no room.
    """
    check_rows(prompts, images)
    check_sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop)
    draw = partial(sample_token, temperature=temperature, top_p=top_p, top_k=top_k,
                   repetition_penalty=repetition_penalty)
    prefixes = answer_prefix or [""] * len(prompts)
    rows = [prompt_ids(model, tokenizer, prompt, image, prefix)
            for prompt, image, prefix in zip(prompts, images, prefixes, strict=True)]
    limits = answer_limits(model, rows, max_new_tokens)

    # All rows write their next token at the same place of the cache: they are padded on the left.
    longest = max(len(row) for row in rows)
    padding = [longest - len(row) for row in rows]
    padded = [[0] * pad + row for pad, row in zip(padding, rows)]
    input_ids = torch.tensor(padded, device=model.device)                   # [B,T]
    start = torch.tensor(padding, device=model.device) if any(padding) else None
    cache = new_cache(model, len(rows), start)
    pixels = to_pixels(model, [image for image in images if image is not None])

    # Each step writes one token in every row, also where an answer has ended already.
    answers = [Answer(tokenizer, model.config.template, stop) for _ in rows]
    steps = next_tokens(model, input_ids, pixels, cache, draw)
    for step, tokens in enumerate(islice(steps, max(limits))):
        for answer, token, limit in zip(answers, tokens.tolist(), limits):
            # A row ends at its own limit, as it would alone.
            if step < limit:
                answer.put(token)
        if all(answer.done for answer in answers):
            break
    for answer in answers:
        answer.end()
    return [answer.text.strip() for answer in answers]


@torch.inference_mode()
def stream(model, tokenizer, turns, image=None, max_new_tokens=512, temperature=0.0, top_p=1.0,
           top_k=0, repetition_penalty=1.0, stop=(), cache=None):
    """Yields the answer to `turns`, which end with a human turn, piece by piece as it comes.

    image: that of the whole conversation, which one turn marks with <image> (human_turn puts it
    there), or None. cache: a PrefixCache; given again with the next turn, it makes that turn cost
    only its new tokens. It belongs to one image. ValueError if the conversation no longer fits into
    the context.
    """
    check_sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop)
    draw = partial(sample_token, temperature=temperature, top_p=top_p, top_k=top_k,
                   repetition_penalty=repetition_penalty)
    cache = cache or PrefixCache(model)
    image_tokens = model.config.image_tokens if image is not None else 0
    ids, _ = render([*turns, ("gpt", None)], tokenizer, model.config.template, image_tokens)
    if image_tokens and IMAGE_TOKEN not in ids:
        raise ValueError("no turn has <image>: human_turn(question, image=True) puts it there")
    room = cache.max_length - len(ids)
    if room < 1:
        raise ValueError(f"the conversation has {len(ids)} tokens, the model's context ends at "
                         f"{cache.max_length}; ask something shorter, or start anew")

    # Only what the cache does not know yet is run, the image if it is among that.
    new_ids = cache.reuse(ids)
    pixels = to_pixels(model, [image] if IMAGE_TOKEN in new_ids else [])
    input_ids = torch.tensor([new_ids], device=model.device)                # [1,T]

    answer = Answer(tokenizer, model.config.template, stop)
    steps = next_tokens(model, input_ids, pixels, cache.keys_values, draw)
    for tokens in islice(steps, min(max_new_tokens, room)):
        token = tokens.item()
        if piece := answer.put(token):
            yield piece
        if answer.done:
            return
        cache.ids.append(token)
    if piece := answer.end():
        yield piece


class PrefixCache:
    """The KV cache of one conversation and the ids it stands for.

    The next prompt begins with these ids, mostly, and only the rest of it is run: neither the
    image nor earlier turns run twice.
    """

    def __init__(self, model):
        self.max_length = model.config.language_config.max_position_embeddings
        self.keys_values = new_cache(model)
        self.ids = []

    def reuse(self, ids):
        """Keeps what `ids` has in common with the cache -> the ids that are still to be run.

            in the cache    1 5 6 7 8      the model wrote 7 8 where the tokenizer writes 9
            ids             1 5 6 9 3
            to be run             9 3      at least one id, or there would be no logits
        """
        # The first difference ends what is common.
        common = 0
        for old, new in zip(self.ids, ids):
            if old != new:
                break
            common += 1
        # The last token of an answer may be in `ids` without having been run.
        common = min(common, self.keys_values.length, len(ids) - 1)
        # An image is run as a whole: a prompt of template "plain" ends with one.
        if ids[common] == IMAGE_TOKEN:
            common = ids.index(IMAGE_TOKEN)
        self.keys_values.length = common
        self.ids = list(ids)
        return ids[common:]


class Answer:
    """One answer's ids become text, up to the end token or a stop string.

    Text is let out once it is certain. With the stop string "###", as in llava_v0:

        put    "a red"    " circle #"    "1"
        out    "a red"    " circle "     "#1"      "#" might have begun the stop string
    """

    def __init__(self, tokenizer, template, stop=()):
        self.stops = [text for text in (TEMPLATES[template].stop, *stop) if text]
        self.end_id = tokenizer.eos_id
        self.streamer = Streamer(tokenizer)
        self.done = False
        # What was let out so far, and what is held back.
        self.text = ""
        self.held = ""

    def put(self, token):
        """The next id -> the text that has become certain with it."""
        if self.done:
            return ""
        if token == self.end_id:
            self.done = True
            return self.end()

        # The streamer holds back too: half of a character that takes several tokens.
        text = self.held + self.streamer.put(token)
        found = [text.index(stop) for stop in self.stops if stop in text]
        if found:
            self.done = True
            return self.let_out(text[: min(found)], held="")

        # No stop string, but the beginning of one may stand at the end.
        overlaps = [longest_overlap(text, stop) for stop in self.stops]
        keep = len(text) - max(overlaps, default=0)
        return self.let_out(text[:keep], held=text[keep:])

    def end(self):
        """What was held back when the answer ended without its stop string."""
        return self.let_out(self.held + self.streamer.end(), held="")

    def let_out(self, text, held):
        self.text += text
        self.held = held
        return text


def longest_overlap(text, stop):
    """Characters at the end of `text` that may be the beginning of `stop`: "a #", "###" -> 1."""
    for length in range(len(stop) - 1, 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


# ---- what generate and stream are made of ----


def check_rows(prompts, images):
    """ValueError unless these are lists of one length: a lone text would be a question a letter."""
    are_lists = isinstance(prompts, (list, tuple)) and isinstance(images, (list, tuple))
    if not are_lists or not prompts or len(prompts) != len(images):
        raise ValueError("generate takes a list of questions, and one of as many images (or None)")


def check_sampling(max_new_tokens, temperature, top_p, top_k=0, repetition_penalty=1.0, stop=()):
    """ValueError for numbers that no answer can be drawn with, NaN and infinity among them."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"the temperature is 0 or more, not {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top-p is above 0 and at most 1, not {top_p}")
    if top_k < 0:
        raise ValueError(f"top-k is 0, for all words, or more, not {top_k}")
    if not 0.01 <= repetition_penalty <= 100:
        raise ValueError("the repetition penalty is from 0.01 to 100, 1 for none, not "
                         f"{repetition_penalty}")
    if isinstance(stop, str) or "" in stop:
        raise ValueError(f"stop is a list of texts, of which none is empty, not {stop!r:.40}")
    if max_new_tokens < 1:
        raise ValueError(f"an answer may have 1 token or more (max-new-tokens), not {max_new_tokens}")


def refuse_nan(logits, cache):
    """The likeliest of words that are all NaN would be the first, <unk>: an answer of nothing."""
    if logits.amax().isnan():
        cache.clear()
        raise ValueError("the model's output is NaN: its weights are damaged or too large for their "
                         "dtype; try float32, or download them again")


def prompt_ids(model, tokenizer, prompt, image, answer_prefix):
    """A question -> the ids that its answer follows."""
    image_tokens = model.config.image_tokens if image is not None else 0
    turns = [human_turn(prompt, image is not None), ("gpt", None)]
    ids, _ = render(turns, tokenizer, model.config.template, image_tokens)
    if answer_prefix:
        # The ids that it had as the beginning of an answer in training.
        ids = ids + tokenizer.segment(" " + answer_prefix, prefix=False)
    return ids


def answer_limits(model, rows, max_new_tokens):
    """How many tokens each row's answer may have; ValueError if the context has no room for one."""
    context = model.config.language_config.max_position_embeddings
    longest = max(len(row) for row in rows)
    if longest >= context:
        raise ValueError(f"a prompt of {longest} tokens leaves no room for an answer in a context "
                         f"of {context}")
    return [min(max_new_tokens, context - len(row)) for row in rows]


def to_pixels(model, images):
    """PIL images -> [images,3,S,S] on the model's device, None without any."""
    if not images:
        return None
    return preprocess(images, model.config).to(model.device)
