"""Pictures as symbols: captions and boxes, read from COCO's files and told to the teacher."""
import json
import random
from pathlib import Path

from minillava.files import read_jsonl

MIX = {"conversation": 58, "detail": 23, "reasoning": 77}  # thousands of each in LLaVA-Instruct-158K


def read_symbols(captions, instances=None):
    """COCO's files captions_*.json and instances_*.json, or a jsonl of {"image", "captions", "instances"}
    -> {image file: (captions, [(category, [x1, y1, x2, y2]), ...])}, corners as fractions of the picture, 3 decimals.

    ValueError if a file is of another format.
    """
    file = captions
    try:
        if Path(captions).suffix == ".jsonl":
            return {row["image"]: ([" ".join(text.split()) for text in row["captions"]],
                                   [(thing["category"], thing["bbox"]) for thing in row.get("instances", ())])
                    for row in read_jsonl(captions)}
        told = json.loads(Path(captions).read_text(encoding="utf-8"))
        symbols = {image["id"]: ([], []) for image in told["images"]}
        for note in told["annotations"]:
            symbols[note["image_id"]][0].append(" ".join(note["caption"].split()))
        if instances:
            file = instances
            seen = json.loads(Path(instances).read_text(encoding="utf-8"))
            sizes = {image["id"]: (image["width"], image["height"]) for image in seen["images"]}
            categories = {category["id"]: category["name"] for category in seen["categories"]}
            for note in seen["annotations"]:
                (x, y, w, h), (W, H) = note["bbox"], sizes[note["image_id"]]
                if note["image_id"] in symbols:
                    box = [round(v, 3) for v in (x / W, y / H, (x + w) / W, (y + h) / H)]
                    symbols[note["image_id"]][1].append((categories[note["category_id"]], box))
        return {image["file_name"]: symbols[image["id"]] for image in told["images"]}
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, json.JSONDecodeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{file} is not written as COCO's files are: {what}") from None


def in_symbols(kind, captions, boxes):
    """What the teacher is told: the captions, and for detail and reasoning an empty line and the boxes."""
    lines = [f"{category}: {box}" for category, box in boxes]
    return "\n".join(captions if kind == "conversation" or not lines else [*captions, "", *lines])


def choose(names, count, seed):
    """`count` of the names at random; a larger count only adds to them, so that a cache goes on serving."""
    names = sorted(names)
    if count > len(names):
        raise ValueError(f"{count} samples of a kind are asked for, and there are pictures for {len(names)}")
    random.Random(seed).shuffle(names)
    return names[:count]


def shares_of(kinds, count, pictures):
    """{kind: number of samples} in the paper's proportions; count None: as many as there are pictures for."""
    weights = {kind: MIX[kind] for kind in kinds}
    if count is None:
        return {kind: pictures * weight // max(weights.values()) for kind, weight in weights.items()}
    exact = {kind: count * weight / sum(weights.values()) for kind, weight in weights.items()}
    rest = count - sum(map(int, exact.values()))
    most = sorted(exact, key=lambda kind: int(exact[kind]) - exact[kind])[:rest]  # of the largest remainders
    return {kind: int(share) + (kind in most) for kind, share in exact.items()}
