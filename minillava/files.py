"""JSON and JSON lines in, with errors in one line; whole files out or nothing; the index of a JSON file of any size."""
import json
import os
from pathlib import Path

import numpy as np


def read_json(path):
    """A parsed JSON object; {} where the file does not exist."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{path} is not a JSON object; download it again")
    return parsed


def read_object(path):
    """A JSON file that holds an object -> dict; OSError or ValueError in one line."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:  # a JSONDecodeError or a UnicodeDecodeError
        raise ValueError(f"{path} is not a JSON file") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not a JSON object")
    return data


def read_jsonl(path):
    """A file of one JSON object per line -> list of dicts; ValueError names the line that is none."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                raise ValueError(f"line {number} of {path} is not JSON") from None
            if not isinstance(rows[-1], dict):
                raise ValueError(f"line {number} of {path} is not a JSON object")
    return rows


def write(path, text):
    """Text into a file, the whole of it or nothing, whenever the process may be killed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.tmp").write_text(text, encoding="utf-8")
    os.replace(f"{path}.tmp", path)


def index_of(path, cache, measure, chunk=1 << 24):
    """A JSON array of samples, of any size -> int64 [samples, 3]: first byte, last byte + 1, measure(sample).

    One pass over the file, parsed by the chunk. The folder `cache` keeps the index for the next time.
    """
    stat = os.stat(path)
    kept = Path(cache) / f"index-{stat.st_size}-{stat.st_mtime_ns}.npy"
    if kept.exists():
        return np.load(kept, mmap_mode="r")
    rows, decode, base = [], json.JSONDecoder().raw_decode, 0  # base: where in the file `text` begins
    with open(path, "rb") as file:
        text, at = file.read(chunk).decode("latin-1"), 0  # a character is a byte, so positions are those of the file
        while True:
            while text[at : at + 1].isspace() or text[at : at + 1] in ("," if rows else "[",) and at + base < stat.st_size:
                at += 1
            if text[at : at + 1] == "]":
                break
            try:
                sample, end = decode(text, at)
            except json.JSONDecodeError as error:
                more = file.read(chunk).decode("latin-1")
                if not more:
                    raise ValueError(f"{path} is not a JSON array of samples: {error.msg} at byte {base + error.pos}, "
                                     f"after {len(rows)} samples") from None
                text, base, at = text[at:] + more, base + at, 0
                continue
            if not text[at:end].isascii():  # words are those of the real text
                sample = json.loads(text[at:end].encode("latin-1"))
            rows.append((base + at, base + end, measure(sample)))
            at = end
    if not rows:
        raise ValueError(f"{path} holds no samples")
    Path(cache).mkdir(parents=True, exist_ok=True)
    new = kept.with_suffix(f".{os.getpid()}.npy")
    np.save(new, np.array(rows, dtype=np.int64))
    os.replace(new, kept)
    return np.load(kept, mmap_mode="r")
