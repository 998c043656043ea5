"""`handling_stop_signals`: what a command that has started processes does when it is asked to end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


@contextmanager
def handling_stop_signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop` with the number of a signal of `STOP_SIGNALS` that comes within the block (of the main thread).

    A signal that is ignored stays so: nohup does that to SIGHUP, and a shell to its background's SIGINT.
    """
    wanted = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    heard = [signum for signum in wanted if signal.getsignal(signum) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, lambda number, _: stop(number)) for signum in heard}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
