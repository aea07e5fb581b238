import threading
from typing import Any


class CopyableLock(type(threading.RLock())):
    """
    Overview:
        A reentrant lock that deep-copies and pickles as a new one, free. What shared it still shares it in the copy.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return CopyableLock, ()
