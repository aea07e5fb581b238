"""A LightZero config file as it would run: loaded unedited, changed, run by its stock entry."""
from .checkpoint import check_checkpoint
from .config_file import ENTRIES, Experiment, load_experiment, run_config_file
from .environment import check_environment
from .options import apply_options
from .overrides import apply_overrides, switch_cache_on
from .runnable import check_runnable

__all__ = [
    'ENTRIES',
    'Experiment',
    'apply_options',
    'apply_overrides',
    'check_checkpoint',
    'check_environment',
    'check_runnable',
    'load_experiment',
    'run_config_file',
    'switch_cache_on',
]
