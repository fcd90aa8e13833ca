"""The training loop: trainer, configuration, schedule, losses, state, devices, log, signals."""
