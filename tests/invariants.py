"""What must hold after every operation on the managed cache."""
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from lzero_kvcache import KVCachePool
from lzero_kvcache.search.search import MOST_NODES, Search
from lzero_kvcache.store import Context, TokenStore
from lzero_kvcache.store.token_store import PADDING


def held_contexts(inference: Any) -> Iterator[tuple[str, Context]]:
    """
    Every context with whom it belongs to ('collect/0', 'reanalyze/3', 'environment 0'), as often as pools, histories
    and pinned roots hold it.
    """
    searches = {} if inference.search is None else {inference.search.first_key // MOST_NODES: inference.search}
    for kind, pools in inference.manager.pools().items():
        for env_id, pool in enumerate(pools):
            for key in pool.keys():
                owner = f'environment {env_id}'
                if kind != 'init_pools':
                    search = searches[key // MOST_NODES]
                    owner = owner_of(search, int(search.nodes.trees[key % MOST_NODES]))
                yield owner, pool.peek(key)
    for history in inference.histories:
        if history.context is not None:
            yield history.scope, history.context
    for tree, context in enumerate(inference._contexts._pinned):
        yield owner_of(inference.search, tree), context


def owner_of(search: Search, root: int) -> str:
    return f'{search.phase}/{search.env_ids.get(root, root)}'


def environment_of(owner: str) -> str:
    phase, _, env_id = owner.partition('/')
    return f'environment {env_id}' if phase in ('collect', 'eval') else owner


def check_store(inference: Any) -> None:
    """
    Every context has as many holders as pools, histories and roots hold it, and what is held is as ``check_tokens``
    says. Environments share no token, and episodes that have ended hold on to none. All that the running search has is
    of the same nodes.
    """
    for history in inference.histories:
        assert history.context is None or history.steps
    if inference.search is not None:
        search, nodes = inference.search, inference.search.nodes
        assert len(search.contexts) == len(search.priorities) == nodes.num_nodes == nodes.ends[-1]
        assert nodes.ends == sorted(set(nodes.ends))
    held = list(held_contexts(inference))
    contexts = {id(context): context for _, context in held}
    for identity, holders in Counter(id(context) for _, context in held).items():
        assert contexts[identity].holders == holders
    check_tokens(inference.store, list(contexts.values()))

    # The roots in an init pool are of collect or eval.
    of_episodes = [(owner, context) for owner, context in held if not owner.startswith('environment')]
    for owned in (of_episodes, [(environment_of(owner), context) for owner, context in held]):
        owners = np.full(inference.store.size, -1)
        numbers = {owner: number for number, owner in enumerate(dict(owned))}
        for owner, context in owned:
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
