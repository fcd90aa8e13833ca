"""Deblurring with DGUNet."""
