"""What the stock code's own caches hold, and where, for one who runs it beside the managed cache."""
from collections.abc import Sequence
from typing import Any, Optional


class StockEntries:
    """
    Overview:
        The release's caches. Those of roots belong to the rows of a batch.
    """

    # What the stock code does wrong, as far as it is known.
    pads_without_mask = True
    crashes_without_entry = True
    tears_rotary_table = True
    refuses_long_contexts = True
    refuses_negative_timesteps = False

    def place(self, row: int, env_id: int) -> int:
        """
        Overview:
            Whose cache a root in a row is looked up in.
        """
        return row

    def mixes_first_steps(self, world_model: Any) -> bool:
        """
        Overview:
            Whether a batch may have first steps and running episodes.
        """
        return False

    def rebuilds_window(self, world_model: Any) -> bool:
        """
        Overview:
            Whether contexts that reach the window are encoded again, which is exact.
        """
        return False

    def root_slot(self, world_model: Any, place: int, key: int) -> Optional[int]:
        """
        Overview:
            Where the context of a root lies; None: there is none.
        """
        return world_model.past_kv_cache_init_infer_envs[place].get(key)

    def root_size(self, world_model: Any, place: int, slot: int) -> int:
        """
        Overview:
            The tokens of a context of a root.
        """
        return world_model.shared_pool_init_infer[place][slot].size

    def node_slot(self, world_model: Any, key: int) -> Optional[int]:
        """
        Overview:
            Where the context of a node lies; None: there is none.
        """
        return world_model.past_kv_cache_recurrent_infer.get(key)

    def node_size(self, world_model: Any, slot: int) -> int:
        """
        Overview:
            The tokens of a context of a node.
        """
        return world_model.shared_pool_recur_infer[slot].size

    def written_slots(self, world_model: Any, keys: Sequence[int]) -> list[int]:
        """
        Overview:
            Where an inference has just written the contexts of its nodes.
        """
        # Stale keys lead to overwritten slots, so that the index alone tells.
        size = world_model.shared_pool_size
        return [(world_model.shared_pool_index - len(keys) + row) % size for row in range(len(keys))]


class MainEntries(StockEntries):
    """
    Overview:
        Main's old caches and its new manager. Those of roots belong to environments.
    """

    pads_without_mask = False
    crashes_without_entry = False
    tears_rotary_table = False
    refuses_long_contexts = False
    refuses_negative_timesteps = True

    def place(self, row: int, env_id: int) -> int:
        """
        Overview:
            As ``StockEntries.place``.
        """
        return env_id

    def mixes_first_steps(self, world_model: Any) -> bool:
        """
        Overview:
            As ``StockEntries.mixes_first_steps``: with continuous actions the first row decides for all.
        """
        return not world_model.continuous_action_space

    def rebuilds_window(self, world_model: Any) -> bool:
        """
        Overview:
            As ``StockEntries.rebuilds_window``.
        """
        return bool(world_model.rebuild_kv_window_from_tokens)

    def root_slot(self, world_model: Any, place: int, key: int) -> Optional[int]:
        """
        Overview:
            As ``StockEntries.root_slot``.
        """
        if world_model.use_new_cache_manager:
            return _manager_of(world_model).init_pools[place]._key_to_index.get(key)
        return super().root_slot(world_model, place, key)

    def root_size(self, world_model: Any, place: int, slot: int) -> int:
        """
        Overview:
            As ``StockEntries.root_size``.
        """
        if world_model.use_new_cache_manager:
            return _manager_of(world_model).init_pools[place]._pool[slot].size
        return super().root_size(world_model, place, slot)

    def node_slot(self, world_model: Any, key: int) -> Optional[int]:
        """
        Overview:
            As ``StockEntries.node_slot``.
        """
        if world_model.use_new_cache_manager:
            return _manager_of(world_model).recur_pool._key_to_index.get(key)
        return super().node_slot(world_model, key)

    def node_size(self, world_model: Any, slot: int) -> int:
        """
        Overview:
            As ``StockEntries.node_size``.
        """
        if world_model.use_new_cache_manager:
            return _manager_of(world_model).recur_pool._pool[slot].size
        return super().node_size(world_model, slot)

    def written_slots(self, world_model: Any, keys: Sequence[int]) -> list[int]:
        """
        Overview:
            As ``StockEntries.written_slots``: a key leaves with its entry, and of equal ones the last is found.
        """
        return [self.node_slot(world_model, key) for key in keys]


def _manager_of(world_model: Any) -> Any:
    return vars(world_model)['kv_cache_manager']
