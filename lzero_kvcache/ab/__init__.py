"""A/B runs: the arms of an experiment, each with the same seeds, as trials of their own that can be resumed."""
from .config import ABConfig, load_ab_config
from .files import DiskFullError
from .folder import RunFolder
from .run import ABRun

__all__ = ['ABConfig', 'ABRun', 'DiskFullError', 'RunFolder', 'load_ab_config']
