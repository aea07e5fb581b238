"""Importing the package is cheap, and every part of it imports only from the floors below its own."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lzero_kvcache

ROOT = Path(lzero_kvcache.__file__).parent
# From the ground up. Whatever has no place here is what a person runs, and may import everything.
FLOORS = [
    {'checks', 'files', 'lock', 'untrusted'}, {'envs', 'eviction', 'stats', 'store'},
    {'config', 'pool'}, {'broken_settings', 'budget', 'placement'}, {'manager'}, {'lightzero', 'search'},
    {'ddp', 'world_model'}, {'plugin'},
]
MODULES = sorted(path for path in ROOT.rglob('*.py') if path != ROOT / '__init__.py')
ROOMS = {path.relative_to(ROOT).parts[0].replace('.py', '') for path in MODULES}


def floor(room):
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))


def imported_modules(path):
    """Absolute names of everything that a source file imports, at its top or inside its functions."""
    package = ('lzero_kvcache',) + path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[:len(package) - node.level + 1] if node.level else ()
            module = '.'.join([*parents, *([node.module] if node.module else [])])
            if module == 'lzero_kvcache':
                yield from (f'{module}.{alias.name}' for alias in node.names)
            else:
                yield module


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_downhill(path):
    room = path.relative_to(ROOT).parts[0].replace('.py', '')
    for module in imported_modules(path):
        if not module.startswith('lzero_kvcache.'):
            continue
        other = module.split('.')[1]
        assert other == room or floor(other) < floor(room) or floor(room) == len(FLOORS), f'{room} imports {module}'


@pytest.mark.parametrize('path', sorted(ROOT.glob('eviction/*.py')), ids=lambda path: path.name)
def test_eviction_does_not_import_torch(path):
    assert not [module for module in imported_modules(path) if module.split('.')[0] in ('torch', 'lzero')]


def test_every_floor_is_there():
    assert set.union(*FLOORS) <= ROOMS


def test_the_architecture_puts_every_room_on_its_floor():
    text = (ROOT.parent / 'docs' / 'architecture.md').read_text()
    rows = re.findall(r'^\| (\d) \| ([^|]*) \|', text, re.MULTILINE)
    floors = {int(number): set(re.findall(r'`(\w+)`', rooms)) for number, rooms in rows}
    assert floors == dict(enumerate([*FLOORS, ROOMS - set.union(*FLOORS)]))


def test_importing_the_package_does_not_import_lzero():
    code = "import sys, lzero_kvcache; print(sorted(name for name in sys.modules if name.split('.')[0] == 'lzero'))"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == '[]'


WITHOUT_TORCH = """
import sys
from lzero_kvcache import CacheStats, EvictionPolicy, EvictionStrategy, KVCacheConfig, KVCacheManager, KVCachePool
pool = KVCachePool(2, EvictionStrategy.LRU)
for cache_key in 'abc':
    pool.set(cache_key, 'context')
assert pool.get('c') == 'context' and pool.stats == CacheStats(hits=1, evictions=1)
manager = KVCacheManager(dict(kv_cache=dict(strategy='tree')), env_num=2)
manager.set_init_cache(0, 'root', 'context')
assert manager.hierarchical_get(0, 'root') == 'context' and manager.get_stats_summary()
for name in ('nothing', 3):
    try:
        KVCachePool(2, name)
    except ValueError:
        pass
assert not {'torch', 'ding', 'lzero'} & {name.split('.')[0] for name in sys.modules}

from lzero_kvcache import EVICTION_REGISTRY
from ding.utils.registry import Registry
assert isinstance(EVICTION_REGISTRY, Registry)
from lzero_kvcache.eviction import FIFOEviction
@EVICTION_REGISTRY.register('decorated')
class Decorated(FIFOEviction):
    pass
EVICTION_REGISTRY.register('called', FIFOEviction)
assert type(KVCachePool(2, 'decorated').eviction_policy) is Decorated
assert type(KVCachePool(2, 'called').eviction_policy) is EVICTION_REGISTRY['called'] is FIFOEviction
assert {'lru', 'tree', 'decorated', 'called'} <= set(EVICTION_REGISTRY)
del EVICTION_REGISTRY['called']
try:
    KVCachePool(2, 'called')
except ValueError as error:
    assert 'no eviction strategy' in str(error)
else:
    raise AssertionError('a pool finds what has left the registry')
"""


def test_pools_work_before_torch_and_di_engine_are_loaded():
    result = subprocess.run([sys.executable, '-c', WITHOUT_TORCH], capture_output=True, text=True, cwd=ROOT.parent)
    assert result.returncode == 0, result.stderr


def test_public_names():
    assert {
        'EVICTION_REGISTRY', 'CacheStats', 'EvictionPolicy', 'EvictionStrategy', 'KVCacheConfig', 'KVCacheManager',
        'KVCachePool',
    } <= set(lzero_kvcache.__all__)
    assert all(hasattr(lzero_kvcache, name) for name in lzero_kvcache.__all__)
