from typing import Optional

from ..store.context import Context

# How the context of a search's root began.
FIRST_STEP, CONTINUES, COLD_START, NO_EPISODE = range(4)


class Episode:
    """
    The context that an environment's running episode makes.

    Attributes:
        key: Where its last root is cached; None: the context is to be computed again, or there is none.
        context: The last context, held by the episode whatever the pools evict.
    """

    def __init__(self) -> None:
        self.key: Optional[int] = None
        self.context: Optional[Context] = None
