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
from .format import DROP, EVENT, EXPANSION, PHASES, ROOT_TYPE, STRAYS, EventRecords, ManagerFacts, in_blocks
from .writer import TraceWriter

# A block is written when it has so many bytes, or so many seconds have passed since the last one.
BLOCK_BYTES = 2 ** 18
BLOCK_SECONDS = 5.0


class SearchRecorder(SearchObserver):
    """
    Records the searches of one world model. Their nodes are copied when the next search begins, those of which it has
    been told: an inference that is broken off may have added more.
    """

    def __init__(self, writer: TraceWriter, facts: ManagerFacts) -> None:
        self._writer = writer
        self._manager = writer.add_manager(facts)
        self._node_type = facts.node_type
        self._nodes: Optional[SearchNodes] = None
        self._num_copied = self._num_nodes = 0
        self._events: list[tuple[int, int]] = []
        self._roots: list[np.ndarray] = []
        self._pending: list[EventRecords] = []
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
        records = np.zeros(len(env_ids), dtype=ROOT_TYPE)
        records['env_id'] = [-1 if env_id is None else env_id for env_id in env_ids]
        records['beginning'], records['tokens'] = beginnings, lengths
        self._roots.append(records)
        # In place of the event without any, after what was dropped since.
        place = next(place for place, (kind, _) in enumerate(self._events) if kind != DROP)
        phase, _ = self._events.pop(place)
        self._add(phase, nodes)

    def strays(self, nodes: SearchNodes) -> None:
        records = np.zeros(nodes.num_nodes - self._num_nodes, dtype=ROOT_TYPE)
        records['env_id'], records['beginning'] = -1, NO_EPISODE
        records['depth'] = nodes.depths[self._num_nodes:nodes.num_nodes]
        self._roots.append(records)
        self._add(STRAYS, nodes)

    def expand(self, nodes: SearchNodes) -> None:
        self._add(EXPANSION, nodes)

    def drop_contexts(self) -> None:
        self._events.append((DROP, 0))

    def flush(self) -> None:
        """Write whatever has been recorded so far."""
        self._copy()
        self._write()

    def _add(self, kind: int, nodes: SearchNodes) -> None:
        self._events.append((kind, nodes.num_nodes - self._num_nodes))
        self._nodes, self._num_nodes = nodes, nodes.num_nodes

    def _copy(self) -> None:
        if not self._events:
            return
        new = slice(self._num_copied, self._num_nodes)
        records = np.zeros(new.stop - new.start, dtype=self._node_type)
        for name in records.dtype.names if len(records) else ():
            column = getattr(self._nodes, name)[new]
            # Of actions that are sampled no logits are kept.
            records[name] = column[:, :records[name].shape[1]] if name == 'policies' else column
        self._num_copied = new.stop
        self._pending.append(EventRecords(
            np.array(self._events, dtype=EVENT), np.concatenate([np.zeros(0, dtype=ROOT_TYPE), *self._roots]), records
        ))
        self._events, self._roots = [], []
        pending_bytes = sum(array.nbytes for records in self._pending for array in records)
        if pending_bytes >= BLOCK_BYTES or monotonic() - self._written_at >= BLOCK_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._pending:
            for records in in_blocks(EventRecords(*map(np.concatenate, zip(*self._pending)))):
                self._writer.write(self._manager, records)
        self._pending, self._written_at = [], monotonic()


@contextmanager
def record_searches(writer: TraceWriter) -> Iterator[None]:
    """
    Record the searches within the ``with`` block, of every world model with a managed cache. However the block ends,
    the file is complete up to there, and closed; a trace without a search is removed. If the disk was full before the
    end, the writer's ``error`` says so.
    """
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
    """What a replay has to know of a world model."""
    manager, config = inference.manager, inference.config
    samples_actions = bool(world_model.continuous_action_space)
    return ManagerFacts(
        env_num=manager.env_num, num_simulations=int(inference.num_simulations), init_size=manager.sizes.init,
        recur_size=manager.sizes.recur, wm_size=manager.sizes.wm,
        strategy=str(config.strategy_of(config.recur_pool)), on_miss=config.on_miss, window=config.window,
        context_length=int(world_model.context_length),
        num_observations_tokens=int(world_model.num_observations_tokens),
        num_actions=int(
            world_model.config.num_of_sampled_actions if samples_actions else world_model.action_space_size
        ),
        samples_actions=samples_actions, discount_factor=float(inference.discount_factor),
    )
