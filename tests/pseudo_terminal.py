"""A program in a pseudo-terminal, with a person before it: types, reads, interrupts."""
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The slave's side becomes the program's controlling terminal, so that Ctrl-C is a signal.
TAKE = "import os, sys; os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


def plain(output):
    """What is written without how: no escapes, lines end with "\\n"."""
    return ESCAPES.sub("", output.decode(errors="replace")).replace("\r", "")


class PseudoTerminal:
    """`python ARGUMENTS` at columns x rows; `seen` is all it has written."""

    def __init__(self, *arguments, columns=80, rows=24, cwd=ROOT, **environment):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {"TERM": "xterm-256color", "COLORTERM": "truecolor", **environment}
        kept = {name: value for name, value in os.environ.items()
                if name not in ("NO_COLOR", "COLORTERM", "TERM", "COLUMNS", "LINES")}
        self.program = subprocess.Popen(
            [sys.executable, "-c", TAKE, *map(str, arguments)], cwd=cwd, env=kept | environment,
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.seen = ""

    def read_until(self, text, seconds=100):
        """What it writes from now on, up to and with `text`; AssertionError if that does not come."""
        new = b""
        end = time.time() + seconds
        while text not in plain(new):
            assert time.time() < end, f"{text!r} has not come, only {new!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                new += os.read(self.master, 65536)  # OSError: the program has ended
        self.seen += new.decode(errors="replace")
        return plain(new)

    def type(self, keys):
        os.write(self.master, keys.encode())

    def interrupt(self):
        """Ctrl-C at the prompt -> what it writes until it waits for the next line.

        Between the prompt and the wait for a key Python may not notice a signal before the next key, so
        Ctrl-C is pressed again where nothing comes of it, as a person would.
        """
        for _ in range(50):
            self.type("\x03")
            if select.select([self.master], [], [], 2)[0]:
                return self.read_until("\nyou> ")
        raise AssertionError("Ctrl-C does nothing")

    def ask(self, line):
        """Types a line and Enter -> what it writes until it waits for the next one."""
        self.type(line + "\r")
        return self.read_until("\nyou> ")

    def end(self):
        """Ctrl-D -> the exit code."""
        self.type("\x04")
        code = self.program.wait(60)
        os.close(self.master)
        return code
