"""Compressive sensing with DGUNet."""
