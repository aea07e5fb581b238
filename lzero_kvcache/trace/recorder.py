"""Writes a trace of the searches of this process."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Optional

import numpy as np

from ..eviction.search_nodes import SearchNodes
from ..search.episode import NO_EPISODE
from ..world_model.managed import ManagedInference
from ..world_model.observation import SearchObserver, observe_searches
from .format import COLUMNS, DROP, EVENT, EXPANSION, PHASES, STRAYS, ManagerFacts
from .writer import TraceWriter

# A block is written when it has so many bytes, or so many seconds have passed since the last one.
BLOCK_BYTES = 2 ** 18
BLOCK_SECONDS = 5.0


class SearchRecorder(SearchObserver):
    """
    Records the searches of one world model. Nodes are copied some at a time, at the latest when the next search
    begins: those of which the recorder has been told, because an inference that is broken off may have added more.
    """

    def __init__(self, writer: TraceWriter, facts: ManagerFacts) -> None:
        self._writer = writer
        self._manager = writer.add_manager(facts)
        self._node_type = facts.node_type
        self._nodes: Optional[SearchNodes] = None
        self._num_copied = self._num_nodes = 0
        self._events: list[tuple[int, int]] = []
        self._roots = ([], [], [])
        # Of each copy its events and nodes.
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._written_at = monotonic()

    def begin(self, phase: str) -> None:
        # The former one's nodes are still there.
        self._copy()
        self._num_copied = self._num_nodes = 0
        self._events.append((PHASES.index(phase), 0))

    def roots(
            self, nodes: SearchNodes, env_ids: Sequence[Optional[int]], beginnings: Sequence[int],
            lengths: Sequence[int]
    ) -> None:
        self._roots = [-1 if env_id is None else env_id for env_id in env_ids], beginnings, lengths
        # In place of the event without any, after what was dropped since.
        place = next(place for place, (kind, _) in enumerate(self._events) if kind != DROP)
        self._add(self._events.pop(place)[0], nodes)

    def strays(self, nodes: SearchNodes) -> None:
        self._add(STRAYS, nodes)

    def expand(self, nodes: SearchNodes) -> None:
        self._add(EXPANSION, nodes)

    def drop_contexts(self) -> None:
        self._events.append((DROP, 0))

    def flush(self) -> None:
        """Write whatever has been recorded so far."""
        self._copy()
        if self._pending:
            self._writer.write(self._manager, *map(np.concatenate, zip(*self._pending)))
        self._pending, self._written_at = [], monotonic()

    def _add(self, kind: int, nodes: SearchNodes) -> None:
        self._events.append((kind, nodes.num_nodes - self._num_nodes))
        self._nodes, self._num_nodes = nodes, nodes.num_nodes
        if (self._num_nodes - self._num_copied) * self._node_type.itemsize >= BLOCK_BYTES:
            self._copy()

    def _copy(self) -> None:
        if not self._events:
            return
        records = np.zeros(self._num_nodes - self._num_copied, dtype=self._node_type)
        records['env_ids'], records['beginnings'] = -1, NO_EPISODE
        of_roots = records[:len(self._roots[0])]
        of_roots['env_ids'], of_roots['beginnings'], of_roots['tokens'] = self._roots
        if len(records):
            new = slice(self._num_copied, self._num_nodes)
            for name, _ in COLUMNS:
                records[name] = getattr(self._nodes, name)[new]
            # Of actions that are sampled no logits are kept.
            records['policies'] = self._nodes.policies[new, :records['policies'].shape[1]]
        self._pending.append((np.array(self._events, dtype=EVENT), records))
        self._events, self._roots, self._num_copied = [], ([], [], []), self._num_nodes
        pending_bytes = sum(records.nbytes for _, records in self._pending)
        if pending_bytes >= BLOCK_BYTES or monotonic() - self._written_at >= BLOCK_SECONDS:
            self.flush()


@contextmanager
def record_searches(writer: TraceWriter) -> Iterator[None]:
    """Record what every world model searches within the ``with`` block; however it ends, the trace is complete."""
    recorders: list[SearchRecorder] = []

    def new_recorder(inference: ManagedInference, world_model: Any) -> SearchRecorder:
        recorders.append(SearchRecorder(writer, manager_facts(inference, world_model)))
        return recorders[-1]

    try:
        with observe_searches(new_recorder):
            yield
    finally:
        for recorder in recorders:
            recorder.flush()
        writer.close()


def manager_facts(inference: ManagedInference, world_model: Any) -> ManagerFacts:
    manager, config = inference.manager, inference.config
    samples_actions = bool(world_model.continuous_action_space)
    num_actions = world_model.config.num_of_sampled_actions if samples_actions else world_model.action_space_size
    return ManagerFacts(
        env_num=manager.env_num, num_simulations=int(inference.num_simulations), init_size=manager.sizes.init,
        wm_size=manager.sizes.wm, on_miss=config.on_miss, window=config.window,
        context_length=int(world_model.context_length), num_actions=int(num_actions), samples_actions=samples_actions,
        num_observations_tokens=int(world_model.num_observations_tokens),
        discount_factor=float(inference.discount_factor),
    )
