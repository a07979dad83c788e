"""Files in and out: JSON with errors in one line, whole files or nothing, samples found by byte.

Everything is UTF-8, on every platform.
"""
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np

WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds between tries to replace a file that is open


def read_object(path):
    """A JSON file that holds an object -> dict; OSError or ValueError in one line."""
    text = read_text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not a JSON object; download it again")
    return data


def read_json(path):
    """As read_object, but {} where there is no such file."""
    try:
        return read_object(path)
    except FileNotFoundError:
        return {}


def read_jsonl(path):
    """One JSON object a line -> list of dicts; ValueError names the line that is none."""
    return rows_of(read_text(path), path)


def rows_of(text, path):
    rows = []
    # Not splitlines(): a JSON text may hold U+2028, which ends a line there but not in this format.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"line {number} of {path} is not JSON") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {path} is not a JSON object")
        rows.append(row)
    return rows


def read_whole_lines(path):
    """As read_jsonl, but half a line at the end is none: it is being written, or that was killed.

    [] where there is no file.
    """
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return rows_of(text[: text.rfind("\n") + 1], path)


def read_text(path):
    """A text file; ValueError where it is not UTF-8. The mark that Windows begins it with goes."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None


def not_utf8(path, error, start=0):
    """start: where in the file the text begins that the error is about."""
    return ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {start + error.start}); "
                      "save it as UTF-8")


def write(path, text):
    """Text into a file, the whole of it or nothing, whenever the process may be killed.

    A folder that is not there is made. Others may write the same file at once: each does so beside
    it first, under a name of its own. Such a .tmp stays only of a process killed amid these lines;
    nothing reads it.
    """
    write_bytes(path, text.encode())


def write_bytes(path, data):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(f"{path}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        new.write_bytes(data)
        replace_file(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_jsonl(path, rows, ensure_ascii=True):
    """One row a line, in `write`'s way; ensure_ascii: of json.dumps."""
    write(path, "".join(json.dumps(row, ensure_ascii=ensure_ascii) + "\n" for row in rows))


def beside(path, ending):
    """a.json, a.jsonl, a -> a + ending. Not with_suffix: v1.5-7b would lose all after the dot."""
    return Path(re.sub(r"\.jsonl?$", "", str(Path(path))) + ending)


def replace_file(new, path):
    """os.replace, with patience: Windows refuses while a virus scanner, say, has `path` open."""
    for seconds in WAITS:
        try:
            os.replace(new, path)
            return
        except PermissionError:
            if sys.platform != "win32":
                raise
            time.sleep(seconds)
    os.replace(new, path)


# ------------------------------------------------------------------------------------------------
# A JSON file of any size: where in it does each sample stand?

def index_of(path, cache, measure):
    """A JSON array of samples -> int64 [samples, 3]: first byte, last byte + 1, measure(sample).

    The folder `cache` keeps the index for the next time. Memory never holds the file.
    """
    # The file is the same one as last time if its name, its size and its time are.
    path = Path(path)
    stat = path.stat()
    kept = Path(cache) / f"index-{path.name}-{stat.st_size}-{stat.st_mtime_ns}.npy"

    if not kept.exists():
        rows = [(first, end, measure(sample)) for first, end, sample in samples_in(path)]
        if not rows:
            raise ValueError(f"{path} holds no samples")
        kept.parent.mkdir(parents=True, exist_ok=True)
        new = kept.with_suffix(f".{os.getpid()}.npy")  # several processes may write it at once
        np.save(new, np.array(rows, dtype=np.int64))
        replace_file(new, kept)

    return np.load(kept, mmap_mode="r")


# What may stand before the first sample of an array, the mark that Windows begins UTF-8 with too.
BEFORE_FIRST = re.compile(r"(\xef\xbb\xbf)?[\s\[]*")
BETWEEN = re.compile(r"[\s,]*")  # and before every other


def samples_in(path, chunk=1 << 24):
    """Yields (first byte, last byte + 1, sample) for each element of a JSON array.

    Only `chunk` bytes are read at a time: a sample that they cut is tried again with the next.
    """
    decode = json.JSONDecoder().raw_decode
    base = at = count = 0  # text[at] is byte base + at of the file
    with open(path, "rb") as file:
        # One character a byte, so that places in the text are those of the file.
        text = file.read(chunk).decode("latin-1")
        while True:
            # To the next sample, or to the end.
            gap = BETWEEN if count else BEFORE_FIRST
            at = gap.match(text, at).end()
            if text[at : at + 1] == "]":
                return
            try:
                sample, end = decode(text, at)
            except (json.JSONDecodeError, RecursionError) as error:
                more = file.read(chunk).decode("latin-1")
                if not more or isinstance(error, RecursionError):
                    raise no_array(path, error, base, at, count) from None
                # What is behind us is forgotten.
                text = text[at:] + more
                base += at
                at = 0
                continue

            # So far an é is two characters: read again, as the UTF-8 that it is.
            if not text[at:end].isascii():
                try:
                    sample = json.loads(text[at:end].encode("latin-1"))
                except UnicodeDecodeError as error:
                    raise not_utf8(path, error, base + at) from None

            yield base + at, base + end, sample
            count += 1
            at = end


def no_array(path, error, base, at, count):
    what = getattr(error, "msg", "nested too deep")  # a RecursionError says neither
    where = getattr(error, "pos", at)
    return ValueError(f"{path} is not a JSON array of samples: {what} at byte {base + where}, "
                      f"after {count} samples")
