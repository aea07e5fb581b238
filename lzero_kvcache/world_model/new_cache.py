"""Pools and store of one world model."""
from types import SimpleNamespace
from typing import Any, Callable, Optional

from ..budget import FLOAT_BYTES, ContextMemory
from ..config import KVCacheConfig
from ..manager import KVCacheManager
from ..store import TokenStore
from ..store.slab import TokenShape, TokenSlab


def new_store(world_model: Any, config: KVCacheConfig) -> TokenStore:
    """An empty store. A context that reaches the window loses its oldest pair and has room for another."""
    encodes_again = config.window == 'rebuild'
    shape = TokenShape(
        num_layers=world_model.num_layers, num_heads=world_model.num_heads,
        head_dim=world_model.embed_dim // world_model.num_heads, keep_embeddings=encodes_again
    )
    return TokenStore(
        TokenSlab(shape), world_model.context_length - 1, world_model.context_length - 3, encodes_again
    )


def new_manager(
        world_model: Any, config: KVCacheConfig, store: TokenStore, env_num: int, num_simulations: int,
        game_segment_length: Optional[int], on_loss: Callable[[], None]
) -> KVCacheManager:
    """Pools whose values are contexts of the store."""
    tokens_per_step = 1 + world_model.num_observations_tokens
    return KVCacheManager(
        SimpleNamespace(kv_cache=config, num_simulations=num_simulations, game_segment_length=game_segment_length),
        env_num, on_release=store.release, on_loss=on_loss, measure=store.kv_bytes,
        memory=ContextMemory(
            token_bytes=FLOAT_BYTES * store.slab.shape.numbers_per_token,
            context_tokens=store.limit - 1,
            # A re-encoded context shares no tokens. The search goes on from every other node at most, which does that.
            node_tokens=(store.limit - 1 + tokens_per_step) // 2 if store.encodes_again else tokens_per_step,
            # Those of running episodes, collect and eval.
            held_contexts=2 * env_num if config.on_miss == 'rebuild' else 0,
        )
    )
