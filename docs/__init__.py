"""Documentation pages, and the modules that write their tables and numbers."""
