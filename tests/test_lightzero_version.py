"""A missing or wrong LightZero says what is installed, what is needed, and the pip command."""
import subprocess
import sys
from importlib import import_module

import pytest
from lightzeros import IS_MAIN, of_release
from lzero.model.unizero_world_models.world_model import WorldModel

from lzero_kvcache.lightzero import installed

# The package has a function of this name.
module = import_module('lzero_kvcache.lightzero.installed')
COMMAND = r"pip install 'lightzero>=0\.2\.0,<0\.3'"


def test_the_installed_version_fits():
    assert module.name_of(WorldModel, '0.2.0') == ('main' if IS_MAIN else 'release')
    assert type(installed()).__name__ == ('Main' if IS_MAIN else 'Release')


@of_release('it is known by its methods')
def test_the_release_needs_no_metadata():
    assert module.name_of(WorldModel, None) == 'release'


@pytest.mark.skipif(not IS_MAIN, reason='main is known whatever its version says')
@pytest.mark.parametrize('version', [None, '0.2.0', '0.3.0'])
def test_main_is_known_by_its_methods(version):
    assert module.name_of(WorldModel, version) == 'main'


@of_release('it goes by its version, too')
@pytest.mark.parametrize('version', ['0.1.0', '0.3.0', '1.0'])
def test_a_wrong_version_is_named(version):
    with pytest.raises(ImportError, match=(
            rf'needs lightzero>=0\.2\.0,<0\.3, .*main branch.* lightzero {version} is built like neither: {COMMAND}'
    )):
        module.name_of(WorldModel, version)


@pytest.mark.parametrize('world_model_class', [None, object])
def test_what_is_no_world_model_is_refused(world_model_class):
    with pytest.raises(ImportError, match='lightzero of unknown version is built like neither'):
        module.name_of(world_model_class, None)


def test_a_lightzero_from_before_unizero_is_refused(monkeypatch):
    monkeypatch.setattr(module, 'WORLD_MODEL_MODULE', 'lzero.model.worlds_of_old.world_model')
    with pytest.raises(ImportError, match=f'is built like neither: {COMMAND}'):
        installed.__wrapped__()


def test_what_lightzero_itself_lacks_is_named(monkeypatch, tmp_path):
    (tmp_path / 'needs_more.py').write_text('import a_module_that_nobody_has\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, 'WORLD_MODEL_MODULE', 'needs_more')
    with pytest.raises(ModuleNotFoundError, match='a_module_that_nobody_has'):
        installed.__wrapped__()


@pytest.mark.parametrize('method', [
    '_initialize_cache_structures', 'forward_recurrent_inference', 'clear_caches',
    'wm_forward_for_initial_infererence' if IS_MAIN else 'forward_initial_inference',
])
def test_a_world_model_of_another_structure_is_refused(method, monkeypatch):
    monkeypatch.setattr(WorldModel, method, lambda self: None)
    with pytest.raises(ImportError, match='lightzero 0.2.0 is built like neither'):
        module.name_of(WorldModel, '0.2.0')


def test_a_subclass_may_leave_the_rest_to_its_base():

    class CustomWorldModel(WorldModel):

        def clear_caches(self):
            super().clear_caches()

    assert module.name_of(CustomWorldModel, '0.2.0') == module.name_of(WorldModel, '0.2.0')


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
