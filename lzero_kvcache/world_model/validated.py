"""Managed and stock inference side by side, every prediction compared: mode 'validate'."""
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
import torch
from lzero.model.unizero_world_models.utils import hash_state

from ..config import KVCacheConfig
from ..manager import KVCacheManager
from .histories import EnvironmentHistories, RebuildStats, RootStats
from .imagination import Imagination
from .managed import ManagedInference, Outputs, RootEnvironments, check_expansion, is_first_step
from .positions import host_timesteps
from .release_limits import fault_of_dtype, fault_of_lengths
from .validation_report import KVCacheMismatchError, StockInferenceError, ValidationReport

logger = logging.getLogger('lzero_kvcache')

PADDED = 'stock fault: of unequal lengths the release pads the shorter rows and lets the padding take attention'
NO_HISTORY = 'stock fault: the release has lost the history and starts over from the last observation'
WRONG_ENTRY = "stock fault: the release's key leads to another step's or node's context"
MIXED = 'stock fault: the release cannot take first steps and running episodes in one batch'
TOO_WIDE = 'stock fault: the release cannot take more rows than env_num'
MISS = 'stock fault: the release has no entry for the node and would crash'
OLD_WEIGHTS = 'stock fault: the release goes on from keys and values of other weights'
STALE_TABLES = 'stock fault: the release shifted the window by position tables of other weights'
PAST_WINDOW = "past the window: window='rebuild' is exact where the release approximates"
MANY_TOKENS = 'stock fault: the release cannot search with observations of more than one token'
BEGUN_ANEW = "on_miss='reset': the managed context has begun anew where the release still has its own"
MISPLACED = (
    'stock fault: the release puts the tokens of a search further from their root than training does, by one step, or '
    "in Sampled UniZero by the number of the simulation; with rope_positions='release' they are compared"
)
TORN = 'stock fault: at max_seq_len the rotary positions of the release begin again within a context'
NO_TIMESTEPS = 'stock fault: without timesteps the release gives all steps of an episode the same rotary positions'
REANALYSIS = 'stock fault: in reanalysis the release ignores its cache and starts over at every node'


@dataclass(frozen=True)
class StockContext:
    """
    Overview:
        What a slot of the stock caches really holds.
    Arguments:
        - owner (:obj:`str`): The managed key of the step or node that it was written for.
        - flaw (:obj:`Optional[str]`): Why it is not what a forward without a cache gives, if it is not.
        - length (:obj:`int`): Its tokens.
    """
    owner: str
    flaw: Optional[str]
    length: int


