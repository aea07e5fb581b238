"""Which LightZero is installed."""
import inspect
from collections.abc import Mapping
from functools import cache
from importlib import import_module, metadata
from typing import Optional

from packaging.specifiers import SpecifierSet

from .adapter import LightZero

SUPPORTED = '>=0.2.0,<0.3'
INSTALL = f"pip install 'lightzero{SUPPORTED}'"
WORLD_MODEL_MODULE = 'lzero.model.unizero_world_models.world_model'

# What the methods of a WorldModel name. Versions do not tell: that of the main branch is the release's.
OF_MAIN = {
    '_initialize_cache_structures': {'use_new_cache_manager', 'past_kv_cache_init_infer_envs'},
    'wm_forward_for_initial_infererence': {'current_infer_env_ids', 'update_cache_context'},
    'forward_recurrent_inference': {'retrieve_or_generate_kvcache', 'update_cache_context'},
    'clear_caches': {'past_kv_cache_init_infer_envs', 'past_token_context_init_infer_envs'},
}
OF_RELEASE = {
    '_initialize_cache_structures': {'past_kv_cache_init_infer_envs', 'past_kv_cache_recurrent_infer'},
    'forward_initial_inference': {'reset_for_initial_inference', 'past_kv_cache_recurrent_infer'},
    'forward_recurrent_inference': {'retrieve_or_generate_kvcache', 'update_cache_context'},
    'clear_caches': {'past_kv_cache_init_infer_envs', 'past_kv_cache_recurrent_infer'},
}


@cache
def installed() -> LightZero:
    """
    Overview:
        The adapter of the LightZero that is installed.
    Raises:
        - ImportError: If LightZero is missing, or is none that the cache knows, with those that it does.
    """
    if name_of(_installed_world_model(), _installed_version()) == 'main':
        return import_module('.main', __package__).Main()
    return import_module('.release', __package__).Release()


def name_of(world_model_class: Optional[type], version: Optional[str]) -> str:
    """
    Overview:
        Tell LightZeros apart by what is there.
    Arguments:
        - world_model_class (:obj:`Optional[type]`): LightZero's ``WorldModel``, if it has one.
        - version (:obj:`Optional[str]`): LightZero's version; None for a source tree that is not installed.
    Returns:
        - name (:obj:`str`): 'main' or 'release'.
    Raises:
        - ImportError: If it is neither, with the versions that work.
    """
    if world_model_class is not None:
        if _names(world_model_class, OF_MAIN):
            return 'main'
        # What has begun to have a manager of its own is not the release.
        has_begun = _names(world_model_class, {'_initialize_cache_structures': {'use_new_cache_manager'}})
        fits = version is None or version in SpecifierSet(SUPPORTED)
        if _names(world_model_class, OF_RELEASE) and fits and not has_begun:
            return 'release'
    raise ImportError(
        f"lzero_kvcache.plugin needs lightzero{SUPPORTED}, or a clone of LightZero's main branch of August 2026, but "
        f'the WorldModel of lightzero {version or "of unknown version"} is built like neither: {INSTALL}'
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
