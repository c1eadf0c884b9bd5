"""
SeNER: typed, nested entities in texts of any length. This folder is the Hub repository.

Importing it registers the model with transformers: `AutoModel`, `AutoProcessor` and `pipeline("entity-extraction")`
then load checkpoints that have no copy of the code.
"""

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_sener import SenerConfig
from .modeling_sener import SenerModel, SenerOutput
from .pipeline_sener import SenerPipeline
from .processing_sener import SenerProcessor


__all__ = ["SenerConfig", "SenerModel", "SenerOutput", "SenerPipeline", "SenerProcessor"]

AutoConfig.register(SenerConfig.model_type, SenerConfig, exist_ok=True)
AutoModel.register(SenerConfig, SenerModel, exist_ok=True)
AutoProcessor.register(SenerConfig, SenerProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline("entity-extraction", pipeline_class=SenerPipeline, pt_model=AutoModel)
