"""What the teacher's answers have cost, and what they may cost."""


class Budget:
    """Tokens are pairs here: of prompts, and of answers, which have a price each.

    The most that a request can cost is reserved before it is sent, and what it did cost is counted
    after it. A request that does not fit beside all that is reserved is not sent, so that a limit
    is never passed, whatever the number of requests under way. What earlier runs paid for the
    answers that this one takes from the cache counts too: a limit is for the work, not for a run.
    """

    def __init__(self, max_tokens=None, max_cost=None, prices=(0.0, 0.0)):
        """max_cost: dollars; prices: dollars per million tokens of prompts and of answers."""
        self.max_tokens = max_tokens
        self.max_cost = max_cost
        self.prices = prices
        self.spent = (0, 0)    # by this run
        self.earlier = (0, 0)  # for the cached answers that it uses
        self.reserved = {}     # request -> the most that it can cost

    def fits(self, tokens=(0, 0)):
        """May so much more be spent?"""
        prompt, answer = add(self.spent, self.earlier, tokens, *self.reserved.values())
        if self.max_tokens is not None and prompt + answer > self.max_tokens:
            return False
        return self.max_cost is None or self.cost((prompt, answer)) <= self.max_cost

    def cost(self, tokens):
        """-> dollars"""
        prompt, answer = tokens
        return (prompt * self.prices[0] + answer * self.prices[1]) / 1e6

    def in_words(self, tokens):
        """(100, 10) -> "100 + 10 tokens of prompts and answers", and dollars at known prices"""
        prompt, answer = tokens
        dollars = f", ${self.cost(tokens):.2f}" if any(self.prices) else ""
        return f"{prompt} + {answer} tokens of prompts and answers{dollars}"


def estimate(letters):
    """Tokens of so many letters, rather too many: captions and boxes have 3.2 letters a token of
    LLaMA's, other texts more."""
    return letters // 3 + 1


def add(*pairs):
    """(1, 2), (3, 4) -> (4, 6)"""
    prompts, answers = zip(*pairs)
    return sum(prompts), sum(answers)
