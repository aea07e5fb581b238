"""Dimensions of a world model that do not fit together are refused when it is set up, in a sentence."""
import pytest
from episodes import Episodes
from models import build_model, kv_cache
from test_cached_model import add_hook
from test_policies import build_policy

from lzero_kvcache.world_model.dimensions import check_dimensions

WM = r'policy\.model\.world_model_cfg'


@pytest.mark.parametrize('options, message', [
    (dict(context_length=21, max_tokens=20, max_blocks=10),
     rf'{WM}\.context_length is 21, .* {WM}\.max_tokens, which is 20, .*: allowed are a context_length of at most 20'),
    (dict(context_length=40, max_tokens=20, max_blocks=10),
     rf'{WM}\.context_length is 40, .* {WM}\.max_tokens, which is 20'),
    (dict(group_size=7), rf'{WM}\.embed_dim is 64, but {WM}\.group_size is 7: allowed are multiples of it, such as 63'),
    (dict(num_heads=5), rf'{WM}\.embed_dim is 64, but {WM}\.num_heads is 5: allowed are multiples of it, such as 65'),
    (dict(num_heads=64, rotary=True), rf'{WM}\.embed_dim is 64 and {WM}\.num_heads 64, .* needs an even number'),
    (dict(num_layers=0), rf'{WM}\.num_layers is 0: allowed is an integer of at least 1'),
    (dict(context_length=8.0), rf'{WM}\.context_length is 8\.0: allowed is an integer'),
    (dict(context_length='8'), rf"{WM}\.context_length is '8': allowed is an integer"),
    (dict(context_length=3), rf'{WM}\.context_length is 3: a search needs at least 4 tokens'),
])
@pytest.mark.parametrize('mode', ['managed', 'validate'])
def test_a_policy_refuses_what_dies_later(mode, options, message):
    with pytest.raises(ValueError, match=message):
        build_policy(kv_cache=kv_cache(mode=mode), **options)


def test_a_model_that_is_built_by_hand_refuses_it_too():
    with pytest.raises(ValueError, match=rf'{WM}\.tokens_per_block is 1: allowed are at least 2'):
        check_dimensions(dict(tokens_per_block=1))
    with pytest.raises(ValueError, match=rf'{WM}\.context_length is 9, .* {WM}\.max_tokens, which is 8'):
        build_model(kv_cache=kv_cache(), context_length=9, max_tokens=8, max_blocks=4)


def test_what_fits_is_not_refused():
    # The longest context of this window has 7 tokens.
    check_dimensions(dict(context_length=8, max_tokens=8))
    check_dimensions(dict(context_length=80, max_tokens=8, rotary_emb=True))
    check_dimensions({})
    episodes = Episodes(build_model(kv_cache=kv_cache(), context_length=8, max_tokens=8, max_blocks=4))
    for _ in range(5):
        episodes.step([0], 2)


def test_an_encoder_that_makes_another_number_of_tokens_is_refused_at_the_first_root():
    model = build_model(kv_cache=kv_cache(), tokens_per_block=3)
    with pytest.raises(ValueError, match=rf'{WM}\.tokens_per_block is 3, .* the encoder makes 1 .*: allowed is 2'):
        Episodes(model).step([0])


def test_blocks_that_are_called_as_they_are_see_no_more_than_max_tokens():
    model = build_model(kv_cache=kv_cache(), context_length=20, max_tokens=8, max_blocks=4, rotary=True)
    Episodes(model).step([0])
    add_hook(model.world_model.transformer.blocks[0].attn)
    with pytest.raises(ValueError, match=rf'{WM}\.max_tokens is 8, and a block that is called as it is .* up to 19: '):
        Episodes(model).step([0])
