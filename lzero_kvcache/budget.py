"""Pool sizes that keep within a memory budget."""
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Optional

import numpy as np

from .checks import check_count
from .config import KEY_PATH, entry_of

MIB = 2 ** 20
FLOAT_BYTES = 4
# The first takes what it can use, the last what is left.
BY_NEED = ('recur', 'wm', 'init')


@dataclass(frozen=True)
class PoolSizes:
    """
    Overview:
        Sizes of the three kinds of pool, in entries; None: left open.
    Arguments:
        - init (:obj:`Optional[int]`): Of each environment's init pool.
        - recur (:obj:`Optional[int]`): Of the recur pool.
        - wm (:obj:`Optional[int]`): Of the wm pool.
    """
    init: Optional[int]
    recur: Optional[int]
    wm: Optional[int]

    def or_else(self, others: 'PoolSizes') -> 'PoolSizes':
        """
        Overview:
            These sizes, and the others' where they are left open.
        Arguments:
            - others (:obj:`PoolSizes`): Without any left open.
        Returns:
            - sizes (:obj:`PoolSizes`): The same.
        """
        return PoolSizes(*(
            theirs if own is None else own
            for own, theirs in zip((self.init, self.recur, self.wm), (others.init, others.recur, others.wm))
        ))


@dataclass(frozen=True)
class ContextMemory:
    """
    Overview:
        What contexts cost.
    Arguments:
        - token_bytes (:obj:`int`): Bytes of one token in the cache.
        - context_tokens (:obj:`int`): The most tokens of one context.
        - node_tokens (:obj:`int`): The most tokens that one more node of a search adds; fewer than ``context_tokens``
            where nodes share the tokens of their ancestors.
        - held_contexts (:obj:`int`): Contexts that are held whatever the pools have.
    """
    token_bytes: int
    context_tokens: int
    node_tokens: int
    held_contexts: int = 0

    @classmethod
    def of_whole_windows(cls, config: Any) -> 'ContextMemory':
        """
        Overview:
            What entries cost that share nothing, in a manager that is built by hand.
        Arguments:
            - config (:obj:`Any`): ``world_model_cfg``, with ``num_layers``, ``embed_dim`` and ``context_length``.
        Returns:
            - memory (:obj:`ContextMemory`): For float32.
        Raises:
            - ValueError: If one of them is missing.
        """
        dimensions = {name: entry_of(config, name) for name in ('num_layers', 'embed_dim', 'context_length')}
        missing = [name for name, value in dimensions.items() if value is None]
        if missing:
            raise ValueError(
                f"{KEY_PATH}.memory_budget_mb is set, but beside kv_cache there is no {' and no '.join(missing)}, "
                "which an entry's size depends on: needed are num_layers, embed_dim and context_length"
            )
        for name, value in dimensions.items():
            check_count(value, f'policy.model.world_model_cfg.{name}', 'of the world model')
        return cls(
            token_bytes=2 * FLOAT_BYTES * dimensions['num_layers'] * dimensions['embed_dim'],
            context_tokens=dimensions['context_length'], node_tokens=dimensions['context_length'],
        )


@dataclass(frozen=True)
class MemoryBudget:
    """
    Overview:
        How many entries a number of bytes is enough for.
    Arguments:
        - megabytes (:obj:`float`): The budget, in MiB.
        - memory (:obj:`ContextMemory`): What contexts cost.
        - env_num (:obj:`int`): Environments.
    """
    megabytes: float
    memory: ContextMemory
    env_num: int

    def fit(self, given: PoolSizes, wanted: PoolSizes) -> PoolSizes:
        """
        Overview:
            The largest sizes within the budget. Searches come first, the roots of former steps last.
        Arguments:
            - given (:obj:`PoolSizes`): Sizes that the user has set, which stay.
            - wanted (:obj:`PoolSizes`): What the others would be without a budget.
        Returns:
            - sizes (:obj:`PoolSizes`): In entries.
        Raises:
            - ValueError: If the given sizes, and one entry in each other pool, do not fit.
        """
        sizes = given.or_else(PoolSizes(1, 1, 1))
        if self.tokens_of(sizes) > self._tokens:
            raise ValueError(
                f'{KEY_PATH}.memory_budget_mb is {self.megabytes:g}: the smallest that works is '
                f'{self._smallest(sizes)} MiB ({self.env_num} environments, contexts of up to '
                f'{self.memory.context_tokens} tokens, {self.memory.token_bytes:,} bytes a token; pools of '
                f'{sizes.init}, {sizes.recur} and {sizes.wm} entries: init, recur, wm)'
            )
        for pool in BY_NEED:
            if getattr(given, pool) is None:
                candidates = np.arange(1, getattr(wanted, pool) + 1)
                needed = self.tokens_of(replace(sizes, **{pool: candidates}))
                sizes = replace(sizes, **{pool: int(np.searchsorted(needed, self._tokens, side='right'))})
        return sizes

    def tokens_of(self, sizes: PoolSizes) -> Any:
        """
        Overview:
            The most tokens that pools of some sizes hold, each kind of pool counted for itself.
        Arguments:
            - sizes (:obj:`PoolSizes`): In entries; an array in place of a number gives an array.
        Returns:
            - tokens (:obj:`int`): How many.
        """
        held = self.memory.held_contexts + self.env_num * sizes.init + sizes.wm
        return held * self.memory.context_tokens + self._tokens_of_search(sizes.recur)

    def store_tokens(self, sizes: PoolSizes) -> int:
        """
        Overview:
            The most tokens that a store which all pools share may hold: what the wm pool has, and the roots' tokens
            within the recur pool, are others', too.
        Arguments:
            - sizes (:obj:`PoolSizes`): In entries.
        Returns:
            - tokens (:obj:`int`): How many.
        """
        of_others = self._tokens_of_search(sizes.recur) - sizes.recur * self.memory.node_tokens
        return self._tokens - sizes.wm * self.memory.context_tokens - of_others

    def describe(self, sizes: PoolSizes) -> str:
        """
        Overview:
            What the sizes came to, in a sentence.
        Arguments:
            - sizes (:obj:`PoolSizes`): In entries.
        Returns:
            - text (:obj:`str`): For the log.
        """
        needed = self.tokens_of(sizes) * self.memory.token_bytes
        return (
            f'kv_cache.memory_budget_mb={self.megabytes:g}: init pools of {sizes.init:,} entries for each of '
            f'{self.env_num} environments, a recur pool of {sizes.recur:,}, a wm pool of {sizes.wm:,}; '
            f'{needed / MIB:.3g} MiB when they are full, {self.memory.token_bytes:,} bytes a token'
        )

    @property
    def _tokens(self) -> int:
        return round(self.megabytes * MIB) // self.memory.token_bytes

    def _tokens_of_search(self, entries: Any) -> Any:
        longest = self.memory.context_tokens
        # Contexts that share their ancestors' tokens begin with those of the roots.
        return np.minimum(entries * longest, self.env_num * longest + entries * self.memory.node_tokens)

    def _smallest(self, sizes: PoolSizes) -> float:
        needed = self.tokens_of(sizes) * self.memory.token_bytes / MIB
        return ceil(needed * 1000) / 1000
