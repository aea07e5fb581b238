"""Missing contexts of a search's nodes, computed again from the nodes' lineage."""
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Optional, Union

import numpy as np
import torch

from ..store import Context, ContextBatch, PrecedingSteps, TokenStore
from .cached_model import CachedModel
from .histories import EnvironmentHistories
from .lineage import SearchNode
from .positions import SearchPositions
from .window import ContextWindow

logger = logging.getLogger('lzero_kvcache')

# One row of a batch each: many enough to make few forwards of them, few enough to bound a batch's memory.
MOST_TOKENS = 1024


@dataclass
class Route:
    """
    Overview:
        The way to a missing context.
    Arguments:
        - node (:obj:`SearchNode`): Whose context is missing.
        - context (:obj:`Optional[Context]`): What the way goes on from, held by the route.
        - steps (:obj:`List[SearchNode]`): The nodes on the way, ``node`` last; none: the context is there.
    """
    node: SearchNode
    context: Optional[Context]
    steps: list[SearchNode]


class ContextRebuilder:
    """
    Overview:
        Computes missing contexts again: from the nearest ancestor whose context is still there, by the steps from there
        to the node, many in one forward; or, as in the release, from the node's latent state alone.
    Arguments:
        - store (:obj:`TokenStore`): Where the contexts lie.
        - window (:obj:`ContextWindow`): Keeps them inside the model's window.
        - positions (:obj:`SearchPositions`): Rotary positions.
        - histories (:obj:`EnvironmentHistories`): What the contexts of roots are computed from.
        - lossless (:obj:`bool`): Whether ancestors are looked at.
        - tokens_per_step (:obj:`int`): Tokens of an action and the latent state that follows.
    """

    def __init__(
            self, store: TokenStore, window: ContextWindow, positions: SearchPositions,
            histories: EnvironmentHistories, lossless: bool, tokens_per_step: int
    ) -> None:
        self.stats = histories.rebuild_stats
        self._store = store
        self._window = window
        self._positions = positions
        self._histories = histories
        self._lossless = lossless
        self._tokens_per_step = tokens_per_step

    def whole_context(self, node: SearchNode) -> Optional[Context]:
        """
        Overview:
            The context that was last computed for a node, if all its tokens are still there, whatever the pools hold.
        Arguments:
            - node (:obj:`SearchNode`): The node.
        Returns:
            - context (:obj:`Optional[Context]`): Not held by this call.
        """
        return node.context if node.context is not None and self._store.is_whole(node.context) else None

    def begin(
            self, model: CachedModel, nodes: Sequence[SearchNode], timesteps: Optional[np.ndarray]
    ) -> list[Route]:
        """
        Overview:
            Find the ways to missing contexts.
        Arguments:
            - model (:obj:`CachedModel`): The model.
            - nodes (:obj:`Sequence[SearchNode]`): Whose contexts are missing.
            - timesteps (:obj:`Optional[np.ndarray]`): Timesteps of their roots, :math:`(N, )`; not looked at without
                rotary positions.
        Returns:
            - routes (:obj:`List[Route]`): One per node. The caller releases their contexts.
        """
        routes, origins = [], []
        for node in nodes:
            origin, context, steps = self._way_to(node)
            origins.append(origin)
            routes.append(Route(node, context, steps))
        restored = sum(route.context is not None and not route.steps for route in routes)
        self.stats.restored += restored
        self.stats.rebuilds += len(nodes) - restored
        missing = [row for row, route in enumerate(routes) if route.context is None]
        from_history = [row for row in missing if self._lossless and _has_its_history(origins[row])]
        from_latent = [row for row in missing if row not in from_history]
        encoded = []
        if from_history:
            encoded += self._histories.encode(model, [origins[row].history for row in from_history])
        if from_latent:
            encoded += self._encode_latents(
                model, [origins[row] for row in from_latent], None if timesteps is None else timesteps[from_latent]
            )
        for route in routes:
            if route.context is not None:
                self._store.retain(route.context)
        for row, context in zip(from_history + from_latent, encoded):
            routes[row].context = context
        return routes

    def finish(self, model: CachedModel, routes: Sequence[Route]) -> None:
        """
        Overview:
            Go all the way: afterwards every route has its node's context.
        Arguments:
            - model (:obj:`CachedModel`): The model.
            - routes (:obj:`Sequence[Route]`): Changed in place.
        """
        while True:
            unfinished = [route for route in routes if route.steps]
            if not unfinished:
                return
            self._advance(model, unfinished)

    def gather(
            self, model: CachedModel, found: Sequence[Optional[Context]], routes: Mapping[int, Route]
    ) -> ContextBatch:
        """
        Overview:
            Bring contexts together, with room for one step, preceded by the steps that lead to the missing ones.
        Arguments:
            - model (:obj:`CachedModel`): The model.
            - found (:obj:`Sequence[Optional[Context]]`): One per row; None where it is missing.
            - routes (:obj:`Mapping[int, Route]`): The ways to those, by row.
        Returns:
            - batch (:obj:`ContextBatch`): The rows; ``preceding.owners`` are the nodes of the steps.
        """
        if sum(len(route.steps) for route in routes.values()) * self._tokens_per_step > MOST_TOKENS:
            self.finish(model, list(routes.values()))
        self.finish(model, [route for route in routes.values() if not self._fits_before_a_step(route)])
        last: list[Union[Context, int, None]] = list(found)
        owners: list[SearchNode] = []
        beginnings: list[Union[Context, int]] = []
        for row, route in routes.items():
            last[row] = self._add_beginnings(beginnings, route.context, len(route.steps))
            owners += route.steps
        if not owners:
            return self._store.gather(last, self._tokens_per_step, model.like)
        ends = self._ends_of(beginnings)
        batch = self._store.gather_steps(
            beginnings + last, ends, self._tokens_per_step, self._window.limit, self._window.kept, model.like
        )
        batch.preceding = PrecedingSteps(*self._step_tokens(model, owners), ends, owners)
        return batch

    def _fits_before_a_step(self, route: Route) -> bool:
        # A context that is encoded again cannot be gone on from in the same forward.
        return self._window.moves_tokens or not route.steps or (
            len(route.context) + len(route.steps) * self._tokens_per_step < self._window.limit
        )

    def _advance(self, model: CachedModel, routes: Sequence[Route]) -> None:
        """Take as many steps of each route as one forward can compute."""
        most = max(1, MOST_TOKENS // (len(routes) * self._tokens_per_step))
        taken, beginnings = [], []
        for route in routes:
            count = min(most, len(route.steps))
            if not self._window.moves_tokens:
                until_full = -(-(self._window.limit - len(route.context)) // self._tokens_per_step)
                count = min(count, max(1, until_full))
            taken.append(route.steps[:count])
            del route.steps[:count]
            self._add_beginnings(beginnings, route.context, count)
        nodes = [node for steps in taken for node in steps]
        tokens, positions = self._step_tokens(model, nodes)
        ends = self._ends_of(beginnings)
        with self._store.gather_steps(
                beginnings, ends, 1, self._window.limit, self._window.kept, model.like
        ) as batch:
            model.append(batch, tokens, positions)
            made = self._window.add(model, batch, ends)
        for node, context in zip(nodes, made):
            node.context = context
        last = np.cumsum([len(steps) for steps in taken]) - 1
        self._store.release([route.context for route in routes])
        self._store.release([context for number, context in enumerate(made) if number not in last])
        for route, number in zip(routes, last):
            route.context = made[number]

    def _add_beginnings(
            self, beginnings: list[Union[Context, int]], context: Context, num_steps: int
    ) -> Union[Context, int]:
        """What each token of a chain of steps begins with, and what comes after the chain does."""
        last: Union[Context, int] = context
        for _ in range(num_steps * self._tokens_per_step):
            beginnings.append(last)
            last = len(beginnings) - 1
        return last

    def _ends_of(self, beginnings: Sequence[Union[Context, int]]) -> range:
        return range(self._tokens_per_step - 1, len(beginnings), self._tokens_per_step)

    def _way_to(self, node: SearchNode) -> tuple[SearchNode, Optional[Context], list[SearchNode]]:
        """The node to go on from, its context if it is still there, and the nodes from there on."""
        if not self._lossless:
            return node, None, []
        steps: list[SearchNode] = []
        context = self.whole_context(node)
        while context is None and node.parent is not None:
            steps.append(node)
            node = node.parent
            context = self.whole_context(node)
        return node, context, steps[::-1]

    def _encode_latents(
            self, model: CachedModel, nodes: Sequence[SearchNode], timesteps: Optional[np.ndarray]
    ) -> list[Context]:
        latents = torch.from_numpy(np.stack([node.latent for node in nodes])).to(model.like)
        positions = None
        if model.uses_rotary:
            depths = np.asarray([node.depth for node in nodes])
            first = self._positions.of_reset_latent(timesteps, depths)
            positions = first[:, None] + np.arange(latents.shape[1])
        self.stats.tokens += latents.shape[0] * latents.shape[1]
        with self._store.gather([None] * len(nodes), latents.shape[1], model.like) as batch:
            model.append(batch, latents, positions)
            return self._store.add(batch)

    def _step_tokens(
            self, model: CachedModel, nodes: Sequence[SearchNode]
    ) -> tuple[torch.Tensor, Optional[np.ndarray]]:
        """The tokens that lead to nodes, action and latent state, and their rotary positions, one token per row."""
        actions = model.embed_actions(torch.stack([node.step.actions[node.row] for node in nodes]))
        latents = torch.from_numpy(np.stack([node.latent for node in nodes])).to(actions)
        tokens = torch.cat([actions, latents], dim=1).flatten(0, 1)[:, None]
        self.stats.tokens += len(tokens)
        positions = None
        if model.uses_rotary:
            positions = np.concatenate([node.step.positions[node.row] for node in nodes])[:, None]
        return tokens, positions


def _has_its_history(root: SearchNode) -> bool:
    if root.history is None:
        return False
    if root.history.key != root.key:
        _warn_of_ended_episode()
        return False
    return True


@cache
def _warn_of_ended_episode() -> None:
    logger.warning(
        'A search goes on although the episode of its root has ended and its contexts have been dropped: the root is '
        'planned from its latent state alone. Said once.'
    )
