"""Managed and stock inference side by side, every prediction compared: mode 'validate'."""
import logging
from collections.abc import Sequence
from typing import Any, Callable, Optional

import numpy as np
import torch

from ..config import KVCacheConfig
from ..lightzero import installed
from ..search.search import Search
from .cached_model import StepOutputs
from .managed import ManagedInference, Outputs
from .positions import host_timesteps
from .release_limits import fault_of_dtype, fault_of_lengths
from .roots import RootEnvironments, check_expansion, is_first_step
from .stock_caches import NO_HISTORY, StockCaches, StockContext
from .validation_report import KVCacheMismatchError, StockInferenceError, ValidationReport

logger = logging.getLogger('lzero_kvcache')

MIXED = 'stock fault: LightZero cannot take first steps and running episodes in one batch'
TOO_WIDE = 'stock fault: LightZero cannot take more rows than env_num'
MISS = 'stock fault: LightZero has no entry for the node and would crash'
STARTS_OVER = 'stock fault: LightZero has no entry for the node and starts over from its latent state'
GIVEN = 'contexts that are given for reanalysis: both begin with them, and are not compared'
NEGATIVE = 'stock fault: LightZero refuses the rotary positions of negative timesteps'
STALE_TABLES = 'stock fault: LightZero shifted the window by position tables of other weights'
PAST_WINDOW = "past the window: window='rebuild' is exact where LightZero approximates"
MANY_TOKENS = 'stock fault: LightZero cannot search with observations of more than one token'
BEGUN_ANEW = "on_miss='reset': the managed context has begun anew where LightZero still has its own"
MISPLACED = (
    'stock fault: LightZero puts the tokens of a search further from their root than training does, by one step, or '
    "in Sampled UniZero by the number of the simulation; with rope_positions='release' they are compared"
)
TORN = 'stock fault: at max_seq_len the rotary positions of LightZero begin again within a context'
NO_TIMESTEPS = 'stock fault: without timesteps LightZero gives all steps of an episode the same rotary positions'
REANALYSIS = 'stock fault: in reanalysis LightZero ignores its cache and starts over at every node'

# What is compared, and where the stock code returns it.
ROOT_OUTPUTS = {'latent': 1, 'policy': 3, 'value': 4}
NODE_OUTPUTS = {'latent': 1, 'reward': 2, 'policy': 3, 'value': 4}


