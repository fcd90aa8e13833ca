"""Deraining with DGUNet."""
