"""What differs from one LightZero to another: one adapter for each, and which is installed."""
from .adapter import LightZero
from .installed import INSTALL, SUPPORTED, installed

__all__ = ['INSTALL', 'SUPPORTED', 'LightZero', 'installed']
