"""
What a replay keeps in memory, so that a file which claims more is refused before it costs that much.

A few bytes of a packed block can hold millions of events, and each node of a chain a context of thousands of tokens.
The sizes are measured (CPython 3.11) and rounded up.
"""
import numpy as np

from ..search.episode import NO_EPISODE
from .format import PHASES, ManagerFacts

# A search of 2,816 roots and 100 simulations, as the widest reanalysis has, takes half of it.
MOST_BYTES_OF_REPLAY = 2 ** 30
BYTES_OF_POOL = 4000
BYTES_OF_NODE = 640
BYTES_OF_ACTION = 32
BYTES_OF_TOKEN = 8
BYTES_OF_NEW_TOKEN = 120
# Strategy 'tree' compares the children of a node with each other.
BYTES_OF_SIBLINGS = 128


def bytes_of_context(facts: ManagerFacts) -> int:
    """What a context takes that goes on from another one."""
    # Past its end a context that is encoded again shares no token.
    step = facts.context_length if facts.window == 'rebuild' else 1 + facts.num_observations_tokens
    return BYTES_OF_TOKEN * facts.context_length + BYTES_OF_NEW_TOKEN * min(step, facts.context_length)


def bytes_of_node(facts: ManagerFacts) -> int:
    """What a node takes, in a search or in an init pool."""
    return BYTES_OF_NODE + BYTES_OF_ACTION * facts.num_actions + bytes_of_context(facts)


class ReplayMemory:
    """The memory of a replay of everything that has been read so far; a ValueError once it is too much."""

    def __init__(self) -> None:
        self._facts: list[ManagerFacts] = []
        self._roots: list[np.ndarray] = []
        self._parts: dict[tuple[int, str], int] = {}
        self._needed = 0

    def add_manager(self, facts: ManagerFacts) -> None:
        """Another manager, with its pools and the last root of each episode."""
        self._facts.append(facts)
        self._roots.append(np.zeros(facts.env_num, dtype=np.int64))
        needed = facts.env_num * (BYTES_OF_POOL + len(PHASES) * bytes_of_context(facts))
        self._take(len(self._facts) - 1, 'pools', needed)

    def add_roots(self, manager: int, roots: np.ndarray) -> None:
        """Roots, which stay in their init pools."""
        facts, met = self._facts[manager], self._roots[manager]
        met += np.bincount(roots['env_id'][roots['beginning'] != NO_EPISODE], minlength=facts.env_num)
        self._take(manager, 'roots', int(np.minimum(met, facts.init_size).sum()) * bytes_of_node(facts))

    def search_grows(self, manager: int, records: int) -> None:
        """The manager's search has so many events and nodes by now."""
        self._take(manager, 'search', records * bytes_of_node(self._facts[manager]))

    def search_ends(self, manager: int, parents: np.ndarray) -> None:
        """The manager's search, whose nodes have these parents, is over. A replay has it until the next one is."""
        children = np.bincount(parents[parents >= 0])
        needed = self._parts.get((manager, 'search'), 0) + BYTES_OF_SIBLINGS * int((children * children).sum())
        self._take(manager, 'search', 0)
        self._take(manager, 'former search', needed)

    def _take(self, manager: int, part: str, needed: int) -> None:
        self._needed += needed - self._parts.get((manager, part), 0)
        self._parts[manager, part] = needed
        if self._needed > MOST_BYTES_OF_REPLAY:
            raise ValueError(f'a replay would take more than {MOST_BYTES_OF_REPLAY / 2 ** 30:g} GiB of memory')
