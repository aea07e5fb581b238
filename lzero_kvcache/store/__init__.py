"""Where the keys and values of the cached contexts lie in memory."""
from .context import ContextBatch, ContextShape
from .context_store import ContextStore

__all__ = ['ContextBatch', 'ContextShape', 'ContextStore']
