"""What other packages print while they are loaded."""
import subprocess
import sys

import pytest

# By Python and by C code.
CHATTER = '''
import logging, os, sys, warnings
from lzero_kvcache.output import loading
with loading('LightZero'):
    print('a hint of some package')
    warnings.warn('a warning of some package')
    os.write(2, b'a word of some library\\n')
    logging.basicConfig(level=logging.DEBUG)
    if len(sys.argv) > 1:
        raise ImportError('libGL.so.1 cannot be opened')
logging.getLogger('matplotlib.font_manager').debug('a font')
print('our own first line')
'''


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)


def test_nothing_of_it_is_shown():
    completed = run('-c', CHATTER)
    assert completed.returncode == 0 and completed.stderr == ''
    assert completed.stdout == 'our own first line\n'


def test_all_of_it_is_shown_where_loading_fails():
    completed = run('-c', CHATTER, 'fail')
    for words in ('a hint of some package', 'a warning of some package', 'a word of some library'):
        assert words in completed.stdout
    # Of a file that is gone nobody has any use.
    assert completed.stdout.startswith('This has failed. The last lines of its output:\n')
    assert completed.stderr.endswith('ImportError: libGL.so.1 cannot be opened\n')


@pytest.mark.slow
def test_the_benchmark_begins_with_a_line_of_its_own(tmp_path):
    completed = run('-c', 'from lzero_kvcache.cli import main; main()', 'bench', '--section', 'memory', '--quick',
                    '--out', str(tmp_path / 'out'))
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert completed.stderr == ''
    assert completed.stdout.startswith('Bytes of keys and values per node')
