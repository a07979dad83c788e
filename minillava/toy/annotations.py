"""A world on the disk, annotated as COCO is."""
import json
import random
from pathlib import Path

from minillava.toy.objects import captions_of
from minillava.toy.world import CATEGORIES, SIDE, draw, make_scene


def as_fractions(scene):
    return [(name, [round(v / SIDE, 3) for v in box]) for name, box in scene]


def make_world(folder, split, scenes, seed):
    """Draws pictures to folder/split/ and writes captions_split.json and instances_split.json, as COCO does."""
    folder, rng = Path(folder), random.Random(f"{seed} {split}")
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, captions, instances = [], [], []
    for image_id in range(1, scenes + 1):
        scene = make_scene(rng, split)
        images.append({"id": image_id, "file_name": f"{image_id:012}.png", "width": SIDE, "height": SIDE})
        draw(scene, rng).save(folder / split / images[-1]["file_name"], compress_level=1)
        for caption in captions_of(as_fractions(scene), rng):
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": caption})
        for name, (x1, y1, x2, y2) in scene:
            category = next(c["id"] for c in CATEGORIES if c["name"] == name)
            instances.append({"id": len(instances) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0,
                              "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    for name, content in (("captions", {"images": images, "annotations": captions}),
                          ("instances", {"images": images, "annotations": instances, "categories": CATEGORIES})):
        (folder / f"{name}_{split}.json").write_text(json.dumps(content))
