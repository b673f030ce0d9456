"""The three image references; tags are set in one place for every pipeline and manifest."""

REPOSITORY = "ghcr.io/hanflow"
TAG = "0.1.0"

CPU = f"{REPOSITORY}/hanflow-cpu:{TAG}"
"""Every KFP step."""
GPU = f"{REPOSITORY}/hanflow-gpu:{TAG}"
"""PyTorchJob workers."""
TPU = f"{REPOSITORY}/hanflow-tpu:{TAG}"
"""JobSet workers."""
