"""Images: files, photographs with their metadata, sizes, 8-bit pixels and tensors, PSNR."""
