"""The token-paged store: what is shared, what is counted, what becomes free."""
import numpy as np
import pytest
import torch

from lzero_kvcache.store import TokenShape, TokenStore
from lzero_kvcache.store.memory import tensor_bytes

SHAPE = TokenShape(num_layers=2, num_heads=2, head_dim=4)
BYTES_PER_TOKEN = 2 * 2 * 2 * 4 * 4
LIKE = torch.zeros(0)


def append(store, contexts, values, counts=None, **window):
    """Append tokens all of whose keys and values are a number, :math:`(B, T)`."""
    values = torch.as_tensor(values, dtype=torch.float32)
    with store.gather(contexts, values.shape[1], LIKE) as batch:
        start = batch.used
        batch.append(values.shape[1], None if counts is None else np.asarray(counts))
        batch.kv[:, start:batch.used] = values[:, :, None, None, None, None]
        return store.add(batch, **window)


def tokens_of(store, context):
    with store.gather([context], 0, LIKE) as batch:
        return batch.kv[0, :, 0, 0, 0, 0].tolist()


def test_a_child_shares_its_parents_tokens():
    store = TokenStore(SHAPE)
    (parent, ) = append(store, [None], [[1, 2, 3]])
    first, second = append(store, [parent, parent], [[4, 5], [6, 7]])
    assert tokens_of(store, first) == [1, 2, 3, 4, 5]
    assert tokens_of(store, second) == [1, 2, 3, 6, 7]
    assert len(store) == 7
    assert store.kv_bytes([first, second]) == 7 * BYTES_PER_TOKEN
    assert store.kv_bytes([first]) == 5 * BYTES_PER_TOKEN
    assert store.kv_bytes([]) == 0


def test_tokens_go_with_their_last_context():
    store = TokenStore(SHAPE)
    (parent, ) = append(store, [None], [[1, 2, 3]])
    (child, ) = append(store, [parent], [[4]])
    store.release([parent])
    assert len(store) == 4 and tokens_of(store, child) == [1, 2, 3, 4]
    store.retain(child)
    store.release([child])
    assert len(store) == 4
    store.release([child])
    assert len(store) == 0


def test_rows_of_unequal_lengths():
    store = TokenStore(SHAPE)
    short, long = append(store, [None, None], [[0, 1], [2, 3]], counts=[1, 2])
    assert tokens_of(store, short) == [1] and tokens_of(store, long) == [2, 3]
    shorter, longer = append(store, [short, long], [[4], [5]])
    assert tokens_of(store, shorter) == [1, 4] and tokens_of(store, longer) == [2, 3, 5]
    assert len(store) == 5


@pytest.mark.parametrize('kept', [3, 1])
def test_contexts_that_reach_the_limit_are_shortened(kept):
    store = TokenStore(SHAPE)
    (parent, ) = append(store, [None], [[1, 2, 3]])
    (child, ) = append(store, [parent], [[4, 5]], limit=5, kept=kept)
    assert tokens_of(store, child) == [1, 2, 3, 4, 5][-kept:]
    store.release([parent])
    assert len(store) == kept


def test_a_token_moves_to_another_place():
    store = TokenStore(SHAPE)
    (parent, ) = append(store, [None], [[0]])
    store.release([parent])
    store.place_offsets = torch.arange(6.).view(6, 1, 1, 1, 1).expand(6, 2, 2, 2, 4) * 100
    (parent, ) = append(store, [None], [[1, 102, 203]])
    (child, ) = append(store, [parent], [[304, 405]], limit=5, kept=3)
    assert tokens_of(store, parent) == [1, 102, 203]
    assert tokens_of(store, child) == [3, 104, 205]


def test_the_slab_grows_and_its_memory_is_used_again():
    store = TokenStore(SHAPE)
    contexts = [append(store, [None], [[number, number + 0.5]])[0] for number in range(1500)]
    assert len(store) == 3000
    assert [tokens_of(store, contexts[number]) for number in (0, 700, 1499)] == [
        [0, 0.5], [700, 700.5], [1499, 1499.5]
    ]
    size = len(store._holders)
    for _ in range(5):
        store.release(contexts)
        assert len(store) == 0
        contexts = [append(store, [None], [[number, number]])[0] for number in range(1500)]
    assert len(store._holders) == size


