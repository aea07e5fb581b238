from importlib import metadata

from packaging.specifiers import SpecifierSet

SUPPORTED = '>=0.2.0,<0.3'
INSTALL = f"pip install 'lightzero{SUPPORTED}'"


def check_lightzero() -> None:
    """
    Overview:
        Make sure that the installed LightZero is one whose world model this plugin knows.
    Raises:
        - ImportError: If LightZero is missing or of another version, with the command that mends it.
    """
    try:
        installed = metadata.version('lightzero')
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            f'lzero_kvcache.plugin needs lightzero{SUPPORTED}, but LightZero is not installed: {INSTALL}'
        ) from error
    if installed not in SpecifierSet(SUPPORTED):
        raise ImportError(
            f'lzero_kvcache.plugin needs lightzero{SUPPORTED}, but lightzero {installed} is installed: {INSTALL}'
        )
