"""LoRA, LyCORIS and hypernetworks: files to tensors, tensors to changed weights."""

from gpuworker.engine.models.networks.files import LoadedNetwork, load_network
from gpuworker.engine.models.networks.merge import ActiveNetwork, NetworkMerger

__all__ = ["ActiveNetwork", "LoadedNetwork", "NetworkMerger", "load_network"]
