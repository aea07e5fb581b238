from typing import Optional

from ..store.context import Context

# How the context of a search's root began.
FIRST_STEP, CONTINUES, COLD_START, NO_EPISODE = range(4)


class Episode:
    """The context of an environment's running episode. ``key`` is where its last root is cached, None if the context
    has to be computed again. ``context`` is the last one, which the episode holds whatever the pools evict.
    """

    def __init__(self) -> None:
        self.key: Optional[int] = None
        self.context: Optional[Context] = None
