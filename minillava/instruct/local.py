"""A Vicuna on this machine as teacher."""
import torch

from minillava.checkpoint import load_language
from minillava.generate import PrefixCache, stream
from minillava.instruct.teacher import BadReply
from minillava.llava import Llava, LlavaConfig


class Local:
    """A Vicuna on this machine. Successive requests share their instructions and examples, so these are run once."""

    def __init__(self, folder, settings, device="auto"):
        language_model, self.tokenizer = load_language(folder, device)
        with torch.device("meta"):  # the eye of a LLaVA that is shown no picture takes no memory
            self.model = Llava(LlavaConfig(language_config=language_model.config, template="vicuna_v1"))
        self.model.language_model = language_model
        self.settings, self.cache = settings, PrefixCache(self.model)

    def __call__(self, messages):
        system = "".join(message["content"] + "\n\n" for message in messages if message["role"] == "system")
        turns = [("gpt" if message["role"] == "assistant" else "human", message["content"])
                 for message in messages if message["role"] != "system"]
        turns[0] = "human", system + turns[0][1]  # Vicuna's own system message stays, it knows no other
        text = "".join(stream(self.model, self.tokenizer, turns, max_new_tokens=self.settings["max_tokens"],
                              temperature=self.settings["temperature"], cache=self.cache)).strip()
        if not text:
            raise BadReply("the model answered nothing")
        answer = len(self.tokenizer.encode(text))
        return text, max(0, len(self.cache.ids) - answer), answer
