"""Real, small UniZero models with randomised heads."""
from typing import Any, Optional

import torch
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from lzero.policy.sampled_unizero import SampledUniZeroPolicy
from lzero.policy.unizero import UniZeroPolicy

from lzero_kvcache.plugin import SampledUniZeroKVCacheModel, UniZeroKVCacheModel

NUM_ACTIONS = {'discrete': 3, 'continuous': 2}


def model_config(
        observation: str = 'vector', actions: str = 'discrete', rotary: bool = False, **world_model: Any
) -> EasyDict:
    """The ``policy.model`` entry of a small model, on LightZero's own defaults."""
    policy = SampledUniZeroPolicy if actions == 'continuous' else UniZeroPolicy
    config = policy.default_config().model
    continuous = actions == 'continuous'
    changes = dict(
        observation_shape=5 if observation == 'vector' else (3, 64, 64),
        action_space_size=NUM_ACTIONS[actions],
        continuous_action_space=continuous,
        num_of_sampled_actions=5,
        model_type='mlp' if observation == 'vector' else 'conv',
        norm_type='LN' if continuous else 'BN',
        world_model_cfg=dict(
            obs_type=observation, rotary_emb=rotary, continuous_action_space=continuous, num_of_sampled_actions=5,
            action_space_size=NUM_ACTIONS[actions], embed_dim=64, num_heads=4, num_layers=2, env_num=4,
            max_blocks=10, max_tokens=20, context_length=8, device='cpu', sigma_type='conditioned', bound_type=None,
            num_unroll_steps=10, rope_theta=10000, max_seq_len=8192,
        ),
    )
    changes['world_model_cfg'].update(world_model)
    return deep_merge_dicts(config, EasyDict(changes))


def build_model(seed: int = 0, randomise: bool = True, **config: Any) -> torch.nn.Module:
    """
    A model in eval mode. Stock heads start at zero, which would let any cache look right: ``randomise`` redraws
    them, the embeddings and the biases, and enlarges the projections so that a context matters.
    """
    torch.manual_seed(seed)
    model_class = SampledUniZeroKVCacheModel if config.get('actions') == 'continuous' else UniZeroKVCacheModel
    model = model_class(**model_config(**config)).eval()
    if randomise:
        generator = torch.Generator().manual_seed(seed + 1)
        for name, parameter in model.world_model.named_parameters():
            if name.startswith('tokenizer'):
                continue
            if parameter.dim() > 1 or 'bias' in name:
                with torch.no_grad():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        if not model.world_model.config.rotary_emb:
            # The stock model computes these before its weights are initialised.
            model.world_model.precompute_pos_emb_diff_kv()
    return model


def two_tokens_per_observation(model: torch.nn.Module) -> torch.nn.Module:
    """Let a model that was built with ``tokens_per_block=3`` see every observation as two tokens."""
    tokenizer = model.world_model.tokenizer
    encode = tokenizer.encode_to_obs_embeddings

    def encode_twice(observation: torch.Tensor) -> torch.Tensor:
        latent = encode(observation)
        return torch.cat([latent, latent.flip(-1)], dim=1)

    tokenizer.encode_to_obs_embeddings = encode_twice
    return model


def observations(model: torch.nn.Module, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Random observations, :math:`(B, ...)`."""
    shape = (3, 64, 64) if model.world_model.config.obs_type == 'image' else (5, )
    return torch.rand(batch_size, *shape, generator=generator)


def random_action(model: torch.nn.Module, generator: torch.Generator) -> Any:
    """One action as a policy hands it down: an int, or an array for continuous actions."""
    world_model = model.world_model
    if world_model.continuous_action_space:
        return (torch.rand(world_model.action_space_size, generator=generator) * 2 - 1).numpy()
    return int(torch.randint(world_model.action_space_size, (1, ), generator=generator))


def kv_cache(**entries: Any) -> Optional[EasyDict]:
    """A ``kv_cache`` entry as DI-engine passes it on."""
    return EasyDict(entries)
