"""Processes of trials that run on this machine."""
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='looks at processes by /proc')


def trial_processes(folder: Path) -> dict[str, dict[str, str]]:
    """The environment variables of each process that runs a trial below a folder, by the trial's name."""
    found = {}
    for process in Path('/proc').glob('[0-9]*'):
        try:
            words = (process / 'cmdline').read_bytes().decode().split('\0')
            variables = (process / 'environ').read_bytes().decode(errors='replace').split('\0')
        except OSError:
            continue
        for word in words:
            if word.startswith(str(folder)):
                found[Path(word).parent.name] = dict(line.split('=', 1) for line in variables if '=' in line)
    return found
