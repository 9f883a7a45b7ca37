"""Ctrl-C: what it must not tear apart, and presses that come while the first one is being obeyed."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AGAIN = 1.0  # seconds after a Ctrl-C in which another one is the same wish


@contextmanager
def undisturbed(stopping: bool = False) -> Iterator[None]:
    """Ctrl-C waits until the body is through, so that what is counted and what is gathered stay in step.

    Where the work is `stopping` anyway, it says nothing new and is forgotten.
    """
    if not _reached_by_signals():
        yield
        return
    waiting: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *signals: waiting.append(signals))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting and callable(before) and not stopping:
        before(*waiting[0])


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt once, and what follows within a second is taken for the same press.

    Else it would break off what the first one has set going: models are given back, files that are half written are
    taken away, and the last line says how to go on. A finger comes twice, and so does a launcher that passes on what
    the terminal has sent to every process. A handler of somebody else's is left alone.
    """
    if not _reached_by_signals() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    last = -math.inf

    def interrupted(*_: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= AGAIN:
            last = now
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _reached_by_signals() -> bool:
    return threading.current_thread() is threading.main_thread()
