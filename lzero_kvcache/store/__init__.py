"""Which tokens the cached contexts consist of, and where their keys and values lie in memory."""
from .context import Context, ContextBatch
from .token_store import TokenStore

__all__ = ['Context', 'ContextBatch', 'TokenStore']
