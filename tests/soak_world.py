"""One small world model that a soak plays on: searches, episode ends, learner steps, evictions, in random order."""
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Callable

import numpy as np
import torch
from episodes import Episodes
from invariants import check_pool, check_store
from models import build_model, kv_cache, observations, random_action, two_tokens_per_observation
from oracle import Oracle
from searches import search
from test_imagine import begin, check_rollout

from lzero_kvcache import EVICTION_REGISTRY, KVCachePool
from lzero_kvcache.world_model.managed import ManagedInference

ENV_NUM = 4
LARGEST_POOLS = dict(init_pools=4, recur_pool=40, wm_pool=ENV_NUM)
# What happens, out of a hundred times.
TURNS = dict(step=74, end=3, end_all=1, resize=7, learn=4, clear=2, reanalyse=4, imagine=5)
HORIZON = 4
MOST_SIMULATIONS = 20
# Steps. The oracle's costs grow with an episode's square.
LONGEST_EPISODE = 30
CHANCE_OF_AN_END = 1 / 12
CHANCE_OF_A_RESIZE_WITHIN_A_SEARCH = 1 / 30
CHANCE_OF_LATENTS = 1 / 4


class CountingPool(KVCachePool):
    """A pool that is counted from outside, to hold its statistics against."""

    @classmethod
    def watch(cls, pool: KVCachePool) -> None:
        pool.__class__ = cls
        pool.counted = Counter()

    def _store(self, key: Any, *arguments: Any) -> int:
        # Not by the pool's own methods, which take it for broken in the midst of another one.
        is_new = key not in self._slot_of_key
        self.counted['sets'] += 1
        self.counted['new'] += is_new
        self.counted['evictions'] += is_new and len(self._slot_of_key) == self.pool_size
        return super()._store(key, *arguments)

    def get_many(self, keys: Sequence[Any]) -> list[Any]:
        self.counted['queries'] += len(keys)
        self.counted['hits'] += sum(key in self for key in keys)
        return super().get_many(keys)

    def resize(self, pool_size: int) -> None:
        self.counted['evictions'] += max(0, len(self) - pool_size)
        super().resize(pool_size)

    def evict(self) -> None:
        self.counted['evictions'] += 1
        super().evict()

    def clear(self) -> None:
        self.counted['cleared'] += len(self)
        super().clear()

    def check_statistics(self) -> None:
        stats, counted = self.stats, self.counted
        assert stats.hits + stats.misses == stats.total_queries == counted['queries'], f'{self}: {counted}'
        assert stats.hits == counted['hits'], f'{self}: {counted}'
        assert stats.evictions == counted['evictions'], f'{self}: {counted}'
        assert len(self) == counted['new'] - stats.evictions - counted['cleared'], f'{self}: {counted}'


class WatchedInference(ManagedInference):
    """Says before each recurrent inference that there is one."""

    @classmethod
    def watch(cls, inference: ManagedInference, before_step: Callable[[], None]) -> None:
        inference.__class__ = cls
        inference.before_step = before_step

    def expand(self, *arguments: Any) -> Any:
        self.before_step()
        return super().expand(*arguments)

    def recurrent(self, *arguments: Any) -> Any:
        self.before_step()
        return super().recurrent(*arguments)


class Player(Episodes):
    """
    Episodes whose roots are always compared with the oracle, the nodes of their searches where it is asked for; others
    may go by latent states.
    """

    compares_nodes = True
    by_latents = False

    def _search(self, env_ids: Sequence[int], root: Any, timesteps: Sequence[np.ndarray], num_simulations: int) -> None:
        if self.compares_nodes:
            super()._search(env_ids, root, timesteps, num_simulations)
        else:
            search(self.model, root, timesteps, num_simulations, by_latents=self.by_latents)

    def length(self, env_id: int) -> int:
        """Steps of an environment's running episode."""
        return len(self._episodes.get(env_id, ()))


