"""The training loop with its configuration, schedule, losses, devices, log and signals."""
