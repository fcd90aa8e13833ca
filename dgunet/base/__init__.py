"""What every room uses and what knows nothing of images: errors, files, limits, memory, threads."""
