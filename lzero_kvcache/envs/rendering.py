"""How dm-control renders on this machine, and what to do where it cannot."""
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes.util import find_library
from functools import cache

logger = logging.getLogger('lzero_kvcache')


@cache
def prepare_rendering() -> None:
    """
    Overview:
        Once per process, before anything is rendered: let dm-control render by EGL or OSMesa where ``MUJOCO_GL`` is
        not set and there is no display. Left to itself it takes GLFW, which needs one. Setting ``MUJOCO_GL`` here would
        be too late: gymnasium has long imported dm-control, by its plugin shimmy.
    """
    import_triton()
    if os.environ.get('MUJOCO_GL') or os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY'):
        return
    if sys.platform != 'linux':
        return
    from dm_control import _render

    if find_library('EGL'):
        from dm_control._render.pyopengl.egl_renderer import EGLContext as Renderer
    elif find_library('OSMesa'):
        from dm_control._render.pyopengl.osmesa_renderer import OSMesaContext as Renderer
    else:
        return
    _render.Renderer = Renderer
    logger.info('dm-control renders by %s: there is no display', Renderer.__name__)


def import_triton() -> None:
    """
    Overview:
        Before Mesa is loaded, which importing dm-control does with MUJOCO_GL=egl: both are built on LLVM, and
        ``torch.compile``'s triton crashes the process if it is imported after Mesa.
    """
    with suppress(ImportError):
        import triton  # noqa: F401


@contextmanager
def rendering() -> Iterator[None]:
    """
    Overview:
        Whatever may render goes into the ``with`` block.
    Raises:
        - RuntimeError: If there is nothing to render with.
    """
    from dm_control.rl.control import PhysicsError
    from mujoco import FatalError

    try:
        prepare_rendering()
        yield
    except PhysicsError:
        raise
    # A library of OpenGL that is not there shows as an attribute of None.
    except (AttributeError, FatalError, ImportError, RuntimeError) as error:
        gl = os.environ.get('MUJOCO_GL', 'not set')
        raise RuntimeError(
            f"dm-control cannot render on this machine (MUJOCO_GL is {gl}): {error}; "
            "without a display it needs EGL, which 'apt-get install libegl1' brings on Debian and Ubuntu, or OSMesa, "
            "'apt-get install libosmesa6'; tasks with env.from_pixels=False do without"
        ) from error
