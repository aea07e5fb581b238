import inspect
from typing import Any, Callable, Optional

from ding.utils.registry import Registry

from . import registered
from .base import EvictionPolicy


class EvictionRegistry(Registry):
    """
    Overview:
        DI-engine's registry, for eviction strategies alone: what cannot be one is refused when it is registered.
    """

    def register(
            self, module_name: Optional[str] = None, module: Optional[type[EvictionPolicy]] = None,
            force_overwrite: bool = False
    ) -> Callable:
        """
        Overview:
            Make a class a legal ``strategy`` of a config. Without ``module`` this is a decorator.
        Arguments:
            - module_name (:obj:`Optional[str]`): The strategy's name; None takes that of the class.
            - module (:obj:`Optional[type]`): A subclass of ``EvictionPolicy``.
            - force_overwrite (:obj:`bool`): Whether a strategy that has the name already is replaced.
        Returns:
            - module (:obj:`Callable`): The class, or the decorator.
        Raises:
            - ValueError: If the name is taken or no name, or the class is no strategy.
        """
        if module_name is not None:
            # Not only when the decorator is called: one without parentheses never is.
            _check_name(module_name)

        def add(strategy: type[EvictionPolicy]) -> type[EvictionPolicy]:
            _check_strategy(module_name, strategy)
            name = strategy.__name__ if module_name is None else module_name
            if name in self and not force_overwrite:
                raise ValueError(
                    f'the name {name!r} is taken by the eviction strategy {_named(self[name])}: choose another name '
                    f'for {_named(strategy)}, or replace it with force_overwrite=True'
                )
            self[name] = strategy
            return strategy

        return add if module is None else add(module)

    def __setitem__(self, name: str, strategy: type[EvictionPolicy]) -> None:
        _check_name(name)
        _check_strategy(name, strategy)
        super().__setitem__(name, strategy)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"the name of an eviction strategy is {name!r}: allowed is a string, as in "
            "@EVICTION_REGISTRY.register('my_strategy')"
        )


def _check_strategy(name: Optional[str], strategy: Any) -> None:
    what = 'an eviction strategy' if name is None else f'the eviction strategy {name!r}'
    if not isinstance(strategy, type) or not issubclass(strategy, EvictionPolicy):
        raise ValueError(
            f'{strategy!r} cannot be {what}: allowed is a subclass of lzero_kvcache.EvictionPolicy'
        )
    if inspect.isabstract(strategy):
        raise ValueError(
            f'{_named(strategy)} cannot be {what}, because it lacks '
            f"{' and '.join(sorted(strategy.__abstractmethods__))}: needed are "
            f"{', '.join(sorted(EvictionPolicy.__abstractmethods__))}"
        )


def _named(strategy: type) -> str:
    return f'{strategy.__module__}.{strategy.__qualname__}'


EVICTION_REGISTRY = registered.by_name = EvictionRegistry(registered.by_name)
