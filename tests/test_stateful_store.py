"""Random operations on the token store: every context has the keys and values that were written for it."""
from types import SimpleNamespace

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

from lzero_kvcache.store import TokenStore
from lzero_kvcache.store.slab import TokenShape, TokenSlab
from lzero_kvcache.store.token_store import PADDING

SHAPE = dict(num_layers=2, num_heads=1, head_dim=2)
LONGEST = 12
OFFSET_PER_PLACE = 1000


class StoreMachine(RuleBasedStateMachine):
    """
    Every token has a number that no other one has: its keys and values are this number, and what its place in the row
    adds where tokens move; its embedding is the number, too, or that of the raw token that it encodes again, its
    position ten times as much. Of each context the machine keeps the numbers as a list of its own, and whether it is
    raw.
    """

    @initialize(
        moves_tokens=st.booleans(), encodes_again=st.booleans(),
        expected=st.one_of(st.none(), st.integers(1, 60)), window=st.sampled_from([(100, 98), (5, 3), (4, 1), (9, 6)])
    )
    def begin(self, moves_tokens, encodes_again, expected, window):
        slab = TokenSlab(TokenShape(**SHAPE, keep_embeddings=encodes_again))
        self.store = TokenStore(slab, *window, encodes_again)
        self.store.expected_tokens = expected
        self.model = SimpleNamespace(like=torch.zeros(0), place_offsets=None)
        if moves_tokens:
            places = torch.arange(LONGEST + 20.) * OFFSET_PER_PLACE
            self.model.place_offsets = places.view(-1, 1, 1, 1, 1).expand(-1, 2, 2, 1, 2)
        self.limit, self.kept = window
        self.written = 0
        # Of tokens that encode raw ones again, which these are.
        self.raw_of = {}
        # Held contexts with what they should be, and contexts that nobody holds any more.
        self.held = []
        self.dropped = []

    def new_numbers(self, rows, num_tokens):
        numbers = self.written + 1 + np.arange(rows * num_tokens).reshape(rows, num_tokens)
        self.written += numbers.size
        return numbers

    def write(self, batch, num_tokens, counts=None, raw=None):
        """Append columns to a batch, ``raw`` tokens encoded again or new ones; returns each row's new numbers."""
        places, _ = batch.append(num_tokens, counts)
        numbers = self.new_numbers(len(batch), num_tokens)
        raw = numbers if raw is None else np.array(raw)
        self.raw_of.update(zip(numbers.flat, raw.flat))
        values = numbers + (0 if self.model.place_offsets is None else OFFSET_PER_PLACE) * places
        batch.kv[:, batch.used - num_tokens:batch.used] = torch.from_numpy(values).float()[:, :, None, None, None, None]
        batch.embeddings.append(torch.from_numpy(raw).float()[:, :, None].expand(-1, -1, 2))
        batch.positions.append(10 * raw)
        counts = [num_tokens] * len(batch) if counts is None else counts
        return [row[num_tokens - count:].tolist() for row, count in zip(numbers, counts)]

    def is_full(self, numbers):
        return len(numbers) >= self.limit

    def hold(self, context, numbers):
        """Take a new context, which has been shortened if it had to be."""
        assert context.is_raw == (self.store.encodes_again and self.is_full(numbers))
        self.held.append((context, self.shortened(numbers)))

    def shortened(self, numbers):
        return numbers[-self.kept:] if self.is_full(numbers) else numbers

    @rule(data=st.data(), parents=st.integers(1, 4), columns=st.lists(st.integers(1, 3), min_size=1, max_size=2))
    def append(self, data, parents, columns):
        """Rows that begin anew or go on from contexts, the same one in several rows included."""
        choices = [None, *range(len(self.held))]
        chosen = [data.draw(st.sampled_from(choices)) for _ in range(parents)]
        contexts = [None if index is None else self.held[index][0] for index in chosen]
        expected = [[] if index is None else list(self.held[index][1]) for index in chosen]
        assume(max(map(len, expected)) + sum(columns) <= LONGEST)
        with self.store.gather(contexts, sum(columns), self.model) as batch:
            for number, count in enumerate(columns):
                counts = None
                if number == 0 and data.draw(st.booleans()):
                    counts = np.array(data.draw(st.lists(st.integers(1, count), min_size=parents, max_size=parents)))
                for row, new in zip(expected, self.write(batch, count, counts)):
                    row += new
            rows = data.draw(st.one_of(st.none(), st.lists(st.sampled_from(range(parents)), min_size=1, unique=True)))
            made = self.store.add(batch, self.model, rows)
        for context, row in zip(made, range(parents) if rows is None else rows):
            self.hold(context, expected[row])
        assert len(made) == (parents if rows is None else len(rows))

    @precondition(lambda self: self.held)
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
        with self.store.gather(beginnings, 1, self.model, ends) as batch:
            new = self.write(batch, 1)
            for layer in range(SHAPE['num_layers']):
                batch.links.follow(layer)
            made = iter(self.store.add(batch, self.model, ends))
            for row, (own, ) in enumerate(new):
                if row % (2 * num_steps) == 0:
                    expected = list(self.held[chosen[row // (2 * num_steps)]][1])
                assert self.numbers_in(batch.kv[row, :len(expected)]) == expected
                expected = [*expected, own]
                if row in ends:
                    self.hold(next(made), expected)
                    expected = self.shortened(expected)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), num_tokens=st.integers(1, 3))
    def extend(self, data, num_tokens):
        """A step whose tokens are written to where they stay, the same context in several rows included."""
        longest = [index for index, (_, numbers) in enumerate(self.held) if len(numbers) + num_tokens <= LONGEST]
        assume(longest)
        chosen = data.draw(st.lists(st.sampled_from(longest), min_size=1, max_size=4))
        new = self.store.reserve(len(chosen) * num_tokens).reshape(len(chosen), num_tokens)
        index, lengths = self.store.index_of([self.held[place][0] for place in chosen], new)
        assert index.shape == (len(chosen), max(lengths) + num_tokens)
        assert (index != PADDING).sum() == sum(lengths) + new.size
        numbers = self.new_numbers(*new.shape)
        self.raw_of.update(zip(numbers.flat, numbers.flat))
        written = torch.from_numpy(numbers).float()
        self.store.slab.tensor(self.store.size, self.model.like)[new] = written[:, :, None, None, None, None]
        if self.store.encodes_again:
            self.store.slab.write_raw(new.reshape(-1), written.view(-1, 1).expand(-1, 2), 10 * numbers.reshape(-1))
        former, longer = [self.held[place][1] for place in chosen], self.store.extend(index, lengths, num_tokens)
        for context, numbers_before, own in zip(longer, former, numbers.tolist()):
            self.hold(context, numbers_before + own)

    @precondition(lambda self: any(context.is_raw for context, _ in self.held))
    @rule(data=st.data())
    def encode_again(self, data):
        """Raw contexts are encoded: whoever holds them has the encoded tokens then, what went on from them has not."""
        raw = {id(context): (context, numbers) for context, numbers in self.held if context.is_raw}
        chosen = data.draw(st.lists(st.sampled_from(list(raw)), min_size=1, max_size=2, unique=True))
        contexts = [raw[identity][0] for identity in chosen]
        tokens = [[self.raw_of[number] for number in raw[identity][1]] for identity in chosen]
        with self.store.gather([None] * len(chosen), self.kept, self.model) as batch:
            found, positions = self.store.slab.raw(np.stack([context.table for context in contexts]))
            assert found[:, :, 0].tolist() == tokens and (positions == 10 * np.array(tokens)).all()
            new = self.write(batch, self.kept, raw=tokens)
            encoded = self.store.add(batch, self.model, shortens=False)
        for context, by, numbers in zip(contexts, encoded, new):
            self.store.replace(context, by.table)
            assert not context.is_raw
            self.held, self.dropped = (
                [(each, numbers if each is context else former) for each, former in of]
                for of in (self.held, self.dropped)
            )
        self.store.release(encoded)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def break_off(self, data):
        """A batch of which nothing is stored."""
        context, _ = data.draw(st.sampled_from(self.held))
        with pytest.raises(RuntimeError), self.store.gather([context, None, context], 2, self.model) as batch:
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
        with self.store.gather([context], 1, self.model) as batch:
            self.store.release([context])
            new = self.write(batch, 1)
            (made, ) = self.store.add(batch, self.model)
        self.hold(made, numbers + new[0])

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

    @precondition(lambda self: not self.held)
    @rule()
    def drop_memory(self):
        self.store.drop_memory()
        self.dropped = []

    @invariant()
    def holds_what_was_written(self):
        if not hasattr(self, 'store') or not self.store.size:
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
            assert self.store.size <= self.store.expected_tokens + self.written
        bytes_per_token = 2 * 2 * 1 * 2 * 4
        assert self.store.kv_bytes(context for context, _ in held.values()) == len(place_of) * bytes_per_token

    def read(self, context):
        """The numbers of a context's tokens, which keys, values and embeddings agree on."""
        with self.store.gather([context], 0, self.model) as batch:
            numbers = self.numbers_in(batch.kv[0])
        if self.store.encodes_again and len(context):
            embeddings, positions = self.store.slab.raw(context.table)
            raw = [self.raw_of[number] for number in numbers]
            assert embeddings[:, 0].tolist() == raw
            assert positions.tolist() == [10 * number for number in raw]
        return numbers

    def numbers_in(self, row):
        """Of one row's tokens; all layers, keys and values are equal."""
        assert (row == row[:, :1, :1, :1, :1]).all()
        values = row[:, 0, 0, 0, 0].int()
        if self.model.place_offsets is not None:
            values = values - OFFSET_PER_PLACE * torch.arange(len(row))
        return values.tolist()


def test_any_order_of_operations():
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=150, stateful_step_count=30))
