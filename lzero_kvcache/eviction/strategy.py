import inspect
from collections.abc import Mapping
from enum import Enum
from functools import partial
from typing import Any, Callable, Union

from ..checks import choices
from . import registered
from .base import EvictionPolicy


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
                f"with NAME one of {', '.join(sorted(registered.by_name))}"
            )
        key_path_of_name, name = f'{key_path}.type', options.pop('type')
    else:
        key_path_of_name, name = key_path, strategy
    if isinstance(name, EvictionStrategy):
        name = name.value
    if not isinstance(name, str) or name not in registered.by_name:
        raise ValueError(f'{key_path_of_name} is {name!r}, which is no eviction strategy: '
                         f'{choices(name, registered.by_name)}')
    policy_class = registered.by_name[name]
    signature = inspect.signature(policy_class)
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
        policy_class(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{key_path} is {strategy!r}: {error}') from error
    except Exception as error:
        raise ValueError(
            f'{key_path} is {strategy!r}: {policy_class.__name__} cannot be built: {type(error).__name__}: {error}'
        ) from error
    return name, options


def eviction_policy_factory(
        strategy: StrategyLike, key_path: str = 'eviction_strategy'
) -> Callable[[], EvictionPolicy]:
    """
    Overview:
        Check a strategy once, to create its eviction policy many times.
    Arguments:
        - strategy (:obj:`Union[EvictionStrategy, str, Mapping]`): See ``parse_strategy``.
        - key_path (:obj:`str`): Where the value stands in the user's config, for error messages.
    Returns:
        - factory (:obj:`Callable`): Returns a policy that holds no slot yet.
    Raises:
        - ValueError: As ``parse_strategy``.
    """
    name, options = parse_strategy(strategy, key_path)
    return partial(registered.by_name[name], **options)


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
    return eviction_policy_factory(strategy, key_path)()
