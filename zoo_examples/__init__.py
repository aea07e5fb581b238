# Before LightZero: see there.
import lzero_kvcache  # noqa: F401
from lzero_kvcache.output import loading

# Here, before any example imports it, because nobody needs what it and other packages print meanwhile.
with loading('LightZero'):
    import lzero.entry  # noqa: F401
