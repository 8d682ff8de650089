"""Loaders of images for dataloaders.py: sets in memory or streamed from disk, and augmented batches."""
