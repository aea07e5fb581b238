"""The report of an A/B run: one HTML file that needs nothing but itself. ``python -m lzero_kvcache.report DIR``."""
from .page import write_report

__all__ = ['write_report']
