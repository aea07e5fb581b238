"""Dimensions of a world model that do not fit together, and would let it die long after it was built."""
from types import SimpleNamespace
from typing import Any

from ..checks import check_count
from ..config import WORLD_MODEL_PATH as PATH
from ..config import entry_of

DIMENSIONS = ('context_length', 'tokens_per_block', 'embed_dim', 'num_heads', 'num_layers', 'group_size', 'max_tokens')


def check_dimensions(world_model_cfg: Any) -> None:
    """A ValueError at the first dimension of a ``world_model_cfg`` that the cache, or the model, cannot work with."""
    given = SimpleNamespace(rotary_emb=bool(entry_of(world_model_cfg, 'rotary_emb')))
    for name in DIMENSIONS:
        value = entry_of(world_model_cfg, name)
        setattr(given, name, None if value is None else check_count(value, f'{PATH}.{name}', 'a dimension'))
    context_length, tokens_per_block = given.context_length, given.tokens_per_block or 2
    if context_length is not None and context_length < 4:
        raise ValueError(
            f'{PATH}.context_length is {context_length}: a search needs at least 4 tokens, the oldest pair and the '
            'newest pair'
        )
    if tokens_per_block < 2:
        raise ValueError(f'{PATH}.tokens_per_block is {tokens_per_block}: allowed are at least 2, an observation and '
                         'an action')
    for divisor, unit in ((given.num_heads, 'num_heads'), (given.group_size, 'group_size')):
        if given.embed_dim and divisor and given.embed_dim % divisor:
            raise ValueError(f'{PATH}.embed_dim is {given.embed_dim}, but {PATH}.{unit} is {divisor}: allowed are '
                             f'multiples of it, such as {divisor * max(1, round(given.embed_dim / divisor))}')
    if given.rotary_emb:
        if given.embed_dim and given.num_heads and given.embed_dim // given.num_heads % 2:
            raise ValueError(
                f'{PATH}.embed_dim is {given.embed_dim} and {PATH}.num_heads {given.num_heads}, so that a head has '
                f'{given.embed_dim // given.num_heads} numbers: rotary_emb=True needs an even number'
            )
    elif context_length and given.max_tokens:
        longest = longest_context(context_length, tokens_per_block - 1)
        if longest > given.max_tokens:
            raise ValueError(
                f'{PATH}.context_length is {context_length}, so that contexts have up to {longest} tokens, but with '
                f'learned positions {PATH}.max_tokens, which is {given.max_tokens}, is the most that a model has '
                f'positions for: allowed are a context_length of at most {given.max_tokens}, more max_tokens (and half '
                'of them as max_blocks), or rotary_emb=True'
            )


def longest_context(context_length: int, num_observations_tokens: int) -> int:
    """The most tokens that a context has before it is shortened."""
    limit, kept = context_length - 1, context_length - 3
    longest, met = num_observations_tokens, set()
    for length in (num_observations_tokens, kept):
        while length not in met:
            met.add(length)
            grown = length + 1 + num_observations_tokens
            longest = max(longest, grown)
            length = grown if grown < limit else kept
    return longest
