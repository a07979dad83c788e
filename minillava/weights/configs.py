"""Configs from strangers: every field is checked before it is believed."""
import dataclasses
import typing

from minillava.conversation import TEMPLATES
from minillava.files import read_json
from minillava.images import IMAGE_MEAN, IMAGE_STD
from minillava.llama import LanguageConfig
from minillava.llava import LlavaConfig
from minillava.vit import VisionConfig


def check(data, known, source):
    """`known`: the values of a field for which our code computes the right thing, its default first."""
    for name, values in known.items():
        if data.get(name, values[0]) not in values:
            only = " or ".join(map(repr, values))
            raise ValueError(f"{source}: {name} {data[name]!r:.40} is not supported, only {only}")


def section(data, name, source):
    """The JSON object `name` inside another; {} where it is left out."""
    value = data.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{source}: {name} {value!r:.40} is not a JSON object")
    return value


def positive(number, limit=1e30):
    return type(number) in (int, float) and 0 < number < limit  # type(): to isinstance, True is an int


def _fields(cls, data, source):
    """The fields of `data` that a config class has, each of its type; every number of a tower or a Llama is positive.
    What is not would otherwise be told by whatever stumbles over it, in words that name neither file nor field."""
    fields = {field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data}
    for name, value in fields.items():
        kind = cls.__annotations__[name]
        types = (float, int) if kind is float else typing.get_args(kind) or (kind,)
        limit = 1e30 if kind is float else 2**31  # a model for a long context may have a rope_theta beyond 2^31
        if type(value) not in types or int in types and value is not None and not positive(value, limit):
            wanted = ("positive " if int in types else "") + types[0].__name__
            raise ValueError(f"{source}: {name} {value!r:.40} is not a {wanted}")
    return fields


def vision_config(data, source):
    check(data, {"model_type": ["clip_vision_model", "clip"], "hidden_act": ["quick_gelu"], "num_channels": [3]},
          source)
    config = VisionConfig(**_fields(VisionConfig, data, source))
    if config.hidden_size % config.num_attention_heads or config.image_size < config.patch_size:
        raise ValueError(f"{source} describes no vision tower: {config}")
    return config


def language_config(data, source):
    rope = section(data, "rope_parameters", source) or section(data, "rope_scaling", source)  # transformers 5, and 4
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    needs = {"default": [], "linear": ["factor"],
             "llama3": ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]}
    if kind not in needs or not all(positive(rope.get(name)) for name in needs[kind]):
        raise ValueError(f"{source}: rope scaling {rope!r:.200} is not supported, only whole 'linear' and 'llama3'")
    check(data, {"model_type": ["llama", "llava", "llava_llama"], "hidden_act": ["silu"], "attention_bias": [False],
                 "mlp_bias": [False]}, source)
    theta = rope.get("rope_theta", data.get("rope_theta", LanguageConfig.rope_theta))
    scaling = {"rope_type": kind} | {name: rope[name] for name in needs[kind]} if kind != "default" else None
    return LanguageConfig(**_fields(LanguageConfig, data | {"rope_theta": theta, "rope_scaling": scaling}, source))


def llava_config(eye, mouth, fields, source):
    """`fields`: those of a LlavaConfig beside the towers, as they stand in the files."""
    config = LlavaConfig(eye, mouth, **fields)
    check(vars(config), {"template": list(TEMPLATES), "mm_use_im_start_end": [False, True],
                         "projector": ["linear", *(f"mlp{depth}x_gelu" for depth in range(1, 10))],
                         "image_aspect_ratio": ["square", "pad"]}, source)
    layers, layer = eye.num_hidden_layers, config.vision_feature_layer
    if type(layer) is not int or not -layers - 1 <= layer <= layers:
        raise ValueError(f"{source}: vision_feature_layer {layer!r:.40} is none of a tower of {layers} layers")
    triples = {"image_mean": config.image_mean, "image_std": config.image_std}
    for name, value in triples.items():
        if not isinstance(value, (list, tuple)) or [type(x) in (int, float) for x in value] != [True] * 3:
            raise ValueError(f"{source}: {name} {value!r:.80} is not three numbers")
    if not all(map(positive, config.image_std)):
        raise ValueError(f"{source}: image_std {config.image_std!r:.80} is not positive")
    return dataclasses.replace(config, **{name: tuple(value) for name, value in triples.items()})


def image_fields(path):
    """What preprocessor_config.json decides of a LlavaConfig."""
    data = read_json(path / "preprocessor_config.json")
    if not data:  # of transformers 5
        data = section(read_json(path / "processor_config.json"), "image_processor", path / "processor_config.json")
    return {"image_mean": data.get("image_mean", IMAGE_MEAN), "image_std": data.get("image_std", IMAGE_STD),
            "image_aspect_ratio": "pad" if data.get("do_pad") else "square"}
