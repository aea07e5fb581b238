"""Random operations on the token store: every context has the keys and values that were written for it."""
import numpy as np
import pytest
import torch
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from invariants import check_tokens

from lzero_kvcache.store import TokenShape, TokenStore

SHAPE = dict(num_layers=2, num_heads=1, head_dim=2)
LIKE = torch.zeros(0)
LONGEST = 12
OFFSET_PER_PLACE = 1000


class StoreMachine(RuleBasedStateMachine):
    """
    Every token has a number that no other one has: its keys and values are this number, and what its place in the row
    adds where tokens move; its embedding is the number, its position ten times as much. Of each context the machine
    keeps the numbers as a list of its own.
    """

    @initialize(
        moves_tokens=st.booleans(), keeps_embeddings=st.booleans(),
        expected=st.one_of(st.none(), st.integers(1, 60)), window=st.sampled_from([None, (5, 3), (4, 1), (9, 6)])
    )
    def begin(self, moves_tokens, keeps_embeddings, expected, window):
        self.store = TokenStore(TokenShape(**SHAPE, keep_embeddings=keeps_embeddings))
        self.store.expected_tokens = expected
        if moves_tokens:
            places = torch.arange(LONGEST + 20.) * OFFSET_PER_PLACE
            self.store.place_offsets = places.view(-1, 1, 1, 1, 1).expand(-1, 2, 2, 1, 2)
        self.limit, self.kept = window or (None, 0)
        self.written = 0
        # Held contexts with what they should be, and contexts that nobody holds any more.
        self.held = []
        self.dropped = []

    def write(self, batch, num_tokens, counts=None):
        """Append columns to a batch; returns each row's new numbers."""
        places, _ = batch.append(num_tokens, counts)
        numbers = self.written + 1 + np.arange(len(batch) * num_tokens).reshape(len(batch), num_tokens)
        self.written += numbers.size
        values = numbers + (0 if self.store.place_offsets is None else OFFSET_PER_PLACE) * places
        batch.kv[:, batch.used - num_tokens:batch.used] = torch.from_numpy(values).float()[:, :, None, None, None, None]
        batch.embeddings.append(torch.from_numpy(numbers).float()[:, :, None].expand(-1, -1, 2))
        batch.positions.append(10 * numbers)
        counts = [num_tokens] * len(batch) if counts is None else counts
        return [row[num_tokens - count:].tolist() for row, count in zip(numbers, counts)]

    def shortened(self, numbers):
        return numbers[-self.kept:] if self.limit is not None and len(numbers) >= self.limit else numbers

    @rule(data=st.data(), parents=st.integers(1, 4), columns=st.lists(st.integers(1, 3), min_size=1, max_size=2))
    def append(self, data, parents, columns):
        """Rows that begin anew or go on from contexts, the same one in several rows included."""
        choices = [None, *range(len(self.held))]
        chosen = [data.draw(st.sampled_from(choices)) for _ in range(parents)]
        contexts = [None if index is None else self.held[index][0] for index in chosen]
        expected = [[] if index is None else list(self.held[index][1]) for index in chosen]
        assume(max(map(len, expected)) + sum(columns) <= LONGEST)
        with self.store.gather(contexts, sum(columns), LIKE) as batch:
            for number, count in enumerate(columns):
                counts = None
                if number == 0 and data.draw(st.booleans()):
                    counts = np.array(data.draw(st.lists(st.integers(1, count), min_size=parents, max_size=parents)))
                for row, new in zip(expected, self.write(batch, count, counts)):
                    row += new
            rows = data.draw(st.one_of(st.none(), st.lists(st.sampled_from(range(parents)), min_size=1, unique=True)))
            made = self.store.add(batch, self.limit, self.kept, rows)
        for context, row in zip(made, range(parents) if rows is None else rows):
            self.held.append((context, self.shortened(expected[row])))
        assert len(made) == (parents if rows is None else len(rows))

    @precondition(lambda self: self.held and self.limit is not None)
    @rule(data=st.data(), num_steps=st.integers(1, 4))
    def append_steps(self, data, num_steps):
        """Chains of steps of two tokens in one forward; the contexts of all steps are held."""
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.held))), min_size=1, max_size=2))
        beginnings = []
        for index in chosen:
            last = self.held[index][0]
            for _ in range(2 * num_steps):
                beginnings.append(last)
                last = len(beginnings) - 1
        ends = range(1, len(beginnings), 2)
        with self.store.gather_steps(beginnings, ends, 1, self.limit, self.kept, LIKE) as batch:
            new = self.write(batch, 1)
            for layer in range(SHAPE['num_layers']):
                batch.links.follow(layer)
            made = iter(self.store.add(batch, self.limit, self.kept, ends))
            for row, (own, ) in enumerate(new):
                if row % (2 * num_steps) == 0:
                    expected = list(self.held[chosen[row // (2 * num_steps)]][1])
                assert self.numbers_in(batch.kv[row, :len(expected)]) == expected
                expected = [*expected, own]
                if row in ends:
                    expected = self.shortened(expected)
                    self.held.append((next(made), expected))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def break_off(self, data):
        """A batch of which nothing is stored."""
        context, _ = data.draw(st.sampled_from(self.held))
        with pytest.raises(RuntimeError), self.store.gather([context, None, context], 2, LIKE) as batch:
            batch.append(2, None)
            raise RuntimeError

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def retain(self, data):
        context, numbers = data.draw(st.sampled_from(self.held))
        assert self.store.retain(context) is context
        self.held.append((context, numbers))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        indices = data.draw(st.lists(st.sampled_from(range(len(self.held))), min_size=1, max_size=4, unique=True))
        leaving = [self.held[index] for index in indices]
        self.store.release([context for context, _ in leaving])
        self.held = [holding for index, holding in enumerate(self.held) if index not in indices]
        self.dropped += [(context, numbers) for context, numbers in leaving if context.holders == 0]
        self.dropped = self.dropped[-8:]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release_within_a_batch(self, data):
        index = data.draw(st.sampled_from(range(len(self.held))))
        context, numbers = self.held.pop(index)
        with self.store.gather([context], 1, LIKE) as batch:
            self.store.release([context])
            new = self.write(batch, 1)
            (made, ) = self.store.add(batch, self.limit, self.kept)
        self.held.append((made, self.shortened(numbers + new[0])))

    @rule(data=st.data())
    def take_up_what_nobody_holds(self, data):
        """Whoever has let a context go finds out whether others still hold all its tokens, and can hold it again."""
        alive = {number for _, numbers in self.held for number in numbers}
        for context, numbers in self.dropped:
            whole = context.holders > 0 or alive >= set(numbers)
            assert self.store.is_whole(context) == whole
        whole = [index for index, (context, _) in enumerate(self.dropped) if self.store.is_whole(context)]
        if whole:
            context, numbers = self.dropped.pop(data.draw(st.sampled_from(whole)))
            self.held.append((self.store.retain(context), numbers))

    @precondition(lambda self: not self.held and self.store.place_offsets is None)
    @rule()
    def drop_memory(self):
        self.store.drop_memory()
        self.dropped = []

    @invariant()
    def holds_what_was_written(self):
        if not hasattr(self, 'store') or self.store._kv is None:
            return
        held = {id(context): (context, numbers) for context, numbers in self.held}
        for identity, (context, _) in held.items():
            assert context.holders == sum(id(other) == identity for other, _ in self.held)
        check_tokens(self.store, [context for context, _ in held.values()])
        place_of = {}
        for context, numbers in held.values():
            assert self.read(context) == numbers
            for place, number in zip(context.table.tolist(), numbers):
                assert place_of.setdefault(number, place) == place, 'a token is in the store twice'
        assert len(self.store) == len(place_of)
        if self.store.expected_tokens is not None:
            assert len(self.store._holders) <= self.store.expected_tokens + self.written
        bytes_per_token = 2 * 2 * 1 * 2 * 4
        assert self.store.kv_bytes(context for context, _ in held.values()) == len(place_of) * bytes_per_token

    def read(self, context):
        """The numbers of a context's tokens, which keys, values and embeddings agree on."""
        with self.store.gather([context], 0, LIKE) as batch:
            numbers = self.numbers_in(batch.kv[0])
        if self.store.shape.keep_embeddings and len(context):
            embeddings, positions = self.store.embeddings_of([context])
            assert embeddings[0, :, 0].tolist() == numbers
            assert positions[0].tolist() == [10 * number for number in numbers]
        return numbers

    def numbers_in(self, row):
        """Of one row's tokens; all layers, keys and values are equal."""
        assert (row == row[:, :1, :1, :1, :1]).all()
        values = row[:, 0, 0, 0, 0].int()
        if self.store.place_offsets is not None:
            values = values - OFFSET_PER_PLACE * torch.arange(len(row))
        return values.tolist()


def test_any_order_of_operations():
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=150, stateful_step_count=30))
