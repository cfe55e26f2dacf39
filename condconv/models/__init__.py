"""The papers' networks, their weights, saving and loading. Importing this loads timm, and tells it the new names."""

from condconv.models import timm_names as _timm_names  # noqa: F401  (registers the networks with timm)
from condconv.models.build import Origin, initialise_experts, origin_of
from condconv.models.loading import load_weights, read_safetensors
from condconv.models.publishing import push_to_hub
from condconv.models.saving import save_pretrained
from condconv.models.ssd import SSD, SSDOutput, make_anchors
from condconv.models.timm_weights import from_timm, to_timm_state_dict
from condconv.models.trained_on import noted_images
from condconv.models.zoo import create_model, list_models, static_twin, upcycle

__all__ = [
    "SSD",
    "Origin",
    "SSDOutput",
    "create_model",
    "from_timm",
    "initialise_experts",
    "list_models",
    "load_weights",
    "make_anchors",
    "noted_images",
    "origin_of",
    "push_to_hub",
    "read_safetensors",
    "save_pretrained",
    "static_twin",
    "to_timm_state_dict",
    "upcycle",
]
