"""Importing the package is cheap, and every part of it imports only from the floors below its own."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lzero_kvcache

ROOT = Path(lzero_kvcache.__file__).parent
# From the ground up. Whatever has no place here is what a person runs, and may import everything.
FLOORS = [
    {'checks', 'files', 'lock', 'untrusted'}, {'envs', 'eviction', 'stats', 'store'}, {'config', 'pool'}, {'budget'},
    {'manager'}, {'ddp', 'world_model'}, {'plugin'},
]
MODULES = sorted(path for path in ROOT.rglob('*.py') if path != ROOT / '__init__.py')


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
    rooms = {path.name.replace('.py', '') for path in ROOT.iterdir()}
    assert set.union(*FLOORS) <= rooms


def test_importing_the_package_does_not_import_lzero():
    code = "import sys, lzero_kvcache; print(sorted(name for name in sys.modules if name.split('.')[0] == 'lzero'))"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == '[]'


def test_public_names():
    assert {
        'EVICTION_REGISTRY', 'CacheStats', 'EvictionPolicy', 'EvictionStrategy', 'KVCacheConfig', 'KVCacheManager',
        'KVCachePool',
    } <= set(lzero_kvcache.__all__)
    assert all(hasattr(lzero_kvcache, name) for name in lzero_kvcache.__all__)
