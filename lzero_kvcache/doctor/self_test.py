"""Does the cache do what it should, here and now?"""
import time
from importlib import import_module
from unittest.mock import patch

from .finding import OK, PROBLEM, Finding
from .requirements import how_to_install

STEPS = 5
# So few that some contexts must be computed again.
RECUR_POOL_SIZE = 8


def plugin() -> list[Finding]:
    """
    Overview:
        Is the plugin in DI-engine's registries, where a config looks for it?
    """
    try:
        module = import_module('lzero_kvcache.plugin')
    except ImportError as error:
        missing = error.name.split('.')[0] if isinstance(error, ModuleNotFoundError) and error.name else ''
        return [Finding('plugin', PROBLEM, f'cannot be imported: {error}', how_to_install(missing))]
    from ding.utils import MODEL_REGISTRY, POLICY_REGISTRY

    expected = [
        (POLICY_REGISTRY, 'unizero', module.UniZeroKVCachePolicy),
        (POLICY_REGISTRY, 'sampled_unizero', module.SampledUniZeroKVCachePolicy),
        (MODEL_REGISTRY, 'UniZeroKVCacheModel', module.UniZeroKVCacheModel),
        (MODEL_REGISTRY, 'SampledUniZeroKVCacheModel', module.SampledUniZeroKVCacheModel),
    ]
    wrong = [f'{name} is {registry.get(name)}' for registry, name, entry in expected if registry.get(name) is not entry]
    if wrong:
        return [Finding('plugin', PROBLEM, f"other classes in DI-engine's registries: {', '.join(wrong)}")]
    return [Finding('plugin', OK, f"registers {', '.join(name for _, name, _ in expected)}")]


def self_test() -> list[Finding]:
    """
    Overview:
        Searches with a small real model, every prediction of which is compared with that of LightZero's own code.
    """
    try:
        import torch

        from ..bench.searcher import Searcher
        from ..world_model.validation_report import KVCacheMismatchError
    except ImportError as error:
        return [Finding('self-test', PROBLEM, f'not possible: {error}')]
    # Compiling the model takes longer than all the rest, and is no part of the cache.
    with patch('torch.compile', lambda model, **_: model):
        searcher = Searcher(
            embed_dim=64, context_length=8, env_num=1, num_simulations=20,
            kv_cache=dict(mode='validate', strategy='lru', recur_pool=dict(size=RECUR_POOL_SIZE)),
        )
    # On a busy machine a second thread costs a small model many times what it brings.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    try:
        for _ in range(STEPS):
            searcher.collect()
    except KVCacheMismatchError as error:
        return [Finding('self-test', PROBLEM, f'the cache and the stock code differ: {error}')]
    finally:
        torch.set_num_threads(threads)
    seconds = time.perf_counter() - begin
    inference = searcher.world_model.kv_cache_inference
    report = inference.report
    seen = (
        f'{STEPS} searches in {seconds:.1f} s: {report.agreed} predictions agree with the stock code, '
        f"{inference.rebuild_stats.rebuilds} of them after an eviction"
    )
    if report.agreed == 0:
        return [Finding('self-test', PROBLEM, f'{seen}; nothing could be compared: {report}')]
    return [Finding('self-test', OK, seen)]
