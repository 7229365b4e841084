"""Being asked to stop: a flag that the loop looks at after each step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Final, final

__all__ = ["StopSignals", "Stopped"]

# The third is sent when a terminal is closed, and is not known everywhere.
_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


@final
class Stopped(BaseException):
    """Training stopped where it was asked to; everything up to that step is in a checkpoint.

    Like KeyboardInterrupt it is no Exception, so that what goes on after errors does not go on after this.

    Example:
        >>> str(Stopped(7, "SIGTERM")), Stopped(7, "SIGTERM").status, Stopped(7, "SIGINT").status
        ('stopped by SIGTERM after step 7, which is kept', 143, 130)

    Args:
        step: optimizer steps that are done.
        reason: name of the signal.
    """

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"stopped by {reason} after step {step}, which is kept")
        self.step, self.reason = step, reason

    @property
    def status(self) -> int:
        """The exit status that shells expect of a program ended by that signal.

        Example:
            >>> Stopped(7, "SIGTERM").status
            143
        """
        return 128 + getattr(signal, self.reason, signal.SIGTERM)


@final
class StopSignals:
    """Turns SIGTERM, SIGINT and SIGHUP into a request while a loop runs, and into KeyboardInterrupt otherwise.

    The second signal during a loop ends it at once, at its last checkpoint.

    Example:
        >>> import os
        >>> with StopSignals() as stop:
        ...     stop.looping = True
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     stop.requested
        'SIGTERM'
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.looping = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.looping = False
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals, once more where somebody else has taken them since.

        Example:
            >>> with StopSignals() as stop:
            ...     _ = signal.signal(signal.SIGTERM, signal.SIG_DFL)
            ...     stop.install()
            ...     signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            False
        """
        if threading.current_thread() is not threading.main_thread():
            return  # signals do not arrive there, and cannot be taken
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = signal.Signals(number).name
        if again or not self.looping:
            raise KeyboardInterrupt
