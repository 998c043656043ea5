"""Equality of mathematical values by math-verify, in a process of its own that can be ended.

Answers are foreign text: "9^{9^{9^{9}}}" takes for ever. math-verify bounds its time by a signal whose handler raises.
That works in the main thread alone, and not always there: raised while Python runs a callback of its garbage collector,
the exception is dropped, and nothing ends the comparison any more. Hence a process of its own, started at the first use
and kept, which any thread may ask, and which the system ends when its time is over.

Nor is foreign text evaluated as Python. math-verify's reader of plain expressions gives the text to SymPy's
``parse_expr``, which evaluates it, and is not used; its reader of LaTeX has a grammar, and gives ``parse_expr`` nothing
but the digits of numbers.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from typing import Literal

TIME_LIMIT = 10.0
"""Seconds of the clock to read and compare two answers. Ordinary ones take milliseconds."""
_START_LIMIT = 120.0
"""Seconds to start the process, which has to import SymPy."""
_MEMORY_LIMIT = 4 << 30
"""Bytes of address space of the process: a number with more digits must not take the memory of a training run."""

Verdict = Literal["equal", "different", "unreadable"]

_DELIMITERS = r"\\?\$|\\[()\[\]]"
"""Of formulas in LaTeX."""


def require_math_verify() -> None:
    """Raise an ImportError that says what to install, if math-verify is missing."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError("Grading mathematics needs math-verify: pip install 'context-returns[mathematics]'.")


@functools.lru_cache(maxsize=65536)
def compare_values(answer: str, given: str) -> Verdict:
    """Compare two answers in LaTeX by value; remembered, for one answer is given many times over.

    Args:
        answer: The right answer.
        given: The one to judge; math-verify is not symmetric in the two.

    Returns:
        "unreadable" if either can't be read, or `TIME_LIMIT` or the memory is not enough.

    Raises:
        ImportError: if math-verify is not installed.
        RuntimeError: if the process does not start.
    """
    require_math_verify()
    return _process.compare(answer, given)


class _ComparingProcess:
    """The process, started when it is first asked; one question at a time."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self.forget()

    def forget(self) -> None:
        """Leave the process to whoever started it."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def compare(self, answer: str, given: str) -> Verdict:
        """Ask the process. One that ends over the question is no answer, and the next question starts another."""
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._process = _start()
                reply = _ask(self._process, [answer, given, TIME_LIMIT])
            except BaseException:
                self.end()  # a reply that comes late would be taken for that to the next question
                raise
            if not reply:
                self.end()
            verdict: Verdict = json.loads(reply) if reply else "unreadable"
            return verdict

    def end(self) -> None:
        """Kill the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _start() -> subprocess.Popen[str]:
    """Start the process and wait until it has imported what it needs."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "datamodules.math_values"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if _ask(process, None) != '"ready"\n':
        process.kill()
        process.communicate()
        raise RuntimeError(
            f"The process that compares mathematical answers did not start (exit status {process.returncode}); what it "
            "said is printed above."
        )
    return process


def _ask(process: subprocess.Popen[str], question: list[str | float] | None) -> str:
    """Return the line that answers a question, or the first line; "" if the process ends instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    if question is not None:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
    return process.stdout.readline()


def compare_here(answer: str, given: str) -> Verdict:
    """Compare by math-verify in this process, however long it takes."""
    from math_verify import LatexExtractionConfig, parse, verify

    right, judged = (
        parse(
            # One pair of dollar signs, around everything: of several formulas the library would read one alone.
            f"${re.sub(_DELIMITERS, ' ', text).replace('°', ' ')}$",
            extraction_config=[LatexExtractionConfig()],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )
        for text in (answer, given)
    )
    if not right or not judged:
        return "unreadable"
    return "equal" if verify(right, judged, timeout_seconds=None) else "different"


def _serve() -> None:
    """Answer the questions on standard input until it ends."""
    import resource  # Unix alone has it, and the signals below; importing this module needs neither

    replies, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends this process, whatever it is doing
    signal.setitimer(signal.ITIMER_REAL, _START_LIMIT)
    logging.disable()  # the library warns that it has no time limit
    compare_here("1", "1/2")  # imports everything
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    verdict: Verdict | Literal["ready"] = "ready"
    while True:
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=replies, flush=True)
        if not (line := sys.stdin.readline()):
            return
        answer, given, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        verdict = compare_here(answer, given)


_process = _ComparingProcess()
atexit.register(_process.end)
# A forked process must share neither its parent's pipes nor a lock that another thread held and will not let go here.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forget)

if __name__ == "__main__":
    _serve()
