"""A missing or wrong LightZero says what is installed, what is needed, and the pip command."""
import subprocess
import sys
from importlib import metadata

import pytest

from lzero_kvcache.plugin.lightzero_version import check_lightzero

COMMAND = r"pip install 'lightzero>=0\.2\.0,<0\.3'"


def test_the_installed_version_fits():
    check_lightzero()


@pytest.mark.parametrize('version', ['0.1.0', '0.3.0', '1.0'])
def test_a_wrong_version_is_named(version, monkeypatch):
    monkeypatch.setattr(metadata, 'version', lambda name: version)
    with pytest.raises(ImportError, match=rf'needs lightzero>=0\.2\.0,<0\.3, but lightzero {version} is .*: {COMMAND}'):
        check_lightzero()


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
