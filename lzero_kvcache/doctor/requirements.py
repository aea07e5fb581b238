"""Versions and pins, against what the installed distributions say of themselves."""
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Optional

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from .finding import OK, PROBLEM, Finding

DISTRIBUTION = 'lzero-kvcache'
# Whoever changes the package itself needs it; whoever trains does not.
EXTRAS_OF_DEVELOPERS = ('test', )
# What bounds a version from above.
UPPER = ('<', '<=', '==', '~=')
# Where the names differ.
DISTRIBUTION_OF_MODULE = {
    'cv2': 'opencv-python-headless', 'ding': 'DI-engine', 'lzero': 'lightzero', 'zoo': 'lightzero', 'yaml': 'pyyaml',
}


def python_version() -> list[Finding]:
    """
    Overview:
        Is this Python one that LightZero has wheels for?
    """
    allowed = metadata.metadata(DISTRIBUTION)['Requires-Python']
    version = platform.python_version()
    if version in SpecifierSet(allowed):
        return [Finding('Python', OK, version)]
    return [Finding(
        'Python', PROBLEM, f'{version}, but {DISTRIBUTION} needs {allowed}',
        f"python3.11 -m venv .venv && .venv/bin/pip install {DISTRIBUTION}"
    )]


def required_packages() -> list[Finding]:
    """
    Overview:
        Is everything there that the package needs, in a version that it can work with?
    """
    return [_required(requirement) for requirement in _requirements(DISTRIBUTION)]


def pins_of_others() -> list[Finding]:
    """
    Overview:
        Do LightZero and DI-engine have the versions that they ask for? One line per package that they do not have.
    """
    known = {
        canonicalize_name(requirement.name) for requirement in _requirements(DISTRIBUTION)
        if _required(requirement).status == PROBLEM
    }
    findings = []
    for distribution in ('lightzero', 'DI-engine'):
        if _installed(distribution) is None:
            continue
        broken = [
            finding for requirement in _requirements(distribution)
            for finding in [_required(requirement)]
            if finding.status == PROBLEM and canonicalize_name(requirement.name) not in known
        ]
        findings += broken or [Finding(f'pins of {distribution}', OK, 'kept')]
    return findings


def optional_packages() -> list[Finding]:
    """
    Overview:
        What each extra of the package brings. What is not installed is no fault; what does not fit is one.
    """
    findings = []
    for extra in metadata.metadata(DISTRIBUTION).get_all('Provides-Extra') or ():
        if extra in EXTRAS_OF_DEVELOPERS:
            continue
        command = f"pip install '{DISTRIBUTION}[{extra}]'"
        for requirement in _requirements(DISTRIBUTION, extra):
            installed = _installed(requirement.name)
            name = f'{requirement.name} [{extra}]'
            if installed is None:
                findings.append(Finding(name, OK, f'not installed; {command} would bring it'))
            elif installed not in requirement.specifier:
                findings.append(_does_not_fit(name, installed, requirement))
            else:
                findings.append(Finding(name, OK, installed))
    return findings


def how_to_install(module: str) -> Optional[str]:
    """
    Overview:
        The command that installs a module that the package needs, itself or by LightZero or DI-engine.
    Arguments:
        - module (:obj:`str`): The name that is imported.
    Returns:
        - command (:obj:`Optional[str]`): None if none of them asks for it.
    """
    name = canonicalize_name(DISTRIBUTION_OF_MODULE.get(module, module))
    found = [
        requirement for distribution in (DISTRIBUTION, 'lightzero', 'DI-engine')
        if distribution == DISTRIBUTION or _installed(distribution) is not None
        for requirement in _requirements(distribution) if canonicalize_name(requirement.name) == name
    ]
    # Where we leave the version to LightZero or DI-engine, theirs is the bound.
    bounded = [requirement for requirement in found if any(each.operator in UPPER for each in requirement.specifier)]
    return _install((bounded or found)[0]) if found else None


def _requirements(distribution: str, extra: str = '') -> Iterator[Requirement]:
    for text in metadata.requires(distribution) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        of_extra = marker is not None and 'extra' in str(marker)
        wanted = marker is None or marker.evaluate({'extra': extra})
        if wanted and of_extra == bool(extra) and canonicalize_name(requirement.name) != DISTRIBUTION:
            yield requirement


def _installed(name: str) -> Optional[str]:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _required(requirement: Requirement) -> Finding:
    installed = _installed(requirement.name)
    if installed is None:
        return Finding(requirement.name, PROBLEM, 'not installed', _install(requirement))
    if installed not in requirement.specifier:
        return _does_not_fit(requirement.name, installed, requirement)
    return Finding(requirement.name, OK, installed)


def _does_not_fit(name: str, installed: str, requirement: Requirement) -> Finding:
    return Finding(name, PROBLEM, f'{installed}, but needed is {requirement.specifier}', _install(requirement))


def _install(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ''
    return f"pip install '{requirement.name}{extras}{requirement.specifier}'"
