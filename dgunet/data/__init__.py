"""What training sees: sampler, crops of image pairs, augmentation, packed files, degradations."""
