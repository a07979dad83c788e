"""SIGTERM and Ctrl-C: a run ends after its step, with all of it saved."""
import signal
import sys

from minillava.terminal import printable
from minillava.training import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Notes a signal, so that the loop can end after its step; a second one ends it at once."""

    def __enter__(self):
        self.signal = 0
        self.before = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number, frame):
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def on_any_rank(self):
        """Whether any rank was signalled: all ranks ask at the same place, and end at that step."""
        return distributed.add_up([self.signal])[0] > 0


def end_by_signal(out, step, number):
    """Exit code 128 + signal, as a shell expects it."""
    if distributed.leads() and step == 0:
        print("\nStopped before the first step: there is nothing to save. Give the command again.")
    elif distributed.leads():
        print(f"\nStopped after {step} steps, all saved in {printable(out)}. "
              f"To go on, give the same command with --resume.")
    sys.exit(128 + (number or signal.SIGTERM))


def ignore_signals(worker):
    """For the loader's workers: a signal reaches them too, and they serve until it is saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
