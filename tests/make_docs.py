"""The chats and pictures of the documents anew, where new weights say something else: python tests/make_docs.py

Of a chat what is typed stays; what the miniature says, and how fast, is what it says here. The translations of the
README's first page get the same blocks. The pictures are those that minillava.explain.walk draws.
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
from tests.pseudo_terminal import PseudoTerminal  # noqa: E402
from tests.test_docs import BLOCK, typed_in  # noqa: E402
from tests.test_explain import PICTURES  # noqa: E402


def record(block):
    columns = 40 if max(map(len, block.splitlines())) <= 40 else 80
    with tempfile.TemporaryDirectory() as folder:
        terminal = PseudoTerminal(ROOT / "chat.py", "--seed", "5", columns=columns, cwd=folder)
        seen = terminal.read_until("\nyou> ")
        for line in typed_in(block):
            seen += terminal.ask(line)
            # After a change of the scene the chat itself asks the last question again.
            if line.startswith("/scene"):
                seen += terminal.read_until("\nyou> ")
        terminal.end()
    lines = [re.sub("^.*▀.*$", "[the picture]", line.rstrip()) for line in seen.splitlines()[:-1]]
    one_picture = [line for before, line in zip(["", *lines], lines) if line != "[the picture]" or before != line]
    return "\n".join(one_picture) + "\n"


def draw():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "minillava.explain.walk", "--out", folder]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for name in PICTURES:
            shutil.copyfile(Path(folder) / name, ROOT / "docs" / name)


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
