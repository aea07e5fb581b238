"""Is this machine fit for the cache? Nothing here needs LightZero, DI-engine or PyTorch until its own check runs."""
from .examination import CHECKS, examine
from .finding import OK, PROBLEM, WARNING, Finding

__all__ = ['CHECKS', 'OK', 'PROBLEM', 'WARNING', 'Finding', 'examine']
