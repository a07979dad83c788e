"""A picture becomes numbers: opening, RGB as a person sees it, CLIP's preprocessing."""
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, RGB in 0..1
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def load_image(path):
    """An image file -> PIL RGB, as a person sees it; OSError or ValueError with one line if it cannot be had."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at twice that size it is an error
            with Image.open(path) as image:
                return to_rgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise type(error)(f"the image {path} cannot be opened: {error.strerror}") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not an image, or of a kind that Pillow does not know") from None
    except Image.DecompressionBombError:
        raise ValueError(f"the image {path} has over {2 * Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # each of Pillow's decoders has its own way to say that a file is broken
        raise ValueError(f"the image {path} is damaged: {error}") from None


def to_rgb(image):
    """Any PIL image -> RGB, as a person sees it: turned as its EXIF says, on white where transparent, 16 bits as 8.

    The official code calls convert("RGB") alone, which lays the image on its side, shows the colour hidden under what
    is transparent (mostly black) and makes nearly all of a 16-bit picture white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # I;16 and its kin, I
        values = np.asarray(image).clip(0, 65535)
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def preprocess(images, config):
    """PIL images -> float32 [B,3,S,S], as CLIPImageProcessor does it; S, aspect, mean and std are a LlavaConfig's."""
    return torch.stack([_preprocess_one(to_rgb(image), config) for image in images])


def _preprocess_one(image, config):
    size, pad, side = config.vision_config.image_size, config.image_aspect_ratio == "pad", max(image.size)
    if (side**2 if pad else size**2 * side / min(image.size)) > 2**29:  # a strip of 1 x 60000 becomes gigabytes
        raise ValueError(f"an image of {image.width} x {image.height} pixels is too long and thin; cut it")
    if pad:  # LLaVA-1.5 fine-tuning: nothing of the picture is cut off
        square = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in config.image_mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    short, long = sorted(image.size)
    resized = [size if edge == short else int(size * long / short) for edge in image.size]
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    pixels = (np.asarray(image) * (1 / 255)).astype(np.float32)  # scaled in float64 first: the official processor does
    pixels = (pixels - np.float32(config.image_mean)) / np.float32(config.image_std)
    return torch.from_numpy(pixels).permute(2, 0, 1)  # [H,W,3] -> [3,H,W]
