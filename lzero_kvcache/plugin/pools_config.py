"""What of ``kv_cache`` applies where the pools are this package's and the inference is LightZero's."""
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Optional

from ..config import KEY_PATH, KVCacheConfig, entry_of
from ..eviction import EVICTION_REGISTRY, parse_strategy
from .hooks import INSTALL

# What LightZero's code does by itself, and in which way.
OF_LIGHTZERO = {
    'mode': ('validate', "all predictions are LightZero's own, and nothing is there to compare them with"),
    'on_miss': ('rebuild', "a missing context begins anew from its latent state, which is on_miss='reset'"),
    'window': (
        'rebuild',
        'LightZero moves the window itself, which world_model_cfg.rebuild_kv_window_from_tokens=True makes exact',
    ),
    'rope_positions': ('aligned', "LightZero counts the positions, which is rope_positions='release'"),
}
LEFT_TO_LIGHTZERO = '; '.join(reason for key, (_, reason) in OF_LIGHTZERO.items() if key != 'mode')


def pools_config(world_model_cfg: Any) -> Optional[KVCacheConfig]:
    """
    Overview:
        Read ``kv_cache``, and make sure that it asks for nothing that LightZero's own code does in another way. Unlike
        elsewhere ``use_new_cache_manager`` is LightZero's own key, and no older spelling of the mode.
    Arguments:
        - world_model_cfg (:obj:`Any`): An EasyDict, a dict or any object with the same attributes.
    Returns:
        - config (:obj:`Optional[KVCacheConfig]`): The checked config, or None where there is no ``kv_cache``.
    Raises:
        - ValueError: On a value that is not allowed, with its full key path.
    """
    given = entry_of(world_model_cfg, 'kv_cache')
    if entry_of(world_model_cfg, 'cache_validation_mode'):
        raise ValueError(_refusal('policy.model.world_model_cfg.cache_validation_mode', True, OF_LIGHTZERO['mode'][1]))
    if given is None:
        return None
    config = KVCacheConfig.from_dict(given)
    if config.mode == 'legacy':
        return config
    written = given if isinstance(given, Mapping) else dict(_changed(config))
    for key, (value, reason) in OF_LIGHTZERO.items():
        if written.get(key) == value:
            raise ValueError(_refusal(f'{KEY_PATH}.{key}', value, reason))
    for key in ('rebuild_kv_window_from_tokens', 'exact_kv_window_reset'):
        if 'window' in written and entry_of(world_model_cfg, key):
            raise ValueError(_refusal(
                f'{KEY_PATH}.window', config.window, f'LightZero moves the window, by world_model_cfg.{key}=True'
            ))
    if config.wm_pool.size is not None or config.wm_pool.strategy is not None:
        raise ValueError(_refusal(f'{KEY_PATH}.wm_pool', written['wm_pool'], 'LightZero never asks the wm pool'))
    _check_strategies(config)
    return config


def _changed(config: KVCacheConfig) -> Iterator[tuple[str, Any]]:
    defaults = KVCacheConfig()
    for item in fields(config):
        value = getattr(config, item.name)
        if value != getattr(defaults, item.name):
            yield item.name, value


def _refusal(key_path: str, value: Any, reason: str) -> str:
    return (
        f'{key_path} is {value!r}, but this LightZero has a cache manager of its own, and takes the pools alone from '
        f'kv_cache: {reason}. Leave the key out, or have all of kv_cache with another release: {INSTALL}'
    )


def _check_strategies(config: KVCacheConfig) -> None:
    for kind in ('init_pool', 'recur_pool'):
        pool = getattr(config, kind)
        key_path = f'{KEY_PATH}.strategy' if pool.strategy is None else f'{KEY_PATH}.{kind}.strategy'
        name, _ = parse_strategy(config.strategy_of(pool), key_path)
        if not _works_by_use(name):
            others = ', '.join(sorted(filter(_works_by_use, EVICTION_REGISTRY)))
            raise ValueError(_refusal(
                key_path, name, f'it tells them nothing of the search. Strategies that need nothing are {others}'
            ))


def _works_by_use(name: str) -> bool:
    policy_class = EVICTION_REGISTRY.get(name)
    return not policy_class.follows_search and 'score' not in inspect.signature(policy_class).parameters
