"""The contexts of a search's nodes: found in the pools, or computed again from the nodes' lineage."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch

from ..manager import KVCacheManager
from ..store import ContextBatch, ContextStore
from .cached_transformer import ContextWindow, embed_actions, extend
from .lineage import SearchNode
from .positions import SearchPositions


@dataclass
class RebuildStats:
    """
    Overview:
        What misses have cost.
    Arguments:
        - rebuilds (:obj:`int`): Contexts that were computed again.
        - tokens (:obj:`int`): Tokens that went through the transformer for them.
    """
    rebuilds: int = 0
    tokens: int = 0


class NodeContexts:
    """
    Overview:
        Looks contexts up in the pools, rebuilds those that are missing, and caches new ones.
    Arguments:
        - manager (:obj:`KVCacheManager`): The pools, whose values are handles of the store.
        - store (:obj:`ContextStore`): Where the contexts lie.
        - window (:obj:`ContextWindow`): Keeps them inside the model's window.
        - positions (:obj:`SearchPositions`): Rotary positions.
        - lossless (:obj:`bool`): Whether a missing context is computed from its ancestors, or, as in the release, from
            the node's latent state alone.
    """

    def __init__(
            self, manager: KVCacheManager, store: ContextStore, window: ContextWindow, positions: SearchPositions,
            lossless: bool
    ) -> None:
        self.rebuild_stats = RebuildStats()
        self._manager = manager
        self._store = store
        self._window = window
        self._positions = positions
        self._lossless = lossless

    def of(self, world_model: Any, nodes: Sequence[SearchNode], timesteps: np.ndarray) -> ContextBatch:
        """
        Overview:
            The contexts of a batch of nodes.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
            - nodes (:obj:`Sequence[SearchNode]`): One node per row.
            - timesteps (:obj:`np.ndarray`): Timesteps of the rows' roots, :math:`(B, )`.
        Returns:
            - contexts (:obj:`ContextBatch`): A copy, free to be changed.
        """
        handles: list[Optional[int]] = []
        for node in nodes:
            handle = self._look_up(node)
            # Caching a rebuilt context may evict one that was found a moment ago.
            handles.append(None if handle is None else self._store.retain(handle))
        found = [row for row, handle in enumerate(handles) if handle is not None]
        missing = [row for row, handle in enumerate(handles) if handle is None]
        world_model.total_query_count += len(nodes)
        world_model.hit_count += len(found)
        try:
            if not missing:
                return self._store.gather(handles)
            contexts = self._store.empty(len(nodes), like_parameters(world_model))
            if found:
                contexts.assign(found, self._store.gather([handles[row] for row in found]))
            missing_nodes = [nodes[row] for row in missing]
            rebuilt = self._rebuild(world_model, missing_nodes, timesteps[missing])
            contexts.assign(missing, rebuilt)
            self.cache(missing_nodes, rebuilt)
            return contexts
        finally:
            for row in found:
                self._store.release(handles[row])

    def cache(self, nodes: Sequence[SearchNode], contexts: ContextBatch) -> list[int]:
        """
        Overview:
            Store the contexts of a batch of nodes: roots of environments in their init pools, all others in the recur
            pool.
        Arguments:
            - nodes (:obj:`Sequence[SearchNode]`): One node per row.
            - contexts (:obj:`ContextBatch`): Their contexts, which are copied.
        Returns:
            - handles (:obj:`list[int]`): The handle of each row. In a pool smaller than the batch, some are not live
                any more.
        """
        handles = []
        for node in nodes:
            handles.append(self._store.reserve())
            if node.env_id is not None:
                self._manager.set_init_cache(node.env_id, node.key, handles[-1], node.priority)
            else:
                self._manager.set_recur_cache(node.key, handles[-1], node.priority)
        self._write_live(handles, contexts)
        return handles

    def keep_last_inference(
            self, nodes: Sequence[SearchNode], contexts: ContextBatch, priorities: Sequence[Optional[float]]
    ) -> None:
        """
        Overview:
            Let the wm pool hold the rows of the last inference and nothing else. A row that the recur pool holds, too,
            is not stored twice.
        Arguments:
            - nodes (:obj:`Sequence[SearchNode]`): One node per row.
            - contexts (:obj:`ContextBatch`): Their contexts.
            - priorities (:obj:`Sequence[Optional[float]]`): What each row is worth to the wm pool's strategy.
        """
        self._manager.wm_pool.clear()
        handles, rows = [], []
        for row, (node, priority) in enumerate(zip(nodes, priorities)):
            handle = self._manager.recur_pool.peek(node.key)
            if handle is None:
                handle = self._store.reserve()
                handles.append(handle)
                rows.append(row)
            else:
                self._store.retain(handle)
            self._manager.set_wm_cache(node.key, handle, priority)
        if rows:
            self._write_live(handles, contexts.select(rows))

    def _write_live(self, handles: Sequence[int], contexts: ContextBatch) -> None:
        # In a pool smaller than the batch a row's handle may be free again, or already another row's.
        row_of_handle = {handle: row for row, handle in enumerate(handles) if self._store.is_live(handle)}
        rows = list(row_of_handle.values())
        if rows:
            self._store.write(list(row_of_handle), contexts if len(rows) == len(contexts) else contexts.select(rows))

    def _look_up(self, node: SearchNode) -> Optional[int]:
        if node.env_id is not None:
            return self._manager.get_init_cache(node.env_id, node.key)
        handle = self._manager.get_recur_cache(node.key)
        return self._manager.get_wm_cache(node.key) if handle is None else handle

    def _peek(self, node: SearchNode) -> Optional[int]:
        if node.env_id is not None:
            handle = self._manager.init_pools[node.env_id].peek(node.key)
            return node.context if handle is None else handle
        handle = self._manager.recur_pool.peek(node.key)
        return self._manager.wm_pool.peek(node.key) if handle is None else handle

    def _rebuild(self, world_model: Any, nodes: Sequence[SearchNode], timesteps: np.ndarray) -> ContextBatch:
        paths = [self._path_from_cached_ancestor(node) for node in nodes]
        origins = [path.pop(0) for path in paths]
        handles = [self._peek(origin) if self._lossless else None for origin in origins]
        contexts = self._store.empty(len(nodes), like_parameters(world_model))
        cached = [row for row, handle in enumerate(handles) if handle is not None]
        missing = [row for row, handle in enumerate(handles) if handle is None]
        if cached:
            contexts.assign(cached, self._store.gather([handles[row] for row in cached]))
        if missing:
            missing_origins = [origins[row] for row in missing]
            contexts.assign(missing, self._encode_latents(world_model, missing_origins, timesteps[missing]))
        for step in range(max(len(path) for path in paths)):
            rows = [row for row, path in enumerate(paths) if len(path) > step]
            longer = contexts.select(rows)
            self._append_nodes(world_model, longer, [paths[row][step] for row in rows])
            contexts.assign(rows, longer)
        appended = [node for path in paths for node in path]
        self.rebuild_stats.rebuilds += len(nodes)
        self.rebuild_stats.tokens += sum(len(origins[row].latent) for row in missing)
        self.rebuild_stats.tokens += sum(1 + len(node.latent) for node in appended)
        return contexts

    def _path_from_cached_ancestor(self, node: SearchNode) -> list[SearchNode]:
        path = [node]
        if self._lossless:
            while self._peek(path[0]) is None and path[0].parent is not None:
                path.insert(0, path[0].parent)
        return path

    def _encode_latents(self, world_model: Any, nodes: Sequence[SearchNode], timesteps: np.ndarray) -> ContextBatch:
        latents = _stack_latents(nodes, like_parameters(world_model))
        contexts = self._store.empty(len(nodes), latents)
        positions = None
        if world_model.config.rotary_emb:
            depths = np.asarray([node.depth for node in nodes])
            first = self._positions.of_reset_latent(timesteps, depths)
            positions = first[:, None] + np.arange(latents.shape[1])
        extend(world_model, contexts, latents, positions)
        return contexts

    def _append_nodes(self, world_model: Any, contexts: ContextBatch, nodes: Sequence[SearchNode]) -> None:
        actions = embed_actions(world_model, torch.stack([node.actions[node.row] for node in nodes]))
        tokens = torch.cat([actions, _stack_latents(nodes, actions)], dim=1)
        positions = np.stack([node.positions for node in nodes]) if world_model.config.rotary_emb else None
        extend(world_model, contexts, tokens, positions)
        self._window.apply(world_model, contexts)


def like_parameters(world_model: Any) -> torch.Tensor:
    """
    Overview:
        A tensor of the dtype and device that the model computes with.
    """
    return world_model.transformer.ln_f.weight


def _stack_latents(nodes: Sequence[SearchNode], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.stack([node.latent for node in nodes])).to(like)
