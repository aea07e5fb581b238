"""What the documents say is there: links, commands, options, names; and their code runs."""
import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from typing import Optional

import click
import pytest
from test_ab import SMALL, read_csv
from training import read_scalars

from lzero_kvcache import EvictionStrategy, KVCacheConfig
from lzero_kvcache.ab.config import load_ab_config
from lzero_kvcache.cli import main

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / 'docs').glob('*.md'))
DOCUMENTS = [ROOT / 'README.md', ROOT / 'README.zh.md', *DOCS]
GUIDES = ['adding_a_strategy.md', 'adding_a_statistic.md']
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
every_document = pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)


def code_blocks(document: Path, language: Optional[str] = None) -> list[str]:
    return [code for name, code in FENCE.findall(document.read_text()) if language in (None, name)]


def prose(document: Path) -> str:
    return FENCE.sub('', document.read_text())


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    met: Counter = Counter()
    found = set()
    for heading in re.findall(r'^#+ +(.*)$', prose(document), re.MULTILINE):
        text = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).strip().lower()
        anchor = re.sub(r'[^\w\- ]', '', text).replace(' ', '-')
        found.add(f'{anchor}-{met[anchor]}' if met[anchor] else anchor)
        met[anchor] += 1
    return found


@every_document
def test_links_lead_somewhere(document):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(document)):
        if re.match(r'https?://', target):
            continue
        path, _, anchor = target.partition('#')
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), f'{document.name} links to {target}'
        if anchor:
            assert anchor in anchors(there), f'{document.name} links to {target}'


def commands_in(document: Path) -> list[list[str]]:
    """The words of everything that is typed: lines of blocks without a language, and inline code."""
    lines = [line for code in code_blocks(document, '') for line in code.splitlines()]
    lines += re.findall(r'`([^`\n]+)`', prose(document))
    return [re.split(r'\s{2,}#', line)[0].split() for line in lines]


def check_options(command: click.Command, words: list[str]) -> None:
    known = {option for parameter in command.params for option in parameter.opts if option.startswith('-')}
    for word in words:
        if word == '--':
            return
        if word.startswith('--'):
            option = word.split('=')[0].strip("'")
            assert option in known | {'--help', '--version'}, f'{command.name} has no {option}'


@every_document
def test_commands_and_their_options_are_there(document):
    for words in commands_in(document):
        places = [place for place, word in enumerate(words) if re.fullmatch(r'(\S*/)?lzero-kvcache', word)]
        if not places or 'install' in words or len(words) <= places[0] + 1:
            continue
        name, *rest = words[places[0] + 1:]
        if name in ('--help', '--version', 'COMMAND'):
            continue
        assert name in main.commands, f"{document.name} has 'lzero-kvcache {name}'"
        check_options(main.commands[name], rest)


@every_document
def test_targets_of_make_are_there(document):
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for words in commands_in(document):
        if words[:1] == ['make']:
            assert {word for word in words[1:] if '=' not in word} <= targets, f'{document.name}: {words}'


def is_written_here(path: str) -> bool:
    """Whether a path is of the repository, not of a run, of an own file, or of LightZero."""
    return path.split('/')[0] in ('lzero_kvcache', 'configs', 'zoo_examples', 'benchmarks', 'tests', 'docs')


@every_document
def test_paths_and_modules_are_there(document):
    for words in commands_in(document):
        for word in words:
            if is_written_here(word) and '/' in word and re.fullmatch(r'[\w./]+', word) and 'NAME' not in word:
                assert (ROOT / word).exists(), f'{document.name} names {word}'
        if '-m' in words and is_written_here(module := words[words.index('-m') + 1].replace('.', '/')):
            assert (ROOT / f'{module}.py').exists() or (ROOT / module / '__main__.py').exists(), f'{words}'


@every_document
def test_extras_are_there(document):
    setup = ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    for extras in re.findall(r"(?:lzero-kvcache|'\.)\[([\w,]+)\]", document.read_text()):
        assert set(extras.split(',')) <= set(setup['options.extras_require']), f'{document.name}: {extras}'


@every_document
def test_python_blocks_are_python_3_9(document):
    for code in code_blocks(document, 'python'):
        compile(code, document.name, 'exec')


