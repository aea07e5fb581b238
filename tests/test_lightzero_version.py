"""A missing or wrong LightZero says what is installed, what is needed, and the pip command."""
import subprocess
import sys

import pytest
from lzero.model.unizero_world_models.world_model import WorldModel

from lzero_kvcache.plugin import hooks, inference_hook, manager_hook
from lzero_kvcache.plugin.hooks import find_hook, has_inference_hook, has_manager_hook, name_hook

COMMAND = r"pip install 'lightzero>=0\.2\.0,<0\.3'"
needs_release = pytest.mark.skipif(
    has_manager_hook(WorldModel), reason='the installed LightZero has a cache manager of its own'
)


def test_the_installed_version_fits():
    assert find_hook() is (manager_hook if has_manager_hook(WorldModel) else inference_hook)


@needs_release
def test_the_release_is_known_by_its_methods():
    assert has_inference_hook(WorldModel)
    assert name_hook(WorldModel, '0.2.0') == name_hook(WorldModel, None) == 'inference_hook'


@needs_release
@pytest.mark.parametrize('version', ['0.1.0', '0.3.0', '1.0'])
def test_a_wrong_version_is_named(version):
    with pytest.raises(ImportError, match=rf'needs lightzero>=0\.2\.0,<0\.3, .* {version} has neither hook: {COMMAND}'):
        name_hook(WorldModel, version)


def test_a_lightzero_from_before_unizero_is_refused(monkeypatch):
    monkeypatch.setattr(hooks, 'WORLD_MODEL_MODULE', 'lzero.model.worlds_of_old.world_model')
    with pytest.raises(ImportError, match=f'has neither hook: {COMMAND}'):
        find_hook.__wrapped__()


def test_what_lightzero_itself_lacks_is_named(monkeypatch, tmp_path):
    (tmp_path / 'needs_more.py').write_text('import a_module_that_nobody_has\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(hooks, 'WORLD_MODEL_MODULE', 'needs_more')
    with pytest.raises(ModuleNotFoundError, match='a_module_that_nobody_has'):
        find_hook.__wrapped__()


@needs_release
@pytest.mark.parametrize('method', [
    '_initialize_cache_structures', 'forward_initial_inference', 'forward_recurrent_inference', 'clear_caches'
])
def test_a_world_model_of_another_structure_is_refused(method, monkeypatch):
    monkeypatch.setattr(WorldModel, method, lambda self: None)
    with pytest.raises(ImportError, match='lightzero 0.2.0 has neither hook'):
        name_hook(WorldModel, '0.2.0')


def test_importing_the_plugin_without_lightzero(tmp_path):
    """LightZero's own metadata and package are hidden from a fresh interpreter."""
    program = (
        'import sys, importlib.metadata as metadata\n'
        'original = metadata.version\n'
        'def version(name):\n'
        '    if name == "lightzero":\n'
        '        raise metadata.PackageNotFoundError(name)\n'
        '    return original(name)\n'
        'metadata.version = version\n'
        'sys.modules["lzero"] = None\n'
        'import lzero_kvcache.plugin\n'
    )
    finished = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert finished.returncode != 0
    assert 'needs lightzero>=0.2.0,<0.3, but LightZero is not installed: pip install' in finished.stderr
