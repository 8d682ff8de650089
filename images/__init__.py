"""Images as dataloaders.py gives them: read, kept in memory, handed out in augmented batches."""
