# Before LightZero: see there.
import lzero_kvcache  # noqa: F401
