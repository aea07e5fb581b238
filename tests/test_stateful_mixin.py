"""
Random operations on world models with the mixin: environments, searches, weights, pools and copies in any order, and
every prediction equals the oracle's.
"""
import copy
import pickle
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional
from unittest import mock

import numpy as np
import pytest
import torch
from episodes import Episodes
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from invariants import check_pool, check_store
from models import build_model, kv_cache, observations, random_action, two_tokens_per_observation
from oracle import Oracle
from searches import logits_of
from soak_world import Reanalysis
from test_imagine import begin, check_rollout

from lzero_kvcache import EVICTION_REGISTRY
from lzero_kvcache.eviction import SearchNodes
from lzero_kvcache.search.search import Search as RunningSearch
from lzero_kvcache.store import TokenStore
from lzero_kvcache.world_model.cached_model import CachedModel
from lzero_kvcache.world_model.forward import Forward, SearchTensors

ENV_NUM = 4
HORIZON = 3
MODELS = [
    dict(), dict(rotary=True), dict(actions='continuous'), dict(actions='continuous', rotary=True),
    dict(gru_gating=True), dict(tokens_per_block=3), dict(tokens_per_block=3, rotary=True),
]

sizes = st.one_of(st.none(), st.integers(1, 6))
pools = st.fixed_dictionaries(dict(size=sizes, strategy=st.sampled_from([None, None, *sorted(EVICTION_REGISTRY)])))
caches = st.fixed_dictionaries(dict(
    init_pool=pools, recur_pool=st.fixed_dictionaries(dict(size=sizes)), wm_pool=pools,
    memory_budget_mb=st.sampled_from([None, None, 1.]), window=st.sampled_from(['shift', 'rebuild']),
    on_miss=st.sampled_from(['rebuild', 'rebuild', 'reset']), rope_positions=st.sampled_from(['release', 'aligned']),
))
phases = st.sampled_from(['collect', 'collect', 'eval'])
subsets = st.permutations(range(ENV_NUM)).flatmap(
    lambda order: st.integers(1, ENV_NUM).map(lambda count: order[:count])
)


# The call at which an inference breaks off, if one does.
breaks = st.one_of(st.none(), st.none(), st.none(), st.none(), st.integers(1, 10))


FAILING = [
    (CachedModel, 'append'), (Forward, 'step'), (SearchNodes, 'add'), (SearchTensors, 'add'), (RunningSearch, 'add'),
    (TokenStore, 'extend'),
]


class BrokenOff(Exception):
    """What ends an inference too early."""


@contextmanager
def breaking_at(number):
    """Within a ``with`` block let the so-many-th forward fail, or the taking over of nodes."""
    calls = []

    def failing(function):
        def fail_once(*arguments, **keywords):
            calls.append(function)
            if len(calls) == number:
                raise BrokenOff
            return function(*arguments, **keywords)

        return fail_once

    with ExitStack() as patches:
        for owner, name in FAILING:
            patches.enter_context(mock.patch.object(owner, name, failing(getattr(owner, name))))
        yield


@dataclass
class Node:
    """
    A node of the running search, as its caller knows it: its number, its latent state, its depth, and where its context
    comes from: from the root's, or from where it began anew, by actions, latent states and depths.
    """
    number: int
    latent: np.ndarray
    depth: int = 0
    origin: Optional[tuple[torch.Tensor, int]] = None
    path: list[tuple[Any, torch.Tensor, int]] = field(default_factory=list)


@dataclass
class Search:
    """
    The running search, whose nodes go by their numbers or by their latent states. ``is_current``: everything that it is
    made of is still that of its beginning; None: an inference has broken off, and whether a rollout goes on from the
    search is left open.
    """
    episodes: Episodes
    env_ids: list[int]
    timesteps: list[int]
    nodes: list[list[Node]]
    by_numbers: bool
    is_current: Optional[bool] = True


