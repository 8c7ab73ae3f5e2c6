"""Low-rank networks: force regularization, decomposition and fine-tuning."""

from ._finetune import finetune

__all__ = ["finetune"]
