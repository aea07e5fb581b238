"""Where the installed LightZero lets a cache in."""
import inspect
from collections.abc import Mapping
from functools import cache
from importlib import import_module, metadata
from types import ModuleType
from typing import Optional

from packaging.specifiers import SpecifierSet

SUPPORTED = '>=0.2.0,<0.3'
INSTALL = f"pip install 'lightzero{SUPPORTED}'"
WORLD_MODEL_MODULE = 'lzero.model.unizero_world_models.world_model'

# What the methods of a WorldModel name, where a manager takes part in its inference.
MANAGER_HOOK = {
    '_initialize_cache_structures': {'use_new_cache_manager', 'kv_cache_manager'},
    'retrieve_or_generate_kvcache': {'kv_cache_manager', 'hierarchical_get'},
    'update_cache_context': {'kv_cache_manager', 'set_init_cache', 'set_recur_cache'},
    'clear_caches': {'kv_cache_manager', 'clear_all'},
}
# The same of the release, all of whose inference the plugin replaces.
INFERENCE_HOOK = {
    '_initialize_cache_structures': {'past_kv_cache_init_infer_envs', 'past_kv_cache_recurrent_infer'},
    'forward_initial_inference': {'reset_for_initial_inference', 'past_kv_cache_recurrent_infer'},
    'forward_recurrent_inference': {'retrieve_or_generate_kvcache', 'update_cache_context'},
    'clear_caches': {'past_kv_cache_init_infer_envs', 'past_kv_cache_recurrent_infer'},
}


def has_manager_hook(world_model_class: type) -> bool:
    """
    Overview:
        Whether a ``WorldModel`` works on whatever manager is in its ``kv_cache_manager``, as LightZero's main branch
        does. Versions do not tell: that of the main branch is the release's.
    Arguments:
        - world_model_class (:obj:`type`): The class, or one that inherits from it.
    """
    return _names(world_model_class, MANAGER_HOOK)


def has_inference_hook(world_model_class: type) -> bool:
    """
    Overview:
        Whether a ``WorldModel`` is built like that of the release. What has begun to have a manager of its own is not.
    Arguments:
        - world_model_class (:obj:`type`): The class, or one that inherits from it.
    """
    of_manager = _names(world_model_class, {'_initialize_cache_structures': {'use_new_cache_manager'}})
    return _names(world_model_class, INFERENCE_HOOK) and not of_manager


@cache
def find_hook() -> ModuleType:
    """
    Overview:
        What the plugin does to the installed LightZero.
    Returns:
        - hook (:obj:`ModuleType`): ``manager_hook`` or ``inference_hook``. Either has ``adopt``, which gives a world
            model its cache, and a ``KVCachePolicyMixin`` for the policies.
    Raises:
        - ImportError: If LightZero is missing or has neither hook, with the versions that work.
    """
    return import_module(f'.{name_hook(_installed_world_model(), _installed_version())}', __package__)


def is_release() -> bool:
    """
    Overview:
        Whether the installed LightZero is a release, whose faults are known.
    Raises:
        - ImportError: As ``find_hook``.
    """
    return find_hook().__name__.endswith('.inference_hook')


def name_hook(world_model_class: Optional[type], version: Optional[str]) -> str:
    """
    Overview:
        Tell the hooks apart by what is there. The release's is one of many methods, which only the versions that are
        known have as they must be.
    Arguments:
        - world_model_class (:obj:`Optional[type]`): LightZero's ``WorldModel``, if it has one.
        - version (:obj:`Optional[str]`): LightZero's version; None for a source tree that is not installed.
    Returns:
        - name (:obj:`str`): 'manager_hook' or 'inference_hook'.
    Raises:
        - ImportError: If there is neither, with the versions that work.
    """
    if world_model_class is not None:
        if has_manager_hook(world_model_class):
            return 'manager_hook'
        if has_inference_hook(world_model_class) and (version is None or version in SpecifierSet(SUPPORTED)):
            return 'inference_hook'
    raise ImportError(
        f'lzero_kvcache.plugin needs lightzero{SUPPORTED}, or one whose WorldModel takes a KVCacheManager behind '
        f"use_new_cache_manager, as LightZero's main branch has it, but lightzero {version or 'of unknown version'} "
        f'has neither hook: {INSTALL}'
    )


def _installed_world_model() -> Optional[type]:
    try:
        import_module('lzero')
        return getattr(import_module(WORLD_MODEL_MODULE), 'WorldModel', None)
    except ModuleNotFoundError as error:
        if error.name == 'lzero':
            raise ModuleNotFoundError(
                f'lzero_kvcache.plugin needs lightzero{SUPPORTED}, but LightZero is not installed: {INSTALL}',
                name=error.name
            ) from error
        # LightZero from before UniZero; what LightZero itself lacks is another matter.
        if error.name is None or not WORLD_MODEL_MODULE.startswith(error.name):
            raise
        return None


def _installed_version() -> Optional[str]:
    try:
        return metadata.version('lightzero')
    except metadata.PackageNotFoundError:
        return None


def _names(world_model_class: type, names_of_methods: Mapping[str, set]) -> bool:
    return all(names <= _names_in(world_model_class, method) for method, names in names_of_methods.items())


def _names_in(world_model_class: type, method: str) -> set:
    # An override may leave the rest to the class that it inherits from.
    functions = [inspect.unwrap(vars(base)[method]) for base in world_model_class.__mro__ if method in vars(base)]
    return {name for function in functions if inspect.isfunction(function) for name in function.__code__.co_names}