class MixinMachine(RuleBasedStateMachine):
    """
    Every rule goes on to a root inference, with or without a search, or to an expansion, in which what it did must not
    show. (Hypothesis leaves rules out of an example at random; these must be in each.)
    """

    def __init__(self, strategy):
        super().__init__()
        self.strategy = strategy

    @initialize(options=st.sampled_from(MODELS), cache=caches, context_length=st.sampled_from([5, 8, 9, 20]))
    def build(self, options, cache, context_length):
        self.options, self.cache = options, dict(cache, strategy=self.strategy)
        self.model = build_model(kv_cache=kv_cache(**self.cache), context_length=context_length, **options)
        if 'tokens_per_block' in options:
            two_tokens_per_observation(self.model)
        self.episodes = {phase: Episodes(self.model, phase, seed) for seed, phase in enumerate(['collect', 'eval'])}
        self.reanalysis = Reanalysis(self.model, seed=2)
        self.generator = torch.Generator().manual_seed(3)
        self.search: Optional[Search] = None
        # Whether the weights have changed since the last inference, so that the pools' contexts are those of others.
        self.is_outdated = False
        self.has_broken_off = False
        self.resets = 0

    @property
    def inference(self):
        return self.model.world_model.kv_cache_inference

    @property
    def is_lossless(self):
        return self.cache['on_miss'] == 'rebuild'

    @rule(data=st.data())
    def go_on(self, data):
        if self.search is not None and data.draw(st.sampled_from([True, True, False])):
            self.expand(data, data.draw(breaks))
        else:
            num_simulations = data.draw(st.sampled_from([0, 0, 1, 3, 6]))
            by_numbers, breaks_at = data.draw(st.booleans()), data.draw(breaks)
            self.step(data.draw(phases), data.draw(subsets), num_simulations, by_numbers, breaks_at)

    def step(self, phase, env_ids, num_simulations, by_numbers, breaks_at):
        """A root inference for some environments, and a search by the C++ tree."""
        episodes = self.episodes[phase]
        timesteps = [len(episodes._episodes.get(env_id, ())) for env_id in env_ids]
        self.search = None
        try:
            with breaking_at(breaks_at):
                root = episodes.step(env_ids, num_simulations)
        except BrokenOff:
            self.break_off()
            return
        self.is_outdated = False
        nodes = [[Node(number, latent)] for number, latent in enumerate(root.latent_state.numpy())]
        self.search = Search(episodes, env_ids, timesteps, nodes, by_numbers)

    def expand(self, data, breaks_at):
        """One simulation at any known nodes, of any choice of the search's rows in any order."""
        search = self.search
        rows = data.draw(st.permutations(range(len(search.env_ids))))
        rows = rows[:data.draw(st.integers(1, len(rows)))]
        parents = [data.draw(st.sampled_from(search.nodes[row])) for row in rows]
        latents = np.stack([parent.latent for parent in parents])
        depths = [parent.depth + 1 for parent in parents]
        actions = np.stack([np.asarray(random_action(self.model, self.generator)) for _ in rows])
        timesteps = [search.timesteps[row] for row in rows]
        numbers = np.array([parent.number for parent in parents])
        world_model = self.model.world_model
        if not search.by_numbers:
            found = self.inference.nodes_of(world_model, latents, depths, timesteps)
            assert found.tolist() == numbers.tolist()
        if not self.is_lossless:
            for row, parent in zip(rows, parents):
                if self.is_outdated or search.episodes._is_lost(self.inference.search, parent.number):
                    self.reset(row, parent)
        contexts = [self.context_of(row, parent) for row, parent in zip(rows, parents)]
        actions = torch.from_numpy(actions)
        try:
            with breaking_at(breaks_at):
                if search.by_numbers:
                    output = logits_of(self.inference.expand(
                        world_model, self.inference.search, numbers, actions, depths, timesteps
                    )[0])
                else:
                    output = self.model.recurrent_inference([(latents, actions)], 0, depths, timesteps)
        except BrokenOff:
            self.break_off()
            return
        self.is_outdated = False
        first = self.inference.search.nodes.num_nodes - len(rows)
        for number, (row, parent, context) in enumerate(zip(rows, parents, contexts)):
            step = (actions[number].numpy(), output.latent_state[number], depths[number])
            self.append(row, context, *step, output=output, number=number)
            search.nodes[row].append(Node(
                first + number, step[1].numpy(), parent.depth + 1, parent.origin, [*parent.path, step]
            ))

    def break_off(self):
        self.has_broken_off = True
        assert len(self.inference.store) == 0
        self.contexts_are_lost(is_current=None if self.search is not None and self.search.is_current else False)

    def reset(self, row, node):
        """Without a context, a node begins anew; a root's episode goes on from there."""
        search = self.search
        timestep = search.timesteps[row] + (node.depth if self.cache['rope_positions'] == 'aligned' else 0)
        node.origin, node.path = (torch.from_numpy(node.latent), 2 * timestep), []
        self.resets += 1
        if node.depth == 0 and search.env_ids[row] in search.episodes._episodes:
            search.episodes._contexts[search.env_ids[row]] = self.context_of(row, node)
            search.episodes._outdated.discard(search.env_ids[row])

    def context_of(self, row, node):
        if node.origin is None:
            context = self.search.episodes.context_of(self.search.env_ids[row])
        else:
            context = Oracle(self.model.world_model)
            context.add_latent(*node.origin)
        for step in node.path:
            self.append(row, context, *step)
        return context

    def append(self, row, context, action, latent, depth, output=None, number=0):
        """Let a context go on, and compare what is predicted on the way, if there is anything to compare it with."""
        episodes = self.search.episodes
        of_action, of_latent = episodes._positions(self.search.timesteps[row], depth - 1, depth)
        context.add_action(action, of_action)
        if output is not None:
            episodes._compare(output.reward[number], context.reward_and_next_token()['reward'])
        for index, token in enumerate(latent):
            if output is not None:
                episodes._compare(token, context.next_token())
            context.add_latent(token[None], of_latent + index)
        if output is not None:
            expected = context.policy_and_value()
            episodes._compare(output.policy_logits[number], expected['policy'])
            episodes._compare(output.value[number], expected['value'])
        episodes._fit_window(context)

    @rule(data=st.data(), phase=phases, env_ids=st.one_of(subsets, st.none()))
    def end(self, data, phase, env_ids):
        if env_ids is None:
            self.inference.forget(phase)
        for env_id in range(ENV_NUM) if env_ids is None else env_ids:
            self.episodes[phase].end(env_id)
        if self.search is not None and not self.search.is_current:
            # Which contexts have been computed again since they were lost is the cache's own affair.
            self.search = None
        self.go_on(data)

    @rule(data=st.data())
    def learn(self, data):
        self.episodes['collect'].learn(scale=0.02)
        self.is_outdated = True
        self.contexts_are_lost()
        self.go_on(data)

    @rule(data=st.data(), clears=st.sampled_from(['world model', 'inference']))
    def clear(self, data, clears):
        self.model.world_model.clear_caches() if clears == 'world model' else self.inference.clear()
        self.contexts_are_lost()
        self.go_on(data)

    def contexts_are_lost(self, is_current=False):
        """All are computed anew from what their episodes and searches were."""
        for episodes in self.episodes.values():
            episodes.weights_have_changed()
        if self.search is not None:
            self.search.is_current = is_current
            for row, env_id in enumerate(self.search.env_ids):
                if env_id not in self.search.episodes._episodes:
                    self.begin_at_the_root(row)

    def begin_at_the_root(self, row):
        """Nothing is left of an episode that has ended but the latent state of its last observation."""
        root = self.search.nodes[row][0]
        for node in self.search.nodes[row]:
            if node.origin is None:
                node.origin = torch.from_numpy(root.latent), 2 * self.search.timesteps[row]

    @rule(data=st.data(), kind=st.sampled_from(['init_pools', 'recur_pool', 'wm_pool']), size=st.integers(1, 8))
    def resize(self, data, kind, size):
        data.draw(st.sampled_from(self.inference.manager.pools()[kind])).resize(size)
        self.go_on(data)

    @rule(data=st.data(), num_simulations=st.integers(1, 2))
    def reanalyse(self, data, num_simulations):
        self.search = None
        self.reanalysis.reanalyse(num_simulations)
        self.is_outdated = False
        self.go_on(data)

    @rule(data=st.data())
    def imagine_from_observations(self, data):
        current = observations(self.model, 2, self.generator)
        self.check_rollout(current, begin(self.model, current), [0, 0])
        self.go_on(data)

    @precondition(lambda self: self.is_lossless and self.search is not None and self.search.is_current is not None)
    @rule(data=st.data())
    def imagine_from_a_node(self, data):
        row = data.draw(st.sampled_from(range(len(self.search.env_ids))))
        node = data.draw(st.sampled_from([node for node in self.search.nodes[row] if self.has_a_name(node)]))
        latent = torch.from_numpy(node.latent)
        if self.search.is_current:
            context, timestep, depth = self.context_of(row, node), self.search.timesteps[row], node.depth
        else:
            context, timestep, depth = Oracle(self.model.world_model), 0, 0
            context.add_latent(latent, 0)
        self.check_rollout(latent[None], [context], [timestep], depth)
        self.go_on(data)

    def has_a_name(self, node):
        """A latent state that several nodes have names none of them, but to a caller that got it for each."""
        search = self.inference.search
        equal = search.tensors.latents[:search.nodes.num_nodes] == torch.from_numpy(node.latent)
        return not self.search.by_numbers or int(equal.flatten(1).all(1).sum()) == 1

    def check_rollout(self, beginnings, contexts, timesteps, depth=0):
        imagination = self.model.world_model.imagine(beginnings, horizon=HORIZON)
        self.is_outdated = False
        reported = 1 if self.cache['rope_positions'] == 'release' else 0
        check_rollout(imagination, contexts, timesteps, depth, reported, self.cache['window'])

    # The closure that makes two tokens of an observation is of one model only.
    @precondition(lambda self: 'tokens_per_block' not in self.options)
    @rule(data=st.data(), make=st.sampled_from([copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]))
    def go_on_with_a_copy(self, data, make):
        """What becomes of the original does not reach it. A copy has contexts of its own."""
        original, self.model = self.model, make(self.model)
        check_store(original.world_model.kv_cache_inference)
        original.world_model.clear_caches()
        for episodes in [*self.episodes.values(), self.reanalysis]:
            episodes.model, episodes._world_model = self.model, self.model.world_model
            episodes._inference, episodes._config = self.inference, self.inference.config
            for context in episodes._contexts.values():
                context.world_model = self.model.world_model
        self.is_outdated = True
        self.contexts_are_lost()
        self.go_on(data)

    @rule(data=st.data())
    def move_the_model(self, data):
        self.search = None
        self.model.double().float()
        self.contexts_are_lost()
        self.go_on(data)

    @invariant()
    def is_sound(self):
        if not hasattr(self, 'model'):
            return
        check_store(self.inference)
        for pool in [pool for pools in self.inference.manager.pools().values() for pool in pools]:
            check_pool(pool)
        if not self.is_lossless and not self.has_broken_off:
            players = [*self.episodes.values(), self.reanalysis]
            assert self.inference.rebuild_stats.rebuilds == self.resets + sum(player.resets for player in players)


