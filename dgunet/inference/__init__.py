"""Running a network: the Restorer, optimisation, tiles and memory, local statistics."""
