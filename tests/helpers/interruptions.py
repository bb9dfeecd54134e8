"""Ctrl-C and kill at a chosen place of a long pass, and what there is afterwards."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager


def contents(folder):
    """Name -> bytes of the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def interrupt():
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def kill():
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


class StoppedAfter:
    """A progress bar at which something happens when it is moved that often: the one of this name, or any.

    ``seen`` are the amounts of the latest bar; with ``moves`` 0 it only watches.
    """

    def __init__(self, moves=0, what=interrupt, name=None):
        self.moves, self.what, self.name, self.seen = moves, what, name, []

    @contextmanager
    def bar(self, name, total, unit):
        def advance(amount, note=""):
            self.seen.append(amount)
            if len(self.seen) == self.moves and self.name in (None, name):
                self.what()

        self.seen = []
        yield advance


def run_until_killed(script, *arguments):
    """Run a script that ends by `kill` in a process that finds the tests' modules."""
    head = f"import sys\nsys.path[:0] = {sys.path!r}\n"
    command = [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def wait_until(condition, seconds=60, every=0.02):
    """The first true answer of a condition that another process brings about; fails if none comes in time."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(every)
    return answer
