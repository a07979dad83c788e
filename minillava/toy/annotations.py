"""A toy world on the disk, annotated as COCO is: captions, and a category and a box per object.

    python -m minillava.toy.annotations --out world     # pictures, captions and boxes
"""
import json
import random
from pathlib import Path

from minillava.files import write
from minillava.instruct.symbols import read_symbols
from minillava.terminal import command_parser, errors_in_one_line
from minillava.toy.objects import captions_of
from minillava.toy.world import COLORS, SHAPES, SIDE, draw, make_scene

NAMES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
ID_OF = {name: number for number, name in enumerate(NAMES, 1)}
CATEGORIES = [{"id": number, "name": name, "supercategory": name.split()[1]}
              for name, number in ID_OF.items()]


def as_fractions(scene):
    """A scene in pixels -> [(category, box)], corners as fractions of the picture."""
    return [(name, [round(v / SIDE, 3) for v in box]) for name, box in scene]


def make_world(folder, split, scenes, seed):
    """Draws pictures to folder/SPLIT/, writes captions_SPLIT.json and instances_SPLIT.json."""
    folder = Path(folder)
    rng = random.Random(f"{seed} {split}")
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, captions, instances = [], [], []

    for image_id in range(1, scenes + 1):
        scene = make_scene(rng, split)
        file_name = f"{image_id:012}.png"
        images.append({"id": image_id, "file_name": file_name, "width": SIDE, "height": SIDE})
        draw(scene, rng).save(folder / split / file_name, compress_level=1)

        for caption in captions_of(as_fractions(scene), rng):
            number = len(captions) + 1
            captions.append({"id": number, "image_id": image_id, "caption": caption})
        for name, box in scene:
            number = len(instances) + 1
            instances.append({"id": number, "image_id": image_id} | annotation(name, box))

    files = {"captions": {"images": images, "annotations": captions},
             "instances": {"images": images, "annotations": instances, "categories": CATEGORIES}}
    for name, content in files.items():
        write(folder / f"{name}_{split}.json", json.dumps(content))


def symbols_of(folder, split):
    """What make_world wrote, as read_symbols gives it: {file name: (captions, boxes)}."""
    folder = Path(folder)
    return read_symbols(folder / f"captions_{split}.json", folder / f"instances_{split}.json")


def annotation(name, box):
    """An object as COCO has it: its box is a corner, a width and a height."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    return {"category_id": ID_OF[name], "iscrowd": 0,
            "bbox": [x1, y1, width, height], "area": width * height}


def main():
    parser = command_parser("toy.annotations", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--scenes", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with errors_in_one_line():
        if args.scenes < 1:
            raise ValueError(f"--scenes is 1 or more, not {args.scenes}")
        make_world(args.out, args.split, args.scenes, args.seed)
        print(f"{args.scenes} pictures in {args.out / args.split}, their captions and boxes "
              f"in captions_{args.split}.json and instances_{args.split}.json")


if __name__ == "__main__":
    main()
