"""The nodes of a running search, and where their contexts are. Everything here is on the host and needs no tensors."""
