"""Tasks: the registry, and how a name becomes a task for a model."""