class Reanalysis(Player):
    """Searches from the sequences of a replay buffer, more of them than there are environments."""

    sequences = 2
    unroll_steps = 3

    @torch.no_grad()
    def reanalyse(self, num_simulations: int) -> None:
        generator = self._generator
        current = observations(self.model, self.sequences * (self.unroll_steps + 1), generator)
        actions = np.asarray([
            [random_action(self.model, generator) for _ in range(self.unroll_steps)] for _ in range(self.sequences)
        ])
        timesteps = np.arange(self.unroll_steps)[None] + 10 * np.arange(self.sequences)[:, None]
        self._world_model.reanalyze_phase = True
        try:
            root = self.model.initial_inference(current, actions, start_pos=timesteps)
            steps = [np.array(step) for step in np.pad(timesteps, ((0, 0), (0, 1))).reshape(-1)]
            self._contexts = {}
            for row, (latent, step) in enumerate(zip(root.latent_state, steps)):
                self._contexts[row] = Oracle(self._world_model)
                self._contexts[row].add_latent(latent, 2 * int(step))
            self._search(range(len(steps)), root, steps, num_simulations)
        finally:
            self._world_model.reanalyze_phase = False

    def _positions(self, timestep: int, parent_depth: int, search_depth: int) -> Sequence[int]:
        if self._config.rope_positions == 'aligned':
            return super()._positions(timestep, parent_depth, search_depth)
        # The release gives both tokens of a reanalysed expansion the same rotary position.
        return [2 * (timestep + search_depth) + 3] * 2


