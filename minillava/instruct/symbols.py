"""A picture as symbols: captions and boxes, read from COCO's files.

LLaVA's teacher saw no picture (section 3). It was told of each by five sentences and, but for
conversations, by its objects, with corners as fractions of the picture's width and height:

    A cat sleeps on a mat.
    ...

    cat: [0.1, 0.25, 0.5, 0.75]
"""
import json
import random
from contextlib import contextmanager
from pathlib import Path

from minillava.files import read_jsonl, read_text

PAPER_MIX = {"conversation": 58, "detail": 23, "reasoning": 77}  # thousands, in LLaVA-Instruct-158K


def describe(kind, captions, boxes):
    """What the teacher is told of a picture. boxes: [(category, [x1, y1, x2, y2])]"""
    if kind == "conversation" or not boxes:
        return "\n".join(captions)
    return "\n".join([*captions, "", *(f"{category}: {box}" for category, box in boxes)])


def read_symbols(captions, instances=None):
    """COCO's captions_*.json and instances_*.json, or a jsonl of {"image", "captions", "instances"}
    -> {image file: (captions, boxes)}. ValueError if a file is of another format.
    """
    if Path(captions).suffix == ".jsonl":
        if instances:
            raise ValueError(f"{captions} has its instances in its rows; leave out --instances")
        with one_line_errors(captions):
            return symbols_of_rows(read_jsonl(captions), captions)
    with one_line_errors(captions):
        file_names, captions_of = read_captions(captions)
    boxes_of = {}
    if instances:
        with one_line_errors(instances):
            boxes_of = read_boxes(instances)
    return {file_name: (captions_of[image_id], boxes_of.get(image_id, []))
            for image_id, file_name in file_names.items()}


def symbols_of_rows(rows, path):
    symbols = {}
    for row in rows:
        name = image_name(row["image"])
        if name in symbols:
            raise ValueError(f"{path} has {name} in several rows; list its captions in one")
        if not isinstance(row["captions"], list):  # a text would be a list of letters
            raise TypeError(f"the captions of {name} are no list")
        captions = [tidy(caption) for caption in row["captions"]]
        boxes = [(thing["category"], thing["bbox"]) for thing in row.get("instances", ())]
        symbols[name] = captions, boxes
    return symbols


def read_captions(path):
    """captions_*.json -> {image id: file name}, {image id: captions}"""
    coco = json.loads(read_text(path))
    file_names = {image["id"]: image_name(image["file_name"]) for image in coco["images"]}
    captions = {image_id: [] for image_id in file_names}
    for note in coco["annotations"]:
        captions[note["image_id"]].append(tidy(note["caption"]))
    return file_names, captions


def image_name(name):
    if not isinstance(name, str):
        raise TypeError(f"an image's name is a text, not {name!r:.60}")
    return name


def tidy(caption):
    """On one line, without stray spaces and without halves of characters."""
    return " ".join(caption.split()).encode("utf-8", "replace").decode("utf-8")


def read_boxes(path):
    """instances_*.json -> {image id: [(category, corners)]}"""
    coco = json.loads(read_text(path))
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    categories = {category["id"]: category["name"] for category in coco["categories"]}
    boxes = {image_id: [] for image_id in sizes}
    for note in coco["annotations"]:
        corners = corners_of(note["bbox"], *sizes[note["image_id"]])
        boxes[note["image_id"]].append((categories[note["category_id"]], corners))
    return boxes


def corners_of(box, width, height):
    """COCO's [x, y, w, h] in pixels -> [x1, y1, x2, y2] as fractions of the picture, 3 decimals."""
    x, y, w, h = box
    corners = x / width, y / height, (x + w) / width, (y + h) / height
    return [round(value, 3) for value in corners]


@contextmanager
def one_line_errors(path):
    try:
        yield
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, json.JSONDecodeError,
            RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not written as COCO's files are: {what}") from None


def choose(names, count, seed):
    """`count` names at random; a larger count only adds to them, so that a cache still serves."""
    names = sorted(names)
    if count > len(names):
        raise ValueError(f"{count} samples of a kind are asked for, "
                         f"and there are pictures for {len(names)}")
    random.Random(seed).shuffle(names)
    return names[:count]


def samples_per_kind(kinds, count, pictures):
    """{kind: number of samples} in the paper's proportions; count None: as many as can be made.

    What rounding down leaves over goes to the kinds of the largest remainders.
    """
    weights = {kind: PAPER_MIX[kind] for kind in kinds}
    if count is None:
        largest = max(weights.values())
        return {kind: pictures * weight // largest for kind, weight in weights.items()}
    exact = {kind: count * weight / sum(weights.values()) for kind, weight in weights.items()}
    counts = {kind: int(share) for kind, share in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: counts[kind] - exact[kind])
    for kind in by_remainder[: count - sum(counts.values())]:
        counts[kind] += 1
    return counts
