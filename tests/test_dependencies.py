"""Each dependency has a bound, a reason and a use, and each import is declared."""
import ast
import re
import sys
from configparser import ConfigParser
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lzero_kvcache.doctor.requirements import DISTRIBUTION_OF_MODULE, UPPER, how_to_install

ROOT = Path(__file__).parents[1]
OURS = canonicalize_name('lzero-kvcache')
# Which extra a part of the package may need; all others make do with install_requires.
EXTRA_OF_PART = {
    'envs': 'dmc', 'report': 'report', 'bench': 'bench', 'trace/plot.py': 'bench', 'ab/ray_backend.py': 'ray',
}
# Imported where it is there, never asked for: triton comes with PyTorch on Linux, dmc2gym is not on PyPI.
OPTIONAL = {'triton', 'dmc2gym'}
# Nothing of ours imports these, but those in the right column do: a module, and what its source says.
FOR_OTHERS = {
    'setuptools': ('tensorboard', 'import pkg_resources'), 'opencv-python-headless': ('zoo.atari', 'import cv2'),
    'torchvision': ('lzero', 'from torchvision'),
}
# Who brings what we import and do not name; see setup.cfg.
BROUGHT = {
    'gym': 'DI-engine', 'gymnasium': 'lightzero', 'wandb': 'DI-engine', 'tensorboard': 'DI-toolkit',
    'pandas': 'DI-toolkit',
}
# Tools that are called, not imported, and where.
CALLED = {'ruff': 'Makefile', 'pytest-timeout': 'pyproject.toml', 'pytest-xdist': 'Makefile'}
PYTHONS = ('3.9', '3.10', '3.11')


def declared() -> list[tuple[str, Requirement, str]]:
    """Extra ('': install_requires), requirement, and the comment above it or above its group."""
    found, section, option, comment = [], '', '', ''
    for line in (ROOT / 'setup.cfg').read_text().splitlines():
        if line.startswith('['):
            section, option = line, ''
        elif re.match(r'\w+ *=', line):
            option, comment = line.partition('=')[0].strip(), ''
        elif line.strip().startswith('#'):
            comment = line.strip()[1:].strip()
        elif line.strip() and (section == '[options.extras_require]' or option == 'install_requires'):
            extra = '' if option == 'install_requires' else option
            found.append((extra, Requirement(line.strip()), comment))
    return found


DECLARED = declared()
by_name = pytest.mark.parametrize(
    'extra, requirement, comment', DECLARED, ids=[f'{requirement.name} {extra}' for extra, requirement, _ in DECLARED]
)


def names(extra: str) -> set[str]:
    return {canonicalize_name(requirement.name) for own, requirement, _ in DECLARED if own == extra}


def test_this_file_reads_what_setuptools_reads():
    setup = ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    lists = {'': setup['options']['install_requires'], **setup['options.extras_require']}
    expected = [
        (extra, str(Requirement(line))) for extra, text in lists.items() for line in text.splitlines() if line.strip()
    ]
    assert [(extra, str(requirement)) for extra, requirement, _ in DECLARED] == expected


@by_name
def test_a_dependency_has_a_reason_and_a_bound_above(extra, requirement, comment):
    assert len(comment.split()) >= 3, f'{requirement} in {extra or "install_requires"} has no reason'
    if canonicalize_name(requirement.name) == OURS:
        return
    if not any(each.operator in UPPER for each in requirement.specifier):
        assert 'No bound' in comment, f'{requirement} has no bound above, and no reason for that'


@by_name
def test_what_is_installed_is_within_the_bounds(extra, requirement, comment):
    name = requirement.name
    if canonicalize_name(name) == OURS or (requirement.marker and not requirement.marker.evaluate()):
        pytest.skip('not for this machine')
    try:
        assert metadata.version(name) in requirement.specifier
    except metadata.PackageNotFoundError:
        assert extra, f'{name} is not installed'
        pytest.skip(f'{name} is not installed')


def imported(path: Path) -> set[str]:
    """Distributions of the third-party modules that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith('importorskip'):
            modules.add(node.args[0].value)
    tops = {module.split('.')[0] for module in modules}
    own = {each.stem for each in (ROOT / 'tests').iterdir()} | {each.stem for each in ROOT.iterdir()}
    known = getattr(sys, 'stdlib_module_names', None)
    if known is None:
        # Python 3.9: whatever lies beside os.py, or in no file at all.
        folder = Path(ast.__file__).parent
        known = {top for top in tops if _is_standard(top, folder)}
    return {canonicalize_name(DISTRIBUTION_OF_MODULE.get(top, top)) for top in tops - own - set(known) - OPTIONAL}


def _is_standard(module: str, folder: Path) -> bool:
    spec = find_spec(module)
    origin = (spec.origin or '') if spec else ''
    return origin in ('built-in', 'frozen') or (str(folder) in origin and 'site-packages' not in origin)


MODULES = sorted((ROOT / 'lzero_kvcache').rglob('*.py'))


@pytest.mark.parametrize('path', MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_module_imports_is_declared_for_its_part(path):
    place = path.relative_to(ROOT / 'lzero_kvcache').as_posix()
    extra = EXTRA_OF_PART.get(place) or EXTRA_OF_PART.get(place.partition('/')[0])
    allowed = BROUGHT.keys() | names('') | (names(extra) if extra else set())
    assert imported(path) <= allowed, f'{place} imports {imported(path) - allowed}, which nothing declares'


def test_examples_configs_and_tests_import_what_an_extra_brings():
    extras = ('', 'atari', 'dmc', 'bench', 'report', 'test')
    everything = BROUGHT.keys() | {name for extra in extras for name in names(extra)}
    for folder in ('zoo_examples', 'configs', 'benchmarks', 'tests'):
        for path in (ROOT / folder).rglob('*.py'):
            assert imported(path) <= everything, f'{path} imports {imported(path) - everything}'


@pytest.mark.parametrize('name', BROUGHT)
def test_what_others_bring_they_ask_for(name):
    requirements = map(Requirement, metadata.requires(BROUGHT[name]))
    assert any(canonicalize_name(each.name) == name and each.marker is None for each in requirements)
    assert name not in names('')


def test_nothing_is_declared_that_nobody_uses():
    used = {
        extra: set().union(*(imported(path) for folder in folders for path in (ROOT / folder).rglob('*.py')))
        for extra, folders in (('', ('lzero_kvcache', )), ('test', ('tests', 'lzero_kvcache')))
    }
    for extra, requirement, _ in DECLARED:
        name = canonicalize_name(requirement.name)
        if name in FOR_OTHERS:
            module, words = FOR_OTHERS[name]
            (folder, ) = map(Path, find_spec(module).submodule_search_locations)
            assert any(words in path.read_text(errors='replace') for path in folder.rglob('*.py')), requirement
        elif name in CALLED:
            assert name.replace('pytest-', '') in (ROOT / CALLED[name]).read_text(), requirement
        elif name != OURS:
            assert name in used['test' if extra == 'test' else ''], f'{requirement} in {extra or "install_requires"}'


@pytest.mark.parametrize('module', ['wandb', 'gym', 'gymnasium'])
def test_versions_that_we_leave_to_others_are_theirs(module):
    assert re.search(r"'\w+(\[\w+\])?(==|<=)", how_to_install(module))


def test_the_pythons_are_those_of_the_classifiers():
    setup = ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    classifiers = re.findall(r'Python :: (\d\.\d+)', setup['metadata']['classifiers'])
    assert tuple(classifiers) == PYTHONS and setup['options']['python_requires'] == '>=3.9,<3.12'
