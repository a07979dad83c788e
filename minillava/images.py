"""A picture becomes numbers: X_v of section 4.1, in the form that CLIP was trained on.

    file -> load_image -> RGB, as a person sees it -> preprocess -> float32 [B,3,S,S], values around 0
"""
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageOps

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, RGB in 0..1
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 2**29                                # of a picture on its way through `preprocess`


def load_image(path):
    """An image file -> PIL RGB, as a person sees it.

    OSError or ValueError, in one line, where the file is missing, broken or no image.
    """
    with clear_errors(path):
        with Image.open(path) as image:
            return to_rgb(image)


def to_rgb(image):
    """Any PIL image -> RGB: turned as its EXIF says, on white where transparent, 16 bits as 8.

    The official code calls convert("RGB") alone, which leaves a photo from a phone on its side,
    shows the colour hidden under what is transparent, and turns most of a 16-bit picture white.
    """
    image = ImageOps.exif_transpose(image)

    if image.mode.startswith("I"):  # 16 or 32 bits of grey; 65535 is white
        values = np.asarray(image).clip(0, 65535)
        image = Image.fromarray((values / 257).round().astype(np.uint8))

    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)

    return image.convert("RGB")


def preprocess(images, config):
    """PIL images -> float32 [B,3,S,S], as CLIPImageProcessor computes them.

    config: a LlavaConfig; it gives the side S, the aspect handling, the mean and the deviation.
    """
    return torch.stack([_preprocess_one(image, config) for image in images])


def _preprocess_one(image, config):
    """PIL image -> float32 [3,S,S].

    A photo of 640 x 480 on its way into a tower of 336 x 336:

        "square" (CLIP)       resize to 448 x 336, crop the middle 336: the left and right edges go
        "pad" (LLaVA-1.5)     pad to 640 x 640, resize to 336 x 336: nothing goes, it gets smaller
    """
    size = config.vision_config.image_size
    pad = config.image_aspect_ratio == "pad"
    image = to_rgb(image)
    refuse_strip(image, size, pad)

    if pad:
        image = pad_to_square(image, config.image_mean)
    image = resize_short_edge(image, size)
    image = crop_middle(image, size)
    return normalize(image, config.image_mean, config.image_std)


def pad_to_square(image, mean):
    """The picture in the middle of a square of CLIP's mean colour, which becomes 0 in `normalize`."""
    side = max(image.size)
    color = tuple(int(255 * value) for value in mean)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def resize_short_edge(image, size):
    """The shorter edge becomes `size`, the longer one keeps the proportion, rounded down."""
    short, long = sorted(image.size)
    longer = int(size * long / short)
    width = size if image.width == short else longer
    height = size if image.height == short else longer
    return image.resize((width, height), Image.Resampling.BICUBIC)


def crop_middle(image, size):
    left = (image.width - size) // 2
    top = (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def normalize(image, mean, std):
    """PIL [S,S] of 0..255 -> float32 [3,S,S]; the mean colour of CLIP's training images becomes 0."""
    pixels = np.asarray(image) * (1 / 255)  # float64, as the official processor, and only then:
    pixels = pixels.astype(np.float32)
    pixels = (pixels - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(pixels).permute(2, 0, 1)  # [S,S,3] -> [3,S,S]


# ---- what cannot be used, and what is said about it ----


def refuse_strip(image, size, pad):
    """ValueError for a picture so long and thin that it would grow to gigabytes: 1 x 60,000 pixels."""
    longest = max(image.size)
    on_the_way = longest**2 if pad else size**2 * longest / min(image.size)
    if on_the_way > MAX_PIXELS:
        raise ValueError(f"an image of {image.width} x {image.height} pixels is too long and thin; "
                         "cut it")


@contextmanager
def clear_errors(path):
    """Whatever Pillow raises while it reads `path` becomes one line that says what is wrong with it."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of a large picture; at twice that size it raises, and then so do we.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise type(error)(f"the image {path} cannot be opened: {error.strerror}") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not an image, or of a kind that Pillow does not know") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise ValueError(f"the image {path} has over {limit:,} pixels; make it smaller") from None
    except Exception as error:  # each of Pillow's decoders has its own way to say "broken"
        raise ValueError(f"the image {path} is damaged: {error}") from None
