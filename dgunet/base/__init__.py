"""What every room uses and what knows nothing of images: errors, files, folders, threads."""
