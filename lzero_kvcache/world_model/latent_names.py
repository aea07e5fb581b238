"""Nodes of a search, found by their latent states: for callers that have no numbers."""
from typing import Optional

import numpy as np
import torch

from ..search.search import Search
from .precision import at_least_float32


class LatentNames:
    """Finds nodes by their latent states. A model may predict the same latent state for several nodes of a tree; a
    freshly initialised one always does. ``hand_out`` tells them apart by the last bits of their largest element. Among
    nodes that it never handed out, an ambiguous latent state means none.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self._num_named = 0
        # By tree and latent state; -1: several nodes.
        self._numbers: dict[tuple[int, bytes], int] = {}
        self._copies: dict[tuple[int, bytes], int] = {}

    def find_all(self, latents: np.ndarray) -> list[Optional[int]]:
        """``find`` for each row of a batch, [B, ...]."""
        return [self.find(row, latent) for row, latent in enumerate(latents)]

    def find(self, row: int, latent: np.ndarray) -> Optional[int]:
        """The node of a latent state in the row's own tree or, if unique, in another one; None: there is none."""
        self._name_nodes()
        name = latent.tobytes()
        number = self._numbers.get((row, name))
        if number is None:
            trees = set(self.search.nodes.trees[:self.search.nodes.num_nodes].tolist())
            elsewhere = [self._numbers[tree, name] for tree in trees if (tree, name) in self._numbers]
            number = elsewhere[0] if len(elsewhere) == 1 else None
        return None if number == -1 else number

    def predicted(self, latents: np.ndarray) -> dict[int, int]:
        """By row, the nodes of those latent states, [B, ...], that the model has predicted."""
        search = self.search
        num_roots = 0 if search.phase == 'unknown' else search.nodes.ends[0]
        return {
            row: number for row, number in enumerate(self.find_all(latents))
            if number is not None and (number < num_roots or search.parent(number) is not None)
        }

    def hand_out(self, first: int, latents: np.ndarray) -> np.ndarray:
        """Name the nodes from number ``first`` on. Returns their latent states, altered where ambiguous."""
        self._name_nodes(first)
        self._num_named = first + len(latents)
        distinct = latents
        for row, tree in enumerate(self.search.nodes.trees[first:self._num_named].tolist()):
            name = latents[row].tobytes()
            copies = (tree, name)
            if copies in self._numbers and distinct is latents:
                distinct = latents.copy()
            # The bits after those of inf are those of nan.
            largest = int(np.where(np.isfinite(latents[row]), np.abs(latents[row]), -1.).argmax())
            bits = distinct[row].reshape(-1).view(f'i{latents.itemsize}')
            while (tree, name) in self._numbers:
                self._copies[copies] = self._copies.get(copies, 0) + 1
                bits[largest] = latents[row].reshape(-1).view(bits.dtype)[largest] + self._copies[copies]
                name = distinct[row].tobytes()
            self._numbers[tree, name] = first + row
        return distinct

    def recover(self) -> None:
        """Forget nodes that the search has lost with an interrupted inference."""
        num_nodes = self.search.nodes.num_nodes
        self._numbers = {name: number for name, number in self._numbers.items() if number < num_nodes}
        self._num_named = min(self._num_named, num_nodes)

    def _name_nodes(self, end: Optional[int] = None) -> None:
        """Name nodes that a search by numbers has made."""
        first = self._num_named
        self._num_named = self.search.nodes.num_nodes if end is None else end
        if first == self._num_named:
            return
        latents = host_copy(self.search.tensors.latents[first:self._num_named])
        trees = self.search.nodes.trees[first:self._num_named].tolist()
        for number, (tree, latent) in enumerate(zip(trees, latents), first):
            key = (tree, latent.tobytes())
            self._numbers[key] = -1 if key in self._numbers else number


def host_copy(latents: torch.Tensor) -> np.ndarray:
    """Latent states as NumPy has them, of float32 at least."""
    return latents.detach().to('cpu', at_least_float32(latents.dtype), copy=True).numpy()