@pytest.mark.slow
@pytest.mark.parametrize('strategy', sorted(EVICTION_REGISTRY))
def test_any_order_of_operations(strategy):
    # Each strategy has examples of its own.
    machine = seed(sorted(EVICTION_REGISTRY).index(strategy))(lambda: MixinMachine(strategy))
    with torch.no_grad():
        # Without shrinking: it takes minutes. Add Phase.shrink to find a short order that fails.
        run_state_machine_as_test(
            machine, settings=settings(max_examples=7, stateful_step_count=20, phases=[Phase.generate])
        )


@torch.no_grad()
@pytest.mark.parametrize('rotary', [False, True], ids=['learned positions', 'rotary positions'])
def test_a_search_outlives_the_end_of_its_episode(rotary):
    """Its contexts do, too, whatever pools evict, until they are dropped; then its root is all that is left."""
    model = build_model(kv_cache=kv_cache(), context_length=20, rotary=rotary)
    episodes = Episodes(model)
    for _ in range(3):
        root = episodes.step([0, 1])
    contexts, actions = [episodes.context_of(env_id) for env_id in range(2)], [1, 2]
    episodes.end(0)
    for pool in model.world_model.kv_cache_manager.init_pools:
        pool.clear()
    for clears in (False, True):
        if clears:
            model.world_model.clear_caches()
            contexts[0].clear()
            contexts[0].add_latent(root.latent_state[0], 4)
        node = model.recurrent_inference([(root.latent_state.numpy(), torch.tensor(actions))], 0, [1, 1], [2, 2])
        for row, context in enumerate(contexts):
            context = context.copy()
            context.add_action(actions[row], 5)
            episodes._compare(node.reward[row], context.reward_and_next_token()['reward'])
            context.add_latent(node.latent_state[row], 6)
            episodes._compare(node.policy_logits[row], context.policy_and_value()['policy'])
