"""CartPole: what do more simulations per search bring, and what do they cost?"""
from configs.cartpole_unizero_config import create_config, main_config

title = 'CartPole: simulations per search'
seeds = [0, 1, 2]
max_env_step = 3000

arms = dict(
    simulations_10=dict(policy=dict(num_simulations=10)),
    simulations_25=dict(policy=dict(num_simulations=25)),
    simulations_50=dict(policy=dict(num_simulations=50)),
)
