"""Progress bars of tqdm; lines now and then if standard error is no terminal."""

import sys

from tqdm import std
from tqdm.asyncio import tqdm as tqdm_outside_notebooks
from tqdm.auto import tqdm


PAUSE, SHARE = 60, 0.05  # seconds, and share of the total, that lie between two lines


def progress_bar(*arguments, **options) -> std.tqdm:
    """`tqdm.auto.tqdm` on a terminal and in a notebook, else `ProgressLines`; the arguments are tqdm's."""
    is_drawn = sys.stderr.isatty() or tqdm is not tqdm_outside_notebooks
    return (tqdm if is_drawn else ProgressLines)(*arguments, **options)


class ProgressLines(std.tqdm):
    """
    Print a line at the start, at the end, and when both `PAUSE` seconds have passed and `SHARE` of the total is done
    since the last line. With `leave=False` there is no line at the start and at the end.
    """

    def __init__(self, *arguments, **options):
        self._last = None  # (time, count) of the last line
        super().__init__(*arguments, ncols=0, **options)

    def display(self, msg=None, pos=None):
        if msg is not None:  # "" clears a drawn bar
            return
        now = self._time()
        if self._last is None and not self.leave:
            self._last = now, self.n
        elif self._last is None or (
            now - self._last[0] >= PAUSE and self.n - self._last[1] >= max(1, SHARE * (self.total or 0))
        ):
            self._print_line()

    def clear(self, nolock=False):
        """Nothing: lines stay."""

    def close(self):
        if not getattr(self, "disable", True) and self.leave and self.n != self._last[1]:
            self._print_line()
        self.leave = False  # or else tqdm ends the line once more
        super().close()

    def _print_line(self) -> None:
        self._last = self._time(), self.n
        self.fp.write(f"{self}\n")
        self.fp.flush()
