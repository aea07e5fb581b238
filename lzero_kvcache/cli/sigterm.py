"""SIGTERM, by which batch queues, ``timeout`` and ``docker stop`` end a command, means what Ctrl-C means."""
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# As a shell reports a process that SIGTERM has ended.
TERMINATED = 128 + signal.SIGTERM


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """
    Overview:
        Within the ``with`` block SIGTERM raises ``KeyboardInterrupt``, once; the status of a process that ends by it is
        143. Processes that are forked meanwhile, such as those of environments, are ended by it as ever.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        # Someone else's process, whose signals are not ours.
        yield
        return
    main_process, terminated = os.getpid(), False

    def on_sigterm(number: int, frame: Any) -> None:
        nonlocal terminated
        if os.getpid() != main_process:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        elif not terminated:
            # Further ones, as 'timeout' sends two, must not break off the saving of the checkpoint.
            terminated = True
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if not terminated:
            raise
        raise SystemExit(TERMINATED) from error
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
