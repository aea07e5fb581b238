"""Keeps contexts inside the model's window."""
from collections.abc import Sequence
from typing import Optional

from ..store import Context, ContextBatch, TokenStore
from .cached_model import CachedModel


class ContextWindow:
    """
    Overview:
        A context that has reached ``context_length - 1`` tokens keeps its last ``context_length - 3``.
    Arguments:
        - context_length (:obj:`int`): The window in tokens, at least 4.
        - mode (:obj:`str`): 'shift' drops the oldest tokens; with learned positions the others move to the places that
            become free, their keys and values corrected by the difference of the position embeddings, as the stock code
            does. 'rebuild' encodes the remaining tokens again from place 0 (rotary tokens keep their own positions,
            only whose differences matter).
        - store (:obj:`TokenStore`): Where the contexts lie.
    """

    def __init__(self, context_length: int, mode: str, store: TokenStore) -> None:
        self.limit = context_length - 1
        self.kept = context_length - 3
        self.moves_tokens = mode == 'shift'
        self._store = store

    def add(
            self, model: CachedModel, batch: ContextBatch, rows: Optional[Sequence[int]] = None
    ) -> list[Context]:
        """
        Overview:
            Store what has been appended to a batch, and shorten the contexts that have reached the limit.
        Arguments:
            - model (:obj:`CachedModel`): The model.
            - batch (:obj:`ContextBatch`): The rows, within their ``with`` block.
            - rows (:obj:`Optional[Sequence[int]]`): The rows whose contexts are wanted; None: all.
        Returns:
            - contexts (:obj:`List[Context]`): One per wanted row, each held once, by the caller.
        """
        contexts = self._store.add(batch, self.limit, self.kept, rows)
        if not self.moves_tokens:
            lengths = batch.final_lengths() if rows is None else batch.final_lengths()[rows]
            full = [number for number, length in enumerate(lengths) if length >= self.limit]
            for number, encoded in zip(full, self._encode_again(model, [contexts[number] for number in full])):
                contexts[number] = encoded
        return contexts

    def _encode_again(self, model: CachedModel, contexts: Sequence[Context]) -> list[Context]:
        if not contexts:
            return []
        embeddings, positions = self._store.embeddings_of(contexts)
        self._store.release(contexts)
        with self._store.gather([None] * len(contexts), self.kept, model.like) as batch:
            model.append(batch, embeddings, positions)
            return self._store.add(batch)
