"""The copy of a search's statistics that strategy 'tree' reads: it foresees what LightZero's C++ search does."""
import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightzeros import stock_scalars
from models import build_model, kv_cache, observations
from searches import search

from lzero_kvcache import KVCachePool
from lzero_kvcache.eviction import SearchNodes, SearchTree, SearchTreeNode
from lzero_kvcache.eviction.recompute_costs import OF_MISSING, RecomputeCosts
from lzero_kvcache.eviction.tree import TreeEviction

NUM_SIMULATIONS = 40


def watch_search(model, num_simulations=NUM_SIMULATIONS):
    """How many nodes of its tree had a shorter wait than each expanded node, before it was expanded."""
    inference = model.world_model.kv_cache_inference
    current = observations(model, 3, torch.Generator().manual_seed(5))
    timesteps = [np.array(0)] * 3
    root = model.initial_inference(torch.zeros_like(current), [-1] * 3, current, timesteps)
    ranks = []

    def foresee(numbers, search_depth):
        tree = inference.search.tree
        waits = tree.waits()
        trees = tree.nodes.trees[:len(waits)]
        for row, number in enumerate(numbers):
            ranks.append(int((waits[trees == row] < waits[number]).sum()))

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


def begin(policies, tree_class=SearchTree):
    """A search tree of roots with these policy logits."""
    nodes = SearchNodes(policies.shape[1])
    nodes.add_roots(np.zeros(len(policies)), policies)
    return tree_class(nodes)


def scaled(number):
    """A reward or value as models predict it."""
    return np.sign(number) * (np.sqrt(np.abs(number) + 1) - 1) + 0.001 * number


def expand(tree, parent, action, value, policy, reward=0.):
    """A new node."""
    (child, ) = tree.nodes.add(np.array([parent]), np.array([action]), scaled(reward), scaled(value), policy[None])
    return int(child)


def tree_of(steps, num_roots, num_actions):
    """A tree grown by arbitrary expansions: each step names a node that still has an untried action."""
    generator = np.random.default_rng(0)
    tree = begin(np.log(generator.dirichlet(np.ones(num_actions), num_roots)))
    tried = {node: 0 for node in range(num_roots)}
    parents_of = {}
    for step in steps:
        open_nodes = [node for node in tried if tried[node] < num_actions]
        parent = open_nodes[step % len(open_nodes)]
        reward, value = generator.normal(size=2)
        policy = np.log(generator.dirichlet(np.ones(num_actions)))
        child = expand(tree, parent, tried[parent], value, policy, reward)
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
    costs = RecomputeCosts(tree, cached)
    leaves = {node for node in parents_of if not tried[node]}
    for _ in range(10):
        expected = costs_by_definition(tree, parents_of, cached)
        assert [costs.of(node) for node in cached] == pytest.approx([expected[node] for node in cached])
        assert expected[costs.cheapest()] == pytest.approx(min(expected.values()))
        leaving, coming = sorted(cached), sorted(leaves - cached)
        if coming and (len(leaving) == 1 or data.draw(st.booleans())):
            node = data.draw(st.sampled_from(coming))
            cached.add(node)
            costs.add(node)
        elif len(leaving) > 1:
            node = data.draw(st.sampled_from(leaving))
            cached.remove(node)
            costs.remove(node)


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
    policy = np.zeros(2)
    tree = begin(policy[None])
    tried_out, other = expand(tree, 0, 0, 0., policy), expand(tree, 0, 1, 0., policy)
    children = [expand(tree, tried_out, action, 0., policy) for action in (0, 1)]
    assert np.isposinf(tree.waits()[tried_out])
    assert RecomputeCosts(tree, {tried_out, other}).of(tried_out) > 0
    assert RecomputeCosts(tree, {tried_out, other, *children}).of(tried_out) == 0

    eviction = TreeEviction()
    for slot, node in enumerate([tried_out, other, *children]):
        eviction.insert(slot, SearchTreeNode(tree, node))
    assert eviction.victim() == 0


def test_the_order_follows_the_search():
    policy = np.log([0.9, 0.1])
    tree = begin(policy[None])
    eviction = TreeEviction()
    good, bad = expand(tree, 0, 0, 1.0, policy), expand(tree, 0, 1, -1.0, policy)
    eviction.insert(0, SearchTreeNode(tree, good))
    eviction.insert(1, SearchTreeNode(tree, bad))
    assert eviction.victim() == 1
    for action in (0, 1):
        # What is good leads nowhere, and has been tried out.
        expand(tree, good, action, -10.0, policy)
    assert eviction.victim() == 0


