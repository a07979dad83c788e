"""Tensors from strangers, put into a module that was built on the meta device: strictly."""
import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def fill(module, tensors, source, device, dtype):
    """Makes `tensors` the parameters of a module that was built on the meta device.

    Strict: a tensor that is missing, unexpected or of another shape is an error that names it and
    the `source`. The tensors are not copied where device and dtype are theirs already.
    """
    places = module.state_dict(keep_vars=True)  # parameters, and the integers of quantised layers
    check_names(module, places, tensors, source)
    check_shapes(places, tensors, source)

    filled = {}  # on the meta device -> real; a tied head is one parameter under two names
    for name, place in places.items():
        if place not in filled:
            filled[place] = real(place, tensors[name], device, dtype)
        elif name in tensors:
            check_tie(name, tensors[name].to(device, dtype), filled[place], source)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, filled[place])
    return module


def real(place, tensor, device, dtype):
    """What takes the place of a parameter or buffer on the meta device; integers stay integers."""
    if not tensor.is_floating_point():
        return tensor.to(device)
    tensor = tensor.to(device, dtype)
    return nn.Parameter(tensor) if isinstance(place, nn.Parameter) else tensor


def check_depth(config, tensors, source):
    """A wrong number of layers is told before millions of them are made."""
    parts = [config]
    if hasattr(config, "language_config"):
        parts = [config.vision_config, config.language_config]
    for part in parts:
        if part.num_hidden_layers > len(tensors):
            raise ValueError(
                f"{source}: the config says num_hidden_layers {part.num_hidden_layers}, "
                f"but there are {len(tensors)} tensors in all")


def check_tie(name, tensor, tied_to, source):
    if not torch.equal(tensor, tied_to):
        raise ValueError(f"{source}: the config ties {name} to another tensor, but the two differ")


def check_names(module, places, tensors, source):
    once = dict(module.named_parameters()) | dict(module.named_buffers())  # a tied head is left out
    missing = sorted(once.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - places.keys())
    for names, what in ((missing, "lacks"), (unexpected, "has unexpected")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{source} {what} {', '.join(names[:3])}{more}")


def check_shapes(places, tensors, source):
    for name, tensor in tensors.items():
        place = places[name]
        if tensor.shape != place.shape or not of_one_kind(tensor, place):
            raise ValueError(f"{source}: {name} is {tensor.dtype} {list(tensor.shape)}, "
                             f"but the config says {list(place.shape)}")

        # to look at every weight would read a mapped file whole; norms and biases are few, and a
        # training that fell apart spoils them with the rest
        if tensor.ndim == 1:
            refuse_not_finite(name, tensor, source)


def refuse_not_finite(name, tensor, source):
    if not tensor.isfinite().all():
        raise ValueError(f"{source}: {name} is not finite: "
                         "the training that wrote it fell apart, or the file is damaged")


def of_one_kind(tensor, place):
    """Floats for floats of any width, integers for integers of the same."""
    if place.is_floating_point():
        return tensor.is_floating_point()
    return tensor.dtype == place.dtype


class NoInitialValues(TorchFunctionMode):
    """Within it, modules leave out their normally distributed start, which weights will replace.

    On the meta device it would do nothing, but PyTorch imports its compiler for that, for 2 s.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.init.normal_:
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))
