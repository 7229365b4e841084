"""How far a sweep is, and how long it still takes."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any, TextIO, final

__all__ = ["Progress", "plural", "spell_rate", "spell_seconds"]


@final
class Progress:
    """Shows the images done and the time left: on a terminal with tqdm a bar, else a line for each cell.

    Example:
        >>> progress = Progress(cells=2, images=10, stream=sys.stdout, bar=False)
        >>> progress.advance(10)
        >>> progress.finish("fog 3", 12.5)
        fog 3: 12.50 % error; 1 of 2 cells, ... left
        >>> progress.close()

    Args:
        cells: that are still to be measured.
        images: in each.
        done: cells that were finished before.
        shown: show anything at all.
        bar: use tqdm; default: if it is installed and the stream is a terminal.
        stream: where to; default: standard error.
        unit: what is counted.
        told: what is told of a finished cell, in percent.
    """

    def __init__(
        self,
        cells: int,
        images: int,
        *,
        done: int = 0,
        shown: bool = True,
        bar: bool | None = None,
        stream: TextIO | None = None,
        unit: str = "image",
        told: str = "error",
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._shown, self._told = shown, told
        self._began = time.monotonic()
        self._cells, self._finished, self._before = cells, 0, done
        self._bar: Any = None
        if shown and cells and (self._wants_bar() if bar is None else bar):
            from tqdm import tqdm

            self._bar = tqdm(total=cells * images, unit=unit, file=self._stream, smoothing=0.05, dynamic_ncols=True)

    def _wants_bar(self) -> bool:
        # A bar redraws its line, which fills logs and pipes.
        return self._stream.isatty() and importlib.util.find_spec("tqdm") is not None

    def advance(self, images: int) -> None:
        """Count images that went through the model.

        Example:
            >>> Progress(1, 4, shown=False).advance(4)
        """
        if self._bar is not None:
            self._bar.update(images)

    def finish(self, name: str, error: float) -> None:
        """Tell of a finished cell.

        Example:
            >>> Progress(1, 4, shown=False).finish("fog 3", 12.5)
        """
        self._finished += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"{name}: {error:.2f} % {self._told}")
        elif self._shown:
            left = (time.monotonic() - self._began) / self._finished * (self._cells - self._finished)
            counted = f"{self._before + self._finished} of {self._before + self._cells} cells"
            print(
                f"{name}: {error:.2f} % {self._told}; {counted}, {spell_seconds(left)} left",
                file=self._stream,
                flush=True,
            )

    def close(self) -> None:
        """End the bar.

        Example:
            >>> Progress(1, 4, shown=False).close()
        """
        if self._bar is not None:
            self._bar.close()


def spell_seconds(seconds: float) -> str:
    """A duration in its two largest units.

    Example:
        >>> spell_seconds(42.4), spell_seconds(250), spell_seconds(7300)
        ('42 s', '4 min 10 s', '2 h 1 min')

    Args:
        seconds: not negative.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def spell_rate(rate: float) -> str:
    """How many in a second: whole numbers from 10 on, two digits below.

    Example:
        >>> spell_rate(1812.4), spell_rate(2.345), spell_rate(0.0432)
        ('1,812', '2.3', '0.043')

    Args:
        rate: not negative.
    """
    return f"{rate:,.0f}" if rate >= 9.95 else f"{rate:.2g}"


def plural(noun: str, count: int) -> str:
    """A noun as it stands after a number.

    Example:
        >>> plural("step", 1), plural("step", 20)
        ('step', 'steps')

    Args:
        noun: one that takes an s.
        count: the number.
    """
    return noun if count == 1 else f"{noun}s"
