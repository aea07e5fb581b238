"""What must hold after every operation on the managed cache."""
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from lzero_kvcache import KVCachePool
from lzero_kvcache.store import Context, TokenStore
from lzero_kvcache.store.token_store import PADDING


def held_contexts(inference: Any) -> Iterator[tuple[str, Context]]:
    """
    Every context with whom it belongs to ('collect/0', 'reanalyze/3'), as often as pools, histories and pinned roots
    hold it.
    """
    for pools in inference.manager.pools().values():
        for pool in pools:
            for key in pool.keys():
                yield owner_of(key), pool.peek(key)
    for history in inference.histories:
        if history.context is not None:
            yield history.scope, history.context
    for tree, context in enumerate(inference._root_contexts):
        yield owner_of(next(iter(inference._lineage._trees[tree].values())).scope), context


def owner_of(key: str) -> str:
    return '/'.join(key.split('/')[:2])


def check_store(inference: Any) -> None:
    """
    Every context has as many holders as pools, histories and roots hold it, and what is held is as ``check_tokens``
    says. Environments share no token, and episodes that have ended hold on to none.
    """
    for history in inference.histories:
        assert history.context is None or history.steps
    held = list(held_contexts(inference))
    contexts = {id(context): context for _, context in held}
    for identity, holders in Counter(id(context) for _, context in held).items():
        assert contexts[identity].holders == holders
    check_tokens(inference.store, list(contexts.values()))

    owners = np.full(len(inference.store._holders), -1)
    numbers = {owner: number for number, owner in enumerate(dict(held))}
    for owner, context in held:
        assert np.isin(owners[context.table], [-1, numbers[owner]]).all(), f'{owner} has tokens of others'
        owners[context.table] = numbers[owner]


def check_tokens(store: TokenStore, contexts: list[Context]) -> None:
    """
    Of a store whose held contexts are these: every token has as many holders as there are contexts that consist of it,
    and what nobody holds is free, once. No context has a token twice, or one that was written after it was made. Tokens
    are shared by contexts with the same beginning only: what comes before a token is the same in all of them, as far as
    it is not dropped.
    """
    held = np.zeros(len(store._holders), dtype=np.int64)
    before = np.full(len(held), -1)
    for context in contexts:
        table = context.table
        assert len(np.unique(table)) == len(table) and PADDING not in table
        assert (store._written_at[table] <= context.made_at).all()
        held[table] += 1
        known = before[table[1:]] >= 0
        assert (before[table[1:]] == table[:-1])[known].all()
        before[table[1:]] = table[:-1]
    assert (held == store._holders).all()
    assert sorted(store._free) == [token for token in range(PADDING + 1, len(held)) if held[token] == 0]


def check_pool(pool: KVCachePool) -> None:
    """Keys, slots and values belong together, and no slot is lost, or in use and free."""
    keys, values = list(pool.keys()), pool.values()
    assert len(keys) == len(values) == len(pool) <= pool.pool_size
    assert pool.peak_entries >= len(pool)
    slots = pool._slot_of_key
    assert {slot: key for key, slot in slots.items()} == pool._key_of_slot
    assert sorted(pool._value_of_slot) == sorted(slots.values())
    assert sorted([*slots.values(), *pool._free_slots]) == list(range(len(slots) + len(pool._free_slots)))
    for key in keys:
        assert key in pool and pool.peek(key) is pool._value_of_slot[slots[key]]
    stats = pool.stats
    assert stats.hits + stats.misses == stats.total_queries
