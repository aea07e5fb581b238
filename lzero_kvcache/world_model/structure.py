"""Detects when a model's modules no longer compute what they did."""
import logging
from functools import cache
from numbers import Number
from typing import Any

from lzero.model.common import SimNorm
from lzero.model.unizero_world_models.slicer import Head, PolicyHeadCont
from lzero.model.unizero_world_models.transformer import Block, SelfAttention, Transformer
from torch import nn
from torch.nn.modules import module as all_modules

logger = logging.getLogger('lzero_kvcache')

PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None)])
# Every module has these, hooks and submodules among them.
OF_ALL_MODULES = vars(nn.Module()).keys() - {'training'}


# What the cache knows how to compute.
KNOWN_CLASSES = (
    Transformer, Block, SelfAttention, Head, PolicyHeadCont,
    nn.Sequential, nn.Linear, nn.Embedding, nn.LayerNorm, nn.GELU, nn.Dropout, SimNorm,
)


def runs_its_own_forward(module: nn.Module) -> bool:
    """Whether hooks, or another forward of the module or its class, make it compute what its class does not say."""
    return (
        any(_hooks_of(module)) or any(_hooks_of_all_modules()) or 'forward' in vars(module)
        or any(isinstance(module, known) and not _computes_as_written(known) for known in KNOWN_CLASSES)
    )


def _computes_as_written(known: type) -> bool:
    # By name: another function may have been set before this module was imported.
    forward = known.forward
    names = getattr(forward, '__module__', None), getattr(forward, '__qualname__', None)
    return names == (known.__module__, f'{known.__qualname__}.forward') and not hasattr(forward, '__wrapped__')


class StructureWatch:
    """Notices when a model's modules are replaced, given hooks or freed of them, or switched to training or back, and
    when their numbers, strings or functions are set, such as a norm's ``eps`` or an instance's ``forward``.
    """

    def __init__(self) -> None:
        self._modules: dict[str, nn.Module] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        self._hooks: list[dict] = []
        self._hook_ids: list[tuple[int, ...]] = []

    def remember(self, world_model: nn.Module) -> None:
        self._modules = dict(world_model.named_modules())
        self._settings = _settings_of(self._modules)
        self._hooks = [*_hooks_of_all_modules()]
        for module in self._modules.values():
            self._hooks += _hooks_of(module)
        self._hook_ids = [tuple(hooks) for hooks in self._hooks]

    def has_changed(self, world_model: nn.Module) -> bool:
        """Whether the modules may compute something else than those that were remembered."""
        modules = dict(world_model.named_modules())
        if modules != self._modules or self.hooks_have_changed():
            return True
        settings = _settings_of(modules)
        if settings == self._settings:
            return False
        for name, after in settings.items():
            before = self._settings[name]
            for attribute in sorted(before.keys() | after.keys()):
                if attribute != 'training' and before.get(attribute) != after.get(attribute):
                    _warn_of_change(f'{name}.{attribute}')
        return True

    def hooks_have_changed(self) -> bool:
        """A look at the hooks alone, cheap enough for every simulation."""
        if not any(self._hooks):
            return any(self._hook_ids)
        return self._hook_ids != [tuple(hooks) for hooks in self._hooks]


def _hooks_of(module: nn.Module) -> tuple[dict, dict]:
    return module._forward_hooks, module._forward_pre_hooks


def _hooks_of_all_modules() -> tuple[dict, dict]:
    return all_modules._global_forward_hooks, all_modules._global_forward_pre_hooks


def _settings_of(modules: dict[str, nn.Module]) -> dict[str, dict[str, Any]]:
    settings = {}
    for module_name, module in modules.items():
        # The world model itself keeps its inferences' state beside its settings.
        if module_name:
            settings[module_name] = {
                name: value for name, value in vars(module).items() if name not in OF_ALL_MODULES and _is_setting(value)
            }
            settings[module_name]['__class__'] = type(module), type(module).forward
    return settings


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_setting(part) for part in value)
    if type(value) in PLAIN or isinstance(value, Number):
        return True
    return callable(value) and not isinstance(value, nn.Module)


@cache
def _warn_of_change(name: str) -> None:
    logger.warning(
        f'{name} of the world model has been set to another value: what was cached before is computed again, as it '
        'will be whenever it is set. Said once.'
    )
