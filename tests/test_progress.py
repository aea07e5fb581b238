"""What the screen says of a run of a LightZero entry."""
from lzero_kvcache.plugin.statistics import step_listeners
from lzero_kvcache.progress import run_progress


def test_an_evaluation_counts_its_own_steps(tmp_path, capfd):
    with run_progress(str(tmp_path / 'run'), counted='eval'):
        (on_step, ) = step_listeners
        for _ in range(50):
            on_step('eval', 3, None)
    shown = capfd.readouterr().out
    assert '\n150 environment steps, eval, search 50\n' in shown
    # An evaluation saves none.
    assert 'Checkpoint' not in shown
