"""Image files: reading and writing them, and photographs with their metadata."""