def test_the_slab_doubles_no_further_than_expected():
    store = TokenStore(SHAPE)
    store.expected_tokens = 40
    contexts = [append(store, [None], [[number] * 4])[0] for number in range(9)]
    assert len(store._holders) == 40
    contexts += [append(store, [None], [[number] * 4])[0] for number in range(9, 12)]
    assert len(store._holders) == 40 + 3 * 4
    assert [tokens_of(store, context)[0] for context in contexts] == list(range(12))


def test_a_batch_holds_its_contexts():
    store = TokenStore(SHAPE)
    (parent, ) = append(store, [None], [[1, 2]])
    with store.gather([parent], 1, LIKE) as batch:
        store.release([parent])
        assert len(store) == 2
        batch.append(1, None)
        (child, ) = store.add(batch)
    assert tokens_of(store, child)[:2] == [1, 2]
    with pytest.raises(RuntimeError), store.gather([child], 0, LIKE):
        raise RuntimeError
    store.release([child])
    assert len(store) == 0


def test_an_unheld_context_is_whole_until_one_of_its_tokens_goes():
    store = TokenStore(SHAPE)
    (parent, ) = append(store, [None], [[1, 2]])
    first, second = append(store, [parent, parent], [[3], [4]])
    store.release([parent, second])
    assert store.is_whole(parent) and store.is_whole(first) and not store.is_whole(second)
    store.retain(parent)
    store.release([first])
    assert tokens_of(store, parent) == [1, 2] and len(store) == 2
    (third, ) = append(store, [parent], [[5]])
    # The token's place in the slab is in use again, by another token.
    assert third.table.tolist() == first.table.tolist() and not store.is_whole(first)
    store.release([parent, third])
    assert len(store) == 0 and not store.is_whole(parent)


@pytest.mark.parametrize('per_place', [0, 100])
@pytest.mark.parametrize('limit, kept', [(100, 100), (5, 3)])
def test_a_chain_of_steps_gives_what_single_steps_give(per_place, limit, kept):
    store = TokenStore(SHAPE)
    long, short = append(store, [None, None], [[1, 2], [0, 3]], counts=[2, 1])
    store.place_offsets = torch.arange(9.).view(9, 1, 1, 1, 1).expand(9, 2, 2, 2, 4) * per_place
    values = np.arange(10, 18).reshape(4, 2)

    def append_step(batch, values):
        places, _ = batch.append(values.shape[1], None)
        placed = torch.from_numpy(values + per_place * places).float()
        batch.kv[:, batch.used - values.shape[1]:batch.used] = placed[:, :, None, None, None, None]

    before, after = [], []
    for context, steps in ((long, values[:3]), (short, values[3:])):
        for row in steps:
            before.append(tokens_of(store, context))
            with store.gather([context], 2, LIKE) as batch:
                append_step(batch, row[None])
                (context, ) = store.add(batch, limit=limit, kept=kept)
            after.append(tokens_of(store, context))

    # The steps' tokens, one row each: three steps go on from the long context, one from the short one.
    with store.gather_steps([long, 0, 1, 2, 3, 4, short, 6], range(1, 8, 2), 1, limit, kept, LIKE) as batch:
        append_step(batch, values.reshape(8, 1))
        for layer in range(SHAPE.num_layers):
            batch.links.follow(layer)
        for row, tokens in zip(range(0, 8, 2), before):
            for of_layer in batch.kv[row, :len(tokens), :, 0, 0, 0].T:
                assert of_layer.tolist() == tokens
        assert [tokens_of(store, context) for context in store.add(batch, limit, kept, range(1, 8, 2))] == after


def test_bytes_of_whatever_a_bare_pool_holds(keys_values):
    tensor = torch.zeros(3, 4)
    assert tensor_bytes([tensor, tensor, [tensor], {'a': np.zeros(2)}, 'text', 3]) == 48 + 16
    # Keys and values of 2 layers, 2 heads, 4 tokens, 4 wide.
    assert tensor_bytes([keys_values(1.)]) == 2 * 2 * 2 * 4 * 4 * 4
