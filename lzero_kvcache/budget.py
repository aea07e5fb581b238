"""What pools of some sizes take, and sizes that keep within a memory budget or this machine's memory."""
import os
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Optional

import numpy as np

from .checks import check_count
from .config import KEY_PATH, entry_of

MIB = 2 ** 20
FLOAT_BYTES = 4
# Of an entry, whatever it holds: a key, its place in three dicts and in the strategy's order (measured: 330 to 460).
INDEX_BYTES = 350
# The first takes what it can use, the last what is left.
BY_NEED = ('recur', 'wm', 'init')
POOLS = ('init', 'recur', 'wm')


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
            for own, theirs in ((getattr(self, pool), getattr(others, pool)) for pool in POOLS)
        ))


@dataclass(frozen=True)
class ContextMemory:
    """
    Overview:
        What contexts cost.
    Arguments:
        - token_bytes (:obj:`int`): Bytes of one token in the cache.
        - context_tokens (:obj:`int`): The most tokens of one context.
        - node_tokens (:obj:`int`): Tokens that one more node of a search adds; fewer than ``context_tokens`` where
            nodes share the tokens of their ancestors.
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

    def tokens_of(self, sizes: PoolSizes, env_num: int) -> Any:
        """
        Overview:
            The most tokens that pools of some sizes hold, each kind of pool counted for itself.
        Arguments:
            - sizes (:obj:`PoolSizes`): In entries; an array in place of a number gives an array.
            - env_num (:obj:`int`): Environments.
        Returns:
            - tokens (:obj:`int`): How many.
        """
        held = self.held_contexts + env_num * sizes.init + sizes.wm
        return held * self.context_tokens + self.tokens_of_search(sizes.recur, env_num)

    def tokens_of_search(self, entries: Any, env_num: int) -> Any:
        """
        Overview:
            The most tokens of a recur pool.
        Arguments:
            - entries (:obj:`int`): Its size.
            - env_num (:obj:`int`): Environments.
        Returns:
            - tokens (:obj:`int`): How many.
        """
        # Contexts that share their ancestors' tokens begin with those of the roots.
        shared = env_num * self.context_tokens + entries * self.node_tokens
        return np.minimum(entries * self.context_tokens, shared)


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
            As ``ContextMemory.tokens_of``.
        """
        return self.memory.tokens_of(sizes, self.env_num)

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
        of_others = self.memory.tokens_of_search(sizes.recur, self.env_num) - sizes.recur * self.memory.node_tokens
        return self._tokens - sizes.wm * self.memory.context_tokens - of_others

    @property
    def _tokens(self) -> int:
        return round(self.megabytes * MIB) // self.memory.token_bytes

    def _smallest(self, sizes: PoolSizes) -> float:
        needed = self.tokens_of(sizes) * self.memory.token_bytes / MIB
        return ceil(needed * 1000) / 1000


def check_sizes(given: PoolSizes, wanted: PoolSizes, memory: Optional[ContextMemory], env_num: int) -> None:
    """
    Overview:
        Refuse a pool that this machine's memory could not hold when it is full.
    Arguments:
        - given (:obj:`PoolSizes`): Sizes that the user has set.
        - wanted (:obj:`PoolSizes`): What they would be otherwise.
        - memory (:obj:`Optional[ContextMemory]`): What contexts cost; None: not known.
        - env_num (:obj:`int`): Environments, each with an init pool.
    Raises:
        - ValueError: If one is too large.
    """
    available = _machine_bytes()
    for pool in POOLS:
        size = getattr(given, pool)
        if size is None or available is None:
            continue
        needed = size * INDEX_BYTES * (env_num if pool == 'init' else 1)
        if memory is not None:
            alone = replace(PoolSizes(0, 0, 0), **{pool: size})
            needed += int(memory.tokens_of(alone, env_num)) * memory.token_bytes
        if needed > available:
            raise ValueError(
                f'{KEY_PATH}.{pool}_pool.size is {size}: when it is full, it takes {needed // MIB:,} MiB, and this '
                f'machine has {available // MIB:,}. Leave it out ({getattr(wanted, pool):,} entries then), or let '
                'memory_budget_mb choose'
            )


def _machine_bytes() -> Optional[int]:
    names = ('SC_PAGE_SIZE', 'SC_PHYS_PAGES')
    if not all(name in getattr(os, 'sysconf_names', ()) for name in names):
        return None
    page_bytes, pages = map(os.sysconf, names)
    return page_bytes * pages
