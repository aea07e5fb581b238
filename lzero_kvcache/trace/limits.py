"""What a replay keeps in memory, so that a trace which claims more is refused before it costs that much."""
from collections import Counter
from collections.abc import Sequence

from .format import EXPANSION, PHASES, ManagerFacts

# A search of 2,816 roots and 100 simulations, as the widest reanalysis has, takes half of it.
MOST_BYTES_OF_REPLAY = 2 ** 30
# Measured (CPython 3.11) and rounded up. A context has a table of its tokens, of which some are its own.
BYTES_OF_POOL = 4000
BYTES_OF_NODE, BYTES_OF_ACTION, BYTES_OF_TOKEN, BYTES_OF_OWN_TOKEN = 640, 32, 8, 120
# Strategy 'tree' compares the children of a node with each other.
BYTES_OF_SIBLINGS = 128


def bytes_of_node(facts: ManagerFacts) -> int:
    """What a node and its context take, in a search or in an init pool."""
    # Past its end a context that is encoded again shares no token.
    own = facts.context_length if facts.window == 'rebuild' else 1 + facts.num_observations_tokens
    context = BYTES_OF_TOKEN * facts.context_length + BYTES_OF_OWN_TOKEN * min(own, facts.context_length)
    return BYTES_OF_NODE + BYTES_OF_ACTION * facts.num_actions + context


class ReplayMemory:
    """What a replay of all that has been read so far takes; a ValueError once it is too much."""

    def __init__(self, managers: Sequence[ManagerFacts]) -> None:
        self._of_node = [bytes_of_node(facts) for facts in managers]
        self._free_roots = [facts.env_num * facts.init_size for facts in managers]
        self._search, self._largest = [0] * len(managers), [0] * len(managers)
        self._children = [Counter() for _ in managers]
        # With the last root of each episode.
        pools = [facts.env_num * (BYTES_OF_POOL + len(PHASES) * bytes_of_node(facts)) for facts in managers]
        self._needed = 0
        self._take(sum(pools))

    def add(self, manager: int, kind: int, parents: Sequence[int]) -> None:
        """Another event, with nodes of these parents."""
        of_node, children = self._of_node[manager], self._children[manager]
        if kind < len(PHASES):
            # Roots stay in their init pools, as long as these have room.
            kept = min(len(parents), self._free_roots[manager])
            self._free_roots[manager] -= kept
            self._take(kept * of_node)
            self._search[manager] = 0
            children.clear()
        self._search[manager] += (1 + len(parents)) * of_node
        for parent in parents if kind == EXPANSION else ():
            # The next square number.
            self._search[manager] += BYTES_OF_SIBLINGS * (2 * children[parent] + 1)
            children[parent] += 1
        more = max(0, self._search[manager] - self._largest[manager])
        self._largest[manager] += more
        # A replay has a search until the next one is over.
        self._take(2 * more)

    def _take(self, count: int) -> None:
        self._needed += count
        if self._needed > MOST_BYTES_OF_REPLAY:
            raise ValueError(f'a replay would take more than {MOST_BYTES_OF_REPLAY / 2 ** 30:g} GiB of memory')