def names_in_the_code() -> set[str]:
    """Everything that is defined, called or spelt out as a string in the package, and its modules."""
    names = {'lzero_kvcache'}
    for path in (ROOT / 'lzero_kvcache').rglob('*.py'):
        names.update(path.relative_to(ROOT / 'lzero_kvcache').with_suffix('').parts)
        for node in ast.walk(ast.parse(path.read_text())):
            for field in ('id', 'attr', 'name', 'arg'):
                if isinstance(name := getattr(node, field, None), str):
                    names.update(name.split('.'))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and ' ' not in node.value:
                names.update(re.findall(r'\w+', node.value))
    return names


def test_the_names_in_the_architecture_are_in_the_code():
    known = names_in_the_code() | {'FLOORS', 'state_dict'}
    for code in re.findall(r'`([^`\n]+)`', prose(ROOT / 'docs' / 'architecture.md')):
        if '/' not in code and not code.startswith('['):
            assert set(re.findall(r'[A-Za-z_]\w+', code)) <= known, code


# Other packages' words, and what is typed.
OF_OTHERS = ("No module named 'pkg_resources'", "No module named 'cv2'", "no attribute 'flex_vertedge'",
             'an OpenGL platform library has not been loaded', 'TypeError: list indices must be integers',
             'You must call wandb.init() before wandb.watch()', 'ProcessGroupNCCL is only supported with GPUs',
             'Found no NVIDIA driver on your system', 'Torch not compiled with CUDA enabled',
             "'NoneType' object has no attribute 'data'", 'Is there a distributed collective mismatch in your code?',
             "'a' and 'p' must have same size", 'n_episode < env_num, please decrease the number of eval env',
             'tuple index out of range', 'LightZero now only support the following algo.', "No module named 'l'",
             'index ... is out of bounds', 'Loss contains NaN values', 'Cannot take a larger sample than population')


