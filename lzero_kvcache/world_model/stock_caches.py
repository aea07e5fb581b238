"""The contents of the release's own caches, tracked from outside."""
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from lzero.model.unizero_world_models.utils import hash_state

PADDED = 'stock fault: of unequal lengths the release pads the shorter rows and lets the padding take attention'
NO_HISTORY = 'stock fault: the release has lost the history and starts over from the last observation'
WRONG_ENTRY = "stock fault: the release's key leads to another step's or node's context"
OLD_WEIGHTS = 'stock fault: the release goes on from keys and values of other weights'


class StockContext(NamedTuple):
    """The true content of a slot in the stock caches: for which managed key it was written, why it differs from a
    forward without a cache (None: it does not), and its tokens.
    """
    owner: int
    flaw: Optional[str]
    length: int

    def flaw_for(self, owner: Optional[int]) -> Optional[str]:
        """What is wrong with it for a step or node with this managed key."""
        return self.flaw if self.owner == owner else WRONG_ENTRY


class StockCaches:
    """The contexts in the slots of the release's caches, as far as their writes were seen."""

    def __init__(self) -> None:
        self._of_roots: dict[tuple[int, int], StockContext] = {}
        self._of_nodes: dict[int, StockContext] = {}

    def outdate_roots(self) -> None:
        """The weights have changed."""
        self._of_roots = {place: each._replace(flaw=OLD_WEIGHTS) for place, each in self._of_roots.items()}

    def begin_search(self) -> None:
        self._of_nodes.clear()

    def add_root(self, world_model: Any, row: int, latent: np.ndarray, owner: int, flaw: Optional[str]) -> None:
        """The stock code has written the context of a root."""
        slot = world_model.past_kv_cache_init_infer_envs[row][hash_state(latent)]
        self._of_roots[row, slot] = StockContext(owner, flaw, world_model.shared_pool_init_infer[row][slot].size)

    def add_node(self, world_model: Any, slot: int, owner: int, flaw: Optional[str]) -> None:
        """The stock code has written the context of a node."""
        slot %= world_model.shared_pool_size
        self._of_nodes[slot] = StockContext(owner, flaw, world_model.shared_pool_recur_infer[slot].size)

    def root_flaws(
            self, world_model: Any, latents: np.ndarray, owners: Sequence[Optional[int]], lengths: np.ndarray, lost: str
    ) -> tuple[list[Optional[str]], list[int]]:
        """What is wrong with the contexts of the stock code's roots, and how many tokens they have. ``owners`` and
        ``lengths`` are those of the managed contexts; ``lost`` is said where there is no context.
        """
        flaws: list[Optional[str]] = []
        stock_lengths = []
        for row, (latent, owner, managed_length) in enumerate(zip(latents, owners, lengths)):
            slot = world_model.past_kv_cache_init_infer_envs[row].get(hash_state(latent))
            context = self._of_roots.get((row, slot))
            length = 1 if slot is None else world_model.shared_pool_init_infer[row][slot].size
            stock_lengths.append(length)
            if slot is None:
                flaws.append(lost)
            elif context is None:
                flaws.append(WRONG_ENTRY)
            else:
                flaws.append(context.flaw_for(owner) or (None if length == managed_length else WRONG_ENTRY))
        longest = max(stock_lengths)
        return [flaw or (None if length == longest else PADDED) for flaw, length in zip(flaws, stock_lengths)], (
            stock_lengths
        )

    def node_contexts(self, world_model: Any, latents: Sequence[np.ndarray]) -> list[Optional[StockContext]]:
        """The contexts, by row, that the stock code finds at nodes of these latent states; None: it has none."""
        contexts = []
        for row, key in enumerate(map(hash_state, latents)):
            init_cache = {} if world_model.reanalyze_phase else world_model.past_kv_cache_init_infer_envs[row]
            contexts.append(
                self._of_roots.get((row, init_cache[key])) if key in init_cache
                else self._of_nodes.get(world_model.past_kv_cache_recurrent_infer.get(key))
            )
        return contexts
