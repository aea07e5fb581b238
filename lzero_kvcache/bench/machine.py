import os
import platform
import re
from importlib.metadata import version
from pathlib import Path


def machine() -> dict:
    """
    Overview:
        What a measurement ran on.
    Returns:
        - machine (:obj:`Dict[str, Any]`): Processor, cores, system, versions of Python and of the packages.
    """
    cpuinfo = Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*: (.*)', cpuinfo.read_text()) if cpuinfo.exists() else []
    packages = {name: version(name) for name in ('torch', 'lightzero', 'DI-engine', 'lzero-kvcache')}
    return dict(cpu=[*names, platform.machine()][0], cores=os.cpu_count(), system=platform.system(),
                python=platform.python_version(), **packages)
