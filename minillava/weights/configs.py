"""Configs from strangers: every field is checked before it is believed."""
import dataclasses
import typing

from minillava.conversation import TEMPLATES
from minillava.files import read_json
from minillava.images import IMAGE_MEAN, IMAGE_STD
from minillava.llama import LanguageConfig
from minillava.llava import LlavaConfig
from minillava.vit import VisionConfig

# rope_type -> the fields without which it cannot be computed
ROPE_FIELDS = {
    "default": [],
    "linear": ["factor"],
    "llama3": ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
}


def parse_vision_config(data, source):
    """The `vision_config` of a CLIP -> VisionConfig. `source` is for errors."""
    check_values(data, {
        "model_type": ["clip_vision_model", "clip"],
        "hidden_act": ["quick_gelu"],
        "num_channels": [3],
    }, source)
    config = VisionConfig(**known_fields(VisionConfig, data, source))
    if config.hidden_size % config.num_attention_heads or config.image_size < config.patch_size:
        raise ValueError(f"{source} describes no vision tower: {config}")
    return config


def parse_language_config(data, source):
    """The config.json of a Llama -> LanguageConfig."""
    rope = parse_rope(data, source)
    check_values(data, {
        "model_type": ["llama", "llava", "llava_llama"],
        "hidden_act": ["silu"],
        "attention_bias": [False],
        "mlp_bias": [False],
    }, source)
    return LanguageConfig(**known_fields(LanguageConfig, data | rope, source))


def parse_rope(data, source):
    """-> {"rope_theta", "rope_scaling"}, as transformers 4 writes them; 5 has rope_parameters."""
    parameters = section(data, "rope_parameters", source)
    rope = section(data, "rope_scaling", source) or parameters
    kinds = {str(rope[name]) for name in ("rope_type", "type") if name in rope}
    if not kinds and "factor" not in rope:
        kinds = {"default"}
    kind = " and ".join(kinds)  # two that differ are none
    needed = ROPE_FIELDS.get(kind)
    whole = needed is not None and all(is_positive(rope.get(name)) for name in needed)
    if not whole or kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise ValueError(f"{source}: rope scaling {rope!r:.200} is not supported, only whole "
                         "'linear', and 'llama3' of which high_freq_factor > low_freq_factor")

    # transformers 5 keeps theta among the rope's fields, 4 beside them
    theta = (parameters | rope).get("rope_theta", data.get("rope_theta", LanguageConfig.rope_theta))
    scaling = None
    if kind != "default":
        scaling = {"rope_type": kind} | {name: rope[name] for name in needed}
    return {"rope_theta": theta, "rope_scaling": scaling}


def make_llava_config(vision_config, language_config, fields, source):
    """`fields`: those of a LlavaConfig beside the two configs, as they stand in the files."""
    config = LlavaConfig(vision_config, language_config, **fields)
    check_values(vars(config), {
        "template": list(TEMPLATES),
        "mm_use_im_start_end": [None, False, True],
        "projector": ["linear", *(f"mlp{depth}x_gelu" for depth in range(1, 10))],
        "image_aspect_ratio": ["square", "pad"],
    }, source)

    # layer 0 is what goes into the first block, -1 what comes out of the last
    layer = config.vision_feature_layer
    layers = vision_config.num_hidden_layers
    if type(layer) is not int or not -layers - 1 <= layer <= layers:
        raise ValueError(f"{source}: vision_feature_layer {layer!r:.40} is none of "
                         f"a tower of {layers} layers")

    image_mean = three_numbers("image_mean", config.image_mean, source)
    image_std = three_numbers("image_std", config.image_std, source)
    if not all(map(is_positive, image_std)):
        raise ValueError(f"{source}: image_std {config.image_std!r:.80} is not positive")
    return dataclasses.replace(config, image_mean=image_mean, image_std=image_std)


def image_fields(folder, vision_config):
    """What preprocessor_config.json decides of a LlavaConfig; its sizes must be the tower's.

    transformers 5 writes it into processor_config.json, and reads that first.
    """
    file = folder / "processor_config.json"
    data = section(read_json(file), "image_processor", file)
    if not data:
        file = folder / "preprocessor_config.json"
        data = read_json(file)

    side = vision_config.image_size
    square = {"height": side, "width": side}
    sizes, crops = [{"shortest_edge": side}, side], [True]
    pad = bool(data.get("do_pad"))
    if pad:  # a square is neither squeezed into another nor cropped
        sizes, crops = [*sizes, square], [True, False]
    check_values(data, {
        "size": sizes,
        "crop_size": [square, side],
        "do_resize": [True],
        "do_center_crop": crops,
        "do_rescale": [True],
        "do_normalize": [True],
        "resample": [3],  # bicubic
        "rescale_factor": [1 / 255],
    }, file)
    return {
        "image_mean": data.get("image_mean", IMAGE_MEAN),
        "image_std": data.get("image_std", IMAGE_STD),
        "image_aspect_ratio": "pad" if pad else "square",
    }


# ---- checks ----

def check_values(data, known, source):
    """`known`: the values for which our code computes the right thing, a field's default first."""
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


def known_fields(cls, data, source):
    """The fields of `data` that a config class has, each of its type, every number positive.

    A wrong one would otherwise be told by whatever stumbles over it, in words that name neither
    file nor field.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    fields = {name: data[name] for name in names if name in data}
    for name, value in fields.items():
        kind = cls.__annotations__[name]  # int, float, bool, or such as int | None
        types = typing.get_args(kind) or (kind,)
        if kind is float:
            types = (float, int)
        if not is_of(types, value):
            wanted = ("positive " if int in types else "") + types[0].__name__
            raise ValueError(f"{source}: {name} {value!r:.40} is not a {wanted}")
    return fields


def is_of(types, value):
    """type(), not isinstance, to which True is an int."""
    if type(value) not in types:
        return False
    if int not in types or value is None:
        return True
    return is_positive(value, 1e30 if float in types else 2**31)  # a rope_theta may be beyond 2^31


def is_positive(number, limit=1e30):
    return type(number) in (int, float) and 0 < number < limit


def three_numbers(name, value, source):
    is_triple = isinstance(value, (list, tuple)) and len(value) == 3
    if not is_triple or not all(type(number) in (int, float) for number in value):
        raise ValueError(f"{source}: {name} {value!r:.80} is not three numbers")
    return tuple(value)
