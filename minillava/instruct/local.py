"""A Vicuna on this machine as teacher: no key, no network."""
import torch

from minillava.checkpoint import load_language
from minillava.generate import PrefixCache, stream
from minillava.instruct.exchange import Answer, BadReply
from minillava.llava import Llava, LlavaConfig


class LocalVicuna:
    """Successive requests share their instructions and examples, so these are run once."""

    def __init__(self, folder, temperature, max_tokens, device="auto"):
        language_model, self.tokenizer = load_language(folder, device)
        config = LlavaConfig(language_config=language_model.config, template="vicuna_v1")
        with torch.device("meta"):  # the vision tower is never shown a picture: it takes no memory
            self.model = Llava(config)
        self.model.language_model = language_model
        self.cache = PrefixCache(self.model)
        self.temperature = temperature
        self.max_tokens = max_tokens

    def complete(self, messages):
        """-> Answer. BadReply if the model says nothing."""
        pieces = stream(self.model, self.tokenizer, turns_of(messages), cache=self.cache,
                        max_new_tokens=self.max_tokens, temperature=self.temperature)
        text = "".join(pieces).strip()
        if not text:
            raise BadReply("the model answered nothing")
        answer = len(self.tokenizer.encode(text))  # with <s>: max_tokens + 1 where none was left
        prompt = max(0, len(self.cache.ids) - answer)
        full = answer > self.max_tokens or len(self.cache.ids) >= self.cache.max_length
        return Answer(text, (prompt, answer), "length" if full else None)


def turns_of(messages):
    """Chat messages -> turns. Our system message opens the first: Vicuna knows only its own."""
    system = ""
    turns = []
    for message in messages:
        if message["role"] == "system":
            system += message["content"] + "\n\n"
        elif message["role"] == "user":
            turns.append(("human", system + message["content"]))
            system = ""
        else:
            turns.append(("gpt", message["content"]))
    return turns
