import inspect
from collections.abc import Mapping
from enum import Enum
from typing import Any, Union

from ..checks import choices
from .base import EVICTION_REGISTRY, EvictionPolicy


class EvictionStrategy(Enum):
    """
    Overview:
        The strategies that come with the package. Each value is a name in ``EVICTION_REGISTRY``.
    """
    FIFO = 'fifo'
    LRU = 'lru'
    LFU = 'lfu'
    SLRU = 'slru'
    SIEVE = 'sieve'
    S3FIFO = 's3fifo'
    RANDOM = 'random'
    PRIORITY = 'priority'
    TREE = 'tree'

    def __repr__(self) -> str:
        # DI-engine saves a run's config as Python source, made of what its values print as.
        return repr(self.value)


StrategyLike = Union[EvictionStrategy, str, Mapping[str, Any]]


def parse_strategy(strategy: StrategyLike, key_path: str = 'eviction_strategy') -> tuple[str, dict[str, Any]]:
    """
    Overview:
        Check a strategy as users write it and split it into its registered name and its options.
    Arguments:
        - strategy (:obj:`Union[EvictionStrategy, str, Mapping]`): A member of ``EvictionStrategy``, a name in
            ``EVICTION_REGISTRY``, or ``dict(type=name, **options)``.
        - key_path (:obj:`str`): Where the value stands in the user's config, for error messages.
    Returns:
        - name, options (:obj:`Tuple[str, Dict[str, Any]]`): The registered name and the keyword arguments of its class.
    Raises:
        - ValueError: If the name is not registered, or the strategy does not have one of the options or takes no such
            value.
    """
    options: dict[str, Any] = {}
    if isinstance(strategy, Mapping):
        options = dict(strategy)
        if 'type' not in options:
            raise ValueError(
                f"{key_path} is {dict(strategy)!r}, which lacks 'type': allowed is dict(type=NAME, ...options) "
                f"with NAME one of {', '.join(sorted(EVICTION_REGISTRY))}"
            )
        key_path_of_name, name = f'{key_path}.type', options.pop('type')
    else:
        key_path_of_name, name = key_path, strategy
    if isinstance(name, EvictionStrategy):
        name = name.value
    if not isinstance(name, str) or name not in EVICTION_REGISTRY:
        raise ValueError(f'{key_path_of_name} is {name!r}, which is no eviction strategy: '
                         f'{choices(name, EVICTION_REGISTRY)}')
    signature = inspect.signature(EVICTION_REGISTRY.get(name))
    legal = [parameter.name for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
    if len(legal) == len(signature.parameters):
        for option, value in options.items():
            if option not in legal:
                raise ValueError(f'{key_path}.{option} is {value!r}, but strategy {name!r} has no option {option!r}: '
                                 f'{choices(option, legal)}')
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ValueError(f'{key_path} is {strategy!r}: strategy {name!r} is {error}') from error
    try:
        EVICTION_REGISTRY.get(name)(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{key_path} is {strategy!r}: {error}') from error
    return name, options


def build_eviction_policy(strategy: StrategyLike, key_path: str = 'eviction_strategy') -> EvictionPolicy:
    """
    Overview:
        Create the eviction policy that a strategy names.
    Arguments:
        - strategy (:obj:`Union[EvictionStrategy, str, Mapping]`): See ``parse_strategy``.
        - key_path (:obj:`str`): Where the value stands in the user's config, for error messages.
    Returns:
        - policy (:obj:`EvictionPolicy`): A policy that holds no slot yet.
    Raises:
        - ValueError: As ``parse_strategy``.
    """
    name, options = parse_strategy(strategy, key_path)
    return EVICTION_REGISTRY.get(name)(**options)
