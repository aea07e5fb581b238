"""Rotary positions of observations and actions, as the release or training assigns them."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def rotary_frequencies(table: torch.Tensor) -> np.ndarray:
    """The angles that one position turns by, [head_dim / 2], of the stock transformer's rotations."""
    return table[1].to(torch.complex128).angle().cpu().numpy()


def rotations(positions: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Complex rotations, [B, T, head_dim / 2], at positions beyond the stock table's ``2 * max_seq_len``, too."""
    return np.exp(1j * (positions[..., None] * frequencies)).astype(np.complex64)


def host_timesteps(start_pos: Any, batch_size: int) -> np.ndarray:
    """One form, [batch_size], for the timesteps of a batch in any form of the stock code: one for all rows, one per
    row, or in reanalysis sequences, [B, T], whose rows stand for T + 1 roots each, the last without a timestep. A
    ValueError if there are fewer or more timesteps than rows.
    """
    if isinstance(start_pos, (list, tuple)) and all(np.ndim(position) == 0 for position in start_pos):
        timesteps = np.array([int(position) for position in start_pos])
    else:
        timesteps = np.asarray([np.asarray(pos).tolist() for pos in start_pos] if np.ndim(start_pos) else start_pos)
    if timesteps.ndim == 2 and timesteps.size != batch_size:
        timesteps = np.pad(timesteps, ((0, 0), (0, 1)))
    if timesteps.size not in (1, batch_size):
        raise ValueError(f'start_pos has {timesteps.size} timesteps for {batch_size} rows: needed is one for each')
    return np.broadcast_to(timesteps.reshape(-1).astype(np.int64), (batch_size, ))


def sequence_timesteps(start_pos: Any, batch_size: int) -> np.ndarray:
    """
    As ``host_timesteps``, for the roots of sequences of the replay buffer, which may come with the timestep of each
    sequence's first root alone.
    """
    if np.ndim(start_pos) == 1 and len(start_pos) and 1 < len(start_pos) < batch_size:
        per_sequence, rest = divmod(batch_size, len(start_pos))
        if not rest:
            return (host_timesteps(start_pos, len(start_pos))[:, None] + np.arange(per_sequence)).reshape(-1)
    return host_timesteps(start_pos, batch_size)


def history_positions(timesteps: Sequence[int], num_observations_tokens: int) -> np.ndarray:
    """Positions of successive observations, at twice their timesteps, and of the actions between them."""
    blocks = [[2 * step - 1, *range(2 * step, 2 * step + num_observations_tokens)] for step in timesteps]
    return np.asarray(blocks).reshape(-1)[1:]


class SearchPositions:
    """Rotary positions of the tokens that a search appends. Mode 'aligned': root + 1, + 2, ..., as in training;
    'release': from the depth that the search reports. UniZero's counts it from 1; Sampled UniZero's reports the
    expanded node's simulation instead. In reanalysis the release gives both tokens one position.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode

    def of_expansion(
            self, timesteps: np.ndarray, parent_depths: np.ndarray, search_depth: Sequence[int], reanalyze: bool,
            num_observations_tokens: int
    ) -> np.ndarray:
        """Positions of each new node's action and latent state, [B, 1 + num_observations_tokens], by the root's
        timestep, the expanded node's depth, and the depth that the search reports, if it does.
        """
        if self._mode == 'aligned':
            action = 2 * (timesteps + parent_depths) + 1
            latent = action + 1
        else:
            reported = np.asarray(search_depth, dtype=np.int64) if len(search_depth) else parent_depths + 1
            action = 2 * (timesteps + reported) + (3 if reanalyze else 1)
            latent = action if reanalyze else action + 1
        return np.column_stack([action, latent[:, None] + np.arange(num_observations_tokens)])

    def of_encoded(self, timesteps: Sequence[int], lossless: bool) -> Sequence[int]:
        """Timesteps of an episode's observations, or only the last one's, for encoding them again."""
        if lossless or self._mode == 'aligned':
            return timesteps
        # Where the release starts over, it takes the last observation for the current one.
        return [step + 1 for step in timesteps]

    def of_reset_latent(self, timesteps: np.ndarray, depths: np.ndarray) -> np.ndarray:
        """Positions, [B], of nodes' latent states from which contexts start over."""
        return 2 * (timesteps + depths) if self._mode == 'aligned' else 2 * timesteps
