"""What belongs to the cache, but stands where nothing reads it."""
import re
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Optional

from .config import KEY_PATH, OLDER_SPELLINGS, WORLD_MODEL_PATH, KVCacheConfig

KV_CACHE = KEY_PATH.rsplit('.', 1)[1]
PLACES = {name: f'{WORLD_MODEL_PATH}.{name}' for name in (KV_CACHE, *OLDER_SPELLINGS)}
# Other parts of a config have keys of these names, too.
COMMON_NAMES = {'mode', 'strategy', 'window', 'enable_stats', 'log_interval'}
WITHIN = {
    item.name: f'{KEY_PATH}.{item.name}' for item in fields(KVCacheConfig) if item.name not in COMMON_NAMES
}
# 'kvcahe' and 'kv_cach' are meant, 'cache' is not.
SIMILARITY = 0.85


def check_placement(config: Mapping[str, Any], key_path: str = '') -> None:
    """
    Overview:
        Make sure that ``kv_cache`` stands at its place, by its name, and nothing of it anywhere else.
    Arguments:
        - config (:obj:`Mapping[str, Any]`): A part of a config, with all that it holds.
        - key_path (:obj:`str`): Where this part stands, e.g. 'policy'; '' for the whole ``main_config``.
    Raises:
        - ValueError: With the key path, and the one that is right.
    """
    for key, value in config.items():
        if not isinstance(key, str):
            continue
        here = f'{key_path}.{key}' if key_path else key
        place = WITHIN.get(key) or place_of(key, key_path == WORLD_MODEL_PATH)
        if place is not None and place != here:
            raise ValueError(
                f"{here if key_path else f'main_config.{key}'} is {value!r}, but nothing reads it there: its place is "
                f'{place}'
            )
        if isinstance(value, Mapping) and place is None:
            check_placement(value, here)


def place_of(key: str, is_within: bool = False) -> Optional[str]:
    """
    Overview:
        The key path of what a name like ``kv_cache``, ``KV_CACHE`` or ``kv_cahe`` means; None where it means nothing of
        the cache.
    Arguments:
        - key (:obj:`str`): A key of a config.
        - is_within (:obj:`bool`): Whether the key stands in ``world_model_cfg``, where ``use_kv_cache`` and
            ``kv_cache_size`` mean the cache, too. Elsewhere other things have names that are alike.
    """
    plain = re.sub('(config|cfg)$', '', _plain(key))
    if _is_like(plain, KV_CACHE) and (is_within or plain.startswith('kv')):
        return PLACES[KV_CACHE]
    for name in OLDER_SPELLINGS:
        if plain == _plain(name) or (is_within and _is_like(plain, name)):
            return PLACES[name]
    return PLACES[KV_CACHE] if is_within and _plain(KV_CACHE) in plain else None


def _is_like(plain: str, name: str) -> bool:
    return bool(get_close_matches(plain, [_plain(name)], cutoff=SIMILARITY))


def _plain(key: str) -> str:
    return re.sub('[^a-z0-9]', '', key.lower())


def check_names(config: Mapping[str, Any]) -> None:
    """
    Overview:
        Make sure that no key of a ``world_model_cfg`` was meant for one of the cache's, but is not.
    Arguments:
        - config (:obj:`Mapping[str, Any]`): What a ``KVCacheManager`` is built from.
    Raises:
        - ValueError: With the key, and the one that is right.
    """
    for key, value in config.items():
        place = place_of(key, is_within=True) if isinstance(key, str) else None
        if place is not None and key not in PLACES:
            raise ValueError(f'{key} is {value!r}, but nothing reads it: did you mean {place.rsplit(".", 1)[1]!r}?')
