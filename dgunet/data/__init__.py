"""What training sees: the sampler, crops of image pairs, packed files, degradations."""
