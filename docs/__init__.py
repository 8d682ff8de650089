"""Pages that README points to, and the module that makes their tables."""
