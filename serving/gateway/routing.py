"""Which version of the model answers a request."""

from serving.client import ModelChoice
from serving.gateway.settings import Settings


def choose_model(settings: Settings) -> ModelChoice:
    """What the model server is asked for."""
    return ModelChoice(settings.model_name, label=settings.model_label)
