"""Does CartPole learn as well with the cache as with the release's code? Two to three hours on two cores."""
from configs.cartpole_unizero_config import create_config, main_config

title = 'CartPole: release and plugin'
seeds = [0, 1, 2, 3, 4]
max_env_step = 12_000

arms = dict(
    # LightZero's own cache.
    release=dict(kv_cache=None),
    plugin=dict(kv_cache=dict(rope_positions='release')),
    plugin_aligned=dict(kv_cache=dict(rope_positions='aligned')),
)
