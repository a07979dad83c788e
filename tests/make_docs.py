"""The chats and pictures of the documents anew, where new weights say something else: python tests/make_docs.py

Of a chat what is typed stays; what the miniature says, and how fast, is what it says here. Where only the figures of
time differ, the old ones stay. The pictures are those that minillava.explain.walk draws, the README's that of overview.py, the
screens those of screens.py.
"""
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.doc_commands import DOCUMENTS  # noqa: E402
from tests.overview import overview  # noqa: E402
from tests.pseudo_terminal import plain  # noqa: E402
from tests.screens import SCREENS, screen, type_chat  # noqa: E402
from tests.test_docs import BLOCK, typed_in  # noqa: E402
from tests.test_explain import PICTURES  # noqa: E402

TIME = r"\d+(?= tokens/s)|[\d.]+(?= s,)|textLength=.\d+."  # with the width that it has on a screen


def record(block):
    columns = 40 if max(map(len, block.splitlines())) <= 40 else 80
    seen = plain(type_chat(typed_in(block), columns).encode())
    lines = [re.sub("^.*▀.*$", "[the picture]", line.rstrip()) for line in seen.splitlines()[:-1]]
    one_picture = [line for before, line in zip(["", *lines], lines) if line != "[the picture]" or before != line]
    return keep_times(block, "\n".join(one_picture) + "\n")


def keep_times(old, new):
    """The old text where nothing but figures of time is new."""
    return old if re.sub(TIME, "", old) == re.sub(TIME, "", new) else new


def draw():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "minillava.explain.walk", "--out", folder]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for name in PICTURES:
            shutil.copyfile(Path(folder) / name, ROOT / "docs" / name)
    (ROOT / "docs/overview.svg").write_text(overview(), encoding="utf-8")
    for name in SCREENS:
        path = ROOT / "docs" / name
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(keep_times(old, screen(name)), encoding="utf-8")


def main():
    draw()
    recorded = {}  # {old block: new block}
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for block in BLOCK.findall(text):
            if "\nyou> " in block:
                if block not in recorded:
                    recorded[block] = record(block)
                text = text.replace(block, recorded[block])
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