def draw_settings(number: int, strategy: str, rng: Random) -> dict[str, Any]:
    """
    The settings of one of several worlds: eight in a row have every combination of actions, positions and window, each
    strategy has one world of its own, and everything else is drawn.
    """
    def strategy_of_pool() -> Any:
        return rng.choice([None, None, *sorted(EVICTION_REGISTRY)])

    cache = dict(
        strategy=strategy, window=['shift', 'rebuild'][number // 4 % 2],
        on_miss='reset' if number % 4 == 3 else 'rebuild',
        rope_positions=rng.choice(['release', 'aligned']), memory_budget_mb=rng.choice([None, None, None, 1.]),
        init_pool=dict(size=2, strategy=strategy_of_pool()), recur_pool=dict(size=8),
        wm_pool=dict(size=2, strategy=strategy_of_pool()),
    )
    model = dict(
        actions=['discrete', 'continuous'][number % 2], rotary=bool(number // 2 % 2), gru_gating=rng.random() < 0.25,
        context_length=rng.choice([5, 8, 9, 20]), tokens_per_block=rng.choice([2, 2, 3]),
    )
    return dict(cache=cache, model=model)


class World:
    """
    A model, its cache and the episodes that are played on it.

    ``turn`` lets one thing happen, ``check`` holds everything against what must be, ``rest`` ends what is running.
    ``done`` counts what has happened.
    """

    def __init__(
            self, number: int, strategy: str, seed: int, compares_nodes: float, on_step: Callable[[], None]
    ) -> None:
        self._rng = Random(f'{seed}/{number}')
        self.settings = draw_settings(number, strategy, self._rng)
        model = build_model(seed=number, kv_cache=kv_cache(**self.settings['cache']), **self.settings['model'])
        if self.settings['model']['tokens_per_block'] == 3:
            two_tokens_per_observation(model)
        self.model = model
        self.world_model = model.world_model
        self.inference = model.world_model.kv_cache_inference
        WatchedInference.watch(self.inference, self._before_step)
        for pool in self.pools():
            CountingPool.watch(pool)
        self.done: Counter = Counter()
        self.phases = {
            phase: Player(self.model, phase, self._rng.randrange(2 ** 32)) for phase in ('collect', 'eval')
        }
        self._reanalysis = Reanalysis(self.model, seed=self._rng.randrange(2 ** 32))
        self._generator = torch.Generator().manual_seed(self._rng.randrange(2 ** 32))
        self._parameters = [parameter.detach().clone() for parameter in model.parameters()]
        self._compares_nodes = compares_nodes
        self._on_step = on_step
        self._is_lossless = self.settings['cache']['on_miss'] == 'rebuild'
        # Phase, latent states of the roots, environments and timesteps of the running search.
        self._running: Any = None

    def pools(self) -> list[CountingPool]:
        return [pool for pools in self.inference.manager.pools().values() for pool in pools]

    @property
    def num_nodes(self) -> int:
        """Those of the running search."""
        search = self.inference.search
        return 0 if search is None else search.nodes.num_nodes

    def slab_bytes(self) -> int:
        slab = self.inference.store.slab._kv
        return 0 if slab is None else slab.nbytes

    def players(self) -> list[Player]:
        return [*self.phases.values(), self._reanalysis]

    def turn(self) -> str:
        """Let one thing happen at random, and say which."""
        (name, ) = self._rng.choices(list(TURNS), list(TURNS.values()))
        getattr(self, f'_{name}')()
        return name

    def weights_have_changed(self) -> None:
        """Every context that there was is dropped at the next inference."""
        self._running = None
        for player in self.phases.values():
            player.weights_have_changed()

    def check(self) -> None:
        """Counts of holders and tokens, the pools' indices, and their statistics."""
        check_store(self.inference)
        for pool in self.pools():
            check_pool(pool)
            pool.check_statistics()

    def rest(self) -> None:
        """All episodes end and the caches are cleared, as after a round of training. Nothing may be held then."""
        for player in self.phases.values():
            for env_id in range(ENV_NUM):
                player.end(env_id)
        self.world_model.clear_caches()
        self.weights_have_changed()
        self.check()
        assert len(self.inference.store) == 0 and not any(map(len, self.pools()))

    def play_compared(self) -> None:
        """Play on, with every node compared."""
        for player in self.players():
            player.compares_nodes = True
        for player in self.phases.values():
            player.step(range(ENV_NUM), num_simulations=5)
        self._reanalysis.reanalyse(num_simulations=2)
        self._running = None
        self._imagine()

    def _before_step(self) -> None:
        self.done['search steps'] += 1
        # With 'reset' the oracle has to know beforehand what is lost.
        if self._is_lossless and self._rng.random() < CHANCE_OF_A_RESIZE_WITHIN_A_SEARCH:
            self._resize()
        self._on_step()

    def _player(self) -> Player:
        phase = self._rng.choice(['collect', 'collect', 'collect', 'eval'])
        player = self.phases[phase]
        player.compares_nodes = self._rng.random() < self._compares_nodes
        player.by_latents = self._rng.random() < CHANCE_OF_LATENTS
        return player

    def _step(self) -> None:
        player = self._player()
        env_ids = self._rng.sample(range(ENV_NUM), self._rng.randint(1, ENV_NUM))
        timesteps = [player.length(env_id) for env_id in env_ids]
        root = player.step(env_ids, self._rng.randint(1, MOST_SIMULATIONS))
        self.done['root inferences'] += 1
        self._running = player, root.latent_state, env_ids, timesteps
        for env_id in env_ids:
            if self._rng.random() < CHANCE_OF_AN_END or player.length(env_id) >= LONGEST_EPISODE:
                self._end_episode(player, env_id)

    def _end(self) -> None:
        self._end_episode(self._player(), self._rng.randrange(ENV_NUM))

    def _end_all(self) -> None:
        player = self._player()
        for env_id in range(ENV_NUM):
            self._end_episode(player, env_id)

    def _end_episode(self, player: Player, env_id: int) -> None:
        self.done['episodes'] += player.length(env_id) > 0
        player.end(env_id)
        self._running = None

    def _resize(self) -> None:
        kind, pools = self._rng.choice(list(self.inference.manager.pools().items()))
        self._rng.choice(pools).resize(self._rng.randint(1, LARGEST_POOLS[kind]))
        self.done['resizes'] += 1

    def _learn(self) -> None:
        parameters = list(self.model.parameters())
        optimizer = torch.optim.SGD(parameters, lr=1.)
        for parameter, beginning in zip(parameters, self._parameters):
            # To somewhere near where it began, so that predictions keep their size however often this happens.
            noise = torch.randn(parameter.shape, generator=self._generator)
            parameter.grad = parameter.detach() - beginning + 0.02 * noise
        optimizer.step()
        optimizer.zero_grad()
        self.done['learner steps'] += 1

    def _clear(self) -> None:
        self.world_model.clear_caches()
        self.weights_have_changed()
        self.done['clears'] += 1

    def _reanalyse(self) -> None:
        self._running = None
        self._reanalysis.compares_nodes = self._rng.random() < self._compares_nodes
        self._reanalysis.reanalyse(self._rng.randint(1, MOST_SIMULATIONS // 4))
        self.done['reanalyses'] += 1

    def _imagine(self) -> None:
        cache = self.settings['cache']
        rollout = dict(reported=1 if cache['rope_positions'] == 'release' else 0, window=cache['window'])
        if self._running is not None and self._is_lossless:
            player, latents, env_ids, timesteps = self._running
            imagination = self.world_model.imagine(latents, horizon=HORIZON)
            check_rollout(imagination, [player.context_of(env_id) for env_id in env_ids], timesteps, **rollout)
        else:
            current = observations(self.model, 2, self._generator)
            imagination = self.world_model.imagine(current, horizon=HORIZON)
            check_rollout(imagination, begin(self.model, current), [0, 0], **rollout)
        self.done['rollouts'] += 1