class ValidatedInference:
    """
    Overview:
        Runs every inference through the managed cache and through the stock code on the stock code's own state,
        compares them row by row, and returns the managed predictions. The stock caches are watched from outside, so
        that a row is compared wherever the release is right, and only there.
    Arguments:
        As ``ManagedInference``.
    Raises:
        - ValueError: As ``ManagedInference``.
    """

    def __init__(self, world_model: Any, config: KVCacheConfig, env_num: int, **sizes: Any) -> None:
        self.managed = ManagedInference(world_model, config, env_num=env_num, **sizes)
        self.report = ValidationReport()
        self._config = config
        self._env_ids: tuple[int, ...] = ()
        self._root_contexts: dict[tuple[int, int], StockContext] = {}
        self._node_contexts: dict[int, StockContext] = {}
        self._stock_latents: dict[str, np.ndarray] = {}
        # By the keys of nodes that the stock code has not made, why.
        self._unmade: dict[str, str] = {}
        # By phase, why the stock code has not run at its last roots.
        self._skipped_roots: dict[str, Optional[str]] = {}
        # Keys of nodes whose managed contexts began with their latent states.
        self._begun_anew: set[str] = set()
        self._search_flaw: Optional[str] = MISS
        # Of the running search's roots.
        self._timesteps: Sequence[int] = ()
        self._weights_generation = 0
        self._inferences = 0

    @property
    def manager(self) -> KVCacheManager:
        """
        Overview:
            The managed pools.
        """
        return self.managed.manager

    @property
    def histories(self) -> EnvironmentHistories:
        """
        Overview:
            The managed episodes.
        """
        return self.managed.histories

    @property
    def rebuild_stats(self) -> RebuildStats:
        """
        Overview:
            What misses have cost the managed cache.
        """
        return self.managed.rebuild_stats

    @property
    def root_stats(self) -> RootStats:
        """
        Overview:
            What the managed root inferences have found.
        """
        return self.managed.root_stats

    def initial(self, world_model: Any, obs_act_dict: dict, start_pos: Any, roots: RootEnvironments) -> Outputs:
        """
        Overview:
            As ``ManagedInference.initial``, compared with the stock code.
        Raises:
            - KVCacheMismatchError: At the first row that should agree and does not.
            - StockInferenceError: If the stock code fails where the release is not known to.
        """
        self._log_now_and_then()
        if obs_act_dict['current_obs'] is None:
            outputs = self.managed.initial(world_model, obs_act_dict, start_pos, roots)
            if world_model.reanalyze_phase:
                fault = MANY_TOKENS if world_model.num_observations_tokens > 1 else fault_of_dtype(world_model)
                self._begin_stock_search(outputs[1], tuple(range(len(outputs[1]))), fault)
                self._timesteps = host_timesteps(start_pos, len(outputs[1]))
            return outputs
        batch_size = len(obs_act_dict['current_obs'])
        env_ids = roots.ids_of(batch_size)
        owners = [self.managed.histories.of(roots.phase, env_id).key for env_id in env_ids]
        outputs = self.managed.initial(world_model, obs_act_dict, start_pos, roots)
        if self._weights_generation != self.managed.weights_generation:
            self._weights_generation = self.managed.weights_generation
            for place, context in self._root_contexts.items():
                self._root_contexts[place] = StockContext(context.owner, OLD_WEIGHTS, context.length)
        self._timesteps = [self.histories.of(roots.phase, env_id).steps[-1].timestep for env_id in env_ids]
        for row in self.histories.last_begun_anew:
            owners[row] = None
        fault = _root_fault(world_model, obs_act_dict, batch_size)
        flaws: list[Optional[str]] = [None] * batch_size
        if fault is None and _is_running(obs_act_dict, 0, world_model):
            flaws, lengths = self._root_flaws(world_model, obs_act_dict, owners, self._skipped_roots.get(roots.phase))
            fault = fault_of_lengths(world_model, lengths)
        self._begin_stock_search(outputs[1], env_ids, fault)
        self._skipped_roots[roots.phase] = fault
        if fault is not None:
            self.report.not_compared[fault] += batch_size
            return outputs
        for row in self.managed.rows_begun_anew:
            flaws[row] = BEGUN_ANEW
        timesteps = host_timesteps(start_pos, batch_size)
        if world_model.config.rotary_emb:
            for row, length in enumerate(self.managed.context_lengths):
                newest = 2 * self._timesteps[row]
                if length and flaws[row] is None:
                    flaws[row] = self._position_flaw(world_model, row, timesteps[row], newest - length, newest)
        stock = _run_stock(
            world_model.stock_initial_inference, obs_act_dict, [np.asarray(timestep) for timestep in timesteps]
        )
        names = ('latent', 'policy', 'value')
        self._compare(names, _pick(outputs, names), _pick(stock, names), flaws, [0] * batch_size)
        for row, latent in enumerate(stock[1].detach().cpu().numpy()):
            slot = world_model.past_kv_cache_init_infer_envs[row][hash_state(latent.reshape(-1))]
            owner = self.managed.histories.of(roots.phase, env_ids[row]).key
            length = int(self.managed.context_lengths[row]) + 1 + _is_running(obs_act_dict, row, world_model)
            self._root_contexts[row, slot] = StockContext(
                owner, flaws[row] or self._window_flaw(world_model, length),
                world_model.shared_pool_init_infer[row][slot].size
            )
            self._stock_latents[owner] = latent
        return outputs

    def recurrent(
            self, world_model: Any, state_action_history: list[tuple], simulation_index: int,
            search_depth: Sequence[int], start_pos: Any
    ) -> Outputs:
        """
        Overview:
            As ``ManagedInference.recurrent``, compared with the stock code.
        Raises:
            - KVCacheMismatchError: At the first row that should agree and does not.
        """
        latents, actions = state_action_history[-1]
        check_expansion(world_model, latents, actions, search_depth)
        parents = self.managed.nodes_of(np.asarray(latents), search_depth)
        outputs = self.managed.recurrent(
            world_model, state_action_history, simulation_index, search_depth, start_pos
        )
        lengths = self.managed.context_lengths
        self._begun_anew.update(parents[row].key for row in self.managed.rows_begun_anew)
        stock_latents = [self._stock_latents.get(parent.key) for parent in parents]
        fault = self._search_flaw
        if fault is None and any(latent is None for latent in stock_latents):
            fault = next((self._unmade[parent.key] for parent in parents if parent.key in self._unmade), MISS)
        contexts = [] if fault else self._node_contexts_of(world_model, parents, stock_latents)
        if fault is None and not world_model.reanalyze_phase:
            fault = MISS if None in contexts else fault_of_lengths(
                world_model, [context.length for context in contexts]
            )
        children = self.managed.nodes_of(outputs[1].detach().cpu().numpy(), search_depth)
        if fault is not None:
            self.report.not_compared[fault] += len(parents)
            self._unmade.update((child.key, fault) for child in children)
            return outputs

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
        next_slot = world_model.shared_pool_index
        stock_start = start_pos
        if not world_model.reanalyze_phase:
            stock_start = [np.asarray(timestep) for timestep in timesteps]
        stock = _run_stock(
            world_model.stock_recurrent_inference, [(np.stack(stock_latents), actions)], simulation_index,
            search_depth, stock_start
        )
        names = ('latent', 'reward', 'policy', 'value')
        depths = [parent.depth + 1 for parent in parents]
        self._compare(names, _pick(outputs, names), _pick(stock, names), flaws, depths)
        for row, (child, latent) in enumerate(zip(children, stock[1].detach().cpu().numpy())):
            self._stock_latents[child.key] = latent
            slot = (next_slot + row) % world_model.shared_pool_size
            flaw = flaws[row] or self._window_flaw(world_model, int(lengths[row]) + 2)
            self._node_contexts[slot] = StockContext(child.key, flaw, world_model.shared_pool_recur_infer[slot].size)
        return outputs

    def imagine(self, *args: Any) -> Imagination:
        """
        Overview:
            As ``ManagedInference.imagine``: the stock code has nothing to compare it with.
        """
        return self.managed.imagine(*args)

    def forget(self, phase: str, env_ids: Optional[Sequence[int]] = None) -> None:
        """
        Overview:
            As ``ManagedInference.forget``.
        """
        self.managed.forget(phase, env_ids)

    def clear(self) -> None:
        """
        Overview:
            As ``ManagedInference.clear``.
        """
        self.managed.clear()

    def leave_device(self) -> None:
        """
        Overview:
            As ``ManagedInference.leave_device``.
        """
        self.managed.leave_device()

    def _begin_stock_search(self, latents: torch.Tensor, env_ids: tuple[int, ...], fault: Optional[str]) -> None:
        self._env_ids = env_ids
        self._search_flaw = fault
        self._node_contexts.clear()
        self._begun_anew.clear()
        self._stock_latents.clear()
        self._unmade.clear()
        if fault is None:
            on_host = latents.detach().cpu().numpy()
            for node, latent in zip(self.managed.nodes_of(on_host, ()), on_host):
                self._stock_latents[node.key] = latent

    def _root_flaws(
            self, world_model: Any, obs_act_dict: dict, owners: Sequence[Optional[str]], skipped: Optional[str]
    ) -> tuple[list[Optional[str]], list[int]]:
        """What is wrong with the contexts that the stock code goes on from, and how many tokens they have."""
        lengths = self.managed.context_lengths
        last_latents = world_model.tokenizer.encode_to_obs_embeddings(obs_act_dict['obs']).detach().cpu().numpy()
        flaws: list[Optional[str]] = []
        stock_lengths = []
        for row, latent in enumerate(last_latents):
            slot = world_model.past_kv_cache_init_infer_envs[row].get(hash_state(latent.reshape(-1)))
            if slot is None:
                stock_lengths.append(1)
                flaws.append(skipped or NO_HISTORY)
                continue
            stock_lengths.append(world_model.shared_pool_init_infer[row][slot].size)
            context = self._root_contexts.get((row, slot))
            if context is None or context.owner != owners[row]:
                flaws.append(WRONG_ENTRY)
            else:
                flaws.append(context.flaw or (WRONG_ENTRY if stock_lengths[row] != lengths[row] else None))
        longest = max(stock_lengths)
        flaws = [flaw or (None if length == longest else PADDED) for flaw, length in zip(flaws, stock_lengths)]
        return flaws, stock_lengths

    def _node_contexts_of(
            self, world_model: Any, parents: Sequence[Any], stock_latents: Sequence[np.ndarray]
    ) -> list[Optional[StockContext]]:
        contexts: list[Optional[StockContext]] = []
        for row, latent in enumerate(stock_latents):
            key = hash_state(latent)
            slot = None
            if not world_model.reanalyze_phase:
                slot = world_model.past_kv_cache_init_infer_envs[row].get(key)
            if slot is not None:
                contexts.append(self._root_contexts.get((row, slot)))
            else:
                contexts.append(self._node_contexts.get(world_model.past_kv_cache_recurrent_infer.get(key)))
        return contexts

    def _node_flaw(
            self, world_model: Any, context: Optional[StockContext], parent: Any, length: int, lengths: np.ndarray
    ) -> Optional[str]:
        if parent.key in self._begun_anew:
            return BEGUN_ANEW
        if world_model.reanalyze_phase:
            return None if parent.parent is None else REANALYSIS
        if context.owner != parent.key:
            return WRONG_ENTRY
        return context.flaw or (None if length == lengths.max() else PADDED)

    def _search_position_flaw(
            self, world_model: Any, parent: Any, length: int, timestep: int, reported_depth: int
    ) -> Optional[str]:
        if self._config.rope_positions == 'aligned' and (
                world_model.reanalyze_phase or reported_depth != parent.depth
        ):
            return MISPLACED
        of_episode = max(0, length - 2 * parent.depth - 1)
        return self._position_flaw(
            world_model, parent.tree, timestep, 2 * timestep - of_episode, 2 * (timestep + reported_depth) + 3
        )

    def _position_flaw(self, world_model: Any, tree: int, timestep: int, oldest: int, newest: int) -> Optional[str]:
        """What is wrong with rotary positions from the ``oldest`` to the ``newest`` in the release, if anything is."""
        if timestep != self._timesteps[tree]:
            return NO_TIMESTEPS
        end = world_model.config.max_seq_len
        return TORN if oldest // end != newest // end else None

    def _window_flaw(self, world_model: Any, length: int) -> Optional[str]:
        if length < world_model.context_length - 1:
            return None
        if self._config.window == 'rebuild':
            return PAST_WINDOW
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
            if not torch.allclose(table[window], current, atol=self._config.validation_tolerance):
                return False
        return True

    def _compare(
            self, names: Sequence[str], managed: Sequence[torch.Tensor], stock: Sequence[torch.Tensor],
            flaws: Sequence[Optional[str]], depths: Sequence[int]
    ) -> None:
        differences = torch.stack([
            (ours.float() - theirs.float()).abs().flatten(1).amax(1) for ours, theirs in zip(managed, stock)
        ]).cpu().numpy()
        for row, flaw in enumerate(flaws):
            if flaw is not None:
                self.report.not_compared[flaw] += 1
                continue
            worst = int(np.nan_to_num(differences[:, row], nan=np.inf).argmax())
            difference = float(differences[worst, row])
            self.report.largest_difference = max(self.report.largest_difference, difference)
            if difference <= self._config.validation_tolerance:
                self.report.agreed += 1
                continue
            self.report.differed += 1
            raise KVCacheMismatchError(
                f'environment {self._env_ids[row]}, depth {depths[row]}: the managed {names[worst]} prediction differs '
                f'from the stock one by {difference:.3g}, more than validation_tolerance '
                f'{self._config.validation_tolerance:.3g}; so far {self.report}'
            )

    def _log_now_and_then(self) -> None:
        self._inferences += 1
        if self._config.log_interval and self._inferences % self._config.log_interval == 0:
            logger.info(f"kv_cache.mode='validate': {self.report}")


