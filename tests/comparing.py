"""Two models, what a person is told, JSON, tables and tensors: what tests write down, change and look at."""
import csv
import json

import pytest
import torch
from safetensors.torch import load_file, save_file


def same(a, b):
    """Whether two models have the same weights under the same names, to the bit."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def message(kind, function, *args, **named):
    """The one line that a person sees of the error that this raises."""
    with pytest.raises(kind) as caught:
        function(*args, **named)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def write_jsonl(path, rows):
    """One row a line; a folder that is not there is made. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tsv(path, rows):
    """MMBench's table; a cell that a row does not have is empty. Returns the path."""
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), delimiter="\t")
        table.writeheader()
        table.writerows(rows)
    return path


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def edit_json(path, **fields):
    """Sets these fields of a JSON object; ... takes one away."""
    value = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: field for name, field in value.items() if field is not ...}))


def edit_tensors(path, change):
    """change(tensors) changes the table in place, or returns another one."""
    tensors = load_file(path)
    changed = change(tensors)
    save_file(changed if isinstance(changed, dict) else tensors, path)
