"""The token-paged store: what is shared, what is counted, what becomes free."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lzero_kvcache.store import TokenStore
from lzero_kvcache.store.memory import tensor_bytes
from lzero_kvcache.store.slab import TokenShape, TokenSlab
from lzero_kvcache.store.token_store import PADDING

SHAPE = TokenShape(num_layers=2, num_heads=2, head_dim=4)
BYTES_PER_TOKEN = 2 * 2 * 2 * 4 * 4


def model_of(per_place=None, places=9):
    """What a store asks of a model: what each place adds to keys and values, if places count."""
    offsets = None if per_place is None else (
        torch.arange(float(places)).view(places, 1, 1, 1, 1).expand(places, 2, 2, 2, 4) * per_place
    )
    return SimpleNamespace(like=torch.zeros(0), place_offsets=offsets)


PLAIN = model_of()


def store_of(limit=100, kept=98, **options):
    return TokenStore(TokenSlab(SHAPE), limit, kept, **options)


def append(store, contexts, values, counts=None, model=PLAIN, **options):
    """Append tokens all of whose keys and values are a number, :math:`(B, T)`."""
    values = torch.as_tensor(values, dtype=torch.float32)
    with store.gather(contexts, values.shape[1], model) as batch:
        start = batch.used
        batch.append(values.shape[1], None if counts is None else np.asarray(counts))
        batch.kv[:, start:batch.used] = values[:, :, None, None, None, None]
        return store.add(batch, model, **options)


def tokens_of(store, context, model=PLAIN):
    with store.gather([context], 0, model) as batch:
        return batch.kv[0, :, 0, 0, 0, 0].tolist()


def test_a_child_shares_its_parents_tokens():
    store = store_of()
    (parent, ) = append(store, [None], [[1, 2, 3]])
    first, second = append(store, [parent, parent], [[4, 5], [6, 7]])
    assert tokens_of(store, first) == [1, 2, 3, 4, 5]
    assert tokens_of(store, second) == [1, 2, 3, 6, 7]
    assert len(store) == 7
    assert store.kv_bytes([first, second]) == 7 * BYTES_PER_TOKEN
    assert store.kv_bytes([first]) == 5 * BYTES_PER_TOKEN
    assert store.kv_bytes([]) == 0


def test_tokens_go_with_their_last_context():
    store = store_of()
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
    store = store_of()
    short, long = append(store, [None, None], [[0, 1], [2, 3]], counts=[1, 2])
    assert tokens_of(store, short) == [1] and tokens_of(store, long) == [2, 3]
    shorter, longer = append(store, [short, long], [[4], [5]])
    assert tokens_of(store, shorter) == [1, 4] and tokens_of(store, longer) == [2, 3, 5]
    assert len(store) == 5


@pytest.mark.parametrize('kept', [3, 1])
def test_contexts_that_reach_the_limit_are_shortened(kept):
    store = store_of(limit=5, kept=kept)
    (parent, ) = append(store, [None], [[1, 2, 3]])
    (child, ) = append(store, [parent], [[4, 5]])
    assert tokens_of(store, child) == [1, 2, 3, 4, 5][-kept:]
    store.release([parent])
    assert len(store) == kept


def test_a_token_moves_to_another_place():
    store, model = store_of(limit=5, kept=3), model_of(per_place=100)
    (parent, ) = append(store, [None], [[1, 102, 203]], model=model)
    (child, ) = append(store, [parent], [[304, 405]], model=model)
    assert tokens_of(store, parent, model) == [1, 102, 203]
    assert tokens_of(store, child, model) == [3, 104, 205]


def test_the_slab_grows_and_its_memory_is_used_again():
    store = store_of()
    contexts = [append(store, [None], [[number, number + 0.5]])[0] for number in range(1500)]
    assert len(store) == 3000
    assert [tokens_of(store, contexts[number]) for number in (0, 700, 1499)] == [
        [0, 0.5], [700, 700.5], [1499, 1499.5]
    ]
    size = store.size
    for _ in range(5):
        store.release(contexts)
        assert len(store) == 0
        contexts = [append(store, [None], [[number, number]])[0] for number in range(1500)]
    assert store.size == size


def test_the_slab_doubles_no_further_than_expected():
    store = store_of()
    store.expected_tokens = 40
    contexts = [append(store, [None], [[number] * 4])[0] for number in range(9)]
    assert store.size == 40
    contexts += [append(store, [None], [[number] * 4])[0] for number in range(9, 12)]
    assert store.size == 40 + 3 * 4
    assert [tokens_of(store, context)[0] for context in contexts] == list(range(12))


def test_a_batch_holds_its_contexts():
    store = store_of()
    (parent, ) = append(store, [None], [[1, 2]])
    with store.gather([parent], 1, PLAIN) as batch:
        store.release([parent])
        assert len(store) == 2
        batch.append(1, None)
        (child, ) = store.add(batch, PLAIN)
    assert tokens_of(store, child)[:2] == [1, 2]
    with pytest.raises(RuntimeError), store.gather([child], 0, PLAIN):
        raise RuntimeError
    store.release([child])
    assert len(store) == 0


def test_an_unheld_context_is_whole_until_one_of_its_tokens_goes():
    store = store_of()
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
@pytest.mark.parametrize('limit, kept', [(100, 98), (5, 3)])
def test_a_chain_of_steps_gives_what_single_steps_give(per_place, limit, kept):
    store, model = store_of(limit, kept), model_of(per_place)
    long, short = append(store, [None, None], [[1, 2], [0, 3]], counts=[2, 1])
    values = np.arange(10, 18).reshape(4, 2)

    def append_step(batch, values):
        places, _ = batch.append(values.shape[1], None)
        placed = torch.from_numpy(values + per_place * places).float()
        batch.kv[:, batch.used - values.shape[1]:batch.used] = placed[:, :, None, None, None, None]

    before, after = [], []
    for context, steps in ((long, values[:3]), (short, values[3:])):
        for row in steps:
            before.append(tokens_of(store, context, model))
            with store.gather([context], 2, model) as batch:
                append_step(batch, row[None])
                (context, ) = store.add(batch, model)
            after.append(tokens_of(store, context, model))

    # The steps' tokens, one row each: three steps go on from the long context, one from the short one.
    with store.gather([long, 0, 1, 2, 3, 4, short, 6], 1, model, range(1, 8, 2)) as batch:
        append_step(batch, values.reshape(8, 1))
        for layer in range(SHAPE.num_layers):
            batch.links.follow(layer)
        for row, tokens in zip(range(0, 8, 2), before):
            for of_layer in batch.kv[row, :len(tokens), :, 0, 0, 0].T:
                assert of_layer.tolist() == tokens
        assert [tokens_of(store, context, model) for context in store.add(batch, model, range(1, 8, 2))] == after


@pytest.mark.parametrize('encodes_again', [False, True])
@pytest.mark.parametrize('kept', [3, 1])
@pytest.mark.parametrize('lengths', [[3, 3], [1, 3], [2, 1, 3, 3], [1, 2]], ids=str)
def test_a_step_written_in_place_makes_the_contexts_that_an_appended_one_does(lengths, kept, encodes_again):
    store = store_of(5, kept, encodes_again=encodes_again)
    parents = append(store, [None] * len(lengths), [[1, 2, 3]] * len(lengths), counts=lengths)
    values = torch.arange(10., 10 + 2 * len(lengths)).view(-1, 2)
    appended = append(store, parents, values)
    new = store.reserve(2 * len(lengths)).reshape(-1, 2)
    index, found = store.index_of(parents, new)
    assert found == lengths and index.shape == (len(lengths), max(lengths) + 2)
    assert [row[length:].tolist() for row, length in zip(index, lengths)] == [
        [PADDING] * (max(lengths) - length) + own for length, own in zip(lengths, new.tolist())
    ]
    store.slab.tensor(store.size, PLAIN.like)[new] = values[:, :, None, None, None, None]
    extended = store.extend(index, found, 2)
    for context, other, length in zip(extended, appended, lengths):
        assert tokens_of(store, context) == tokens_of(store, other)
        assert context.is_raw == other.is_raw == (encodes_again and length == 3)
    store.release([*parents, *appended])
    assert len(store) == sum(map(len, extended))
    store.release(extended)
    assert len(store) == 0


def test_whoever_holds_a_raw_context_gets_the_encoded_one():
    store = store_of(5, 3, encodes_again=True)
    (parent, ) = append(store, [None], [[1, 2, 3]])
    (raw, ) = append(store, [parent], [[4, 5]])
    assert raw.is_raw and not parent.is_raw
    store.retain(raw)
    (encoded, ) = append(store, [None], [[30, 40, 50]], shortens=False)
    store.replace(raw, encoded.table)
    store.release([encoded])
    assert not raw.is_raw and tokens_of(store, raw) == [30, 40, 50]
    store.release([parent, raw])
    assert len(store) == 3
    store.release([raw])
    assert len(store) == 0


def test_a_context_that_is_not_to_be_shortened_keeps_all_tokens():
    store = store_of(5, 3, encodes_again=True)
    (context, ) = append(store, [None], [[1, 2, 3, 4, 5, 6]], shortens=False)
    assert tokens_of(store, context) == [1, 2, 3, 4, 5, 6] and not context.is_raw


def test_bytes_of_whatever_a_bare_pool_holds(keys_values):
    tensor = torch.zeros(3, 4)
    assert tensor_bytes([tensor, tensor, [tensor], {'a': np.zeros(2)}, 'text', 3]) == 48 + 16
    # Keys and values of 2 layers, 2 heads, 4 tokens, 4 wide.
    assert tensor_bytes([keys_values(1.)]) == 2 * 2 * 2 * 4 * 4 * 4
