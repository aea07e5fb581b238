from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from numbers import Real
from typing import Any, Optional

from .checks import check_count, choices
from .eviction import parse_strategy
from .eviction.strategy import StrategyLike

WORLD_MODEL_PATH = 'policy.model.world_model_cfg'
KEY_PATH = f'{WORLD_MODEL_PATH}.kv_cache'

MODES = ('managed', 'legacy', 'validate')
ON_MISS = ('rebuild', 'reset')
WINDOWS = ('shift', 'rebuild')
ROPE_POSITIONS = ('aligned', 'release')
OLDER_SPELLINGS = ('use_new_cache_manager', 'cache_validation_mode')


@dataclass
class PoolConfig:
    """
    Overview:
        The part of ``kv_cache`` that describes one kind of pool.
    Arguments:
        - size (:obj:`Optional[int]`): Entries that fit; None derives it from the environment and simulation numbers.
        - strategy (:obj:`Optional[Union[str, dict]]`): As ``KVCacheConfig.strategy``; None takes that one.
    """
    size: Optional[int] = None
    strategy: Optional[StrategyLike] = None


@dataclass
class KVCacheConfig:
    """
    Overview:
        The ``kv_cache`` entry of ``world_model_cfg``. Checked when it is made, so an instance is always valid.
    Arguments:
        - mode (:obj:`str`): 'managed' (this package's cache), 'legacy' (the stock code, untouched) or 'validate'
            (both on the same inputs, every prediction compared).
        - strategy (:obj:`Union[str, dict]`): A name in ``EVICTION_REGISTRY``, or ``dict(type=name, **options)``.
        - init_pool (:obj:`dict`): Root contexts, one pool per environment; ``size`` entries each, ``strategy``.
        - recur_pool (:obj:`dict`): Nodes of the running search, all environments.
        - wm_pool (:obj:`dict`): Rows of the last inference.
        - memory_budget_mb (:obj:`Optional[float]`): MiB of keys and values, in float32, that the pools may hold; the
            sizes that are left open are derived from it. None: no budget.
        - on_miss (:obj:`str`): 'rebuild' (compute the missing context again: lossless) or 'reset' (as the stock code:
            start over from the latent state alone).
        - window (:obj:`str`): What happens to a context that reaches ``context_length - 1`` tokens: 'shift' (drop the
            oldest and correct the positions, as the stock code) or 'rebuild' (encode the remaining tokens again).
        - rope_positions (:obj:`str`): Rotary positions of a search's tokens: 'aligned' (as in training) or 'release'
            (too far from the root, as in the stock code).
        - compile (:obj:`bool`): Whether the step of a search is compiled, at the first search: on a CPU in about a
            minute, on a GPU into one graph.
        - enable_stats (:obj:`bool`): Whether hits, misses and evictions are counted.
        - log_interval (:obj:`int`): Searches between two log lines and two TensorBoard points; 0 logs no lines and
            leaves the points that end a collect or eval phase.
        - validation_tolerance (:obj:`float`): The largest absolute difference that mode 'validate' accepts; under
            ``torch.autocast`` it is at least 8 times the spacing of its numbers.
    Raises:
        - ValueError: On a value that is not allowed, with its full key path.
    """
    mode: str = 'managed'
    strategy: StrategyLike = 'fifo'
    init_pool: PoolConfig = field(default_factory=PoolConfig)
    recur_pool: PoolConfig = field(default_factory=PoolConfig)
    wm_pool: PoolConfig = field(default_factory=PoolConfig)
    memory_budget_mb: Optional[float] = None
    on_miss: str = 'rebuild'
    window: str = 'shift'
    rope_positions: str = 'aligned'
    compile: bool = False
    enable_stats: bool = True
    log_interval: int = 1000
    validation_tolerance: float = 1e-4

    def __post_init__(self) -> None:
        _check_choice('mode', self.mode, MODES)
        parse_strategy(self.strategy, f'{KEY_PATH}.strategy')
        for pool in ('init_pool', 'recur_pool', 'wm_pool'):
            setattr(self, pool, _parse_pool(pool, getattr(self, pool)))
        _check_choice('on_miss', self.on_miss, ON_MISS)
        _check_choice('window', self.window, WINDOWS)
        _check_choice('rope_positions', self.rope_positions, ROPE_POSITIONS)
        for switch in ('compile', 'enable_stats'):
            value = getattr(self, switch)
            if not isinstance(value, bool):
                raise ValueError(f'{KEY_PATH}.{switch} is {value!r}: allowed are True and False')
        if isinstance(self.log_interval, bool) or not isinstance(self.log_interval, int) or self.log_interval < 0:
            raise ValueError(f'{KEY_PATH}.log_interval is {self.log_interval!r}: allowed is an integer of at least 0 '
                             '(searches; 0 for no log lines)')
        if not _is_number(self.validation_tolerance) or self.validation_tolerance < 0:
            raise ValueError(f'{KEY_PATH}.validation_tolerance is {self.validation_tolerance!r}: allowed is a number '
                             'of at least 0')
        budget = self.memory_budget_mb
        if budget is not None and (not _is_number(budget) or budget <= 0):
            raise ValueError(f'{KEY_PATH}.memory_budget_mb is {budget!r}: allowed is a number above 0 (MiB), or None '
                             'for no budget')

    @classmethod
    def from_dict(cls, kv_cache: Mapping[str, Any]) -> 'KVCacheConfig':
        """
        Overview:
            Read the ``kv_cache`` entry as users write it.
        Arguments:
            - kv_cache (:obj:`Mapping[str, Any]`): A dict or EasyDict; missing keys take their defaults.
        Returns:
            - config (:obj:`KVCacheConfig`): The checked config.
        Raises:
            - ValueError: On an unknown key, a wrong type or a value that is not allowed.
        """
        if isinstance(kv_cache, cls):
            return kv_cache
        if not isinstance(kv_cache, Mapping):
            raise ValueError(f"{KEY_PATH} is {kv_cache!r}: allowed is a dict such as dict(strategy='lru')")
        return cls(**_check_keys(cls, kv_cache, KEY_PATH))

    @classmethod
    def from_world_model_config(
            cls, world_model_cfg: Any, older_spellings: Sequence[str] = OLDER_SPELLINGS
    ) -> Optional['KVCacheConfig']:
        """
        Overview:
            Find the cache's config in ``world_model_cfg``, in the present or the older spelling of the mode
            (``use_new_cache_manager``, ``cache_validation_mode``).
        Arguments:
            - world_model_cfg (:obj:`Any`): An EasyDict, a dict or any object with the same attributes.
            - older_spellings (:obj:`Sequence[str]`): Those that mean the mode: a LightZero may have keys of these names
                itself.
        Returns:
            - config (:obj:`Optional[KVCacheConfig]`): The checked config, or None where the user asks for no cache.
        Raises:
            - ValueError: As ``from_dict``, and if the two spellings of the mode disagree.
        """
        kv_cache = entry_of(world_model_cfg, 'kv_cache')
        older_mode = _older_mode(world_model_cfg, older_spellings)
        if kv_cache is None:
            return None if older_mode is None else cls(mode=older_mode)
        config = cls.from_dict(kv_cache)
        if older_mode is None or older_mode == config.mode:
            return config
        if isinstance(kv_cache, cls) or 'mode' in kv_cache:
            raise ValueError(
                f'{KEY_PATH}.mode is {config.mode!r}, but use_new_cache_manager and cache_validation_mode beside it '
                f'mean {older_mode!r}: remove the older spelling'
            )
        config.mode = older_mode
        return config

    @classmethod
    def find_in(cls, config: Any) -> 'KVCacheConfig':
        """
        Overview:
            Find the cache's config in whatever a ``KVCacheManager`` built by hand is given.
        Arguments:
            - config (:obj:`Any`): A ``KVCacheConfig``, a ``world_model_cfg``, or the keys of ``kv_cache`` themselves.
        Returns:
            - config (:obj:`KVCacheConfig`): The checked config; the defaults where there is none.
        Raises:
            - ValueError: As ``from_world_model_config``.
        """
        if isinstance(config, cls):
            return config
        found = cls.from_world_model_config(config)
        if found is not None:
            return found
        entries = {item.name: entry_of(config, item.name) for item in fields(cls)}
        return cls.from_dict({key: value for key, value in entries.items() if value is not None})

    def strategy_of(self, pool: PoolConfig) -> StrategyLike:
        """
        Overview:
            The strategy of one kind of pool.
        Arguments:
            - pool (:obj:`PoolConfig`): ``init_pool``, ``recur_pool`` or ``wm_pool``.
        Returns:
            - strategy (:obj:`Union[str, dict]`): The pool's own, else the common one.
        """
        return self.strategy if pool.strategy is None else pool.strategy

    def to_dict(self) -> dict[str, Any]:
        """
        Overview:
            The config as users write it, with every default filled in.
        """
        return asdict(self)


