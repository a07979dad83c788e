"""A picture becomes numbers: X_v of section 4.1, in the form that CLIP was trained on.

    file -> load_image -> RGB, as a person sees it -> preprocess -> float32 [B,3,S,S] around 0
"""
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

# Of CLIP's training images, RGB in 0..1. A model's own values are in its config. With those of
# ImageNet in their place nothing would fail; the answers would only get worse.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
# More than this many pixels, at any point of the way, are refused: 1.6 GB of RGB.
MAX_PIXELS = 2**29


def load_image(path):
    """An image file -> PIL RGB, as a person sees it.

    OSError or ValueError, in one line, where the file is missing, broken or no image.
    """
    with clear_errors(path), Image.open(path) as image:
        if image.format == "EPS":  # PostScript is a program; Pillow would have Ghostscript run it
            raise Image.UnidentifiedImageError
        return to_rgb(image)


def to_rgb(image):
    """Any PIL image -> RGB, as a person sees it.

    The official code calls convert("RGB") alone, which leaves a photo from a phone on its side,
    shows the colour hidden under what is transparent, and turns most of a 16-bit picture white.
    """
    # Cameras store how they were held beside the picture: turn it upright.
    image = upright(image)

    # 16 or 32 bits of grey, where 65535 is white, become 8.
    if image.mode.startswith("I"):
        values = np.asarray(image).clip(0, 65535)
        image = Image.fromarray((values / 257).round().astype(np.uint8))

    # What is transparent is laid on white paper.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)

    image = image.convert("RGB")
    image.info = {}  # the EXIF too: or the next to_rgb would turn it once more
    return image


def preprocess(images, config):
    """PIL images -> float32 [B,3,S,S], as CLIPImageProcessor computes them.

    config: a LlavaConfig; it gives the side S, the aspect handling, the mean and the deviation.
    """
    return torch.stack([_preprocess_one(image, config) for image in images])


def _preprocess_one(image, config):
    """PIL image -> float32 [3,S,S].

    A photo of 640 x 480 on its way into a tower of 336 x 336:

        "square"  CLIP        resize to 448 x 336, crop the middle 336: left and right are lost
        "pad"     LLaVA-1.5   pad to 640 x 640, resize to 336 x 336: nothing is lost but size
    """
    size = config.vision_config.image_size
    pad = config.image_aspect_ratio == "pad"
    refuse_other_types(image)
    image = to_rgb(image)
    refuse_strip(image, size, pad)

    if pad:
        image = pad_to_square(image, config.image_mean)
    image = resize_short_edge(image, size)
    image = crop_middle(image, size)
    return normalize(image, config.image_mean, config.image_std)


def pad_to_square(image, mean):
    """The picture in the middle of a square of the mean colour, which `normalize` makes 0."""
    side = max(image.size)
    color = tuple(int(255 * value) for value in mean)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def resize_short_edge(image, size):
    """The shorter edge becomes `size`, the longer one keeps the proportion, rounded down."""
    short, long = sorted(image.size)
    longer = int(size * long / short)
    shape = (size, longer) if image.width == short else (longer, size)
    return image.resize(shape, Image.Resampling.BICUBIC)


def crop_middle(image, size):
    left = (image.width - size) // 2
    top = (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def normalize(image, mean, std):
    """PIL [S,S] of 0..255 -> float32 [3,S,S]; over CLIP's images the mean is 0, the deviation 1."""
    # Scaled in float64 as the official processor does it: the float32 is then the same to the bit.
    pixels = (np.asarray(image) * (1 / 255)).astype(np.float32)
    pixels = (pixels - np.float32(mean)) / np.float32(std)
    # [S,S,3] -> [3,S,S]
    return torch.from_numpy(pixels).permute(2, 0, 1)


# ---- how the camera was held ----

# The orientation that EXIF knows -> what turns the picture upright; 1 is upright already.
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image):
    """Turned as the camera was held; as it lies, where the EXIF is damaged."""
    image.load()  # in some formats the EXIF stands behind the pixels
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # Pillow has a dozen ways to say that it is damaged
        turn = None
    return image if turn is None else image.transpose(turn)


# ---- what cannot be used, and what is said about it ----


def refuse_other_types(image):
    if not isinstance(image, Image.Image):
        raise TypeError(f"{type(image).__name__} is no PIL image; load_image opens a file")


def refuse_strip(image, size, pad):
    """ValueError for a picture so long and thin that it would grow to gigabytes: 1 x 60,000."""
    longest = max(image.size)
    # Padding squares the longer edge; resizing blows up the shorter one to `size`.
    pixels = longest**2 if pad else size**2 * longest / min(image.size)
    if pixels > MAX_PIXELS:
        raise ValueError(f"an image of {image.width} x {image.height} pixels is too long and thin; "
                         "cut it")


@contextmanager
def clear_errors(path):
    """Whatever Pillow raises while it reads `path` becomes one line that says what is wrong."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of a large picture; at twice that size it raises, and then so do we.
            # It warns of damaged EXIF too, and the picture can be seen all the same.
            warnings.simplefilter("ignore")
            yield
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise type(error)(f"the image {path} cannot be opened: {error.strerror}") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not an image, or of a kind unknown to Pillow") from None
    except Image.DecompressionBombError:
        limit = f"{2 * Image.MAX_IMAGE_PIXELS:,}"
        raise ValueError(f"the image {path} has over {limit} pixels; make it smaller") from None
    except Exception as error:
        # Each of Pillow's decoders has its own way to say that a file is broken.
        raise ValueError(f"the image {path} is damaged: {error}") from None
