"""Lines and progress bars for a person; on a pipe, only the finished lines."""
import sys
import time

TTY = sys.stdout.isatty()
WIDTH = 28


def title(text):
    print(f"\n{text}", flush=True)


def ok(text):
    clear()
    print(f"[ok] {text}", flush=True)


def failed(text):
    clear()
    print(f"[failed] {text}", flush=True)


def note(text):
    clear()
    print(f"     {text}", flush=True)


def clear():
    if TTY:
        sys.stdout.write("\r\033[K")


def number(n):
    return f"{n:,}"


class Bar:
    """with Bar("insert", 20000) as bar: bar.at(n).  total None: shows the seconds that passed."""

    def __init__(self, text, total=None):
        self.text, self.total, self.started, self.shown = text, total, time.monotonic(), 0

    def __enter__(self):
        self.at(0)
        return self

    def __exit__(self, *exc):
        clear()

    @property
    def seconds(self):
        return time.monotonic() - self.started

    def at(self, done=0, text=""):
        if not TTY or time.monotonic() - self.shown < 0.05:
            return
        self.shown = time.monotonic()
        if self.total:
            full = int(WIDTH * min(done, self.total) / self.total)
            line = f"[{'#' * full}{'.' * (WIDTH - full)}] {number(done)} of {number(self.total)} {text}"
        else:
            line = f"{self.seconds:.0f} s {text}"
        sys.stdout.write(f"\r\033[K[..] {self.text} {line}"[:120])
        sys.stdout.flush()