class ValidatedInference(ManagedInference):
    """Managed inference beside the stock code on its own state, compared row by row; the managed predictions are
    returned. The stock caches are tracked from outside, to compare a row wherever the release is right, and only there.
    """

    def __init__(self, world_model: Any, config: KVCacheConfig, env_num: int, **sizes: Any) -> None:
        super().__init__(world_model, config, env_num=env_num, **sizes)
        self.report = ValidationReport()
        self._entries = installed().stock_entries
        self._stock = StockCaches()
        self._begin_stock_search((), None, MISS)
        # By phase, why the stock code did not run at the last roots.
        self._skipped_roots: dict[str, Optional[str]] = {}
        self._seen_generation = 0
        self._inferences = 0

    def initial(self, world_model: Any, obs_act_dict: dict, start_pos: Any, roots: RootEnvironments) -> Outputs:
        """As ``ManagedInference.initial``, compared with the stock code. A KVCacheMismatchError at the first row that
        should agree and does not; a StockInferenceError if the stock code fails where the release is not known to.
        """
        self._inferences += 1
        if self.config.log_interval and self._inferences % self.config.log_interval == 0:
            logger.info(f"kv_cache.mode='validate': {self.report}")
        if obs_act_dict['current_obs'] is None:
            outputs = super().initial(world_model, obs_act_dict, start_pos, roots)
            if world_model.reanalyze_phase:
                fault = MANY_TOKENS if world_model.num_observations_tokens > 1 else fault_of_dtype(world_model)
                self._begin_stock_search(range(len(outputs[1])), outputs[1], fault)
                self._timesteps = host_timesteps(start_pos, len(outputs[1]))
            return outputs
        batch_size = len(obs_act_dict['current_obs'])
        env_ids = roots.ids_of(batch_size)
        histories = [self.histories.of(roots.phase, env_id) for env_id in env_ids]
        owners = [history.key for history in histories]
        outputs = super().initial(world_model, obs_act_dict, start_pos, roots)
        if self._seen_generation != self.weights_generation:
            self._seen_generation = self.weights_generation
            self._stock.outdate_roots()
        for row in self.histories.last_begun_anew:
            owners[row] = None
        fault = self._root_fault(world_model, obs_act_dict, start_pos, batch_size)
        places = [self._entries.place(row, env_id) for row, env_id in enumerate(env_ids)]
        flaws: list[Optional[str]] = [None] * batch_size
        if fault is None and any(_is_running(obs_act_dict, row, world_model) for row in range(batch_size)):
            last_latents = world_model.tokenizer.encode_to_obs_embeddings(obs_act_dict['obs'])
            flaws, lengths = self._stock.root_flaws(
                world_model, places, last_latents.detach().cpu().numpy(), owners, self.context_lengths,
                self._skipped_roots.get(roots.phase) or NO_HISTORY
            )
            for row in range(batch_size):
                if not _is_running(obs_act_dict, row, world_model):
                    flaws[row], lengths[row] = None, max(lengths)
            fault = fault_of_lengths(world_model, lengths)
        self._begin_stock_search(env_ids, outputs[1], fault)
        self._timesteps = [history.steps[-1].timestep for history in histories]
        self._skipped_roots[roots.phase] = fault
        if fault is not None:
            self.report.not_compared[fault] += batch_size
            return outputs
        for row in self.rows_begun_anew:
            flaws[row] = BEGUN_ANEW
        timesteps = host_timesteps(start_pos, batch_size)
        if world_model.config.rotary_emb:
            for row, length in enumerate(self.context_lengths):
                newest = 2 * self._timesteps[row]
                if length and flaws[row] is None:
                    flaws[row] = self._position_flaw(world_model, row, timesteps[row], newest - length, newest)
        stock = _run_stock(
            world_model.stock_initial_inference, dict(obs_act_dict, ready_env_id=list(env_ids)),
            list(map(np.asarray, timesteps))
        )
        self._compare(ROOT_OUTPUTS, outputs, stock, flaws, [0] * batch_size)
        for row, latent in enumerate(stock[1].detach().cpu().numpy()):
            length = self.context_lengths[row] + 1 + _is_running(obs_act_dict, row, world_model)
            self._stock.add_root(
                world_model, places[row], latent, self.search.first_key + row,
                flaws[row] or self._window_flaw(world_model, length)
            )
            self._stock_latents[row] = latent
        return outputs

    def expand(
            self, world_model: Any, search: Search, nodes: np.ndarray, actions: Any, search_depth: Sequence[int] = (),
            start_pos: Any = 0
    ) -> tuple[StepOutputs, np.ndarray]:
        """As ``ManagedInference.expand``, compared with the stock code; errors as those of ``initial``."""
        outputs, children = super().expand(world_model, search, nodes, actions, search_depth)
        self._compare_step(world_model, nodes, children, actions, outputs, search_depth, start_pos)
        return outputs, children

    def recurrent(
            self, world_model: Any, state_action_history: list[tuple], simulation_index: int,
            search_depth: Sequence[int], start_pos: Any
    ) -> Outputs:
        """As ``ManagedInference.recurrent``, compared with the stock code; errors as those of ``initial``."""
        latents, actions = state_action_history[-1]
        check_expansion(world_model, latents, actions, search_depth, start_pos)
        nodes = self.nodes_of(world_model, latents, search_depth, start_pos)
        outputs = super().recurrent(world_model, state_action_history, simulation_index, search_depth, start_pos)
        end = self.search.nodes.num_nodes
        children = np.arange(end - len(nodes), end)
        self._compare_step(world_model, nodes, children, actions, outputs, search_depth, start_pos)
        return outputs

    def _compare_step(
            self, world_model: Any, nodes: np.ndarray, children: np.ndarray, actions: Any,
            outputs: Sequence[torch.Tensor], search_depth: Sequence[int], start_pos: Any
    ) -> None:
        lengths, parents, children = self.context_lengths, nodes.tolist(), children.tolist()
        self._begun_anew.update(parents[row] for row in self.rows_begun_anew)
        stock_latents = [self._stock_latents.get(parent) for parent in parents]
        fault = self._search_flaw
        if fault is None and any(latent is None for latent in stock_latents):
            fault = next((self._unmade[parent] for parent in parents if parent in self._unmade), MISS)
        places = [self._entries.place(row, env_id) for row, env_id in enumerate(self._env_ids)]
        contexts = [] if fault else self._stock.node_contexts(world_model, places, stock_latents)
        # A context that is missing begins with the latent state.
        stock_lengths = [1 if context is None else context.length for context in contexts]
        if fault is None and not world_model.reanalyze_phase:
            missing = None in contexts and self._entries.crashes_without_entry
            fault = MISS if missing else fault_of_lengths(world_model, stock_lengths)
        if fault is not None:
            self.report.not_compared[fault] += len(parents)
            self._unmade.update((child, fault) for child in children)
            return

        flaws = [
            self._node_flaw(world_model, context, parent, length, lengths)
            for context, parent, length in zip(contexts, parents, lengths)
        ]
        timesteps = host_timesteps(start_pos, len(parents))
        if world_model.config.rotary_emb:
            for row, parent in enumerate(parents):
                flaws[row] = self._search_position_flaw(
                    world_model, parent, int(lengths[row]), int(timesteps[row]), int(search_depth[row])
                ) or flaws[row]
        stock = _run_stock(
            world_model.stock_recurrent_inference, [(np.stack(stock_latents), actions)], 0, search_depth,
            start_pos if world_model.reanalyze_phase else list(map(np.asarray, timesteps))
        )
        self._compare(NODE_OUTPUTS, outputs, stock, flaws, self.search.nodes.depths[children])
        made = stock[1].detach().cpu().numpy()
        self._stock_latents.update(zip(children, made))
        self._stock.add_nodes(
            world_model, made, [self.search.first_key + child for child in children],
            [flaw or self._window_flaw(world_model, int(length) + 2) for flaw, length in zip(flaws, lengths)]
        )

    def _begin_stock_search(
            self, env_ids: Sequence[int], latents: Optional[torch.Tensor], fault: Optional[str]
    ) -> None:
        self._env_ids = env_ids
        self._search_flaw = fault
        # Of the search's roots.
        self._timesteps: Sequence[int] = ()
        self._stock.begin_search()
        # Nodes whose managed contexts began with their latent states.
        self._begun_anew: set[int] = set()
        # By node, the stock code's latent state, or why it has made none.
        self._stock_latents = {} if fault else dict(enumerate(latents.detach().cpu().numpy()))
        self._unmade: dict[int, str] = {}

    def _node_flaw(
            self, world_model: Any, context: Optional[StockContext], parent: int, length: int, lengths: np.ndarray
    ) -> Optional[str]:
        if parent in self._begun_anew:
            return BEGUN_ANEW
        if world_model.reanalyze_phase:
            return None if self.search.parent(parent) is None else REANALYSIS
        if context is None:
            return STARTS_OVER
        return context.flaw_for(self.search.first_key + parent) or self._stock.padding_flaw(length, lengths)

    def _search_position_flaw(
            self, world_model: Any, parent: int, length: int, timestep: int, reported_depth: int
    ) -> Optional[str]:
        nodes = self.search.nodes
        depth = int(nodes.depths[parent])
        if self.config.rope_positions == 'aligned' and (world_model.reanalyze_phase or reported_depth != depth):
            return MISPLACED
        oldest, newest = 2 * timestep - max(0, length - 2 * depth - 1), 2 * (timestep + reported_depth) + 3
        return self._position_flaw(world_model, int(nodes.trees[parent]), timestep, oldest, newest)

    def _position_flaw(self, world_model: Any, tree: int, timestep: int, oldest: int, newest: int) -> Optional[str]:
        """What is wrong with rotary positions from ``oldest`` to ``newest`` in the release; None: nothing."""
        if timestep != self._timesteps[tree]:
            return NO_TIMESTEPS
        if not self._entries.tears_rotary_table:
            return None
        end = world_model.config.max_seq_len
        return TORN if oldest // end != newest // end else None

    def _window_flaw(self, world_model: Any, length: int) -> Optional[str]:
        if length < world_model.context_length - 1:
            return None
        if self.config.window == 'rebuild':
            return None if self._entries.rebuilds_window(world_model) else PAST_WINDOW
        if world_model.config.rotary_emb or self._tables_are_current(world_model):
            return None
        return STALE_TABLES

    def _tables_are_current(self, world_model: Any) -> bool:
        window = (2, world_model.context_length - 1)
        used = [*world_model.pos_emb_diff_k, *world_model.pos_emb_diff_v]
        kinds = ['key'] * world_model.num_layers + ['value'] * world_model.num_layers
        for index, (table, kind) in enumerate(zip(used, kinds)):
            # The tables were made outside of any autocast.
            with torch.autocast(table[window].device.type, enabled=False):
                embedding = world_model._get_positional_embedding(index % world_model.num_layers, kind)
            current = embedding[:, :, :window[1] - window[0]] - embedding[:, :, window[0]:window[1]]
            if not torch.allclose(table[window], current, atol=self.config.validation_tolerance):
                return False
        return True

    def _compare(
            self, places: dict[str, int], managed: Sequence[torch.Tensor], stock: Sequence[torch.Tensor],
            flaws: Sequence[Optional[str]], depths: Sequence[int]
    ) -> None:
        names = list(places)
        differences = torch.stack([
            (managed[place].float() - stock[place].float()).abs().flatten(1).amax(1) for place in places.values()
        ]).cpu().numpy()
        for row, flaw in enumerate(flaws):
            if flaw is not None:
                self.report.not_compared[flaw] += 1
                continue
            worst = int(np.nan_to_num(differences[:, row], nan=np.inf).argmax())
            difference = float(differences[worst, row])
            self.report.largest_difference = max(self.report.largest_difference, difference)
            if difference <= self.config.validation_tolerance:
                self.report.agreed += 1
                continue
            self.report.differed += 1
            raise KVCacheMismatchError(
                f'environment {self._env_ids[row]}, depth {depths[row]}: the managed {names[worst]} prediction differs '
                f'from the stock one by {difference:.3g}, more than validation_tolerance '
                f'{self.config.validation_tolerance:.3g}; so far {self.report}'
            )

    def _root_fault(
            self, world_model: Any, obs_act_dict: dict, start_pos: Any, batch_size: int
    ) -> Optional[str]:
        if world_model.num_observations_tokens > 1:
            return MANY_TOKENS
        if batch_size > world_model.env_num:
            return TOO_WIDE
        fault = fault_of_dtype(world_model)
        if fault is not None:
            return fault
        if world_model.config.rotary_emb and self._entries.refuses_negative_timesteps:
            if (host_timesteps(start_pos, batch_size) < 0).any():
                return NEGATIVE
        first_steps = [is_first_step(action, world_model) for action in obs_act_dict['action'][:batch_size]]
        if self._entries.mixes_first_steps(world_model):
            return None
        return MIXED if any(first_steps) and not all(first_steps) else None

    def begin_at(self, world_model: Any, latents: torch.Tensor, contexts: Sequence[torch.Tensor]) -> torch.Tensor:
        """As ``ManagedInference.begin_at``; the search is not compared."""
        policy = super().begin_at(world_model, latents, contexts)
        self._begin_stock_search(range(len(policy)), None, GIVEN)
        return policy


def _is_running(obs_act_dict: dict, row: int, world_model: Any) -> bool:
    return not is_first_step(obs_act_dict['action'][row], world_model)


def _run_stock(inference: Callable, *arguments: Any) -> Outputs:
    try:
        return inference(*arguments)
    except Exception as error:
        raise StockInferenceError(
            "kv_cache.mode='validate' runs the stock code beside the managed cache, and the stock code has failed "
            f"({type(error).__name__}: {error}), which no known fault of the release explains; kv_cache.mode='managed' "
            'runs without it'
        ) from error
