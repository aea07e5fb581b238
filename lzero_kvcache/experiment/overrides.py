"""Changes to an experiment that leave its config file as it is."""
from collections.abc import Mapping
from typing import Any, Optional

from easydict import EasyDict

from ..checks import choices
from ..config import OLDER_SPELLINGS, KVCacheConfig
from ..placement import check_placement
from ..plugin.rounds import check_episodes
from .config_file import Experiment
from .counts import check_counts
from .defaults import env_defaults, policy_defaults
from .imports import PLUGIN, import_modules, named_modules

STOCK_POLICIES = ('lzero.policy.unizero', 'lzero.policy.sampled_unizero')
ROOMS = ('kv_cache', 'policy', 'env', 'create_config')


def switch_cache_on(experiment: Experiment, kv_cache: Optional[Mapping[str, Any]] = None) -> None:
    """
    Overview:
        The two lines that a user would edit: ``create_config.policy.import_names`` and ``kv_cache``.
    Arguments:
        - experiment (:obj:`Experiment`): Changed in place.
        - kv_cache (:obj:`Optional[Mapping]`): Entries of ``kv_cache``; what the experiment has already stays where
            they are silent. None: the stock code runs, by the plugin's mode 'legacy'.
    Raises:
        - ValueError: On an entry that is not allowed, with its full key path.
    """
    policy = experiment.create_config.policy
    others = [
        name for name in named_modules(experiment.create_config, 'policy') if name not in (*STOCK_POLICIES, PLUGIN)
    ]
    policy.import_names = [PLUGIN, *others]
    world_model_cfg = experiment.main_config.policy.model.world_model_cfg
    former = world_model_cfg.get('kv_cache') or {}
    # A strategy with options is replaced as a whole: another one would not know them.
    world_model_cfg.kv_cache = EasyDict(mode='legacy') if kv_cache is None else EasyDict({**former, **kv_cache})
    for older_spelling in OLDER_SPELLINGS:
        world_model_cfg.pop(older_spelling, None)
    # A user's own strategies are registered by the modules that the config imports.
    import_modules(experiment.create_config, 'policy')
    KVCacheConfig.from_dict(world_model_cfg.kv_cache)


def apply_overrides(experiment: Experiment, overrides: Mapping[str, Any], key_path: str) -> None:
    """
    Overview:
        Change some entries of an experiment.
    Arguments:
        - experiment (:obj:`Experiment`): Changed in place.
        - overrides (:obj:`Mapping`): ``kv_cache`` (a dict, or None for the stock code), ``policy`` and ``env`` (dicts
            to be merged into ``main_config``'s), ``create_config`` (a dict to be merged into it).
        - key_path (:obj:`str`): Where the overrides stand, for error messages; '' for key paths of their own.
    Raises:
        - ValueError: On a key that neither the config nor the defaults of policy or environment have, on a round of
            collecting that LightZero cannot run, and as ``switch_cache_on`` and ``check_counts``.
    """
    prefix = f'{key_path}.' if key_path else ''
    if not isinstance(overrides, Mapping):
        raise ValueError(f"{key_path} is {overrides!r}: allowed is a dict such as dict(kv_cache=dict(strategy='lru'))")
    for room, changes in overrides.items():
        if room not in ROOMS:
            raise ValueError(f'{prefix}{room} is {changes!r}, but there is no such key: {choices(room, ROOMS)}')
        if not isinstance(changes, Mapping) and not (room == 'kv_cache' and changes is None):
            raise ValueError(f'{prefix}{room} is {changes!r}: allowed is a dict of what changes')
    check_placement({room: changes for room, changes in overrides.items() if room != 'kv_cache'})
    if 'create_config' in overrides:
        _merge(experiment.create_config, overrides['create_config'], None, f'{prefix}create_config')
    if 'kv_cache' in overrides:
        switch_cache_on(experiment, overrides['kv_cache'])
    main_config = experiment.main_config
    if 'policy' in overrides:
        _merge(main_config.policy, overrides['policy'], policy_defaults(experiment), f'{prefix}policy')
    if 'env' in overrides:
        _merge(main_config.env, overrides['env'], env_defaults(experiment), f'{prefix}env')
    check_counts(experiment, prefix)
    _check_round(experiment, prefix)


def _check_round(experiment: Experiment, prefix: str) -> None:
    if experiment.entry != 'train_unizero':
        return
    policy = {**policy_defaults(experiment), **experiment.main_config.policy}
    check_episodes(policy, experiment.main_config.env.get('collector_env_num', policy['collector_env_num']), prefix)


def _merge(config: EasyDict, changes: Mapping[str, Any], defaults: Optional[Mapping], key_path: str) -> None:
    for key, value in changes.items():
        by_default = (defaults or {}).get(key)
        if key not in config and key not in (defaults or {}):
            known = {*map(str, config), *map(str, defaults or ())}
            raise ValueError(
                f'{key_path}.{key} is {value!r}, but neither the config nor the defaults have such a key: '
                f'{choices(key, known)}'
            )
        if isinstance(value, Mapping) and isinstance(config.get(key, by_default), Mapping):
            if key not in config:
                config[key] = EasyDict()
            _merge(config[key], value, by_default if isinstance(by_default, Mapping) else None, f'{key_path}.{key}')
        else:
            config[key] = value
