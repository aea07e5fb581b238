"""``kv_cache`` beside the keys of the cache that LightZero's main branch has itself."""
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Optional

from ..config import KEY_PATH, WORLD_MODEL_PATH, KVCacheConfig, entry_of


def cache_config(world_model_cfg: Any) -> Optional[KVCacheConfig]:
    """
    Overview:
        Read ``kv_cache``. ``use_new_cache_manager`` is main's own key there, and says nothing of the mode;
        ``rebuild_kv_window_from_tokens`` means ``window='rebuild'``, unless ``kv_cache`` says something else.
    Arguments:
        - world_model_cfg (:obj:`Any`): An EasyDict, a dict or any object with the same attributes.
    Returns:
        - config (:obj:`Optional[KVCacheConfig]`): The checked config, or None where the user asks for no cache.
    Raises:
        - ValueError: On a value that is not allowed, with its full key path, and where the two contradict each other.
    """
    config = KVCacheConfig.from_world_model_config(world_model_cfg, older_spellings=('cache_validation_mode', ))
    if config is None or config.mode == 'legacy':
        return config
    if entry_of(world_model_cfg, 'exact_kv_window_reset'):
        raise ValueError(
            f'{WORLD_MODEL_PATH}.exact_kv_window_reset is True, but {KEY_PATH} is set, whose cache never forgets a '
            'whole window but for its latest latent state: allowed is False, and for an exact window '
            f"{KEY_PATH}.window='rebuild', which keeps all tokens but the oldest"
        )
    if not entry_of(world_model_cfg, 'rebuild_kv_window_from_tokens'):
        return config
    given = entry_of(world_model_cfg, 'kv_cache')
    if isinstance(given, Mapping) and given.get('window', 'rebuild') != 'rebuild':
        raise ValueError(
            f'{KEY_PATH}.window is {config.window!r}, but {WORLD_MODEL_PATH}.rebuild_kv_window_from_tokens is True, '
            f"which means 'rebuild': allowed is {KEY_PATH}.window='rebuild', or rebuild_kv_window_from_tokens=False"
        )
    return replace(config, window='rebuild')
