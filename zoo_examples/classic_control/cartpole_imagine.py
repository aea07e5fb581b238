from copy import deepcopy
from pathlib import Path
from typing import Any, Optional

import click
import numpy as np
import torch
from ding.config import compile_config
from ding.envs import get_vec_env_setting
from ding.policy import create_policy
from ding.utils import set_pkg_seed
from matplotlib.figure import Figure
from rich.progress import track

from configs.cartpole_unizero_config import create_config, main_config
from lzero_kvcache.output import output_to
from zoo_examples.options import checkpoint_argument, choose_threads_of, threads_option

# As the release has them, and as in training.
ROPE_POSITIONS = ('release', 'aligned')

# Observations (T + 1, ...), actions (T, ) and rewards (T, ).
Episode = tuple[torch.Tensor, torch.Tensor, np.ndarray]
# Real rewards, imagined rewards and latent errors, (N, H) each.
Rollouts = tuple[np.ndarray, np.ndarray, np.ndarray]


@click.command()
@checkpoint_argument
@click.option('--horizon', default=15, show_default=True, type=click.IntRange(1),
              help='Steps to imagine, fewer if no episode has as many.')
@click.option('--episodes', default=3, show_default=True, type=click.IntRange(1), help='Real episodes to play.')
@click.option('--seed', default=0, show_default=True, help='Random seed.')
@click.option('--out', default='data_unizero/cartpole_imagine.png', show_default=True,
              type=click.Path(path_type=Path, dir_okay=False), help='The plot.')
@threads_option
def main(
        checkpoint: str, horizon: int, episodes: int, seed: int, out: Path, threads: Optional[int]
) -> None:
    """Imagine what a trained CartPole CHECKPOINT's world model expects of real episodes, and plot how far it is off."""
    choose_threads_of(main_config, threads)
    # LightZero prints a lot while the model is built.
    with output_to() as screen:
        policy, env = load(checkpoint, seed)
        played = [play(policy, env) for _ in track(range(episodes), description='episodes', console=screen)]
        env.close()
        lengths = [len(actions) for _, actions, _ in played]
        if max(lengths) < horizon:
            screen.print(f'No episode had {horizon} steps: the horizon is {min(lengths)}, the length of the shortest.')
            horizon = min(lengths)
        played = [episode for episode in played if len(episode[1]) >= horizon]
        results = {
            positions: imagine_episodes(policy._eval_model.world_model, played, horizon, positions)
            for positions in ROPE_POSITIONS
        }
        plot(results, out)
        for positions, (real, imagined, errors) in results.items():
            first, last = np.median(errors, axis=0)[[0, -1]]
            rollouts = f"{len(real)} rollout{'s' if len(real) > 1 else ''} of {horizon} steps"
            screen.print(f"rope_positions='{positions}': {rollouts}, mean reward "
                         f'{imagined.mean():.3f} (real {real.mean():.3f}), median latent error {first:.2f} after one '
                         f'step, {last:.2f} after {horizon}', soft_wrap=True)
        screen.print(f'The plot: {out}', soft_wrap=True)


def load(checkpoint: str, seed: int) -> tuple[Any, Any]:
    """The policy with the checkpoint's weights, and a real environment."""
    config = deepcopy(main_config)
    config.policy.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    config = compile_config(config, seed=seed, auto=True, create_cfg=deepcopy(create_config), save_cfg=False)
    make_env, _, env_configs = get_vec_env_setting(config.env)
    env = make_env(env_configs[0])
    env.seed(seed, dynamic_seed=False)
    set_pkg_seed(seed, use_cuda=False)
    policy = create_policy(config.policy, enable_field=['learn', 'eval'])
    policy.learn_mode.load_state_dict(torch.load(checkpoint, map_location=config.policy.device, weights_only=True))
    return policy, env


def play(policy: Any, env: Any) -> Episode:
    """One episode by the policy's searches."""
    policy.eval_mode.reset([0])
    observation, done = env.reset(), False
    observations, actions, rewards = [observation['observation']], [], []
    while not done:
        output = policy.eval_mode.forward(
            torch.as_tensor(observation['observation'])[None].float(), [observation['action_mask']],
            [observation['to_play']], ready_env_id=[0], timestep=[np.array(observation['timestep'])]
        )
        observation, reward, done, _ = env.step(output[0]['action'])
        observations.append(observation['observation'])
        actions.append(int(output[0]['action']))
        rewards.append(float(reward))
    return torch.as_tensor(np.stack(observations)).float(), torch.as_tensor(actions), np.asarray(rewards)


@torch.no_grad()
def imagine_episodes(world_model: Any, episodes: list[Episode], horizon: int, rope_positions: str) -> Rollouts:
    """
    From every step of the episodes that has ``horizon`` steps left: real rewards, imagined rewards under the same
    actions, and the latent states' errors, :math:`(N, H)` each. An error of 1 is the mean distance between two of the
    episode's latent states.
    """
    world_model.config.kv_cache.rope_positions = rope_positions
    world_model.configure_kv_cache()
    rows = []
    for observations, actions, rewards in episodes:
        starts = range(len(actions) - horizon + 1)
        windows = torch.stack([actions[start:start + horizon] for start in starts])
        imagination = world_model.imagine(observations[list(starts)], windows, horizon=horizon)
        latents = world_model.tokenizer.encode_to_obs_embeddings(observations.to(imagination.latents))
        real = torch.stack([latents[start + 1:start + 1 + horizon] for start in starts])
        errors = (imagination.latents - real).flatten(2).norm(dim=-1) / torch.pdist(latents.flatten(1)).mean()
        rows.append((
            np.stack([rewards[start:start + horizon] for start in starts]), imagination.rewards.cpu().numpy(),
            errors.cpu().numpy()
        ))
    return tuple(np.concatenate(column) for column in zip(*rows))


def plot(results: dict[str, Rollouts], path: Path) -> None:
    """Real against imagined rewards, and the latent states' error over the horizon: medians and quartiles."""
    figure = Figure(figsize=(10, 4), layout='constrained')
    of_rewards, of_latents = figure.subplots(1, 2)
    for positions, (real, imagined, errors) in results.items():
        steps = np.arange(1, real.shape[1] + 1)
        for panel, values in ((of_rewards, imagined), (of_latents, errors)):
            lower, median, upper = np.percentile(values, [25, 50, 75], axis=0)
            panel.plot(steps, median, label=f"imagined, rope_positions='{positions}'")
            panel.fill_between(steps, lower, upper, alpha=0.2)
    of_rewards.plot(steps, real.mean(0), 'k--', label='real')
    of_rewards.set(title='reward', ylim=(0, 1.3 * real.max()))
    of_latents.axhline(1, color='grey', linestyle='--', label='any two states of an episode')
    of_latents.set(title='error of the latent state', ylim=(0, None))
    for panel in (of_rewards, of_latents):
        panel.set_xlabel('imagined steps')
        panel.grid(alpha=0.3)
        panel.spines[['top', 'right']].set_visible(False)
        panel.legend(frameon=False)
    figure.suptitle(f'CartPole: the world model rolled out over {len(real)} stretches of real episodes '
                    '(median and quartiles)')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == '__main__':
    main()