def test_a_node_of_unknown_origin_is_the_root_of_a_tree_of_its_own():
    tree, _, _ = tree_of(range(8), 2, 3)
    waits = tree.waits()
    pool = KVCachePool(4, 'tree')
    for node in range(2, 8):
        pool.set(node, node, SearchTreeNode(tree, node))
    (stray, ) = tree.nodes.add_roots(np.zeros(1), np.zeros((1, 3)), depths=[4]).tolist()
    below = expand(tree, stray, 1, 5., np.zeros(3))
    for node in (stray, below, expand(tree, below, 0, 1., np.zeros(3))):
        pool.set(node, node, SearchTreeNode(tree, node))
    assert below in pool and len(pool) == 4
    np.testing.assert_array_equal(tree.waits()[:stray], waits)
    assert min(tree.waits()[stray:]) == 0


def test_the_search_is_not_looked_at_again_for_each_of_its_nodes():
    tree, tried, _ = tree_of(range(60), 1, 3)
    pool, looks = KVCachePool(40, 'tree'), []
    for node in range(1, 61):
        pool.set(node, node, SearchTreeNode(tree, node))
    for _ in range(30):
        parent = next(node for node in tried if tried[node] < 3)
        node = expand(tree, parent, tried[parent], 0., np.zeros(3))
        tried[parent] += 1
        tried[node] = 0
        pool.set(node, node, SearchTreeNode(tree, node))
        looks.append(tree._rows)
    assert 2 <= len(set(looks)) <= 4


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
    np.testing.assert_array_equal(
        inference.search.tree.waits(), model.world_model.kv_cache_inference.search.tree.waits()
    )


def test_nothing_is_computed_where_nothing_is_evicted():
    model = build_model(kv_cache=kv_cache(strategy='tree'), num_simulations=20)
    current = observations(model, 2, torch.Generator().manual_seed(5))
    root = model.initial_inference(torch.zeros_like(current), [-1] * 2, current, [np.array(0)] * 2)
    search(model, root, [np.array(0)] * 2, 20)
    assert model.world_model.kv_cache_inference.search.tree._inferences == 0


def test_what_the_search_is_told_are_lightzeros_scalars_and_priors():
    model = build_model(kv_cache=kv_cache(strategy='tree'))
    current = observations(model, 2, torch.Generator().manual_seed(5))
    root = model.initial_inference(torch.zeros_like(current), [-1] * 2, current, [np.array(0)] * 2)
    watched = search(model, root, [np.array(0)] * 2, 5)
    seen, size = model.world_model.kv_cache_inference.search.tree.nodes, model.world_model.support_size
    for step, (expansion, output) in enumerate(zip(watched.expansions, watched.outputs)):
        new = slice(2 + 2 * step, 4 + 2 * step)
        for scalars, logits in ((seen.rewards(new), output['reward']), (seen.values(new), output['value'])):
            expected = stock_scalars(logits, size // 2)
            np.testing.assert_allclose(scalars, expected[:, 0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(seen.priors(new), output['policy_logits'].softmax(-1), rtol=1e-5)
        assert seen.actions[new].tolist() == expansion.actions.tolist()
        assert seen.parents[new].tolist() == [2 * parent + row for row, parent in enumerate(expansion.parents)]


class DeafSearchTree(SearchTree):
    """Believes the priors that it is told."""

    def _learn_noise(self, paths, choices):
        pass


def mistakes(noisy, tree_class, seed):
    """How often a search by noisy priors expands what a tree that is told other priors does not expect."""
    generator = np.random.default_rng(seed)
    own, told = begin(np.log([noisy])), begin(np.log([[0.5, 0.3, 0.2]]), tree_class)
    untried = {0: dict(enumerate(noisy))}
    wrong = 0
    for _ in range(60):
        parent = int(own.waits().argmin())
        wrong += told.waits()[parent] > 0
        action = max(untried[parent], key=untried[parent].get)
        del untried[parent][action]
        value = generator.normal()
        for tree in (own, told):
            child = expand(tree, parent, action, value, np.zeros(3))
        untried[child] = dict.fromkeys(range(3), 1 / 3)
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
    assert model.world_model.kv_cache_inference.search.tree.discount_factor == 0.9


@pytest.mark.filterwarnings('error')
def test_a_diverged_model_does_not_disturb_the_tree():
    tree = begin(np.zeros((1, 3)))
    costs = RecomputeCosts(tree, {0})
    for number in (1.0, np.nan, np.inf, -np.inf):
        node = expand(tree, tree.num_nodes - 1, 0, number, np.full(3, number), number)
        costs.add(node)
        assert costs.of(node) >= 0
        assert not np.isnan(tree.waits()).any()
