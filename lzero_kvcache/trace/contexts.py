"""Contexts without tensors: which tokens they consist of, and which of these some pool still holds."""
from collections.abc import Iterable, Sequence

from .format import ManagerFacts


class ReplayedContext:
    """
    Overview:
        One context.
    Arguments:
        - tokens (:obj:`Sequence[int]`): Its tokens by number, oldest first.
    """
    __slots__ = ('tokens', 'holders')

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self.holders = 1


class TokenAccounts:
    """
    Overview:
        What ``TokenStore`` and ``ContextWindow`` do, without keys and values: contexts share tokens, hold them, and are
        shortened at the window's end. No number comes twice.
    Arguments:
        - facts (:obj:`ManagerFacts`): The window.
    """

    def __init__(self, facts: ManagerFacts) -> None:
        self.limit = facts.context_length - 1
        self.moves_tokens = facts.window == 'shift'
        self._kept = facts.context_length - 3
        self._contexts_of: dict[int, int] = {}
        self._next = 0

    def encode(self, length: int) -> ReplayedContext:
        """
        Overview:
            A context of new tokens, held once, by the caller.
        Arguments:
            - length (:obj:`int`): How many.
        """
        return self._new(self._new_tokens(length))

    def extend(self, context: Sequence[int], count: int) -> ReplayedContext:
        """
        Overview:
            A context that goes on from another one, inside the window, held once, by the caller.
        Arguments:
            - context (:obj:`Sequence[int]`): The tokens of the other one.
            - count (:obj:`int`): The tokens that are appended.
        """
        tokens = (*context, *self._new_tokens(count))
        if len(tokens) >= self.limit:
            tokens = tokens[-self._kept:] if self.moves_tokens else tuple(self._new_tokens(self._kept))
        return self._new(tokens)

    def retain(self, context: ReplayedContext) -> ReplayedContext:
        """
        Overview:
            Hold a context that is whole once more.
        """
        if context.holders == 0:
            self._count(context.tokens)
        context.holders += 1
        return context

    def release(self, contexts: Iterable[ReplayedContext]) -> None:
        """
        Overview:
            Hold contexts once less.
        """
        contexts_of = self._contexts_of
        for context in contexts:
            context.holders -= 1
            if context.holders:
                continue
            for token in context.tokens:
                if contexts_of[token] == 1:
                    del contexts_of[token]
                else:
                    contexts_of[token] -= 1

    def is_whole(self, context: ReplayedContext) -> bool:
        """
        Overview:
            Whether a context is held, or all its tokens by other contexts.
        """
        return context.holders > 0 or all(token in self._contexts_of for token in context.tokens)

    def _new(self, tokens: Sequence[int]) -> ReplayedContext:
        self._count(tokens)
        return ReplayedContext(tokens)

    def _count(self, tokens: Sequence[int]) -> None:
        contexts_of = self._contexts_of
        for token in tokens:
            contexts_of[token] = contexts_of.get(token, 0) + 1

    def _new_tokens(self, count: int) -> range:
        self._next += count
        return range(self._next - count, self._next)
