"""The copy of a search's statistics that strategy 'tree' reads: it foresees what LightZero's C++ search does."""
import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lzero.policy.scaling_transform import inverse_scalar_transform
from models import build_model, kv_cache, observations
from searches import search

from lzero_kvcache import KVCachePool
from lzero_kvcache.eviction import Expansion, SearchTree, SearchTreeNode
from lzero_kvcache.eviction.recompute_costs import OF_MISSING, RecomputeCosts
from lzero_kvcache.eviction.tree import TreeEviction
from lzero_kvcache.world_model.cached_model import Predictions

NUM_SIMULATIONS = 40


def watch_search(model, num_simulations=NUM_SIMULATIONS):
    """How many nodes of its tree had a shorter wait than each expanded node, before it was expanded."""
    inference = model.world_model.kv_cache_inference
    current = observations(model, 3, torch.Generator().manual_seed(5))
    timesteps = [np.array(0)] * 3
    root = model.initial_inference(torch.zeros_like(current), [-1] * 3, current, timesteps)
    ranks = []

    def foresee(latents, search_depth):
        nodes = inference.nodes_of(np.asarray(latents), search_depth)
        waits = nodes[0].in_tree.tree.waits()
        trees = nodes[0].in_tree.tree._trees[:len(waits)]
        for row, node in enumerate(nodes):
            ranks.append(int((waits[trees == row] < waits[node.in_tree.number]).sum()))

    search(model, root, timesteps, num_simulations, foreseer=foresee)
    return ranks


@pytest.mark.parametrize('config', [dict(), dict(rotary=True), dict(observation='image')], ids=str)
def test_the_search_expands_the_node_that_need_not_wait(config):
    ranks = watch_search(build_model(**config, kv_cache=kv_cache(strategy='tree')))
    # The search's numbers are of float32, so that it may decide a near tie otherwise.
    assert len(ranks) == 3 * NUM_SIMULATIONS
    assert np.mean([rank == 0 for rank in ranks]) > 0.97


def test_sampled_actions_are_foreseen_roughly():
    ranks = watch_search(build_model(actions='continuous', kv_cache=kv_cache(strategy='tree')))
    assert np.mean([rank <= 2 for rank in ranks]) > 0.7


def tree_of(steps, num_roots, num_actions):
    """A tree grown by arbitrary expansions: each step names a node that still has an untried action."""
    generator = np.random.default_rng(0)

    def priors(count):
        return generator.dirichlet(np.ones(num_actions), count)

    tree = SearchTree(num_roots, lambda: priors(num_roots))
    tried = {node: 0 for node in range(num_roots)}
    parents_of = {}
    for step in steps:
        open_nodes = [node for node in tried if tried[node] < num_actions]
        parent = open_nodes[step % len(open_nodes)]
        expansion = Expansion(
            np.array([tried[parent]]), generator.normal(size=1), generator.normal(size=1), priors(1)
        )
        (child, ) = tree.expand([parent], lambda expansion=expansion: expansion)
        tried[parent] += 1
        tried[child] = 0
        parents_of[child] = parent
    return tree, tried, parents_of


@given(steps=st.lists(st.integers(0, 1000), max_size=60), num_roots=st.integers(1, 3), num_actions=st.integers(1, 4))
def test_waits(steps, num_roots, num_actions):
    tree, tried, parents_of = tree_of(steps, num_roots, num_actions)
    waits = tree.waits()
    assert len(waits) == tree.num_nodes == len(tried)
    assert (waits >= 0).all() and not np.isnan(waits).any()
    for node in tried:
        assert np.isposinf(waits[node]) == (tried[node] == num_actions)

    def root_of(node):
        return node if node < num_roots else root_of(parents_of[node])

    for root in range(num_roots):
        # A way down by the best choices ends at a node that is expanded next.
        assert min(waits[node] for node in tried if root_of(node) == root) == 0


def expand(tree, parent, action, value, priors):
    """A new node, without a reward on the way to it."""
    expansion = Expansion(np.array([action]), np.zeros(1), np.array([value]), priors)
    return tree.expand([parent], lambda: expansion)[0]


def costs_by_definition(tree, parents_of, cached):
    """What it costs to be without each cached node, by walking up from every node of the tree."""
    rates = 1 / (1 + tree.waits())

    def way_up(node):
        """The nearest ancestor that is there, and the steps to it."""
        steps, above = 1, parents_of[node]
        while above in parents_of and above not in cached:
            steps, above = steps + 1, parents_of[above]
        return above, steps

    demand = {node: rates[node] for node in cached}
    for node in parents_of.keys() - cached:
        origin, _ = way_up(node)
        if origin in cached:
            demand[origin] += OF_MISSING * rates[node]
    return {node: demand[node] * way_up(node)[1] for node in cached}


