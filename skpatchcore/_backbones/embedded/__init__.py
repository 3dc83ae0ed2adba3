"""A small backbone of the project's own, trained on procedural pictures alone."""
