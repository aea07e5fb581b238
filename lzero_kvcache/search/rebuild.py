"""Computes missing contexts of a search's nodes again."""
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Callable, Optional, Union

from ..stats import RebuildStats
from ..store.context import Context, ContextBatch
from ..store.token_store import TokenStore
from .episode import Episode
from .search import Search

logger = logging.getLogger('lzero_kvcache')

# One row of a batch each: enough for few forwards, few enough to bound a batch's memory.
MOST_TOKENS = 1024

# Of a row of a batch, as ``TokenStore.gather`` takes it.
Beginning = Union[Context, int, None]


@dataclass
class Route:
    """The way to a node's context: where it begins, held by the route, and the nodes from there on, the node last."""
    number: int
    context: Context
    steps: list[int]


@dataclass
class Preceding:
    """Tokens that the first rows of a batch append, one each, so that the other rows can go on from them.

    Attributes:
        made: Of each context that they make, its node, or the raw context that it replaces.
        ends: The rows that these contexts end with.
        tokens: What ``Forward`` appends to them.
        batch: The rows, once they are complete.
    """
    made: list[Union[int, Context]]
    ends: list[int]
    count: int
    tokens: Any
    batch: Optional[ContextBatch] = None


class ContextRebuilder:
    """Computes missing contexts again: from the nearest ancestor with a context, many steps in one forward; or, as the
    release, from the node's latent state alone. Arguments as ``SearchContexts``.
    """

    def __init__(self, store: TokenStore, stats: RebuildStats, lossless: bool, tokens_per_step: int) -> None:
        self._store = store
        self._stats = stats
        self._lossless = lossless
        self._tokens_per_step = tokens_per_step

    def routes(self, forward: Any, search: Search, numbers: Sequence[int]) -> list[Route]:
        """Find the ways to missing contexts. The caller releases the contexts of the routes."""
        ways = [self._way_to(search, number) for number in numbers]
        restored = sum(context is not None and not steps for _, context, steps in ways)
        self._stats.restored += restored
        self._stats.rebuilds += len(numbers) - restored
        origins = list(dict.fromkeys(origin for origin, context, _ in ways if context is None))
        with_episode = [origin for origin in origins if self._lossless and _has_its_episode(search, origin)]
        others = [origin for origin in origins if origin not in with_episode]
        for _, context, _ in ways:
            if context is not None:
                self._store.retain(context)
        encoded = self.encode_episodes(forward, [search.episodes[origin] for origin in with_episode])
        latent_tokens = self._tokens_per_step - 1
        self._stats.tokens += len(others) * latent_tokens
        encoded += self._encode(forward, len(others), latent_tokens, forward.append_latents, search, others)
        made = dict(zip(with_episode + others, encoded))
        routes = [
            Route(number, self._store.retain(made[origin]) if context is None else context, steps)
            for number, (origin, context, steps) in zip(numbers, ways)
        ]
        self._store.release(encoded)
        return routes

    def encode_episodes(self, forward: Any, episodes: Sequence[Episode]) -> list[Context]:
        """Compute contexts from observations and actions, each held once, by the caller."""
        if not episodes:
            return []
        counts = forward.lengths_of(episodes)
        self._stats.tokens += int(counts.sum())
        return self._encode(forward, len(episodes), int(counts.max()), forward.append_episodes, episodes, counts)

    def _encode(
            self, forward: Any, rows: int, room: int, append: Callable[..., None], *arguments: Any
    ) -> list[Context]:
        if not rows:
            return []
        with self._store.gather([None] * rows, room, forward.model) as batch:
            append(batch, *arguments)
            return self._store.add(batch, forward.model, shortens=False)

    def encode_in_place(self, forward: Any, contexts: Sequence[Optional[Context]]) -> None:
        """Encode those contexts that are raw, for everybody who holds them."""
        raw = list({id(context): context for context in contexts if context is not None and context.is_raw}.values())
        tables = [context.table for context in raw]
        encoded = self._encode(forward, len(raw), self._store.kept, forward.append_raw, tables)
        for context, by in zip(raw, encoded):
            self._store.replace(context, by.table)
        self._store.release(encoded)

    def finish(self, forward: Any, search: Search, routes: Sequence[Route]) -> None:
        """Go all the way: afterwards every route has its node's context."""
        while unfinished := [route for route in routes if route.steps]:
            self.encode_in_place(forward, [route.context for route in unfinished])
            self._advance(forward, search, unfinished)

    def gather(
            self, forward: Any, search: Search, found: Sequence[Optional[Context]], routes: Mapping[int, Route]
    ) -> tuple[ContextBatch, Optional[Preceding]]:
        """Bring contexts together, with room for one step. Missing and raw ones have ``routes`` by row: the tokens of
        these precede the step in the same batch, one row per token.
        """
        if sum(map(self._tokens_of, routes.values())) > MOST_TOKENS:
            self.finish(forward, search, list(routes.values()))
            self.encode_in_place(forward, [route.context for route in routes.values()])
        self.finish(forward, search, [route for route in routes.values() if not self._fits_before_a_step(route)])
        beginnings: list[Beginning] = []
        raw = {id(route.context): route.context for route in routes.values() if route.context.is_raw}
        chains = {key: self._add_chain(beginnings, None, self._store.kept) for key in raw}
        made: list[Union[int, Context]] = list(raw.values())
        ends, steps = list(chains.values()), []
        last: dict[int, Union[Context, int]] = {}
        for row, route in routes.items():
            last[row] = chains.get(id(route.context), route.context)
            for _ in route.steps:
                last[row] = self._add_chain(beginnings, last[row], self._tokens_per_step)
                ends.append(last[row])
            steps += route.steps
        rows = [last.get(row, context) for row, context in enumerate(found)]
        if not beginnings:
            return self._store.gather(rows, self._tokens_per_step, forward.model), None
        self._stats.tokens += len(steps) * self._tokens_per_step
        return self._store.gather(beginnings + rows, self._tokens_per_step, forward.model, ends), Preceding(
            made + steps, ends, len(beginnings),
            forward.preceding_tokens([context.table for context in raw.values()], search, steps)
        )

    def _tokens_of(self, route: Route) -> int:
        return len(route.steps) * self._tokens_per_step + (self._store.kept if route.context.is_raw else 0)

    def _fits_before_a_step(self, route: Route) -> bool:
        # A step cannot go on from a raw context in the same forward.
        return not self._store.encodes_again or not route.steps or (
            len(route.context) + len(route.steps) * self._tokens_per_step < self._store.limit
        )

    def _advance(self, forward: Any, search: Search, routes: Sequence[Route]) -> None:
        """Take as many steps of each route as one forward can compute."""
        most = max(1, MOST_TOKENS // (len(routes) * self._tokens_per_step))
        beginnings: list[Beginning] = []
        ends, numbers, of_route = [], [], []
        for route in routes:
            count = min(most, len(route.steps))
            if self._store.encodes_again:
                until_full = -(-(self._store.limit - len(route.context)) // self._tokens_per_step)
                count = min(count, max(1, until_full))
            end: Union[Context, int] = route.context
            for _ in range(count):
                end = self._add_chain(beginnings, end, self._tokens_per_step)
                ends.append(end)
            numbers += route.steps[:count]
            of_route.append(len(numbers) - 1)
            del route.steps[:count]
        self._stats.tokens += len(beginnings)
        with self._store.gather(beginnings, 1, forward.model, ends) as batch:
            forward.append_steps(batch, search, numbers)
            made = self._store.add(batch, forward.model, ends)
        for number, context in zip(numbers, made):
            search.contexts[number] = context
        self._store.release([route.context for route in routes])
        last = set(of_route)
        self._store.release([context for place, context in enumerate(made) if place not in last])
        for route, place in zip(routes, of_route):
            route.context = made[place]

    @staticmethod
    def _add_chain(beginnings: list[Beginning], last: Beginning, count: int) -> int:
        """Add the rows of tokens that follow each other; returns the last one."""
        for _ in range(count):
            beginnings.append(last)
            last = len(beginnings) - 1
        return last

    def _way_to(self, search: Search, number: int) -> tuple[int, Optional[Context], list[int]]:
        """The node to go on from, its context if it is still there, and the nodes from there on."""
        if not self._lossless:
            return number, None, []
        steps: list[int] = []
        while True:
            context, parent = self.whole_context(search, number), search.parent(number)
            if context is not None or parent is None:
                return number, context, steps[::-1]
            steps.append(number)
            number = parent

    def whole_context(self, search: Search, number: int) -> Optional[Context]:
        """The context last computed for a node, not held, if the store still has all its tokens."""
        context = search.contexts[number]
        return context if context is not None and self._store.is_whole(context) else None


def _has_its_episode(search: Search, root: int) -> bool:
    if root not in search.episodes:
        return False
    if search.episodes[root].key != search.first_key + root:
        _warn_of_ended_episode()
        return False
    return True


@cache
def _warn_of_ended_episode() -> None:
    logger.warning(
        'A search goes on although the episode of its root has ended and its contexts have been dropped: the root is '
        'planned from its latent state alone. Said once.'
    )
