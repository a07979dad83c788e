"""Two models, and what a person is told: what tests of weights ask of both."""
import pytest
import torch


def same(a, b):
    """Whether two models have the same weights under the same names, to the bit."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def message(kind, function, *args, **named):
    """The one line that a person sees of the error that this raises."""
    with pytest.raises(kind) as caught:
        function(*args, **named)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)
