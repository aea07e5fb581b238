"""
Environments of the DeepMind Control Suite. A config names one by its type and the module that registers it:

- ``dmc_lightzero`` (``lzero_kvcache.envs.dmc_lightzero_env``): LightZero's own where dmc2gym is installed, else ours.
- ``dm_control_lightzero`` (``lzero_kvcache.envs.dm_control_lightzero_env``): ours, on dm-control alone.
"""
