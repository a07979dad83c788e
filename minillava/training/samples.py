"""The samples of a run, in the forms people have them: what is learned from, kept apart, mixed in.

LLaVA-JSON (data.py); the same as JSON lines; or a folder of pictures with a metadata.jsonl or
metadata.csv, as Hugging Face's imagefolder has it. Several questions to a picture, a row for each,
become one conversation, as in LLaVA-1.5's mix:

    file_name,question,answer            file_name,text
    cat.png,What is it?,A cat.           cat.png,A cat on a sofa.
"""
import csv
import filecmp
import io
import json
import os
import random
from pathlib import Path, PurePosixPath

from torch.utils.data import ConcatDataset

from minillava.conversation import IMAGE
from minillava.data import LlavaData, words_of
from minillava.files import index_of, read_jsonl, read_text, samples_in, write
from minillava.training.distributed import barrier, leads

METADATA = ("metadata.jsonl", "metadata.csv")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
DESCRIBE = "Provide a brief description of the given image."  # LLaVA's question to a caption


def lay_out(data, images, out, val=None, seed=0):
    """Writes to `out` what is not LLaVA-JSON yet, and what is split -> (learned, kept apart)

    Each is (a file of LLaVA-JSON, the folder of its pictures), or None. val: a file or folder, or a
    share of the data as text.
    """
    file, images = as_json(data, images, out / "samples.json")
    if val is None:
        return (file, images), None
    if share_of(val):
        if leads():
            split(file, share_of(val), out / "train.json", out / "val.json", seed)
        return (out / "train.json", images), (out / "val.json", images)

    learned = file, images
    kept_apart = as_json(Path(val), images, out / "val.json")
    if leads():
        refuse_shared(learned, kept_apart, data, val)
    return learned, kept_apart


def as_json(data, images, path):
    """-> (a file of LLaVA-JSON, the folder of its pictures); `path`: where it is to be made."""
    folder = data.is_dir()
    if not folder and data.suffix != ".jsonl":
        return data, images
    if leads():
        samples = folder_samples(data) if folder else read_jsonl(data)
        if not samples:
            raise ValueError(f"{data} holds no samples")
        write_samples(path, samples)
    return path, data if folder else images


def write_samples(path, samples):
    text = "[" + ",\n".join(json.dumps(sample) for sample in samples) + "]"
    # written anew, it would want a new index
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write(path, text)


# ---------------------------------------------------------------------- a folder and its metadata

def folder_samples(folder):
    """A folder of pictures with its metadata -> samples; ValueError names what does not fit."""
    file = next((folder / name for name in METADATA if (folder / name).exists()), None)
    if file is None:
        raise ValueError(f"{folder} has no {' or '.join(METADATA)}, "
                         "which says what its pictures show")
    rows = read_csv(file) if file.suffix == ".csv" else read_jsonl(file)
    if not rows:
        raise ValueError(f"{file} has no rows")
    samples = []
    before = None
    for number, row in enumerate(rows, 1):
        name, question, answer = read_row(row, number, file)
        if name != before:  # rows that follow each other are one conversation about a picture
            samples.append({"id": name, "image": name, "conversations": []})
            question = f"{IMAGE}\n{question}"
        samples[-1]["conversations"] += [{"from": "human", "value": question},
                                         {"from": "gpt", "value": answer}]
        before = name

    named = {sample["image"] for sample in samples}
    there = files_below(folder)
    pictures = {name for name in there if Path(name).suffix.lower() in PICTURES}
    missing, unnamed = sorted(named - there), sorted(pictures - named)
    if missing:
        raise ValueError(f"{file} names {missing[0]}, which is not in {folder} "
                         f"({len(missing)} such pictures): put them there or take their rows out")
    if unnamed:
        raise ValueError(f"{file} has no row for {unnamed[0]} ({len(unnamed)} such pictures): "
                         f"add one for each, or move them out of {folder}")
    return samples


def files_below(folder):
    """Their names, as sub/cat.png. Links are followed, but for those to a folder they stand in."""
    names = set()
    for path, folders, files in os.walk(folder.absolute(), followlinks=True):
        path = Path(path)
        above = {here.resolve() for here in (path, *path.parents)}
        folders[:] = [name for name in folders if (path / name).resolve() not in above]
        names |= {(path / name).relative_to(folder.absolute()).as_posix() for name in files}
    return names


