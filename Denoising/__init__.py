"""Denoising with DGUNet."""
