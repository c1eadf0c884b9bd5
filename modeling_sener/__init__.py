"""SeNER: typed, nested entities in texts of any length. This folder is the Hub repository."""

from .configuration_sener import SenerConfig
from .modeling_sener import SenerModel, SenerOutput
from .pipeline_sener import SenerPipeline
from .processing_sener import SenerProcessor


__all__ = ["SenerConfig", "SenerModel", "SenerOutput", "SenerPipeline", "SenerProcessor"]
