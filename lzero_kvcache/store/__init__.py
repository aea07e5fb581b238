"""Where the keys and values of the cached contexts lie in memory."""
from .context import Context, ContextBatch, PrecedingSteps
from .token_store import TokenShape, TokenStore

__all__ = ['Context', 'ContextBatch', 'PrecedingSteps', 'TokenShape', 'TokenStore']
