"""Weights & Biases gets the cache's scalars where the user has ``use_wandb=True``: the real package, offline."""
import json
from pathlib import Path

import pytest
import wandb
from training import small_configs, train
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore

from lzero_kvcache.experiment import Experiment

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_DIR', str(tmp_path))
    monkeypatch.setenv('WANDB_SILENT', 'true')
    # The package reads its settings once in a process.
    wandb.teardown()
    yield
    wandb.teardown()


def logged_rows(folder: Path) -> list[tuple[int, dict]]:
    """The (step, scalars) rows of the one run below a folder, by the package's own reader."""
    # The process that writes the file ends later than the run.
    wandb.teardown()
    file, = folder.glob('wandb/offline-run-*/run-*.wandb')
    store = DataStore()
    store.open_for_scan(str(file))
    rows = []
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof('record_type') == 'history':
            items = {item.key or '/'.join(item.nested_key): json.loads(item.value_json)
                     for item in record.history.item}
            rows.append((record.history.step.num, items))
    return rows


def test_the_same_points_as_in_tensorboard_and_none_of_the_stock_code_lost(tmp_path):
    run = train('cartpole_unizero_config', tmp_path, dict(strategy='lru', log_interval=5), use_wandb=True)
    assert wandb.run is None
    rows = logged_rows(tmp_path)
    tensorboard = run.scalars()
    tags = [tag for tag in tensorboard if tag.startswith('kv_cache/')]
    assert 'kv_cache/collect_recur_pool/hit_rate' in tags and 'kv_cache/rebuilds/contexts' in tags
    assert {tag for _, row in rows for tag in row if tag.startswith('kv_cache/')} == set(tags)
    first_train_step = tensorboard['learner_step/weighted_total_loss_avg'][0][0]
    for tag in tags:
        points = [(step, row[tag]) for step, row in rows if tag in row]
        # Of several points at one step the last one stays.
        assert len(dict(points)) == len(points)
        assert dict(points) == pytest.approx(dict(tensorboard[tag]))
    evaluations = [step for step, row in rows if 'evaluator_step/reward_mean' in row]
    assert evaluations == sorted({step for step, _ in tensorboard['evaluator_step/reward_mean']})
    assert first_train_step in [step for step, row in rows if 'learner_step/weighted_total_loss' in row]


def test_the_segment_entry_which_begins_no_run_of_its_own(tmp_path, monkeypatch):
    main_config, create_config = small_configs('atari_unizero_segment_config', dict(strategy='lru'), use_wandb=True)
    experiment = Experiment(main_config, create_config, 'train_unizero_segment', max_env_step=10)
    monkeypatch.chdir(tmp_path)
    experiment.run(str(tmp_path / 'run'))
    assert wandb.run is None
    rows = logged_rows(tmp_path)
    assert any('kv_cache/recur_pool/hit_rate' in row for _, row in rows), rows


def test_without_use_wandb_nothing_is_logged_there(tmp_path):
    user_run = wandb.init(project='another', dir=str(tmp_path))
    train('cartpole_unizero_config', tmp_path, dict(strategy='lru'), max_env_step=5)
    user_run.finish()
    assert logged_rows(tmp_path) == []