def read_csv(file):
    """-> rows; ValueError for what would lose a part of an answer, or swallow the rows after it."""
    text = read_text(file).lstrip()  # a blank line before the names would be read as no names
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise ValueError(f"{file} is not CSV, is a quotation mark missing? ({error})") from None
    if rows and len(rows[0]) == 1 and ";" in next(iter(rows[0])):
        raise ValueError(f"{file} has semicolons between its fields: save it with commas")
    for number, row in enumerate(rows, 1):
        if None in row:
            raise ValueError(f"row {number} of {file} has more fields than the first line names: "
                             "an answer with a comma in it stands in quotation marks")
    return rows


def read_row(row, number, file):
    """-> (name of the picture, question, answer)"""
    question, answer = row.get("question"), row.get("answer")
    if row.get("text") and not question and not answer:
        question, answer = DESCRIBE, row["text"]
    for what, value in (("file_name", row.get("file_name")), ("question", question),
                        ("answer", answer)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"row {number} of {file} has no {what}: a row has file_name, "
                             "and question and answer, or text for a caption")
    name = str(PurePosixPath(row["file_name"]))  # ./cat.png is cat.png
    return name, question.replace(IMAGE, "").strip(), answer


# ------------------------------------------------------------------- what is kept apart, mixed in

def share_of(val):
    """"0.1" -> 0.1; None for the name of a file, or for None."""
    try:
        share = float(val)
    except (TypeError, ValueError):
        return None
    if not 0 < share < 1:
        raise ValueError(f"--val is a file, a folder, or a share between 0 and 1, not {val}")
    return share


def split(path, share, learned, kept_apart, seed):
    """Writes these two files: whole pictures are kept apart, drawn by the seed."""
    samples = [sample for _, _, sample in samples_in(path)]
    pictures = {}
    for n, sample in enumerate(samples):
        name = sample.get("image", n) if isinstance(sample, dict) else n
        pictures.setdefault(str(name), []).append(n)
    names = sorted(pictures)
    random.Random(seed).shuffle(names)

    apart = set()
    for name in names:
        if len(apart) < share * len(samples):
            apart.update(pictures[name])
    if len(apart) == len(samples):
        raise ValueError(f"--val {share} of {len(samples)} samples leaves none to learn from; "
                         "add some, or leave --val out")
    write_samples(learned, [s for n, s in enumerate(samples) if n not in apart])
    write_samples(kept_apart, [samples[n] for n in sorted(apart)])


def refuse_shared(learned, kept_apart, train_name, val_name):
    """ValueError if a sample is in both files: its loss would say nothing of new ones.

    Two folders may have pictures of one name, which are one only if they are the same bytes.
    """
    (train, images), (val, val_images) = learned, kept_apart
    seen = {content(sample) for _, _, sample in samples_in(train)}
    shared = [sample for _, _, sample in samples_in(val) if content(sample) in seen]
    if images != val_images:
        shared = [sample for sample in shared
                  if filecmp.cmp(images / sample["image"], val_images / sample["image"], False)]
    if shared:
        raise ValueError(f"{len(shared)} samples of {val_name} are in {train_name} too, the first "
                         f"{shared[0].get('id')}: take them out of one of the files")


def content(sample):
    if not isinstance(sample, dict):
        return hash(repr(sample))
    return hash(json.dumps([sample.get("image"), sample.get("conversations")], sort_keys=True))


def draw_replay(old, count, path, seed):
    """Writes `count` samples of the file `old`: none of them again before all have been taken."""
    samples = [sample for _, _, sample in samples_in(old)]
    if not samples:
        raise ValueError(f"{old} has no old samples to mix in")
    rounds, rest = divmod(count, len(samples))
    write_samples(path, rounds * samples + random.Random(seed).sample(samples, rest))


def load_samples(path, images, tokenizer, config, template, max_length, out):
    """A file of LLaVA-JSON -> LlavaData; one process makes the index, the others find it."""
    if leads():
        index_of(path, out, words_of)
    barrier()
    return LlavaData(path, images, tokenizer, config, template, max_length, out)


class Together(ConcatDataset):
    """Several LlavaData, one after the other."""

    def lengths(self):
        return [length for part in self.datasets for length in part.lengths()]
