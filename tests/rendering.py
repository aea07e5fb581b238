"""Whether dm-control can render here."""
import pytest

from lzero_kvcache.envs.suite_env import SuiteEnv


def why_not() -> str:
    """A sentence, or nothing if it can."""
    env = SuiteEnv('cartpole', 'swingup', from_pixels=True, height=8, width=8)
    try:
        env.reset()
    except RuntimeError as error:
        return str(error)
    finally:
        env.close()
    return ''


CANNOT_RENDER = why_not()
needs_rendering = pytest.mark.skipif(bool(CANNOT_RENDER), reason=CANNOT_RENDER)
