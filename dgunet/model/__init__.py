"""The network's base class and layers, the registry of tasks, and weights: files and formats."""
