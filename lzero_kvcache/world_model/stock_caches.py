"""The contents of the stock code's own caches, tracked from outside."""
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from lzero.model.unizero_world_models.utils import hash_state

from ..lightzero import installed

PADDED = 'stock fault: of unequal lengths LightZero pads the shorter rows and lets the padding take attention'
NO_HISTORY = 'stock fault: LightZero has lost the history and starts over from the last observation'
WRONG_ENTRY = "stock fault: LightZero's key leads to another step's or node's context"
OLD_WEIGHTS = 'stock fault: LightZero goes on from keys and values of other weights'


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
        self._entries = installed().stock_entries

    def outdate_roots(self) -> None:
        """The weights have changed."""
        self._of_roots = {place: each._replace(flaw=OLD_WEIGHTS) for place, each in self._of_roots.items()}

    def begin_search(self) -> None:
        self._of_nodes.clear()

    def add_root(self, world_model: Any, place: int, latent: np.ndarray, owner: int, flaw: Optional[str]) -> None:
        """The stock code has written the context of a root."""
        slot = self._entries.root_slot(world_model, place, hash_state(latent))
        size = self._entries.root_size(world_model, place, slot)
        self._of_roots[place, slot] = StockContext(owner, flaw, size)

    def add_nodes(
            self, world_model: Any, latents: Sequence[np.ndarray], owners: Sequence[int],
            flaws: Sequence[Optional[str]]
    ) -> None:
        """The stock code has written the contexts of nodes."""
        slots = self._entries.written_slots(world_model, [hash_state(latent) for latent in latents])
        for slot, owner, flaw in zip(slots, owners, flaws):
            self._of_nodes[slot] = StockContext(owner, flaw, self._entries.node_size(world_model, slot))

    def root_flaws(
            self, world_model: Any, places: Sequence[int], latents: np.ndarray, owners: Sequence[Optional[int]],
            lengths: np.ndarray, lost: str
    ) -> tuple[list[Optional[str]], list[int]]:
        """What is wrong with the contexts of the stock code's roots, looked up in ``places``, and how many tokens they
        have. ``owners`` and ``lengths`` are those of the managed contexts; ``lost`` is said where there is no context.
        """
        flaws: list[Optional[str]] = []
        stock_lengths = []
        for row, (place, latent) in enumerate(zip(places, latents)):
            slot = self._entries.root_slot(world_model, place, hash_state(latent))
            context = self._of_roots.get((place, slot))
            stock_lengths.append(1 if slot is None else self._entries.root_size(world_model, place, slot))
            if slot is None:
                flaws.append(lost)
            elif context is None:
                flaws.append(WRONG_ENTRY)
            else:
                flaws.append(
                    context.flaw_for(owners[row]) or (WRONG_ENTRY if stock_lengths[row] != lengths[row] else None)
                )
        return [
            flaw or self.padding_flaw(length, stock_lengths) for flaw, length in zip(flaws, stock_lengths)
        ], stock_lengths

    def padding_flaw(self, length: int, lengths: Sequence[int]) -> Optional[str]:
        """What is wrong with a row of a batch of some lengths because it is padded."""
        return PADDED if self._entries.pads_without_mask and length != max(lengths) else None

    def node_contexts(
            self, world_model: Any, places: Sequence[int], latents: Sequence[np.ndarray]
    ) -> list[Optional[StockContext]]:
        """The contexts, by row, that the stock code goes on from at nodes of these latent states; None: it has none."""
        contexts = []
        for place, key in zip(places, map(hash_state, latents)):
            slot = None
            if not world_model.reanalyze_phase:
                slot = self._entries.root_slot(world_model, place, key)
            contexts.append(
                self._of_nodes.get(self._entries.node_slot(world_model, key)) if slot is None
                else self._of_roots.get((place, slot))
            )
        return contexts