def test_the_messages_in_the_guides_are_those_of_the_code():
    """Of what stands in the first columns of tables; '...' stands for values."""
    texts = [(ROOT / 'Makefile').read_text()]
    for path in (ROOT / 'lzero_kvcache').rglob('*.py'):
        texts += [node.value for node in ast.walk(ast.parse(path.read_text()))
                  if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    missing = []
    for guide in ('troubleshooting.md', 'migrating.md'):
        for cell in re.findall(r'^\|([^|]*)\|', prose(ROOT / 'docs' / guide), re.MULTILINE):
            for message in re.findall(r'`([^`]+)`', cell):
                if message in OF_OTHERS or len(message.split()) < 4:
                    continue
                pieces = [piece.strip() for piece in re.split(r'\.\.\.+', message)]
                missing += [(guide, piece) for piece in pieces if not any(piece in text for text in texts)]
    assert missing == []


def first_cells(document: Path, heading: str) -> list[str]:
    """The code in the first column of the table below a heading."""
    section = prose(document).split(f'\n## {heading}\n')[1].split('\n## ')[0]
    return re.findall(r'^\| `([^`]+)`', section, re.MULTILINE)


def test_the_tables_of_the_readme_are_complete():
    readme = ROOT / 'README.md'
    assert sorted(first_cells(readme, 'Strategies')) == sorted(strategy.value for strategy in EvictionStrategy)
    assert first_cells(readme, 'The config') == list(KVCacheConfig().to_dict())
    assert sorted(first_cells(readme, 'Commands')) == sorted(main.commands)


def test_the_index_names_every_document():
    linked = re.findall(r'\]\((\w+\.md)\)', (ROOT / 'docs' / 'README.md').read_text())
    assert sorted(linked) == sorted(path.name for path in DOCS if path.name != 'README.md')


def without_comments(code: str) -> list[str]:
    return [re.sub(r'(^|\s+)# .*$', '', line) for line in code.splitlines()]


def test_the_chinese_readme_is_as_complete_as_the_english_one():
    english, chinese = ROOT / 'README.md', ROOT / 'README.zh.md'
    for pattern in (r'^#+(?= )', r'^\| `[^`]+`(?= \|)', r'^\|(?=.*\|$)', r'\]\([^)]+\)'):
        of_english, of_chinese = (re.findall(pattern, prose(path), re.MULTILINE) for path in (english, chinese))
        if pattern.startswith(r'\]'):
            of_english, of_chinese = (
                sorted(link.partition('#')[0] for link in links if 'README' not in link)
                for links in (of_english, of_chinese)
            )
        assert of_chinese == of_english, pattern
    blocks = [FENCE.findall(path.read_text()) for path in (english, chinese)]
    assert [language for language, _ in blocks[1]] == [language for language, _ in blocks[0]]
    for (_, of_english), (_, of_chinese) in zip(*blocks):
        assert without_comments(of_chinese) == without_comments(of_english)
    codes = [Counter(re.findall(r'`([^`]+)`', prose(path).replace('\n', ' '))) for path in (english, chinese)]
    assert codes[1] == codes[0]


@pytest.mark.slow
def test_the_world_model_of_the_readme_is_there_and_imagines(tmp_path):
    code = '\n'.join(code for code in code_blocks(ROOT / 'README.md', 'python') if 'world_model.' in code)
    assert code.index('world_model = ') < code.index('rollout = ')
    (tmp_path / 'small.py').write_text(SMALL)
    (tmp_path / 'script.py').write_text(
        code.replace('configs.cartpole_unizero_config', 'small').replace('max_env_step=300', 'max_env_step=20')
        + "\nprint(rollout.rewards.shape, world_model.kv_cache_manager.get_stats_summary()['recur_pool'])"
    )
    said = run(tmp_path, 'script.py').splitlines()[-1]
    assert re.fullmatch(r'torch.Size\(\[3, 15\]\) CacheStats\(hits=[1-9].*\)', said)


@pytest.mark.parametrize('document', ['README.md', 'docs/migrating.md'])
def test_the_ab_config_is_one(document, tmp_path):
    (code, ) = [code for code in code_blocks(ROOT / document, 'python') if '\narms = ' in code]
    (tmp_path / 'ab_config.py').write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        config = load_ab_config(tmp_path / 'ab_config.py')
    assert len(config.specs()) == len(config.seeds) * len(config.experiments) >= 6


def test_each_readme_links_to_the_other():
    for document, other in (('README.md', 'README.zh.md'), ('README.zh.md', 'README.md')):
        assert f']({other})' in '\n'.join((ROOT / document).read_text().splitlines()[:5])


def write_snippets(guide: str, folder: Path) -> None:
    """Blocks that begin with a file's name are added to that file, the others make ``script.py``."""
    for code in code_blocks(ROOT / 'docs' / guide, 'python'):
        name = re.match(r'# (\w+\.py)\n', code)
        with open(folder / (name[1] if name else 'script.py'), 'a') as file:
            file.write(f'{code}\n')


def apply_diffs(guide: str, package_root: Path) -> int:
    """Change files as the guide's diffs say; each part must fit in one place."""
    applied = 0
    for code in code_blocks(ROOT / 'docs' / guide, 'diff'):
        name, body = re.fullmatch(r'--- (\S+)\n(.*)', code, re.DOTALL).groups()
        text = (package_root / name).read_text()
        for part in body.split('@@\n'):
            lines = part.splitlines(keepends=True)
            old = ''.join(line[1:] for line in lines if line[0] in ' -')
            assert text.count(old) == 1, f'{name} has {text.count(old)} times:\n{old}'
            text = text.replace(old, ''.join(line[1:] for line in lines if line[0] in ' +'))
            applied += 1
        (package_root / name).write_text(text)
    return applied


def run(folder: Path, *arguments: str, path: tuple = ()) -> str:
    completed = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (folder, *path, ROOT))), OMP_NUM_THREADS='1'),
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


COMMAND = ('-c', 'from lzero_kvcache.cli import main; main()')


@pytest.fixture
def with_snippets(request, tmp_path):
    write_snippets(request.param, tmp_path)
    return tmp_path


@pytest.mark.parametrize('with_snippets', ['adding_a_strategy.md'], indirect=True)
def test_the_strategies_of_the_guide_run(with_snippets):
    run(with_snippets, 'script.py')


