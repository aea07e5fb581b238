"""The report of an A/B run: one HTML file that needs nothing but itself. ``python -m lzero_kvcache.report DIR``."""
try:
    from .page import write_report
except ModuleNotFoundError as error:
    if error.name not in ('jinja2', 'markupsafe', 'matplotlib'):
        raise
    raise ModuleNotFoundError(
        f"the report needs {error.name}, which is not installed: pip install 'lzero-kvcache[report]'", name=error.name
    ) from error

__all__ = ['write_report']