@given(steps=st.lists(st.integers(0, 1000), min_size=5, max_size=60), num_roots=st.integers(1, 3), data=st.data())
def test_the_cost_of_being_without_a_node(steps, num_roots, data):
    tree, tried, parents_of = tree_of(steps, num_roots, 3)
    cached = data.draw(st.sets(st.sampled_from(sorted(parents_of)), min_size=1))
    costs = RecomputeCosts(tree, list(cached))
    leaves = {node for node in parents_of if not tried[node]}
    for _ in range(10):
        expected = costs_by_definition(tree, parents_of, cached)
        nodes = np.array(list(cached))
        assert costs.of_many(nodes) == pytest.approx([expected[node] for node in nodes])
        assert [costs.of(node) for node in cached] == pytest.approx([expected[node] for node in cached])
        leaving, coming = sorted(cached), sorted(leaves - cached)
        if coming and (len(leaving) == 1 or data.draw(st.booleans())):
            node = data.draw(st.sampled_from(coming))
            costs.add(node)
            cached.add(node)
        elif len(leaving) > 1:
            node = data.draw(st.sampled_from(leaving))
            costs.remove(node)
            cached.remove(node)


@given(
    steps=st.lists(st.integers(0, 1000), min_size=5, max_size=60), num_roots=st.integers(1, 3), data=st.data(),
    size=st.integers(1, 8)
)
def test_the_node_that_costs_least_goes_first(steps, num_roots, data, size):
    tree, tried, parents_of = tree_of(steps, num_roots, 3)
    leaves = [node for node in parents_of if not tried[node]]
    inner = [node for node in parents_of if tried[node]]
    # What comes in later has nothing below it, so that nothing needs another look.
    order = data.draw(st.permutations(inner))[:size] + data.draw(st.permutations(leaves))
    pool = KVCachePool(size, 'tree')
    for node in order:
        before = set(pool.keys())
        pool.set(node, node, SearchTreeNode(tree, node))
        if len(before) == size:
            expected = costs_by_definition(tree, parents_of, before)
            (evicted, ) = before - set(pool.keys())
            assert expected[evicted] == pytest.approx(min(expected.values()))


def test_a_node_whose_actions_have_all_been_tried_is_kept_for_what_is_computed_from_it():
    priors = np.array([[0.5, 0.5]])
    tree = SearchTree(1, lambda: priors)
    tried_out, other = expand(tree, 0, 0, 0., priors), expand(tree, 0, 1, 0., priors)
    children = [expand(tree, tried_out, action, 0., priors) for action in (0, 1)]
    assert np.isposinf(tree.waits()[tried_out])
    assert RecomputeCosts(tree, [tried_out, other]).of(tried_out) > 0
    assert RecomputeCosts(tree, [tried_out, other, *children]).of(tried_out) == 0

    policy = TreeEviction()
    for slot, node in enumerate([tried_out, other, *children]):
        policy.insert(slot, SearchTreeNode(tree, node))
    assert policy.victim() == 0


def test_the_order_follows_the_search():
    priors = np.array([[0.9, 0.1]])
    tree = SearchTree(1, lambda: priors)
    policy = TreeEviction()
    good, bad = expand(tree, 0, 0, 1.0, priors), expand(tree, 0, 1, -1.0, priors)
    policy.insert(0, SearchTreeNode(tree, good))
    policy.insert(1, SearchTreeNode(tree, bad))
    assert policy.victim() == 1
    for action in (0, 1):
        # What is good leads nowhere, and has been tried out.
        expand(tree, good, action, -10.0, priors)
    assert policy.victim() == 0


def test_what_has_no_place_in_the_running_search_goes_first():
    tree, tried, _ = tree_of(range(8), 1, 3)
    other, _, _ = tree_of(range(8), 1, 3)
    policy = TreeEviction()
    policy.insert(0, SearchTreeNode(other, 1))
    policy.insert(1, SearchTreeNode(tree, 1))
    policy.insert(2, None)
    policy.insert(3, 0.5)
    policy.touch(2)
    victims = []
    for _ in range(4):
        victims.append(policy.victim())
        policy.remove(victims[-1])
    assert victims == [0, 3, 2, 1]


def test_a_new_place_replaces_the_former_one():
    tree, _, _ = tree_of(range(12), 1, 3)
    waits = tree.waits()
    soonest, latest = int(np.argmin(waits[1:])) + 1, int(np.argmax(waits[1:])) + 1
    policy = TreeEviction()
    policy.insert(0, SearchTreeNode(tree, latest))
    policy.insert(1, SearchTreeNode(tree, 5))
    policy.update(0, SearchTreeNode(tree, soonest))
    policy.update(1)
    assert policy.victim() == 1