@pytest.mark.slow
@pytest.mark.parametrize('with_snippets', ['adding_a_strategy.md'], indirect=True)
def test_the_strategies_of_the_guide_pass_the_tests_that_it_names(with_snippets):
    names = re.findall(r"register\('(\w+)'\)", (with_snippets / 'my_strategies.py').read_text())
    said = run(
        ROOT, '-m', 'pytest', '-q', '-p', 'my_strategies', 'tests/test_pool.py', 'tests/test_pool_properties.py',
        '-k', ' or '.join(names), '-p', 'no:cacheprovider', path=(with_snippets, )
    )
    assert int(re.search(r'(\d+) passed', said)[1]) >= 5 * len(names)


@pytest.mark.slow
@pytest.mark.parametrize('with_snippets', ['adding_a_strategy.md'], indirect=True)
def test_the_strategies_of_the_guide_are_recorded_simulated_and_trained_with(with_snippets):
    (with_snippets / 'small.py').write_text(SMALL)
    (with_snippets / 'my_cartpole_config.py').write_text(
        (with_snippets / 'my_cartpole_config.py').read_text().replace('configs.cartpole_unizero_config', 'small')
    )
    said = run(
        with_snippets, *COMMAND, 'trace', 'my_cartpole_config.py', '--max-env-step', '20', '--exp-name', 'traced',
        '--out', 'cartpole.trace'
    )
    assert re.search(r'^recur_pool +50 ', said, re.MULTILINE)
    said = run(
        with_snippets, *COMMAND, 'simulate', 'cartpole.trace', '--import', 'my_strategies', '--strategies',
        'lru,second_chance,returning,longest_wait', '--sizes', '20%,60%', '--jobs', '1'
    )
    for name in ('second_chance', 'returning', 'longest_wait'):
        assert re.search(rf'^{name} +\d', said, re.MULTILINE), said
        assert name in (with_snippets / 'cartpole_simulated' / 'results.csv').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('with_snippets', ['adding_a_statistic.md'], indirect=True)
def test_the_statistic_of_ones_own_is_in_tensorboard(with_snippets):
    (with_snippets / 'small.py').write_text(SMALL)
    (with_snippets / 'my_cartpole_config.py').write_text(
        (with_snippets / 'my_cartpole_config.py').read_text().replace('configs.cartpole_unizero_config', 'small')
    )
    run(with_snippets, *COMMAND, 'run', 'my_cartpole_config.py', '--max-env-step', '20', '--exp-name', 'own')
    fill = read_scalars(with_snippets / 'own/log/serial')['kv_cache/recur_pool/fill']
    assert fill and all(0 < share <= 1 for _, share in fill)


@pytest.mark.slow
@pytest.mark.parametrize('with_snippets', ['adding_a_statistic.md'], indirect=True)
def test_the_statistic_in_the_package_goes_all_the_way(with_snippets):
    """The diffs of the guide on a copy of the package: summary, table, TensorBoard, CSV files and report."""
    shutil.copytree(ROOT / 'lzero_kvcache', with_snippets / 'lzero_kvcache', ignore=shutil.ignore_patterns('*.pyc'))
    assert apply_diffs('adding_a_statistic.md', with_snippets) == 16
    run(with_snippets, 'script.py')
    arms = "\narms = dict(lru=dict(kv_cache=dict(strategy='lru', log_interval=1)))\nseeds = [0]\nmax_env_step = 40\n"
    (with_snippets / 'ab_small.py').write_text(SMALL + arms)
    run(with_snippets, *COMMAND, 'ab', 'ab_small.py', '--out', 'out', '--jobs', '1')
    trial = with_snippets / 'out/trials/lru_seed0'
    (result, ) = read_csv(with_snippets / 'out/results.csv')
    last = read_csv(trial / 'series.csv')[-1]
    assert int(result['insertions']) == sum(
        int(last[f'{kind}_insertions']) for kind in ('init_pools', 'recur_pool', 'wm_pool')
    ) > 0
    scalars = read_scalars(trial / 'run/log/serial')
    assert {'kv_cache/recur_pool/insertions', 'kv_cache/collect_wm_pool/insertions'} <= set(scalars)
    assert ' insertions, ' in (trial / 'output.log').read_text()
    assert 'Insertions' in (with_snippets / 'out/report.html').read_text()