def _is_running(obs_act_dict: dict, row: int, world_model: Any) -> bool:
    return not is_first_step(obs_act_dict['action'][row], world_model)


def _pick(outputs: Sequence[torch.Tensor], names: Sequence[str]) -> list[torch.Tensor]:
    index = {'latent': 1, 'reward': 2, 'policy': 3, 'value': 4}
    return [outputs[index[name]] for name in names]


def _run_stock(inference: Callable, *arguments: Any) -> Outputs:
    try:
        return inference(*arguments)
    except Exception as error:
        raise StockInferenceError(
            "kv_cache.mode='validate' runs the stock code beside the managed cache, and the stock code has failed "
            f"({type(error).__name__}: {error}), which no known fault of the release explains; kv_cache.mode='managed' "
            'runs without it'
        ) from error


def _root_fault(world_model: Any, obs_act_dict: dict, batch_size: int) -> Optional[str]:
    if world_model.num_observations_tokens > 1:
        return MANY_TOKENS
    if batch_size > world_model.env_num:
        return TOO_WIDE
    fault = fault_of_dtype(world_model)
    if fault is not None:
        return fault
    first_steps = [is_first_step(action, world_model) for action in obs_act_dict['action'][:batch_size]]
    return MIXED if any(first_steps) and not all(first_steps) else None
