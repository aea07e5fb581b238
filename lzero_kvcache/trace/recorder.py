"""Writes a trace of the searches of this process."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, NamedTuple, Optional

import numpy as np
import torch

from ..world_model.cached_model import Predictions
from ..world_model.lineage import SearchNode
from ..world_model.managed import ManagedInference
from ..world_model.observation import SearchObserver, observe_searches
from ..world_model.rebuild import MOST_TOKENS
from ..world_model.scores import mean_bin
from ..world_model.search_following import SearchFollower
from .format import (
    COLD_START,
    CONTINUES,
    DROP,
    EVENT,
    EXPANSION,
    FIRST_STEP,
    NO_EPISODE,
    PHASES,
    ROOTS,
    SEARCH,
    STRAYS,
    EventRecords,
    ManagerFacts,
    in_blocks,
    node_type,
    root_type,
)
from .writer import TraceWriter

# A block is written when it has so many bytes, or so many seconds have passed since the last one.
BLOCK_BYTES = 2 ** 18
BLOCK_SECONDS = 5.0


class _NewNodes(NamedTuple):
    # Of one inference, as long as its search goes on; the predictions lie on the model's device.
    parents: list[int]
    depths: list[int]
    tokens: list[int]
    actions: torch.Tensor
    predictions: Predictions


class SearchRecorder(SearchObserver):
    """
    Overview:
        Records the searches of one world model. What the model has predicted is converted when a search is over.
    Arguments:
        - writer (:obj:`TraceWriter`): The file.
        - inference (:obj:`ManagedInference`): The world model's.
        - world_model (:obj:`WorldModel`): The world model. Only its dimensions are read.
    """

    def __init__(self, writer: TraceWriter, inference: ManagedInference, world_model: Any) -> None:
        self._facts = manager_facts(inference, world_model)
        self._manager = writer.add_manager(self._facts)
        self._writer = writer
        self._follower = SearchFollower(world_model, inference.discount_factor)
        self._numbers: dict[str, int] = {}
        self._events: list[tuple[int, int, int]] = []
        self._roots: list[np.ndarray] = []
        self._nodes: list[Any] = []
        self._pending: list[EventRecords] = []
        self._pending_bytes = 0
        self._written_at = monotonic()

    def begin(self, phase: str) -> None:
        self._end_search()
        self._numbers = {}
        self._events.append((SEARCH, PHASES.index(phase), 0))

    def roots(self, nodes: Sequence[SearchNode], went_on: Sequence[bool], predictions: Optional[Predictions]) -> None:
        records = np.zeros(len(nodes), dtype=root_type(self._facts.num_priors))
        for record, node, continues in zip(records, nodes, went_on):
            record['env_id'] = -1 if node.env_id is None else node.env_id
            record['beginning'] = _beginning_of(node, continues)
            record['tokens'] = 0 if node.context is None else len(node.context)
        if self._facts.num_priors:
            records['priors'] = self._follower.priors(nodes[0].step.policies)
        if predictions is not None:
            records['reward_bin'] = mean_bin(predictions.reward.flatten(1)).float().cpu()
            records['value_bin'] = mean_bin(predictions.value.flatten(1)).float().cpu()
        self._roots.append(records)
        self._number(nodes, ROOTS)

    def expand(self, nodes: Sequence[SearchNode], predictions: Predictions) -> None:
        parents = [node.parent for node in nodes]
        strays = list(dict.fromkeys(parent for parent in parents if parent.key not in self._numbers))
        if strays:
            records = np.zeros(len(strays), dtype=node_type(self._facts.num_priors))
            records['parent'] = -1
            records['depth'] = [node.depth for node in strays]
            self._nodes.append(records)
            self._number(strays, STRAYS)
        self._nodes.append(_NewNodes(
            [self._numbers[parent.key] for parent in parents], [node.depth for node in nodes],
            [len(node.context) for node in nodes], nodes[0].step.actions, predictions
        ))
        self._number(nodes, EXPANSION)

    def drop_contexts(self) -> None:
        self._events.append((DROP, 0, 0))

    def flush(self) -> None:
        """
        Overview:
            Write whatever has been recorded so far.
        """
        self._end_search()
        self._write()

    def _number(self, nodes: Sequence[SearchNode], kind: int) -> None:
        for node in nodes:
            self._numbers[node.key] = len(self._numbers)
        self._events.append((kind, 0, len(nodes)))

    def _end_search(self) -> None:
        if not self._events:
            return
        records = EventRecords(
            np.array(self._events, dtype=EVENT), _joined(self._roots, root_type(self._facts.num_priors)),
            _joined(self._node_records(), node_type(self._facts.num_priors))
        )
        self._events, self._roots, self._nodes = [], [], []
        self._pending.append(records)
        self._pending_bytes += sum(array.nbytes for array in records)
        if self._pending_bytes >= BLOCK_BYTES or monotonic() - self._written_at >= BLOCK_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._pending:
            for records in in_blocks(EventRecords(*map(np.concatenate, zip(*self._pending)))):
                self._writer.write(self._manager, records)
        self._pending, self._pending_bytes, self._written_at = [], 0, monotonic()

    def _node_records(self) -> list[np.ndarray]:
        """Records of all nodes, in order."""
        made = [nodes for nodes in self._nodes if isinstance(nodes, _NewNodes)]
        if not made:
            return self._nodes
        records = np.zeros(sum(len(nodes.parents) for nodes in made), dtype=node_type(self._facts.num_priors))
        records['parent'] = np.concatenate([nodes.parents for nodes in made])
        records['depth'] = np.concatenate([nodes.depths for nodes in made])
        records['tokens'] = np.concatenate([nodes.tokens for nodes in made])
        # Batch by batch, as strategies are told: a product's last bits depend on its number of rows, and ties on those.
        expansions = [self._follower.expansion(None, nodes.actions, nodes.predictions) for nodes in made]
        for name, column in (('action', 'actions'), ('reward', 'rewards'), ('value', 'values')):
            records[name] = np.concatenate([getattr(expansion, column) for expansion in expansions])
        if self._facts.num_priors:
            records['priors'] = np.concatenate([expansion.priors for expansion in expansions])
        for name, logits in (('reward_bin', 'reward'), ('value_bin', 'value')):
            bins = [mean_bin(getattr(nodes.predictions, logits).flatten(1)) for nodes in made]
            records[name] = torch.cat(bins).float().cpu()
        batches = iter(np.split(records, np.cumsum([len(nodes.parents) for nodes in made])[:-1]))
        return [next(batches) if isinstance(nodes, _NewNodes) else nodes for nodes in self._nodes]


@contextmanager
def record_searches(writer: TraceWriter) -> Iterator[None]:
    """
    Overview:
        Record the searches within the ``with`` block, of every world model with a managed cache. However the block
        ends, the file is complete up to there; a trace without a search is removed.
    Arguments:
        - writer (:obj:`TraceWriter`): The file, closed at the end. Its ``error`` is set if the disk was full before.
    """
    recorders: list[SearchRecorder] = []

    def new_recorder(inference: ManagedInference, world_model: Any) -> SearchRecorder:
        recorders.append(SearchRecorder(writer, inference, world_model))
        return recorders[-1]

    try:
        with observe_searches(new_recorder):
            yield
    finally:
        for recorder in recorders:
            recorder.flush()
        writer.close()


def manager_facts(inference: ManagedInference, world_model: Any) -> ManagerFacts:
    """
    Overview:
        What a replay has to know of a world model.
    Arguments:
        - inference (:obj:`ManagedInference`): The world model's.
        - world_model (:obj:`WorldModel`): The world model.
    """
    manager, config = inference.manager, inference.config
    samples_actions = bool(world_model.continuous_action_space)
    return ManagerFacts(
        env_num=manager.env_num, num_simulations=int(inference.num_simulations), init_size=manager.sizes.init,
        recur_size=manager.sizes.recur, wm_size=manager.sizes.wm,
        strategy=str(config.strategy_of(config.recur_pool)), on_miss=config.on_miss, window=config.window,
        context_length=int(world_model.context_length),
        num_observations_tokens=int(world_model.num_observations_tokens), most_tokens=MOST_TOKENS,
        num_actions=int(
            world_model.config.num_of_sampled_actions if samples_actions else world_model.action_space_size
        ),
        samples_actions=samples_actions, discount_factor=float(inference.discount_factor),
    )


def _beginning_of(root: SearchNode, continues: bool) -> int:
    if root.history is None:
        return NO_EPISODE
    if continues:
        return CONTINUES
    return COLD_START if len(root.history.steps) > 1 else FIRST_STEP


def _joined(records: Sequence[np.ndarray], record_type: np.dtype) -> np.ndarray:
    return np.concatenate(records) if records else np.zeros(0, dtype=record_type)
