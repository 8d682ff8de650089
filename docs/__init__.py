"""Pages that README points to, and the modules that make their figure and their tables."""
