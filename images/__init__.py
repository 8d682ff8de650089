"""Images as dataloaders.py gives them: kept in memory or streamed from disk, handed out in augmented batches."""
