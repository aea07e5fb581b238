"""Typing errors in the options of the examples."""
import re
from importlib import import_module

import pytest
from click.testing import CliRunner


@pytest.mark.parametrize('option, value, status, message', [
    ('--strategy', 'lur', 1, "strategy is 'lur', which is no eviction strategy: .*did you mean 'lru'"),
    ('--mode', 'manage', 2, "'manage' is not one of 'managed', 'legacy', 'validate'"),
    ('--rope-positions', 'alined', 2, "'alined' is not one of 'aligned', 'release'"),
    ('--recur-pool-size', '0', 2, '--recur-pool-size.* 0 is not in the range x>=1'),
    ('--max-env-step', '0', 2, '--max-env-step'),
])
def test_mistakes_are_sentences(option, value, status, message, tmp_path, monkeypatch):
    main = import_module('zoo_examples.classic_control.cartpole_unizero').main
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [option, value])
    assert result.exit_code == status, result.output
    assert re.search(message, result.output.replace('\n', ' '))
    assert 'Traceback' not in result.output and list(tmp_path.iterdir()) == []