def runs_stock_code(world_model_cfg: Any) -> bool:
    """
    Overview:
        Whether a ``world_model_cfg`` asks for no managed cache.
    Arguments:
        - world_model_cfg (:obj:`Any`): An EasyDict, a dict or any object with the same attributes.
    Raises:
        - ValueError: As ``KVCacheConfig.from_world_model_config``.
    """
    config = KVCacheConfig.from_world_model_config(world_model_cfg)
    return config is None or config.mode == 'legacy'


def entry_of(config: Any, name: str) -> Any:
    """
    Overview:
        One entry of a config.
    Arguments:
        - config (:obj:`Any`): A dict, an EasyDict or any object with attributes.
        - name (:obj:`str`): The entry's name.
    Returns:
        - value (:obj:`Any`): Its value, None where it has none.
    """
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _check_keys(config_class: type, given: Mapping[str, Any], key_path: str) -> dict[str, Any]:
    legal = [item.name for item in fields(config_class)]
    for key, value in given.items():
        if key not in legal:
            raise ValueError(f'{key_path}.{key} is {value!r}, but there is no such key: {choices(key, legal)}')
    return dict(given)


def _check_choice(key: str, value: Any, allowed: tuple) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f'{KEY_PATH}.{key} is {value!r}: {choices(value, allowed)}')


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return isfinite(value)
    except OverflowError:
        return False


def _parse_pool(name: str, given: Any) -> PoolConfig:
    key_path = f'{KEY_PATH}.{name}'
    if isinstance(given, PoolConfig):
        pool = given
    elif isinstance(given, Mapping):
        pool = PoolConfig(**_check_keys(PoolConfig, given, key_path))
    else:
        raise ValueError(f"{key_path} is {given!r}: allowed is a dict such as dict(size=100, strategy='lru')")
    if pool.size is not None:
        check_count(pool.size, f'{key_path}.size')
    if pool.strategy is not None:
        parse_strategy(pool.strategy, f'{key_path}.strategy')
    return pool


def _older_mode(world_model_cfg: Any, older_spellings: Sequence[str]) -> Optional[str]:
    switches = dict.fromkeys(OLDER_SPELLINGS)
    for key in older_spellings:
        switches[key] = entry_of(world_model_cfg, key)
        if switches[key] is not None and not isinstance(switches[key], bool):
            raise ValueError(f'policy.model.world_model_cfg.{key} is {switches[key]!r}: allowed are True and False')
    if switches['cache_validation_mode']:
        return 'validate'
    if switches['use_new_cache_manager'] is None:
        return None
    return 'managed' if switches['use_new_cache_manager'] else 'legacy'
