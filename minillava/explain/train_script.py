"""train.py, as the ablations and the museum run it: by its command line, as everybody does."""
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

TRAIN = Path(__file__).parents[2] / "train.py"


def train_apart(log, *flags):
    """In a process of its own, what it says into the file `log`; ValueError where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, str(TRAIN), *map(str, flags)],
                              stdout=file, stderr=file)
    if done.returncode:
        raise ValueError(f"a training ended with an error, see {log}")


def train_here(*flags):
    """In this process, with whatever is patched in it."""
    with patch.object(sys, "argv", ["train.py", *map(str, flags)]):
        runpy.run_path(str(TRAIN), run_name="__main__")
