from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional

import torch
from lzero.model.unizero_world_models.world_model import WorldModel

from ..checks import is_integer
from ..config import WORLD_MODEL_PATH
from ..lightzero import installed
from ..manager import KVCacheManager
from ..placement import check_placement
from .imagination import Imagination
from .legacy import LegacyInference
from .managed import ManagedInference
from .roots import RootEnvironments
from .scores import PoolScores
from .stock_names import bind_stock_names
from .validated import ValidatedInference

INFERENCES = {'managed': ManagedInference, 'validate': ValidatedInference}


class KVCacheWorldModelMixin:
    """
    Overview:
        Puts the managed cache under LightZero's ``WorldModel``. Root inference and the search's recurrent inference go
        through ``kv_cache_manager`` as ``config.kv_cache`` asks. Without that entry, and in mode 'legacy', the stock
        code runs. Parameters, buffers and ``state_dict`` are the stock model's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.configure_kv_cache()

    def configure_kv_cache(
            self, num_simulations: Optional[int] = None, env_num: Optional[int] = None,
            game_segment_length: Optional[int] = None, discount_factor: Optional[float] = None
    ) -> None:
        """
        Overview:
            Set the cache up, empty, as ``config.kv_cache`` asks. What is not given comes from the model's config.
        Arguments:
            - num_simulations (:obj:`Optional[int]`): Simulations per search (default 50).
            - env_num (:obj:`Optional[int]`): Environments.
            - game_segment_length (:obj:`Optional[int]`): Steps per game segment.
            - discount_factor (:obj:`Optional[float]`): Of the searches (default 0.997).
        Raises:
            - ValueError: If the config is not valid or the model's window is too short for a cache.
        """
        check_placement(self.config, WORLD_MODEL_PATH)
        self._kv_cache_roots = RootEnvironments()
        config = installed().cache_config(self.config)
        if config is not None:
            # A bad score is refused here, before a search.
            PoolScores(config)
        if config is None or config.mode == 'legacy':
            self._kv_cache_inference = LegacyInference()
            return
        self._kv_cache_inference = INFERENCES[config.mode](
            self, config, env_num=env_num or self.env_num,
            num_simulations=num_simulations or getattr(self.config, 'num_simulations', None) or 50,
            game_segment_length=game_segment_length or getattr(self.config, 'game_segment_length', None),
            discount_factor=discount_factor or getattr(self.config, 'discount_factor', None) or 0.997,
        )
        bind_stock_names(self, config.mode)

    @property
    def kv_cache_manager(self) -> Optional[KVCacheManager]:
        """
        Overview:
            The pools of this world model. Where the stock code runs, its own manager, if it has one, or None.
        """
        own, inference = vars(self), vars(self).get('_kv_cache_inference')
        if inference is None or inference.manager is None or own.get('_kv_cache_stock_runs'):
            return own.get('kv_cache_manager')
        return inference.manager

    @kv_cache_manager.setter
    def kv_cache_manager(self, manager: Any) -> None:
        # Some LightZeros have one, under this name.
        vars(self)['kv_cache_manager'] = manager

    @property
    def kv_cache_inference(self) -> Any:
        """What runs the inferences: ``ManagedInference``, ``ValidatedInference`` or ``LegacyInference``."""
        return self._kv_cache_inference

    @contextmanager
    def kv_cache_roots(self, phase: str, env_ids: Sequence[int]) -> Iterator[None]:
        """
        Overview:
            Say whose observations the root inferences within the ``with`` block get.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval', whose episodes are kept apart.
            - env_ids (:obj:`Sequence[int]`): The environment of each row.
        Raises:
            - ValueError: On another phase, or an id that is no integer.
        """
        if not all(map(is_integer, env_ids)):
            raise ValueError(f'env_ids are {list(env_ids)}: allowed are integers')
        outer = self._kv_cache_roots
        self._kv_cache_roots = RootEnvironments(phase, tuple(int(env_id) for env_id in env_ids))
        try:
            yield
        finally:
            self._kv_cache_roots = outer

    @torch.no_grad()
    def forward_initial_inference(self, obs_act_dict: dict, start_pos: Any = 0) -> tuple[torch.Tensor, ...]:
        """Predict at the roots of a new search. Arguments, shapes and result as in LightZero's ``WorldModel``."""
        roots = self._kv_cache_roots
        if roots.env_ids is None and (given := installed().environments_of(obs_act_dict)) is not None:
            roots = RootEnvironments(roots.phase, tuple(int(env_id) for env_id in given))
        outputs = self._kv_cache_inference.initial(self, obs_act_dict, start_pos, roots)
        self.latent_state = outputs[1]
        return outputs

    @torch.no_grad()
    def forward_recurrent_inference(
            self, state_action_history: list[tuple], simulation_index: int = 0, search_depth: Sequence[int] = (),
            start_pos: Any = 0
    ) -> tuple[torch.Tensor, ...]:
        """Predict the step from nodes by actions. Arguments, shapes and result as in LightZero's ``WorldModel``."""
        outputs = self._kv_cache_inference.recurrent(
            self, state_action_history, simulation_index, search_depth, start_pos
        )
        # Not through the module's own setattr, which looks for parameters first and would show in every simulation.
        vars(self)['latent_state'] = outputs[1]
        return outputs

    @torch.no_grad()
    def imagine(
            self, obs_or_latent: torch.Tensor, actions: Optional[torch.Tensor] = None, horizon: Optional[int] = None,
            choose: str = 'greedy', start_pos: Any = None, generator: Optional[torch.Generator] = None
    ) -> Imagination:
        """
        Overview:
            Roll the world model out on its own predictions, in eval mode. A latent state of the running search goes on
            from its cached context; an observation, or any other latent state, begins a new context. Each step equals a
            forward without a cache, as far as ``kv_cache.window`` does. The pools and the running search stay as they
            are.
        Arguments:
            - obs_or_latent (:obj:`torch.Tensor`): Observations :math:`(B, ...)` or latent states
                :math:`(B, num_observations_tokens, E)`.
            - actions (:obj:`Optional[torch.Tensor]`): :math:`(B, H)`, or :math:`(B, H, action_space_size)` for
                continuous ones; None: the policy head chooses them.
            - horizon (:obj:`Optional[int]`): Steps H; None: as many as there are actions.
            - choose (:obj:`str`): 'greedy' takes the policy head's likeliest action, 'sample' draws one.
            - start_pos (:obj:`Union[None, int, Sequence]`): Timesteps, one for all rows or :math:`(B, )`, from which a
                new context counts its rotary positions; None: 0. A context of a search keeps that search's.
            - generator (:obj:`Optional[torch.Generator]`): Where 'sample' takes its random numbers from.
        Returns:
            - imagination (:obj:`Imagination`): Latent states, rewards, values, policy logits and actions.
        Raises:
            - ValueError: If the arguments do not fit together.
            - RuntimeError: Without ``kv_cache`` and in mode 'legacy': the stock code cannot imagine.
        """
        if actions is not None:
            actions = torch.as_tensor(actions, device=self.transformer.ln_f.weight.device)
        was_training = self.training
        self.eval()
        try:
            return self._kv_cache_inference.imagine(
                self, obs_or_latent, actions, horizon, choose, start_pos, generator
            )
        finally:
            self.train(was_training)

    @torch.no_grad()
    def seed_reanalysis_root_caches(
            self, latent_state_roots: Any, root_token_contexts: Sequence[torch.Tensor], task_id: Optional[int] = None
    ) -> list[list[float]]:
        """
        Overview:
            Begin a search that reanalyses, at roots whose contexts are given, in the stock model's words.
        Arguments:
            - latent_state_roots (:obj:`Any`): Latent states :math:`(B, num_observations_tokens, E)`.
            - root_token_contexts (:obj:`Sequence[torch.Tensor]`): Raw tokens :math:`(T, E)` of each, it last.
            - task_id (:obj:`Optional[int]`): Not needed: a world model of several tasks has no managed cache.
        Returns:
            - policy_logits (:obj:`List[List[float]]`): At the roots.
        Raises:
            - ValueError: If they do not fit together.
        """
        if self._kv_cache_inference.manager is None:
            return super().seed_reanalysis_root_caches(latent_state_roots, root_token_contexts, task_id)
        if not len(root_token_contexts):
            return []
        policy = self._kv_cache_inference.begin_at(self, latent_state_roots, root_token_contexts)
        # Each root has the context that it was given, so that its first look-up finds what the stock code seeds.
        self.reanalysis_root_seed_count += len(policy)
        self.reanalysis_root_seed_hit_count += len(policy)
        return policy.tolist()

    def clear_caches(self) -> None:
        """Drop every cached context, as LightZero does after each round of training."""
        self._kv_cache_inference.clear()
        with self._own_manager():
            super().clear_caches()

    def stock_initial_inference(self, obs_act_dict: dict, start_pos: Any) -> tuple[torch.Tensor, ...]:
        """The stock ``forward_initial_inference`` on the stock state."""
        with self._own_manager():
            return super().forward_initial_inference(obs_act_dict, start_pos)

    def stock_recurrent_inference(
            self, state_action_history: list[tuple], simulation_index: int, search_depth: Sequence[int], start_pos: Any
    ) -> tuple[torch.Tensor, ...]:
        """The stock ``forward_recurrent_inference`` on the stock state."""
        with self._own_manager():
            return super().forward_recurrent_inference(state_action_history, simulation_index, search_depth, start_pos)

    @contextmanager
    def _own_manager(self) -> Iterator[None]:
        # The stock code asks its own manager for its contexts, if it has one.
        vars(self)['_kv_cache_stock_runs'] = True
        try:
            yield
        finally:
            vars(self).pop('_kv_cache_stock_runs', None)

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> Any:
        before = self.transformer.ln_f.weight
        device, dtype = before.device, before.dtype
        rotation = getattr(self.transformer, 'freqs_cis', None)
        applied = super()._apply(fn, *args, **kwargs)
        after = self.transformer.ln_f.weight
        if (after.device, after.dtype) != (device, dtype) and hasattr(self, '_kv_cache_inference'):
            self._kv_cache_inference.leave_device()
            if self._kv_cache_inference.manager is not None and rotation is not None:
                # Module.to(dtype) casts complex buffers, too, and leaves only their real part.
                self.transformer.freqs_cis = rotation.to(after.device)
        return applied


# Stock classes, and the same with the managed cache.
ADOPTABLE: dict[type, type] = {}


def adoptable(stock: type) -> Callable[[type], type]:
    """A decorator: instances of a stock class can become such of the decorated one."""

    def register(managed: type) -> type:
        ADOPTABLE[stock] = managed
        return managed

    return register


@adoptable(WorldModel)
class KVCacheWorldModel(KVCacheWorldModelMixin, WorldModel):
    """LightZero's world model with the managed cache."""

    @classmethod
    def adopt(cls, world_model: WorldModel) -> KVCacheWorldModelMixin:
        """Turn a stock world model into one with the managed cache, in place, and return it. Parameters and random
        state are untouched. A ValueError as ``configure_kv_cache``.
        """
        world_model.__class__ = ADOPTABLE.get(type(world_model), cls)
        world_model.configure_kv_cache()
        return world_model
