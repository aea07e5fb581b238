"""What must hold after every operation on the managed cache."""
from collections import Counter
from typing import Any

import numpy as np


def check_store(inference: Any) -> None:
    """
    Every context has as many holders as pools, histories and roots hold it, every token as many as there are contexts
    that consist of it, and what nobody holds is free, once.
    """
    contexts = [context for pools in inference.manager.pools().values() for pool in pools for context in pool.values()]
    contexts += [history.context for history in inference.histories if history.context is not None]
    contexts += inference._root_contexts
    by_identity = {id(context): context for context in contexts}
    for identity, holders in Counter(map(id, contexts)).items():
        assert by_identity[identity].holders == holders

    store = inference.store
    held = np.zeros(len(store._holders), dtype=np.int64)
    for context in by_identity.values():
        assert len(set(context.table.tolist())) == len(context.table)
        np.add.at(held, context.table, 1)
    assert (held == store._holders).all()
    # Token 0 is the padding, which is never given away.
    assert sorted(store._free) == [token for token in range(1, len(held)) if held[token] == 0]