@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_is_copied_in_the_middle_of_a_search(duplicate):
    model = build_model(kv_cache=kv_cache(strategy='tree', recur_pool=dict(size=10)))
    watch_search(model, 8)
    inference = duplicate(model).world_model.kv_cache_inference
    tree = inference._follower._tree
    np.testing.assert_array_equal(tree.waits(), model.world_model.kv_cache_inference._follower._tree.waits())


def test_nothing_is_computed_where_nothing_is_evicted():
    model = build_model(kv_cache=kv_cache(strategy='tree'), num_simulations=20)
    current = observations(model, 2, torch.Generator().manual_seed(5))
    root = model.initial_inference(torch.zeros_like(current), [-1] * 2, current, [np.array(0)] * 2)
    search(model, root, [np.array(0)] * 2, 20)
    assert model.world_model.kv_cache_inference._follower._tree._entered == 0


def test_what_the_search_is_told_are_lightzeros_scalars_and_priors():
    model = build_model(kv_cache=kv_cache(strategy='tree'))
    world_model = model.world_model
    follower = world_model.kv_cache_inference._follower
    generator = torch.Generator().manual_seed(0)
    size, num_actions = world_model.support_size, world_model.action_space_size
    reward, value = (torch.randn(3, 1, size, generator=generator) * 5 for _ in range(2))
    policy = torch.randn(3, 1, num_actions, generator=generator)
    actions = torch.tensor([2, 0, 1])
    roots = follower.begin(policy[:, 0])
    children = follower.expand([roots[0], None, roots[2]], actions, Predictions(reward, policy, value))
    assert [child and child.number for child in children] == [3, None, 4]
    (_, expansion), = roots[0].tree._pending
    seen = expansion()
    for scalars, logits in ((seen.rewards, reward), (seen.values, value)):
        expected = inverse_scalar_transform(logits[[0, 2], 0], size // 2, categorical_distribution=True)
        np.testing.assert_allclose(scalars, expected[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen.priors, policy[[0, 2], 0].softmax(-1), rtol=1e-5)
    assert seen.actions.tolist() == [2, 1]


class DeafSearchTree(SearchTree):
    """Believes the priors that it is told."""

    def _learn_noise(self, below_roots, outlook):
        pass


def mistakes(noisy, tree_class, seed):
    """How often a search by noisy priors expands what a tree that is told other priors does not expect."""
    priors, flat = np.array([[0.5, 0.3, 0.2]]), np.full((1, 3), 1 / 3)
    generator = np.random.default_rng(seed)
    own, told = SearchTree(1, lambda: np.array([noisy])), tree_class(1, lambda: priors)
    wrong = 0
    for _ in range(60):
        parent = int(own.waits().argmin())
        wrong += told.waits()[parent] > 0
        action = own._untried_priors[parent].argmax()
        expansion = Expansion(np.array([action]), np.zeros(1), generator.normal(size=1), flat)
        for tree in (own, told):
            tree.expand([parent], lambda expansion=expansion: expansion)
    return wrong


@pytest.mark.parametrize('noisy', [[0.2, 0.2, 0.6], [0.6, 0.1, 0.3], [0.45, 0.25, 0.3]], ids=str)
def test_the_noise_at_the_roots_is_learned(noisy):
    learning, deaf = (
        sum(mistakes(noisy, tree_class, seed) for seed in range(8)) for tree_class in (SearchTree, DeafSearchTree)
    )
    assert 0 < learning < 0.75 * deaf


def test_without_noise_there_is_nothing_to_learn():
    assert mistakes([0.5, 0.3, 0.2], SearchTree, 0) == 0


def test_the_policys_discount_reaches_the_tree():
    model = build_model(kv_cache=kv_cache(strategy='tree'))
    model.world_model.configure_kv_cache(discount_factor=0.9)
    watch_search(model, 1)
    assert model.world_model.kv_cache_inference._follower._tree._discount_factor == 0.9


@pytest.mark.filterwarnings('error')
def test_a_diverged_model_does_not_disturb_the_tree():
    tree = SearchTree(1, lambda: np.full((1, 3), 1 / 3))
    for number in (1.0, np.nan, np.inf, -np.inf):
        expansion = Expansion(np.array([-1]), np.array([number]), np.array([number]), np.full((1, 3), number))
        tree.expand([tree.num_nodes - 1], lambda expansion=expansion: expansion)
        assert not np.isnan(tree.waits()).any()
